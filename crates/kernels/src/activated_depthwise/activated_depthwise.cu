// Channels are those of all groups, `n_groups * n_channels`; where all groups read one input, it has `n_channels`. N_U and
// N_V are the kernel's size where it is known, else 0.

// What a channel's normalisation makes of a number before the ReLU; nothing where there is no table.
struct Reading {
    real mean, factor, bias;
};

__device__ __forceinline__ Reading reading_of(const double *table, int channel) {
    Reading reading = {0, 1, 0};
    if (table) {
        reading.mean = (real)table[4 * channel];
        reading.factor = (real)table[4 * channel + 2];
        // With what rounding took from the mean.
        reading.bias = (real)(table[4 * channel + 3] - table[4 * channel + 2] * (table[4 * channel] - (double)reading.mean));
    }
    return reading;
}

__device__ __forceinline__ real read(const Reading &reading, real x) {
    return reading.factor * (x - reading.mean) + reading.bias;
}

template <int N_U, int N_V>
__device__ __forceinline__ void convolve(const real *x, const double *table, const real *w, real *y, int n_groups,
                                         int n_channels, int n, int is_shared, Window window) {
    const int n_u = N_U > 0 ? N_U : window.n_u, n_v = N_V > 0 ? N_V : window.n_v;
    const int out_len = window.out_h * window.out_w;
    const int i = global_index();
    if (i >= n_groups * n_channels * n * out_len) return;
    const int plane = i / out_len, row = i % out_len / window.out_w, col = i % window.out_w;
    const int channel = plane / n, source = is_shared ? channel % n_channels : channel;
    const Reading reading = reading_of(table, source);
    const real *taps = w + channel * n_u * n_v;
    const real *image = x + (long long)(source * n + plane % n) * window.h * window.w;
    real sum = 0;
#pragma unroll
    for (int u = 0; u < n_u; u++) {
        const int r = row * window.stride + u * window.dilation - window.padding;
        if (r < 0 || r >= window.h) continue;
#pragma unroll
        for (int v = 0; v < n_v; v++) {
            const int s = col * window.stride + v * window.dilation - window.padding;
            if (s < 0 || s >= window.w) continue;
            const real z = read(reading, image[r * window.w + s]);
            if (z > 0) sum += taps[u * n_v + v] * z;
        }
    }
    y[i] = sum;
}

// Every input pixel gathers from the windows that it lies under, of all groups that read it.
template <int N_U, int N_V>
__device__ __forceinline__ void gather(const real *grad, const real *x, const double *table, const real *w,
                                       real *grad_z, int n_groups, int n_channels, int n, int is_shared,
                                       Window window) {
    const int n_u = N_U > 0 ? N_U : window.n_u, n_v = N_V > 0 ? N_V : window.n_v;
    const int in_len = window.h * window.w, out_len = window.out_h * window.out_w;
    const int i = global_index();
    if (i >= (is_shared ? 1 : n_groups) * n_channels * n * in_len) return;
    const int plane = i / in_len, row = i % in_len / window.w, col = i % window.w;
    const int source = plane / n;
    real sum = 0;
    if (read(reading_of(table, source), x[i]) > 0) {
        for (int group = 0; group < (is_shared ? n_groups : 1); group++) {
            const int channel = group * n_channels + source;
            const real *taps = w + channel * n_u * n_v;
            const real *image = grad + (long long)(channel * n + plane % n) * out_len;
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
        }
    }
    grad_z[i] = sum;
}

extern "C" __global__ void forward_3x3(const real *x, const double *table, const real *w, real *y, int n_groups,
                                       int n_channels, int n, int is_shared, Window window) {
    convolve<3, 3>(x, table, w, y, n_groups, n_channels, n, is_shared, window);
}

extern "C" __global__ void forward_5x5(const real *x, const double *table, const real *w, real *y, int n_groups,
                                       int n_channels, int n, int is_shared, Window window) {
    convolve<5, 5>(x, table, w, y, n_groups, n_channels, n, is_shared, window);
}

extern "C" __global__ void forward(const real *x, const double *table, const real *w, real *y, int n_groups,
                                   int n_channels, int n, int is_shared, Window window) {
    convolve<0, 0>(x, table, w, y, n_groups, n_channels, n, is_shared, window);
}

extern "C" __global__ void grad_z_3x3(const real *grad, const real *x, const double *table, const real *w,
                                      real *grad_z, int n_groups, int n_channels, int n, int is_shared,
                                      Window window) {
    gather<3, 3>(grad, x, table, w, grad_z, n_groups, n_channels, n, is_shared, window);
}

extern "C" __global__ void grad_z_5x5(const real *grad, const real *x, const double *table, const real *w,
                                      real *grad_z, int n_groups, int n_channels, int n, int is_shared,
                                      Window window) {
    gather<5, 5>(grad, x, table, w, grad_z, n_groups, n_channels, n, is_shared, window);
}

extern "C" __global__ void grad_z(const real *grad, const real *x, const double *table, const real *w, real *grad_z,
                                  int n_groups, int n_channels, int n, int is_shared, Window window) {
    gather<0, 0>(grad, x, table, w, grad_z, n_groups, n_channels, n, is_shared, window);
}

// A block per part of the images, channel and tap: parts[part c tap] = the sum over the part's images, n = part,
// part + n_parts, …, of the gradient times what lay under the tap.
extern "C" __global__ void grad_w_parts(const real *grad, const real *x, const double *table, double *parts,
                                        int n_groups, int n_channels, int n, int is_shared, int n_parts,
                                        Window window) {
    const int n_taps = window.n_u * window.n_v, out_len = window.out_h * window.out_w;
    const int tap = blockIdx.x % n_taps, channel = blockIdx.x / n_taps % (n_groups * n_channels);
    const int part = blockIdx.x / n_taps / (n_groups * n_channels);
    const int source = is_shared ? channel % n_channels : channel;
    const Reading reading = reading_of(table, source);
    const int u = tap / window.n_v, v = tap % window.n_v;
    const int n_images = part < n ? (n - part - 1) / n_parts + 1 : 0;
    real sum = 0;
    for (int i = threadIdx.x; i < n_images * out_len; i += THREADS) {
        const int pixel = i % out_len, image = part + i / out_len * n_parts;
        const int r = pixel / window.out_w * window.stride + u * window.dilation - window.padding;
        const int s = pixel % window.out_w * window.stride + v * window.dilation - window.padding;
        if (r < 0 || r >= window.h || s < 0 || s >= window.w) continue;
        const real z = read(reading, x[((long long)(source * n + image) * window.h + r) * window.w + s]);
        if (z > 0) sum += grad[(long long)(channel * n + image) * out_len + pixel] * z;
    }
    const double total = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

extern "C" __global__ void sum_parts(const double *parts, real *out, int n_parts, int n) {
    add_parts(parts, out, n_parts, n);
}
