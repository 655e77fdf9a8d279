// As much of CUDA C as the kernels use, for the processor.
#pragma once
#include <cmath>
#include <cstddef>
#include <utility>

#define __global__ static
#define __device__ static
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
using std::sqrt;

struct Index {
    int x;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

// Waits until every thread of the block has come here.
void barrier();
#define __syncthreads() barrier()

// One kernel: its name, the number of its arguments, and a call with pointers to them.
struct Kernel {
    const char *name;
    int n_args;
    void (*run)(const void *const *args);
};

template <class F>
struct Call;
template <class... A>
struct Call<void (*)(A...)> {
    static constexpr int n_args = sizeof...(A);
    template <std::size_t... I>
    static void with(void (*f)(A...), const void *const *args, std::index_sequence<I...>) {
        f(*static_cast<const A *>(args[I])...);
    }
};

template <auto f>
void call(const void *const *args) {
    using C = Call<decltype(f)>;
    C::with(f, args, std::make_index_sequence<C::n_args>());
}
