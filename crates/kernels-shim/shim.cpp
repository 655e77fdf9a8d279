// Runs kernels block by block, every thread of a block as a fiber.
//
// A fiber takes threads that have not started and runs each to its end. When its thread waits at a barrier, the
// fiber rests and another one goes on with the next thread; when every thread has come to the barrier or ended, the
// resting fibers go on. So a kernel without barriers runs on one fiber. Threads start in an order that is another
// in every launch, and go on behind a barrier in the reverse order of the one before: an index that is right by
// luck, or a missing barrier, has few places to hide.
#include "shim.h"

#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <ucontext.h>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr int N_THREADS = 256;
constexpr std::size_t STACK_BYTES = 64 << 10;

// Contexts start through ucontext; from then on they change through setjmp, which asks nothing of the system.
struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    ucontext_t start;
    jmp_buf resting;
    bool is_started = false;
    Index thread{};
};

jmp_buf scheduler;
ucontext_t scheduler_start;
std::vector<std::unique_ptr<Fiber>> fibers;
Fiber *running;
int order[N_THREADS];
int n_started;
bool is_waiting;  // whether the fiber that ran last rests at a barrier, or has nothing left to do
const Kernel *kernel;
const void *const *arguments;

void fiber_main() {
    for (;;) {
        while (n_started < N_THREADS) {
            threadIdx.x = order[n_started++];
            running->thread = threadIdx;
            kernel->run(arguments);
        }
        is_waiting = false;
        if (!_setjmp(running->resting)) _longjmp(scheduler, 1);
    }
}

// Lets a fiber run until it rests; whether it rests at a barrier.
bool resume(Fiber &fiber) {
    running = &fiber;
    threadIdx = fiber.thread;
    if (!_setjmp(scheduler)) {
        if (fiber.is_started) _longjmp(fiber.resting, 1);
        fiber.is_started = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK_BYTES;
        fiber.start.uc_link = &scheduler_start;
        makecontext(&fiber.start, fiber_main, 0);
        setcontext(&fiber.start);
    }
    return is_waiting;
}

// All threads of a block.
void run_block() {
    n_started = 0;
    std::vector<Fiber *> waiting, idle;
    for (auto &fiber : fibers) idle.push_back(fiber.get());
    while (n_started < N_THREADS) {
        if (idle.empty()) {
            fibers.emplace_back(new Fiber);
            idle.push_back(fibers.back().get());
        }
        Fiber *fiber = idle.back();
        idle.pop_back();
        (resume(*fiber) ? waiting : idle).push_back(fiber);
    }
    while (!waiting.empty()) {
        std::vector<Fiber *> next;
        for (auto fiber = waiting.rbegin(); fiber != waiting.rend(); ++fiber)
            if (resume(**fiber)) next.push_back(*fiber);
        waiting.swap(next);
    }
}

void shuffle(std::uint64_t &state) {
    for (int i = 0; i < N_THREADS; i++) order[i] = i;
    for (int i = N_THREADS - 1; i > 0; i--) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i], order[(state >> 33) % (i + 1)]);
    }
}

}  // namespace

#define TABLE(op, is_double, table) extern const Kernel table[];
#include "tables.inc"
#undef TABLE

void barrier() {
    is_waiting = true;
    if (!_setjmp(running->resting)) _longjmp(scheduler, 1);
}

extern "C" int shim_launch(const char *op, const char *name, int is_double, int n_blocks, const void *const *args,
                           int n_args) {
    const Kernel *table = nullptr;
#define TABLE(of, of_double, kernels) \
    if (!std::strcmp(op, #of) && is_double == of_double) table = kernels;
#include "tables.inc"
#undef TABLE
    while (table && table->name && std::strcmp(table->name, name)) table++;
    if (!table || !table->name || table->n_args != n_args) return 1;
    // One launch at a time: fibers and indices are those of the process.
    static std::mutex mutex;
    std::lock_guard<std::mutex> guard(mutex);
    static std::uint64_t state = 1;
    kernel = table;
    arguments = args;
    blockDim.x = N_THREADS;
    gridDim.x = n_blocks;
    shuffle(state);
    for (int block = 0; block < n_blocks; block++) {
        blockIdx.x = block;
        run_block();
    }
    return 0;
}
