// A thread per number of the result; N_U and N_V are the kernel's size where it is known, else 0.

template <int N_U, int N_V>
__device__ __forceinline__ void convolve(const real *x, const real *w, real *y, int n_planes, int n_channels,
                                         Window window) {
    const int n_u = N_U > 0 ? N_U : window.n_u, n_v = N_V > 0 ? N_V : window.n_v;
    const int out_len = window.out_h * window.out_w;
    const int i = global_index();
    if (i >= n_planes * out_len) return;
    const int plane = i / out_len, row = i % out_len / window.out_w, col = i % window.out_w;
    const real *taps = w + plane % n_channels * n_u * n_v;
    const real *image = x + (long long)plane * window.h * window.w;
    real sum = 0;
#pragma unroll
    for (int u = 0; u < n_u; u++) {
        const int r = row * window.stride + u * window.dilation - window.padding;
        if (r < 0 || r >= window.h) continue;
#pragma unroll
        for (int v = 0; v < n_v; v++) {
            const int s = col * window.stride + v * window.dilation - window.padding;
            if (s >= 0 && s < window.w) sum += taps[u * n_v + v] * image[r * window.w + s];
        }
    }
    y[i] = sum;
}

// Every input pixel gathers from the windows that it lies under.
template <int N_U, int N_V>
__device__ __forceinline__ void gather(const real *grad, const real *w, real *grad_x, int n_planes, int n_channels,
                                       Window window) {
    const int n_u = N_U > 0 ? N_U : window.n_u, n_v = N_V > 0 ? N_V : window.n_v;
    const int in_len = window.h * window.w;
    const int i = global_index();
    if (i >= n_planes * in_len) return;
    const int plane = i / in_len, row = i % in_len / window.w, col = i % window.w;
    const real *taps = w + plane % n_channels * n_u * n_v;
    const real *image = grad + (long long)plane * window.out_h * window.out_w;
    real sum = 0;
#pragma unroll
    for (int u = 0; u < n_u; u++) {
        const int r = row + window.padding - u * window.dilation;
        if (r < 0 || r % window.stride != 0 || r / window.stride >= window.out_h) continue;
#pragma unroll
        for (int v = 0; v < n_v; v++) {
            const int s = col + window.padding - v * window.dilation;
            if (s < 0 || s % window.stride != 0 || s / window.stride >= window.out_w) continue;
            sum += taps[u * n_v + v] * image[r / window.stride * window.out_w + s / window.stride];
        }
    }
    grad_x[i] = sum;
}

extern "C" __global__ void forward_3x3(const real *x, const real *w, real *y, int n_planes, int n_channels,
                                       Window window) {
    convolve<3, 3>(x, w, y, n_planes, n_channels, window);
}

extern "C" __global__ void forward_5x5(const real *x, const real *w, real *y, int n_planes, int n_channels,
                                       Window window) {
    convolve<5, 5>(x, w, y, n_planes, n_channels, window);
}

extern "C" __global__ void forward(const real *x, const real *w, real *y, int n_planes, int n_channels,
                                   Window window) {
    convolve<0, 0>(x, w, y, n_planes, n_channels, window);
}

extern "C" __global__ void grad_x_3x3(const real *grad, const real *w, real *grad_x, int n_planes, int n_channels,
                                      Window window) {
    gather<3, 3>(grad, w, grad_x, n_planes, n_channels, window);
}

extern "C" __global__ void grad_x_5x5(const real *grad, const real *w, real *grad_x, int n_planes, int n_channels,
                                      Window window) {
    gather<5, 5>(grad, w, grad_x, n_planes, n_channels, window);
}

extern "C" __global__ void grad_x(const real *grad, const real *w, real *grad_x, int n_planes, int n_channels,
                                  Window window) {
    gather<0, 0>(grad, w, grad_x, n_planes, n_channels, window);
}

// A block per part of the images, channel and tap: parts[part c tap] = the sum over the part's images, n = part,
// part + n_parts, …, of the gradient times what lay under the tap.
extern "C" __global__ void grad_w_parts(const real *grad, const real *x, double *parts, int n, int n_channels,
                                        int n_parts, Window window) {
    const int n_taps = window.n_u * window.n_v, out_len = window.out_h * window.out_w;
    const int tap = blockIdx.x % n_taps, channel = blockIdx.x / n_taps % n_channels;
    const int part = blockIdx.x / n_taps / n_channels;
    const int u = tap / window.n_v, v = tap % window.n_v;
    const int n_images = part < n ? (n - part - 1) / n_parts + 1 : 0;
    real sum = 0;
    for (int i = threadIdx.x; i < n_images * out_len; i += THREADS) {
        const int pixel = i % out_len;
        const long long plane = (long long)(part + i / out_len * n_parts) * n_channels + channel;
        const int r = pixel / window.out_w * window.stride + u * window.dilation - window.padding;
        const int s = pixel % window.out_w * window.stride + v * window.dilation - window.padding;
        if (r < 0 || r >= window.h || s < 0 || s >= window.w) continue;
        sum += grad[plane * out_len + pixel] * x[(plane * window.h + r) * window.w + s];
    }
    const double total = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

extern "C" __global__ void sum_parts(const double *parts, real *out, int n_parts, int n) {
    add_parts(parts, out, n_parts, n);
}
