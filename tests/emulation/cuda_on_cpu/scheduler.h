// Runs CUDA kernels on the CPU: one fiber for each thread of a block, one block after another, blocks and
// threads in an order drawn from a seed. Threads change only where CUDA orders them: at barriers, warp
// operations and their end. Every mistake that shows there ends the launch with an Error.
#pragma once

#include <atomic>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace cuda_on_cpu {

using Where = std::source_location;

// What a launch throws, on the host, when a kernel did something that a GPU does not define.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What kernels did since the last reset: launches, and the bytes of tensors that they moved.
struct Counts {
  std::atomic<int64_t> launches, bytes_loaded, bytes_stored;
};
inline Counts counts;

// Order of blocks and threads from now on: ascending for seed 0, else random.
void set_order(uint64_t seed);

// Run `kernel(arguments)` in every thread of the grid. False where the GPU would refuse the launch.
bool run(dim3 grid, dim3 block, void (*kernel)(const void*), const void* arguments);

// ---- Called by kernels -----------------------------------------------------------------------------------

// Stop the launch: run() throws Error with this text and the place. On the host, throw at once.
[[noreturn]] void fault(const std::string& what, const char* file, unsigned line);

void sync_threads(const Where& where);

// Wait for all lanes of `mask`, then return the value that `source_lane` brought.
uint64_t exchange(unsigned mask, uint64_t value, int source_lane, const Where& where);

int lane();

}  // namespace cuda_on_cpu

// Set for the running thread. Plain variables: the thread changes only inside calls above.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
