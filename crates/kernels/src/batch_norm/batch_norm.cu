// Statistics are tables of doubles. A block works on one plane or one channel, so that what belongs to the
// channel is computed once by each thread.

// Numbers of a plane that fall to one block: 4 to each thread.
#define PIECE (4 * THREADS)

// parts[part c 2]: sums of x - shift and its square over the images n = part, part + n_parts, …, where shift is
// the channel's first number: so nothing cancels where the mean is large.
extern "C" __global__ void statistics_parts(const real *x, double *parts, int n, int n_channels, int len,
                                            int n_parts) {
    const int channel = blockIdx.x % n_channels, part = blockIdx.x / n_channels;
    const int n_images = part < n ? (n - part - 1) / n_parts + 1 : 0;
    const double shift = x[(long long)channel * len];
    double sum = 0, squares = 0;
    for (int i = threadIdx.x; i < n_images * len; i += THREADS) {
        const long long plane = (long long)(part + i / len * n_parts) * n_channels + channel;
        const double centred = (double)x[plane * len + i % len] - shift;
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

// table[0 c] = mean, table[1 c] = biased variance.
extern "C" __global__ void statistics(const double *parts, const real *x, double *table, int n_channels, int len,
                                      int n_parts, double count) {
    const int channel = global_index();
    if (channel >= n_channels) return;
    double sum = 0, squares = 0;
    for (int part = 0; part < n_parts; part++) {
        sum += parts[2 * (part * n_channels + channel)];
        squares += parts[2 * (part * n_channels + channel) + 1];
    }
    const double mean = sum / count, var = squares / count - mean * mean;
    table[channel] = (double)x[(long long)channel * len] + mean;
    // A NaN stays one.
    table[n_channels + channel] = var < 0 ? 0 : var;
}

// Statistic is double where mean and variance are those of the batch, real where they are given.
template <typename Statistic>
__device__ void normalize(const real *x, const Statistic *mean, const Statistic *var, const real *weight,
                          const real *bias, real *y, int n_channels, int len, int n_pieces, double eps,
                          int is_affine) {
    const int plane = blockIdx.x / n_pieces, first = blockIdx.x % n_pieces * PIECE, channel = plane % n_channels;
    const double factor = (is_affine ? (double)weight[channel] : 1.0) / sqrt((double)var[channel] + eps);
    const double shift = is_affine ? (double)bias[channel] : 0.0, centre = (double)mean[channel];
    const int end = first + PIECE < len ? first + PIECE : len;
    for (int i = first + threadIdx.x; i < end; i += THREADS) {
        const long long at = (long long)plane * len + i;
        y[at] = (real)(((double)x[at] - centre) * factor + shift);
    }
}

extern "C" __global__ void forward_train(const real *x, const double *mean, const double *var, const real *weight,
                                         const real *bias, real *y, int n_channels, int len, int n_pieces,
                                         double eps, int is_affine) {
    normalize(x, mean, var, weight, bias, y, n_channels, len, n_pieces, eps, is_affine);
}

extern "C" __global__ void forward_eval(const real *x, const real *mean, const real *var, const real *weight,
                                        const real *bias, real *y, int n_channels, int len, int n_pieces,
                                        double eps, int is_affine) {
    normalize(x, mean, var, weight, bias, y, n_channels, len, n_pieces, eps, is_affine);
}

// parts[part c 2]: sums of the gradient, and of the gradient times the normalised x.
template <typename Statistic>
__device__ void add_gradients(const real *grad, const real *x, const Statistic *mean, const Statistic *var,
                              double *parts, int n, int n_channels, int len, int n_parts, double eps) {
    const int channel = blockIdx.x % n_channels, part = blockIdx.x / n_channels;
    const int n_images = part < n ? (n - part - 1) / n_parts + 1 : 0;
    const double inv_std = 1.0 / sqrt((double)var[channel] + eps), centre = (double)mean[channel];
    double sum = 0, products = 0;
    for (int i = threadIdx.x; i < n_images * len; i += THREADS) {
        const long long plane = (long long)(part + i / len * n_parts) * n_channels + channel;
        const long long at = plane * len + i % len;
        sum += (double)grad[at];
        products += (double)grad[at] * (((double)x[at] - centre) * inv_std);
    }
    sum = block_sum(sum);
    products = block_sum(products);
    if (threadIdx.x == 0) {
        parts[2 * blockIdx.x] = sum;
        parts[2 * blockIdx.x + 1] = products;
    }
}

extern "C" __global__ void grad_sums_parts_train(const real *grad, const real *x, const double *mean,
                                                 const double *var, double *parts, int n, int n_channels, int len,
                                                 int n_parts, double eps) {
    add_gradients(grad, x, mean, var, parts, n, n_channels, len, n_parts, eps);
}

extern "C" __global__ void grad_sums_parts_eval(const real *grad, const real *x, const real *mean, const real *var,
                                                double *parts, int n, int n_channels, int len, int n_parts,
                                                double eps) {
    add_gradients(grad, x, mean, var, parts, n, n_channels, len, n_parts, eps);
}

extern "C" __global__ void sum_parts(const double *parts, double *out, int n_parts, int n) {
    add_parts(parts, out, n_parts, n);
}

// weight * inv_std * (grad - (mean(grad) + normalised x * mean(grad * normalised x))); `sums` is the table c 2.
// Nothing goes through statistics that are given.
template <typename Statistic>
__device__ void send_back(const real *grad, const real *x, const double *sums, const Statistic *mean,
                          const Statistic *var, const real *weight, real *grad_x, int n_channels, int len,
                          int n_pieces, double count, double eps, int is_affine, bool is_train) {
    const int plane = blockIdx.x / n_pieces, first = blockIdx.x % n_pieces * PIECE, channel = plane % n_channels;
    const double inv_std = 1.0 / sqrt((double)var[channel] + eps), centre = (double)mean[channel];
    const double factor = (is_affine ? (double)weight[channel] : 1.0) * inv_std;
    const double mean_grad = is_train ? sums[2 * channel] / count : 0.0;
    const double mean_product = is_train ? sums[2 * channel + 1] / count : 0.0;
    const int end = first + PIECE < len ? first + PIECE : len;
    for (int i = first + threadIdx.x; i < end; i += THREADS) {
        const long long at = (long long)plane * len + i;
        const double normalised = ((double)x[at] - centre) * inv_std;
        grad_x[at] = (real)(factor * ((double)grad[at] - mean_grad - normalised * mean_product));
    }
}

extern "C" __global__ void grad_x_train(const real *grad, const real *x, const double *sums, const double *mean,
                                        const double *var, const real *weight, real *grad_x, int n_channels,
                                        int len, int n_pieces, double count, double eps, int is_affine) {
    send_back(grad, x, sums, mean, var, weight, grad_x, n_channels, len, n_pieces, count, eps, is_affine, true);
}

extern "C" __global__ void grad_x_eval(const real *grad, const real *x, const double *sums, const real *mean,
                                       const real *var, const real *weight, real *grad_x, int n_channels, int len,
                                       int n_pieces, double count, double eps, int is_affine) {
    send_back(grad, x, sums, mean, var, weight, grad_x, n_channels, len, n_pieces, count, eps, is_affine, false);
}
