// Direct convolution, a thread per number of the result: stems and the auxiliary head are small beside the cells.

extern "C" __global__ void forward(const real *x, const real *w, real *y, int n, int n_in, int n_out, Window window) {
    const int out_len = window.out_h * window.out_w;
    const int i = global_index();
    if (i >= n * n_out * out_len) return;
    const int row = i % out_len / window.out_w, col = i % window.out_w;
    const int out = i / out_len % n_out, image = i / out_len / n_out;
    real sum = 0;
    for (int in = 0; in < n_in; in++) {
        const real *plane = x + (long long)(image * n_in + in) * window.h * window.w;
        const real *taps = w + (out * n_in + in) * window.n_u * window.n_v;
        for (int u = 0; u < window.n_u; u++) {
            const int r = row * window.stride + u * window.dilation - window.padding;
            if (r < 0 || r >= window.h) continue;
            for (int v = 0; v < window.n_v; v++) {
                const int s = col * window.stride + v * window.dilation - window.padding;
                if (s >= 0 && s < window.w) sum += taps[u * window.n_v + v] * plane[r * window.w + s];
            }
        }
    }
    y[i] = sum;
}

extern "C" __global__ void grad_x(const real *grad, const real *w, real *grad_x, int n, int n_in, int n_out,
                                  Window window) {
    const int in_len = window.h * window.w;
    const int i = global_index();
    if (i >= n * n_in * in_len) return;
    const int row = i % in_len / window.w, col = i % window.w;
    const int in = i / in_len % n_in, image = i / in_len / n_in;
    real sum = 0;
    for (int u = 0; u < window.n_u; u++) {
        const int r = row + window.padding - u * window.dilation;
        if (r < 0 || r % window.stride != 0 || r / window.stride >= window.out_h) continue;
        for (int v = 0; v < window.n_v; v++) {
            const int s = col + window.padding - v * window.dilation;
            if (s < 0 || s % window.stride != 0 || s / window.stride >= window.out_w) continue;
            const int pixel = r / window.stride * window.out_w + s / window.stride;
            for (int out = 0; out < n_out; out++) {
                const real tap = w[((out * n_in + in) * window.n_u + u) * window.n_v + v];
                sum += tap * grad[(long long)(image * n_out + out) * window.out_h * window.out_w + pixel];
            }
        }
    }
    grad_x[i] = sum;
}

// A block per part of the images and weight: parts[part o i u v], as in the depthwise convolution.
extern "C" __global__ void grad_w_parts(const real *grad, const real *x, double *parts, int n, int n_in, int n_out,
                                        int n_parts, Window window) {
    const int n_taps = window.n_u * window.n_v, out_len = window.out_h * window.out_w;
    const int tap = blockIdx.x % n_taps, in = blockIdx.x / n_taps % n_in;
    const int out = blockIdx.x / n_taps / n_in % n_out, part = blockIdx.x / n_taps / n_in / n_out;
    const int u = tap / window.n_v, v = tap % window.n_v;
    const int n_images = part < n ? (n - part - 1) / n_parts + 1 : 0;
    real sum = 0;
    for (int i = threadIdx.x; i < n_images * out_len; i += THREADS) {
        const int pixel = i % out_len, image = part + i / out_len * n_parts;
        const int r = pixel / window.out_w * window.stride + u * window.dilation - window.padding;
        const int s = pixel % window.out_w * window.stride + v * window.dilation - window.padding;
        if (r < 0 || r >= window.h || s < 0 || s >= window.w) continue;
        sum += grad[(long long)(image * n_out + out) * out_len + pixel] *
               x[((long long)(image * n_in + in) * window.h + r) * window.w + s];
    }
    const double total = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

extern "C" __global__ void sum_parts(const double *parts, real *out, int n_parts, int n) {
    add_parts(parts, out, n_parts, n);
}
