// Where in the plane the value of an output pixel comes from: the first maximum, or the last NaN.
__device__ __forceinline__ int winner(const real *plane, int row, int col, Window window) {
    int best = -1;
    for (int u = 0; u < window.n_u; u++) {
        const int r = row * window.stride + u - window.padding;
        if (r < 0 || r >= window.h) continue;
        for (int v = 0; v < window.n_v; v++) {
            const int s = col * window.stride + v - window.padding;
            if (s < 0 || s >= window.w) continue;
            const int at = r * window.w + s;
            if (best < 0 || plane[at] > plane[best] || plane[at] != plane[at]) best = at;
        }
    }
    return best;
}

extern "C" __global__ void forward(const real *x, real *y, int n_planes, Window window) {
    const int out_len = window.out_h * window.out_w;
    const int i = global_index();
    if (i >= n_planes * out_len) return;
    const real *plane = x + (long long)(i / out_len) * window.h * window.w;
    y[i] = plane[winner(plane, i % out_len / window.out_w, i % window.out_w, window)];
}

// Every input pixel gathers from the windows that it won, without atomics: the order of the sum is fixed.
extern "C" __global__ void grad_x(const real *grad, const real *x, real *grad_x, int n_planes, Window window) {
    const int in_len = window.h * window.w;
    const int i = global_index();
    if (i >= n_planes * in_len) return;
    const int pixel = i % in_len, row = pixel / window.w, col = pixel % window.w;
    const real *plane = x + (long long)(i / in_len) * in_len;
    const real *grad_plane = grad + (long long)(i / in_len) * window.out_h * window.out_w;
    real sum = 0;
    for (int u = window.n_u - 1; u >= 0; u--) {
        const int r = row + window.padding - u;
        if (r < 0 || r % window.stride != 0 || r / window.stride >= window.out_h) continue;
        for (int v = window.n_v - 1; v >= 0; v--) {
            const int s = col + window.padding - v;
            if (s < 0 || s % window.stride != 0 || s / window.stride >= window.out_w) continue;
            const int out_row = r / window.stride, out_col = s / window.stride;
            if (winner(plane, out_row, out_col, window) == pixel) sum += grad_plane[out_row * window.out_w + out_col];
        }
    }
    grad_x[i] = sum;
}
