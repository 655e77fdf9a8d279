// Entries: pointers x, table of the normalisation, weight, mask, gate (or null); ints first channel, the channel behind
// the last, and, where the channels of x are shuffled, the number of the first of them before that, else -1; and the
// place of the weight. `len` is a channel's numbers, images times pixels.

// Numbers of a channel that fall to one block: 4 to each thread.
#define PER_THREAD 4
#define PIECE (PER_THREAD * THREADS)

__device__ __forceinline__ int source_of(const Entry &term, int at, int n_groups, int period) {
    const int own = at - term.ints[0];
    return term.ints[2] < 0 ? own : shuffled(own + term.ints[2], n_groups, period);
}

// A block per stretch of a channel of the sum.
extern "C" __global__ void forward(const __grid_constant__ Entries terms, real *y, int n_terms, int n_groups,
                                   int period, int is_shuffled, int len, int plane_len, int n_pieces, int activates) {
    const int channel = blockIdx.x / n_pieces, first = blockIdx.x % n_pieces * PIECE + threadIdx.x;
    const int at = is_shuffled ? unshuffled(channel, n_groups, period) : channel;
    real sums[PER_THREAD];
#pragma unroll
    for (int k = 0; k < PER_THREAD; k++) sums[k] = 0;
    for (int t = 0; t < n_terms; t++) {
        const Entry &term = terms.of[t];
        if (at < term.ints[0] || at >= term.ints[1]) continue;
        const int source = source_of(term, at, n_groups, period);
        const real *x = (const real *)term.pointers[0] + (long long)source * len;
        const double *row = (const double *)term.pointers[1];
        const real *weight = (const real *)term.pointers[2], *mask = (const real *)term.pointers[3];
        const real *gate = (const real *)term.pointers[4];
        const double share = weight ? (double)*weight : 1.0;
        const real mean = row ? (real)row[4 * source] : (real)0;
        const real factor = (real)(row ? share * row[4 * source + 2] : share);
        // With what rounding took from the mean.
        const real bias = (real)(
            row ? share * (row[4 * source + 3] - row[4 * source + 2] * (row[4 * source] - (double)mean)) : 0.0);
#pragma unroll
        for (int k = 0; k < PER_THREAD; k++) {
            const int i = first + k * THREADS;
            if (i >= len || (gate && !(gate[(long long)source * len + i] > 0))) continue;
            const real value = factor * (x[i] - mean) + bias;
            sums[k] += mask ? mask[i / plane_len] * value : value;
        }
    }
#pragma unroll
    for (int k = 0; k < PER_THREAD; k++) {
        const int i = first + k * THREADS;
        if (i < len) y[(long long)channel * len + i] = activates && sums[k] < 0 ? 0 : sums[k];
    }
}

// A block per stretch, term and channel of a term: parts[part t k 2].
extern "C" __global__ void dots_parts(const __grid_constant__ Entries terms, const real *grad, double *parts,
                                      int n_terms, int n_rows, int n_groups, int period, int is_shuffled, int len,
                                      int plane_len, int n_parts) {
    const int own = blockIdx.x % n_rows, t = blockIdx.x / n_rows % n_terms, part = blockIdx.x / n_rows / n_terms;
    const Entry &term = terms.of[t];
    const int at = term.ints[0] + own;
    double sum = 0, products = 0;
    if (at < term.ints[1]) {
        const int source = source_of(term, at, n_groups, period);
        const int place = is_shuffled ? shuffled(at, n_groups, period) : at;
        const real *x = (const real *)term.pointers[0] + (long long)source * len;
        const real *mask = (const real *)term.pointers[3], *gate = (const real *)term.pointers[4];
        const real *own_grad = grad + (long long)place * len;
        const int stretch = (len + n_parts - 1) / n_parts, first = part * stretch;
        const int end = first + stretch < len ? first + stretch : len;
        for (int i = first + threadIdx.x; i < end; i += THREADS) {
            if (gate && !(gate[(long long)source * len + i] > 0)) continue;
            const double value = mask ? (double)(mask[i / plane_len] * own_grad[i]) : (double)own_grad[i];
            sum += value;
            products += value * (double)x[i];
        }
    }
    sum = block_sum(sum);
    products = block_sum(products);
    if (threadIdx.x == 0) {
        parts[2 * (long long)blockIdx.x] = sum;
        parts[2 * (long long)blockIdx.x + 1] = products;
    }
}

extern "C" __global__ void sum_parts(const double *parts, double *out, int n_parts, int n) {
    add_parts(parts, out, n_parts, n);
}

// A thread per place of a weight.
extern "C" __global__ void weight_gradients(const __grid_constant__ Entries terms, const double *dots, real *out,
                                            int n_terms, int n_rows, int n) {
    const int place = global_index();
    if (place >= n) return;
    double sum = 0;
    for (int t = 0; t < n_terms; t++) {
        const Entry &term = terms.of[t];
        if (term.ints[3] != place) continue;
        const double *table = (const double *)term.pointers[1];
        for (int k = 0; k < term.ints[1] - term.ints[0]; k++) {
            const double grad = dots[2 * (t * n_rows + k)], product = dots[2 * (t * n_rows + k) + 1];
            sum += table ? table[4 * k + 2] * (product - table[4 * k] * grad) + table[4 * k + 3] * grad : product;
        }
    }
    out[place] = (real)sum;
}
