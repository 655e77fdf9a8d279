// The products are cuBLAS's. grad_w[o i] = sum_n parts[n o i].
extern "C" __global__ void sum_parts(const real *parts, real *out, int n_parts, int n) {
    add_parts(parts, out, n_parts, n);
}
