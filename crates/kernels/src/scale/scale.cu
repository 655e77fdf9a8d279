// y = weight * x.
extern "C" __global__ void forward(const real *x, const real *weight, real *y, int n) {
    int i = global_index();
    if (i < n) y[i] = *weight * x[i];
}

// parts[block] = the inner product of the stretches of a and b that fall to the block.
extern "C" __global__ void dot_parts(const real *a, const real *b, double *parts, int n) {
    double sum = 0;
    for (int i = global_index(); i < n; i += gridDim.x * THREADS) sum += (double)a[i] * (double)b[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void sum_parts(const double *parts, real *out, int n_parts, int n) {
    add_parts(parts, out, n_parts, n);
}
