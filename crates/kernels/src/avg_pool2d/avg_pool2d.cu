// How many taps of the window at `out` lie in an axis of `size` pixels.
__device__ __forceinline__ int n_inside(int out, int n_taps, int size, Window window) {
    const int first = out * window.stride - window.padding;
    const int end = first + n_taps < size ? first + n_taps : size;
    return end - (first > 0 ? first : 0);
}

extern "C" __global__ void forward(const real *x, real *y, int n_planes, Window window) {
    const int out_len = window.out_h * window.out_w;
    const int i = global_index();
    if (i >= n_planes * out_len) return;
    const int row = i % out_len / window.out_w, col = i % window.out_w;
    const real *plane = x + (long long)(i / out_len) * window.h * window.w;
    real sum = 0;
    for (int u = 0; u < window.n_u; u++) {
        const int r = row * window.stride + u - window.padding;
        if (r < 0 || r >= window.h) continue;
        for (int v = 0; v < window.n_v; v++) {
            const int s = col * window.stride + v - window.padding;
            if (s >= 0 && s < window.w) sum += plane[r * window.w + s];
        }
    }
    y[i] = sum / (n_inside(row, window.n_u, window.h, window) * n_inside(col, window.n_v, window.w, window));
}

// Every input pixel gathers its share of the windows that it lies under.
extern "C" __global__ void grad_x(const real *grad, real *grad_x, int n_planes, Window window) {
    const int in_len = window.h * window.w;
    const int i = global_index();
    if (i >= n_planes * in_len) return;
    const int row = i % in_len / window.w, col = i % window.w;
    const real *grad_plane = grad + (long long)(i / in_len) * window.out_h * window.out_w;
    real sum = 0;
    for (int u = window.n_u - 1; u >= 0; u--) {
        const int r = row + window.padding - u;
        if (r < 0 || r % window.stride != 0 || r / window.stride >= window.out_h) continue;
        for (int v = window.n_v - 1; v >= 0; v--) {
            const int s = col + window.padding - v;
            if (s < 0 || s % window.stride != 0 || s / window.stride >= window.out_w) continue;
            const int out_row = r / window.stride, out_col = s / window.stride;
            const int count = n_inside(out_row, window.n_u, window.h, window) *
                              n_inside(out_col, window.n_v, window.w, window);
            sum += grad_plane[out_row * window.out_w + out_col] / count;
        }
    }
    grad_x[i] = sum;
}
