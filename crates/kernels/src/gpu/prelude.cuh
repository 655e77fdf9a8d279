// What every kernel is compiled with: it stands before the text of each .cu file. REAL is float or double.
typedef REAL real;

// Threads of a block, in every launch.
#define THREADS 256

// All windows of an operation on a plane: `Window` of the Rust side and its output size.
struct Window {
    int h, w, n_u, n_v, padding, stride, dilation, out_h, out_w;
};

// Tensors of one launch, as many as an operation has, handed over by value: what pointers and numbers mean, each
// operation says.
#define MAX_ENTRIES 64
struct Entry {
    const void *pointers[5];
    int ints[4];
};
struct Entries {
    Entry of[MAX_ENTRIES];
};

// The index of this thread among all of the launch.
__device__ __forceinline__ int global_index() { return blockIdx.x * THREADS + threadIdx.x; }

// The sum over all threads of a block, added in a fixed order; every thread must call it, and gets it.
__device__ double block_sum(double value) {
    __shared__ double values[THREADS];
    __shared__ double sums[16];
    values[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < 16) {
        double sum = 0;
        for (int i = 0; i < THREADS / 16; i++) sum += values[i * 16 + threadIdx.x];
        sums[threadIdx.x] = sum;
    }
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < 16; i++) sum += sums[i];
    // Nobody may write the next values while somebody still reads these.
    __syncthreads();
    return sum;
}

// out[i] = sum_p parts[p i]: the end of every reduction in two steps.
template <typename Part, typename Out>
__device__ void add_parts(const Part *parts, Out *out, int n_parts, int n) {
    int i = global_index();
    if (i >= n) return;
    double sum = 0;
    for (int part = 0; part < n_parts; part++) sum += (double)parts[(long long)part * n + i];
    out[i] = (Out)sum;
}

// Where channel `at` of several groups of `period` channels each lies once the groups are shuffled, and the way back.
__device__ __forceinline__ int shuffled(int at, int n_groups, int period) { return at % period * n_groups + at / period; }
__device__ __forceinline__ int unshuffled(int at, int n_groups, int period) { return at % n_groups * period + at / n_groups; }
