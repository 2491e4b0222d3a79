// Small kernels with one planted bug each (Broken = true) and their correct twins: the layer must catch the
// first and pass the second. test_planted_bugs.py says what each computes and who catches it.
#include <cuda_runtime.h>

#include "emulated_kernels.h"

namespace emulation {
namespace {

constexpr int kThreads = 256;

// Sum `shared` over the block into shared[0].
__device__ __forceinline__ void tree_sum(float* shared, int first_half) {
  const int t = static_cast<int>(threadIdx.x);
  for (int half = first_half; half > 0; half /= 2) {
    if (t < half) shared[t] += shared[t + half];
    __syncthreads();
  }
}

template <bool Broken>
__global__ void missing_barrier(const float* in, float* out, int) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = in[blockIdx.x * kThreads + threadIdx.x];
  if (!Broken) __syncthreads();
  tree_sum(shared, kThreads / 2);
  if (threadIdx.x == 0) out[blockIdx.x] = shared[0];
}

// Shared memory is filled again while other threads still read it.
template <bool Broken>
__global__ void missing_second_barrier(const float* in, float* out, int n) {
  __shared__ float shared[kThreads];
  for (int tile = 0; tile < n; tile += kThreads) {
    shared[threadIdx.x] = in[tile + threadIdx.x];
    __syncthreads();
    out[tile + threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
    if (!Broken) __syncthreads();
  }
}

// Relies on the lanes of a warp running in step, which they need not since Volta.
template <bool Broken>
__global__ void warp_in_step(const float* in, float* out, int) {
  __shared__ float shared[32];
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = in[t];
  if (!Broken) __syncthreads();
  for (int half = 16; half > 0; half /= 2) {
    if (t < half) shared[t] += shared[t + half];
    if (!Broken) __syncthreads();
  }
  if (t == 0) out[0] = shared[0];
}

template <bool Broken>
__global__ void divergent_barrier(const float* in, float* out, int) {
  __shared__ float shared[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = in[t];
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (t < half) {
      shared[t] += shared[t + half];
      if (Broken) __syncthreads();
    }
    if (!Broken) __syncthreads();
  }
  if (t == 0) out[0] = shared[0];
}

template <bool Broken>
__global__ void two_barriers(const float* in, float* out, int n) {
  __shared__ float shared[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = in[t];
  if (Broken && t % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[t] = shared[n - 1 - t];
}

template <bool Broken>
__global__ void barrier_after_exit(const float* in, float* out, int n) {
  __shared__ float shared[kThreads];
  const int t = static_cast<int>(threadIdx.x);
  if (Broken && t >= n) return;
  if (t < n) shared[t] = in[t];
  __syncthreads();
  if (t < n) out[t] = shared[n - 1 - t];
}

template <bool Broken>
__global__ void race_in_global(const float* in, float* out, int) {
  const int t = static_cast<int>(threadIdx.x);
  if (Broken || t % 2 == 0) out[t / 2] = in[t];
}

template <bool Broken>
__global__ void race_in_shared(const float* in, float* out, int n) {
  __shared__ float shared[32];
  const int t = static_cast<int>(threadIdx.x);
  if (t < 32) shared[t] = 0;
  __syncthreads();
  if (Broken) {
    shared[t % 32] += in[t];  // needs an atomic addition
  } else if (t < 32) {
    for (int i = t; i < n; i += 32) shared[t] += in[i];
  }
  __syncthreads();
  if (t < 32) out[t] = shared[t];
}

template <bool Broken>
__global__ void write_past_global(const float* in, float* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n + (Broken ? 1 : 0)) out[i] = in[i % n];
}

template <bool Broken>
__global__ void read_past_global(const float* in, float* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = in[Broken || i + 1 < n ? i + 1 : i];
}

template <bool Broken>
__global__ void write_past_shared(const float* in, float* out, int) {
  __shared__ float shared[Broken ? kThreads : kThreads + 1];
  const int t = static_cast<int>(threadIdx.x);
  float* volatile next = shared + 1;  // the compiler must not see which variable is meant
  next[t] = in[t];
  if (t == 0) shared[0] = 0;
  __syncthreads();
  out[t] = shared[t];
}

template <bool Broken>
__global__ void index_past_shared(const float* in, float* out, int) {
  __shared__ float shared[kThreads / 32][32];
  const int t = static_cast<int>(threadIdx.x);
  shared[t / 32 + (Broken ? 1 : 0)][t % 32] = in[t];
  __syncthreads();
  out[t] = shared[t / 32][t % 32];
}

template <bool Broken>
__global__ void misaligned_load(const float* in, float* out, int) {
  const int first = static_cast<int>(threadIdx.x) * 4;
  if (Broken) {
    const uint4 raw = *reinterpret_cast<const uint4*>(in + first + 1);
    memcpy(out + first, &raw, sizeof(raw));
  } else {
    for (int i = 0; i < 4; ++i) out[first + i] = in[first + i + 1];
  }
}

template <bool Broken>
__global__ void misaligned_store(const float* in, float* out, int) {
  const int first = static_cast<int>(threadIdx.x) * 2;
  if (first == 0) out[0] = in[0];
  uint2 raw;
  memcpy(&raw, in + first + 1, sizeof(raw));
  if (Broken) {
    __stwb(reinterpret_cast<uint2*>(out + first + 1), raw);
  } else {
    memcpy(out + first + 1, &raw, sizeof(raw));
  }
}

template <bool Broken>
__global__ void null_pointer(const float* in, float* out, int) {
  float* target = Broken ? nullptr : out;
  target[threadIdx.x] = in[threadIdx.x];
}

template <bool Broken>
__global__ void uninitialized_shared(const float* in, float* out, int) {
  __shared__ float shared[8];
  const int t = static_cast<int>(threadIdx.x);
  if (t < (Broken ? 7 : 8)) shared[t] = in[t];
  __syncthreads();
  if (t != 0) return;
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += shared[i];
  out[0] = sum;
}

template <bool Broken>
__global__ void uninitialized_global(const float* in, float* out, int) {
  const int t = static_cast<int>(threadIdx.x);
  out[t] = Broken ? out[t] + in[t] : in[t];
}

__device__ __forceinline__ float warp_sum(float value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

template <bool Broken>
__global__ void exited_lane(const float* in, float* out, int n) {
  const int t = static_cast<int>(threadIdx.x);
  if (Broken && t >= n) return;
  const float sum = warp_sum(t < n ? in[t] : 0.0f);
  if (t == 0) out[0] = sum;
}

template <bool Broken>
__global__ void lane_at_barrier(const float* in, float* out, int n) {
  const int t = static_cast<int>(threadIdx.x);
  float sum = 0;
  if (!Broken || t < n) sum = warp_sum(t < n ? in[t] : 0.0f);
  __syncthreads();
  if (t == 0) out[0] = sum;
}

template <bool Broken>
__global__ void lane_not_in_its_mask(const float* in, float* out, int) {
  const int t = static_cast<int>(threadIdx.x);
  const float next = __shfl_down_sync(Broken ? 0x0000ffffu : 0xffffffffu, in[t], 1);
  out[t] = next;
}

template <bool Broken>
__global__ void source_not_in_mask(const float* in, float* out, int) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= 16) return;
  out[t] = __shfl_down_sync(0x0000ffffu, in[t], 1, Broken ? 32 : 16);
}

template <bool Broken>
__global__ void mask_without_threads(const float* in, float* out, int) {
  const int t = static_cast<int>(threadIdx.x);  // the block has 16
  out[t] = __shfl_down_sync(Broken ? 0xffffffffu : 0x0000ffffu, in[t], 1, 16);
}

// Running sum that takes the sum so far from the block before.
template <bool Broken>
__global__ void inter_block(const float* in, float* out, int) {
  if (threadIdx.x != 0) return;
  const int b = static_cast<int>(blockIdx.x);
  float sum = 0;
  if (Broken) {
    if (b > 0) sum = out[b - 1];
  } else {
    for (int i = 0; i < b; ++i) sum += in[i];
  }
  out[b] = sum + in[b];
}

template <bool Broken>
__global__ void reduction_tail(const float* in, float* out, int n) {
  __shared__ float shared[kThreads];
  float sum = 0;
  const int end = Broken ? n / kThreads * kThreads : n;
  for (int i = static_cast<int>(threadIdx.x); i < end; i += kThreads) sum += in[i];
  shared[threadIdx.x] = sum;
  __syncthreads();
  tree_sum(shared, kThreads / 2);
  if (threadIdx.x == 0) out[0] = shared[0];
}

// A tree over 7 warps' sums that halves 7 to 3, 1: the seventh is lost.
template <bool Broken>
__global__ void reduction_halves(const float* in, float* out, int) {
  __shared__ float shared[8];
  const int t = static_cast<int>(threadIdx.x);
  if (t < 8) shared[t] = t < 7 ? in[t] : 0.0f;
  __syncthreads();
  tree_sum(shared, Broken ? 7 / 2 : 4);
  if (t == 0) out[0] = shared[0];
}

template <bool>
__global__ void block_index(const float*, float* out, int n) {
  const int i = static_cast<int>((blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x);
  if (i < n) out[i] = static_cast<float>(i);
}

using Kernel = void (*)(const float*, float*, int);
struct Planted {
  const char* name;
  Kernel correct, broken;
  dim3 grid, block, broken_grid, broken_block;

  Planted(const char* name_, Kernel correct_, Kernel broken_, dim3 grid_, dim3 block_)
      : Planted(name_, correct_, broken_, grid_, block_, grid_, block_) {}
  Planted(const char* name_, Kernel correct_, Kernel broken_, dim3 grid_, dim3 block_, dim3 broken_grid_,
          dim3 broken_block_)
      : name(name_),
        correct(correct_),
        broken(broken_),
        grid(grid_),
        block(block_),
        broken_grid(broken_grid_),
        broken_block(broken_block_) {}
};

#define PLANTED(kernel, ...) Planted(#kernel, kernel<false>, kernel<true>, __VA_ARGS__)
const Planted kPlanted[] = {
    PLANTED(missing_barrier, 4, kThreads),
    PLANTED(missing_second_barrier, 1, kThreads),
    PLANTED(warp_in_step, 1, 32),
    PLANTED(divergent_barrier, 1, kThreads),
    PLANTED(two_barriers, 1, kThreads),
    PLANTED(barrier_after_exit, 1, kThreads),
    PLANTED(race_in_global, 1, kThreads),
    PLANTED(race_in_shared, 1, kThreads),
    PLANTED(write_past_global, 5, kThreads),
    PLANTED(read_past_global, 4, kThreads),
    PLANTED(write_past_shared, 1, kThreads),
    PLANTED(index_past_shared, 1, kThreads),
    PLANTED(misaligned_load, 1, 63),
    PLANTED(misaligned_store, 1, 63),
    PLANTED(null_pointer, 1, kThreads),
    PLANTED(uninitialized_shared, 1, 32),
    PLANTED(uninitialized_global, 1, kThreads),
    PLANTED(exited_lane, 1, 32),
    PLANTED(lane_at_barrier, 1, 32),
    PLANTED(lane_not_in_its_mask, 1, 32),
    PLANTED(source_not_in_mask, 1, 32),
    PLANTED(mask_without_threads, 1, 16),
    PLANTED(inter_block, 8, 32),
    PLANTED(reduction_tail, 1, kThreads),
    PLANTED(reduction_halves, 1, 32),
    Planted("block_too_large", block_index<false>, block_index<true>, 1, 1024, 1, 1025),
    Planted("block_too_deep", block_index<false>, block_index<true>, 2, 64, 1, dim3(1, 1, 128)),
    Planted("grid_too_high", block_index<false>, block_index<true>, dim3(1, 65535), 1, dim3(1, 65536), 1),
    Planted("grid_empty", block_index<false>, block_index<true>, 1, 32, 0, 32),
};

}  // namespace

const char* run_planted(const char* name, bool broken, const float* in, float* out, int n) {
  for (const Planted& planted : kPlanted) {
    if (strcmp(planted.name, name) != 0) continue;
    GAS_EXT_LAUNCH((broken ? planted.broken : planted.correct), (broken ? planted.broken_grid : planted.grid),
                   (broken ? planted.broken_block : planted.block), nullptr, in, out, n);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
  return "no such kernel";
}

std::vector<std::string> planted_names() {
  std::vector<std::string> names;
  for (const Planted& planted : kPlanted) names.emplace_back(planted.name);
  return names;
}

}  // namespace emulation
