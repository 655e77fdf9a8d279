// y = max(x, 0); a NaN stays NaN.
extern "C" __global__ void forward(const real *x, real *y, int n) {
    int i = global_index();
    if (i < n) y[i] = x[i] <= 0 ? (real)0 : x[i];
}

// The gradient of x, from that of y and y.
extern "C" __global__ void grad_x(const real *grad, const real *y, real *grad_x, int n) {
    int i = global_index();
    if (i < n) grad_x[i] = y[i] <= 0 ? (real)0 : grad[i];
}
