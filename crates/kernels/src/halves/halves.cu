// A thread per number of the result.
extern "C" __global__ void forward(const real *x, real *y, int n_planes, int h, int w, int activates) {
    const int half_h = (h + 1) / 2, half_w = (w + 1) / 2, half_len = half_h * half_w;
    const int i = global_index();
    if (i >= 2 * n_planes * half_len) return;
    const int half = i / half_len / n_planes, plane = i / half_len % n_planes;
    const int row = 2 * (i % half_len / half_w) + half, col = 2 * (i % half_w) + half;
    const real value = row < h && col < w ? x[((long long)plane * h + row) * w + col] : 0;
    y[i] = activates && value < 0 ? 0 : value;
}

extern "C" __global__ void gradient(const real *grad, real *grad_x, int n_planes, int h, int w) {
    const int half_h = (h + 1) / 2, half_w = (w + 1) / 2;
    const int i = global_index();
    if (i >= n_planes * h * w) return;
    const int plane = i / (h * w), row = i % (h * w) / w, col = i % w, half = row % 2;
    const long long at = (long long)(half * n_planes + plane) * half_h + row / 2;
    grad_x[i] = col % 2 == half ? grad[at * half_w + col / 2] : 0;
}
