// Entries: ints how many numbers a tensor has, the first block of the launch that is its own, and what an operation
// says. A block has PIECE numbers of one tensor.
#define PIECE (4 * THREADS)

// The tensor that this block works on.
__device__ __forceinline__ const Entry &entry_of_block(const Entries &entries, int n_entries) {
    int low = 0, high = n_entries - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (entries.of[middle].ints[1] <= (int)blockIdx.x) low = middle;
        else high = middle - 1;
    }
    return entries.of[low];
}

#define FOR_EACH_NUMBER(i, entry)                                                                        \
    for (int i = ((int)blockIdx.x - (entry).ints[1]) * PIECE + threadIdx.x,                              \
             end_ = i - (int)threadIdx.x + PIECE < (entry).ints[0] ? i - (int)threadIdx.x + PIECE : (entry).ints[0]; \
         i < end_; i += THREADS)

// Pointers: from; ints[2]: where it goes.
extern "C" __global__ void pack(const __grid_constant__ Entries entries, int n_entries, const real *factor, real *out) {
    const Entry &entry = entry_of_block(entries, n_entries);
    const real *from = (const real *)entry.pointers[0];
    const real by = factor ? *factor : (real)1;
    FOR_EACH_NUMBER(i, entry) out[entry.ints[2] + i] = by * from[i];
}

// Pointers: the tensor. parts[first + block].
extern "C" __global__ void squares_parts(const __grid_constant__ Entries entries, int n_entries, double *parts,
                                         int first) {
    const Entry &entry = entry_of_block(entries, n_entries);
    const real *x = (const real *)entry.pointers[0];
    double sum = 0;
    FOR_EACH_NUMBER(i, entry) sum += (double)x[i] * (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[first + blockIdx.x] = sum;
}

// One block.
extern "C" __global__ void sum(const double *parts, double *out, int n_parts) {
    double value = 0;
    for (int i = threadIdx.x; i < n_parts; i += THREADS) value += parts[i];
    value = block_sum(value);
    if (threadIdx.x == 0) *out = value;
}

// Pointers: weight, buffer, gradient.
extern "C" __global__ void sgd(const __grid_constant__ Entries entries, int n_entries, double momentum,
                               double weight_decay, double learning_rate, double gradient_scale) {
    const Entry &entry = entry_of_block(entries, n_entries);
    real *weight = (real *)entry.pointers[0], *buffer = (real *)entry.pointers[1];
    const real *grad = (const real *)entry.pointers[2];
    FOR_EACH_NUMBER(i, entry) {
        const real decayed = (real)gradient_scale * grad[i] + (real)weight_decay * weight[i];
        buffer[i] = (real)momentum * buffer[i] + decayed;
        weight[i] -= (real)learning_rate * buffer[i];
    }
}

// Pointers: running mean, running variance, table; ints[2]: numbers of a channel.
extern "C" __global__ void follow(const __grid_constant__ Entries entries, int n_entries, double momentum) {
    const Entry &entry = entry_of_block(entries, n_entries);
    real *mean = (real *)entry.pointers[0], *var = (real *)entry.pointers[1];
    const double *table = (const double *)entry.pointers[2];
    const int count = entry.ints[2];
    const double unbias = (double)count / ((count > 2 ? count : 2) - 1);
    FOR_EACH_NUMBER(i, entry) {
        mean[i] = (real)((1 - momentum) * (double)mean[i] + momentum * table[4 * i]);
        var[i] = (real)((1 - momentum) * (double)var[i] + momentum * unbias * table[4 * i + 1]);
    }
}
