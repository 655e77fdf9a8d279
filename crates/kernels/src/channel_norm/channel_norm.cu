// A table has four doubles for each channel: mean, variance, factor, bias. `len` is a channel's numbers, images times
// pixels.

// Numbers of a channel that fall to one block of the gradient: 4 to each thread.
#define PIECE (4 * THREADS)

__device__ __forceinline__ void write_row(double *row, double mean, double var, const real *weight, const real *bias,
                                          int channel, double eps) {
    row[0] = mean;
    row[1] = var;
    row[2] = (weight ? (double)weight[channel] : 1.0) / sqrt(var + eps);
    row[3] = bias ? (double)bias[channel] : 0.0;
}

// parts[part c 2]: sums of x - shift and its square over a stretch of the channel, where shift is the channel's first
// number: so nothing cancels where the mean is large.
extern "C" __global__ void batch_parts(const real *x, double *parts, int n_channels, int len, int n_parts) {
    const int channel = blockIdx.x % n_channels, part = blockIdx.x / n_channels;
    const real *own = x + (long long)channel * len;
    const double shift = own[0];
    const int stretch = (len + n_parts - 1) / n_parts, first = part * stretch;
    const int end = first + stretch < len ? first + stretch : len;
    double sum = 0, squares = 0;
    for (int i = first + threadIdx.x; i < end; i += THREADS) {
        const double centred = (double)own[i] - shift;
        sum += centred;
        squares += centred * centred;
    }
    sum = block_sum(sum);
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        parts[2 * blockIdx.x] = sum;
        parts[2 * blockIdx.x + 1] = squares;
    }
}

// A thread per channel.
extern "C" __global__ void batch_table(const double *parts, const real *x, const real *weight, const real *bias,
                                       double *table, int n_channels, int len, int n_parts, double eps) {
    const int channel = global_index();
    if (channel >= n_channels) return;
    double sum = 0, squares = 0;
    for (int part = 0; part < n_parts; part++) {
        sum += parts[2 * (part * n_channels + channel)];
        squares += parts[2 * (part * n_channels + channel) + 1];
    }
    const double mean = sum / len, var = squares / len - mean * mean;
    // A NaN stays one.
    write_row(table + 4 * channel, (double)x[(long long)channel * len] + mean, var < 0 ? 0 : var, weight, bias, channel,
              eps);
}

extern "C" __global__ void given_table(const double *moments, const real *weight, const real *bias, double *table,
                                       int n_channels, double eps) {
    const int channel = global_index();
    if (channel >= n_channels) return;
    write_row(table + 4 * channel, moments[channel], moments[n_channels + channel], weight, bias, channel, eps);
}

// Entries: pointers gradient, weight, mask (or null), sums `c 2`. A block per stretch of a channel.
extern "C" __global__ void gradient(const __grid_constant__ Entries groups, const real *x, const double *table,
                                    real *out, int n_channels, int stride, int len, int plane_len, int n_pieces,
                                    double count, double eps) {
    const int all = blockIdx.x / n_pieces, first = blockIdx.x % n_pieces * PIECE;
    const int channel = all % n_channels;
    const Entry &group = groups.of[all / n_channels];
    const real *grad = (const real *)group.pointers[0] + (long long)channel * stride * len;
    const real *weight = (const real *)group.pointers[1], *mask = (const real *)group.pointers[2];
    const double *sums = (const double *)group.pointers[3] + 2 * channel, *row = table + 4 * all;
    const double mean = row[0], inv_std = 1.0 / sqrt(row[1] + eps);
    const double factor = row[2] * (weight ? (double)*weight : 1.0);
    const double mean_grad = sums[0] / count;
    const double mean_product = inv_std * (sums[1] - mean * sums[0]) / count;
    const int end = first + PIECE < len ? first + PIECE : len;
    for (int i = first + threadIdx.x; i < end; i += THREADS) {
        const long long at = (long long)all * len + i;
        const double own = mask ? (double)(mask[i / plane_len] * grad[i]) : (double)grad[i];
        const double normalised = ((double)x[at] - mean) * inv_std;
        out[at] = (real)(factor * (own - mean_grad - normalised * mean_product));
    }
}

// out[0 c] = the gradient of the factor, out[1 c] = that of the shift.
extern "C" __global__ void affine_gradients(const double *sums, const double *table, real *out, int n_channels,
                                            double eps) {
    const int channel = global_index();
    if (channel >= n_channels) return;
    const double sum = sums[2 * channel], product = sums[2 * channel + 1], *row = table + 4 * channel;
    out[channel] = (real)((product - row[0] * sum) / sqrt(row[1] + eps));
    out[n_channels + channel] = (real)sum;
}
