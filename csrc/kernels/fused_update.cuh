// CUDA kernels of the fused update. Not run on a GPU yet.
//
// A thread handles 16-byte groups of elements (of the state dtype) in a grid-stride loop, and single
// elements before the first and after the last aligned group. What it computes from them is in equations.h,
// as for the CPU kernels, so element-wise results have the same bits; sums over elements are ordered
// differently.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "fused_update.h"
#include "launch_plan.h"

#define GAS_EXT_ISA cuda
#define GAS_EXT_INLINE __device__ __forceinline__
#define GAS_EXT_UNROLL _Pragma("unroll")

// The tests define this to count what is loaded.
#ifndef GAS_EXT_LOAD
#define GAS_EXT_LOAD(address) (*(address))
#endif

namespace gas_ext::GAS_EXT_ISA {

using half = __half;
using bfloat16 = __nv_bfloat16;

GAS_EXT_INLINE double to_work(double value) { return value; }
GAS_EXT_INLINE float to_work(float value) { return value; }
GAS_EXT_INLINE float to_work(half value) { return __half2float(value); }
GAS_EXT_INLINE float to_work(bfloat16 value) { return __bfloat162float(value); }

template <class T>
GAS_EXT_INLINE T from_work(work_t<T> value) {
  if constexpr (std::is_same_v<T, half>) {
    return __float2half_rn(value);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return __float2bfloat16_rn(value);
  } else {
    return value;
  }
}

GAS_EXT_INLINE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
GAS_EXT_INLINE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <class W>
GAS_EXT_INLINE W broadcast(W value) {
  return value;
}

// N elements in registers.
template <int N, class W>
struct Vec {
  static constexpr int kCount = N;
  W values[N];

  GAS_EXT_INLINE W& operator[](int i) { return values[i]; }
  GAS_EXT_INLINE const W& operator[](int i) const { return values[i]; }
};

// The built-in type that moves so many bytes in one instruction. A struct of elements would leave it to the
// compiler to join their loads and stores, which it does not always do.
template <int Bytes>
struct raw_type;
template <>
struct raw_type<16> {
  using type = uint4;
};
template <>
struct raw_type<8> {
  using type = uint2;
};
template <>
struct raw_type<4> {
  using type = unsigned int;
};
template <>
struct raw_type<2> {
  using type = unsigned short;
};

template <class T, int N, class W>
GAS_EXT_INLINE void read(const void* tensor, int64_t at, Vec<N, W>& values) {
  using Raw = typename raw_type<N * sizeof(T)>::type;
  const Raw raw = GAS_EXT_LOAD(reinterpret_cast<const Raw*>(static_cast<const T*>(tensor) + at));
  T items[N];
  memcpy(items, &raw, sizeof(raw));
  GAS_EXT_UNROLL
  for (int i = 0; i < N; ++i) values[i] = to_work(items[i]);
}

template <class T, int N, class W>
GAS_EXT_INLINE void write(const Vec<N, W>& values, void* tensor, int64_t at) {
  using Raw = typename raw_type<N * sizeof(T)>::type;
  T items[N];
  GAS_EXT_UNROLL
  for (int i = 0; i < N; ++i) items[i] = from_work<T>(values[i]);
  Raw raw;
  memcpy(&raw, items, sizeof(raw));
  // Write-back is the default policy; as an intrinsic the store stays one instruction.
  __stwb(reinterpret_cast<Raw*>(static_cast<T*>(tensor) + at), raw);
}

template <int N, class W>
GAS_EXT_INLINE void inner_product(const Vec<N, W>& a, const Vec<N, W>& b, W& sum) {
  GAS_EXT_UNROLL
  for (int i = 0; i < N; ++i) sum = multiply_add(a[i], b[i], sum);
}

}  // namespace gas_ext::GAS_EXT_ISA

#include "equations.h"

namespace gas_ext::GAS_EXT_ISA {

// Bring the coefficient row to shared memory.
template <class Args, class W>
GAS_EXT_INLINE void load_coefficients(const Args& args, W* shared) {
  for (int i = threadIdx.x; i < kFirstWeight + args.terms; i += blockDim.x) {
    shared[i] = coefficient<W>(args.coefficients, args.coefficients_are_double, i);
  }
  __syncthreads();
}

// Call body(integral width, first element index) for this thread's share of the elements.
template <int V, class Body>
GAS_EXT_INLINE void for_each_element(const VectorPlan& plan, int64_t numel, Body&& body) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = thread; i < plan.vectors; i += stride) {
    body.template operator()<V>(plan.head + i * V);
  }
  const int64_t scalars = numel - plan.vectors * V;
  for (int64_t i = thread; i < scalars; i += stride) {
    body.template operator()<1>(i < plan.head ? i : i + plan.vectors * V);
  }
}

template <class T, class M>
struct ForwardBody {
  const ForwardArgs& args;
  const work_t<T>* c;

  template <int N>
  GAS_EXT_INLINE void operator()(int64_t at) const {
    Vec<N, work_t<T>> state;
    begin_state<T, M>(args, c, at, state);
#pragma unroll 4
    for (int k = 1; k < args.terms; ++k) add_term<T>(args, c, k, at, state);
    finish_state<T, M>(args, c, at, state);
  }
};

template <class T, class M>
__global__ void __launch_bounds__(kBlockThreads)
    forward_kernel(const __grid_constant__ ForwardArgs args, const __grid_constant__ VectorPlan plan) {
  using W = work_t<T>;
  __shared__ W c[kMaxCoefficients];
  load_coefficients(args, c);
  for_each_element<16 / sizeof(T)>(plan, args.numel, ForwardBody<T, M>{args, c});
}

// Row 0 of the backward grid: gradients of m, m_u and x_n, and the inner products with D_n and its parts.
inline constexpr int kHeadSums = kFirstWeight + 1;  // the scalars, and the weight of x_n

template <class T, class M>
struct BackwardHeadBody {
  const BackwardArgs& args;
  const work_t<T>* c;
  work_t<T>* sums;

  template <int N>
  GAS_EXT_INLINE void operator()(int64_t at) const {
    Vec<N, work_t<T>> G, H;
    data_gradients<T, M>(args, c, at, sums, G, H);
    first_gradient<T>(args, c, at, G, H);
  }
};

// Row r >= 1 of the backward grid: gradients of kTermsPerGroup older terms and of their weights.
template <class T, class M>
struct BackwardTermsBody {
  const BackwardArgs& args;
  const work_t<T>* c;
  work_t<T>* sums;
  int first;  // index of the group's first term

  template <int N>
  GAS_EXT_INLINE void operator()(int64_t at) const {
    Vec<N, work_t<T>> G;
    total_state_gradient<T, M>(args, c, at, G, static_cast<work_t<T>*>(nullptr));
    GAS_EXT_UNROLL
    for (int j = 0; j < kTermsPerGroup; ++j) {
      const int k = first + j;
      if (k >= args.terms) break;
      term_inner_product<T>(args, k, at, G, sums[j]);
      term_gradient<T>(args, c, k, at, G);
    }
  }
};

// Sum each thread's `sums` over the block and write them to partials[(first + j) * gridDim.x + blockIdx.x].
// The order of addition is fixed: lanes by halving, then warps in order.
template <int S, class W>
GAS_EXT_INLINE void write_block_sums(const W (&sums)[S], int first, int count, W* partials) {
  constexpr int kWarps = kBlockThreads / 32;
  __shared__ W warp_sums[kWarps][S];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  GAS_EXT_UNROLL
  for (int j = 0; j < S; ++j) {
    W sum = sums[j];
    GAS_EXT_UNROLL
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_down_sync(0xffffffffu, sum, offset);
    if (lane == 0) warp_sums[warp][j] = sum;
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= count) return;
  W sum = W(0);
  for (int i = 0; i < kWarps; ++i) sum += warp_sums[i][threadIdx.x];
  partials[static_cast<int64_t>(first + threadIdx.x) * gridDim.x + blockIdx.x] = sum;
}

template <class T, class M>
__global__ void __launch_bounds__(kBlockThreads)
    backward_kernel(const __grid_constant__ BackwardArgs args, const __grid_constant__ VectorPlan plan) {
  using W = work_t<T>;
  constexpr int V = 16 / sizeof(T);
  __shared__ W c[kMaxCoefficients];
  load_coefficients(args, c);
  W* partials = static_cast<W*>(args.partials);
  if (blockIdx.y == 0) {
    W sums[kHeadSums] = {};
    for_each_element<V>(plan, args.numel, BackwardHeadBody<T, M>{args, c, sums});
    if (partials != nullptr) write_block_sums(sums, 0, kHeadSums, partials);
  } else {
    const int first = 1 + (static_cast<int>(blockIdx.y) - 1) * kTermsPerGroup;
    W sums[kTermsPerGroup] = {};
    for_each_element<V>(plan, args.numel, BackwardTermsBody<T, M>{args, c, sums, first});
    if (partials != nullptr) {
      const int count = min(kTermsPerGroup, args.terms - first);
      write_block_sums(sums, kFirstWeight + first, count, partials);
    }
  }
}

// Second stage: block i adds column i of the partial sums in a fixed order.
template <class W>
__global__ void __launch_bounds__(kBlockThreads)
    sum_partials_kernel(const W* __restrict__ partials, int64_t blocks, const void* coefficients,
                        bool is_double, void* grad_coefficients) {
  __shared__ double shared[kBlockThreads];
  const int i = blockIdx.x;
  double sum = 0;
  for (int64_t block = threadIdx.x; block < blocks; block += blockDim.x) {
    sum += static_cast<double>(partials[i * blocks + block]);
  }
  shared[threadIdx.x] = sum;
  __syncthreads();
  for (int half = kBlockThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  sum = shared[0];
  if (i == kGuidance) sum *= static_cast<double>(coefficient<W>(coefficients, is_double, kOutputScale));
  if (is_double) {
    static_cast<double*>(grad_coefficients)[i] = sum;
  } else {
    static_cast<float*>(grad_coefficients)[i] = static_cast<float>(sum);
  }
}

}  // namespace gas_ext::GAS_EXT_ISA
