// Stands in for CUDA's header of this name when kernels are compiled by a C++20 compiler for the CPU. It
// offers what the kernels of this project use, and no more: a kernel that uses another feature does not
// compile until that feature is added here. See ../README.md.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "scheduler.h"

// `static` gives kernels, and with them their shared variables, internal linkage: only such variables get
// red zones from AddressSanitizer.
#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// One block runs at a time, so its shared variables may be static; shared_memory.ld finds them by their
// names, and reset_shared_memory() fills them before every block.
#define __shared__ static

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

using std::max;
using std::min;

// ---- Device functions ------------------------------------------------------------------------------------

inline void __syncthreads(const cuda_on_cpu::Where& where = cuda_on_cpu::Where::current()) {
  cuda_on_cpu::sync_threads(where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const cuda_on_cpu::Where& where = cuda_on_cpu::Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const int lane = cuda_on_cpu::lane();
  const bool inside = lane % width + static_cast<int>(delta) < width;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = cuda_on_cpu::exchange(mask, bits, inside ? lane + static_cast<int>(delta) : lane, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

namespace cuda_on_cpu {

template <class T>
T load(const T* source) {
  counts.bytes_loaded.fetch_add(sizeof(T), std::memory_order_relaxed);
  return *source;
}

}  // namespace cuda_on_cpu

// Store with the default cache policy.
template <class T>
void __stwb(T* target, T value) {
  cuda_on_cpu::counts.bytes_stored.fetch_add(sizeof(T), std::memory_order_relaxed);
  *target = value;
}

// ---- Host functions --------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = struct CUstream_st*;

namespace cuda_on_cpu {

inline cudaError_t last_error = cudaSuccess;

// Run a kernel on copies of its arguments, as a launch does; it has ended when this returns.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, cudaStream_t, Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  counts.launches.fetch_add(1, std::memory_order_relaxed);
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  const auto run_thread = [](const void* pointer) {
    const Call& self = *static_cast<const Call*>(pointer);
    std::apply(self.kernel, self.arguments);
  };
  if (!run(grid, block, run_thread, &call)) last_error = cudaErrorInvalidConfiguration;
}

}  // namespace cuda_on_cpu

inline cudaError_t cudaGetLastError() { return std::exchange(cuda_on_cpu::last_error, cudaSuccess); }

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

#define GAS_EXT_LOAD(address) cuda_on_cpu::load(address)
#define GAS_EXT_LAUNCH(kernel, grid, block, stream, ...) \
  cuda_on_cpu::launch(kernel, grid, block, stream, __VA_ARGS__)
