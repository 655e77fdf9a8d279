// y = acc + weight * x.
extern "C" __global__ void forward(const real *acc, const real *x, const real *weight, real *y, int n) {
    int i = global_index();
    if (i < n) y[i] = acc[i] + *weight * x[i];
}
