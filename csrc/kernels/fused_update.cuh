// CUDA kernels of the fused update; the equations are in fused_update.h. Not run on a GPU yet.
//
// A thread handles 16-byte groups of elements (of the state dtype) in a grid-stride loop, and single
// elements before the first and after the last aligned group. Arithmetic is in float (double for double),
// with every fused multiply-add explicit and in the order of the CPU kernels, so element-wise results have
// the same bits; sums over elements are ordered differently.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "fused_update.h"
#include "launch_plan.h"

// The tests define this to count what is loaded.
#ifndef GAS_EXT_LOAD
#define GAS_EXT_LOAD(address) (*(address))
#endif

namespace gas_ext::cuda {

template <class T>
struct work_type {
  using type = float;
};
template <>
struct work_type<double> {
  using type = double;
};
template <class T>
using work_t = typename work_type<T>::type;

__device__ __forceinline__ double to_work(double value) { return value; }
__device__ __forceinline__ float to_work(float value) { return value; }
__device__ __forceinline__ float to_work(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_work(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T from_work(work_t<T> value);
template <>
__device__ __forceinline__ double from_work<double>(double value) {
  return value;
}
template <>
__device__ __forceinline__ float from_work<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_work<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_work<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

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

template <int N, class T, class W>
__device__ __forceinline__ void load(const void* base, int64_t index, W (&values)[N]) {
  using Raw = typename raw_type<N * sizeof(T)>::type;
  const Raw raw = GAS_EXT_LOAD(reinterpret_cast<const Raw*>(static_cast<const T*>(base) + index));
  T items[N];
  memcpy(items, &raw, sizeof(raw));
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = to_work(items[i]);
}

template <int N, class T, class W>
__device__ __forceinline__ void store(void* base, int64_t index, const W (&values)[N]) {
  using Raw = typename raw_type<N * sizeof(T)>::type;
  T items[N];
#pragma unroll
  for (int i = 0; i < N; ++i) items[i] = from_work<T>(values[i]);
  Raw raw;
  memcpy(&raw, items, sizeof(raw));
  // Write-back is the default policy; as an intrinsic the store stays one instruction.
  __stwb(reinterpret_cast<Raw*>(static_cast<T*>(base) + index), raw);
}

template <class W>
__device__ __forceinline__ W coefficient(const void* row, bool is_double, int i) {
  return is_double ? static_cast<W>(static_cast<const double*>(row)[i])
                   : static_cast<W>(static_cast<const float*>(row)[i]);
}

// Bring the coefficient row to shared memory in the work type.
template <class W>
__device__ __forceinline__ void load_coefficients(const void* row, bool is_double, int count, W* shared) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) shared[i] = coefficient<W>(row, is_double, i);
  __syncthreads();
}

// Call body(integral width, first element index) for this thread's share of the elements.
template <int V, class Body>
__device__ __forceinline__ void for_each_element(const VectorPlan& plan, int64_t numel, Body&& body) {
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

// m~ = m_u + w (m - m_u) and m - m_u; m~ = m without guidance.
template <int N, class M, class W>
__device__ __forceinline__ void guided_output(const void* output, const void* uncond, int64_t index,
                                              W guidance, W (&m)[N], W (&difference)[N]) {
  load<N, M>(output, index, m);
  if (uncond == nullptr) return;
  W m_u[N];
  load<N, M>(uncond, index, m_u);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    difference[i] = m[i] - m_u[i];
    m[i] = multiply_add(guidance, difference[i], m_u[i]);
  }
}

template <class T, class M>
struct ForwardBody {
  const ForwardArgs& args;
  const work_t<T>* c;

  template <int N>
  __device__ __forceinline__ void operator()(int64_t index) const {
    using W = work_t<T>;
    W m[N], x[N], state[N], unused[N];
    guided_output<N, M>(args.output, args.output_uncond, index, c[kGuidance], m, unused);
    load<N, T>(args.history[0], index, x);
    const W p = c[kSampleScale], q = c[kOutputScale];
#pragma unroll
    for (int i = 0; i < N; ++i) m[i] = multiply_add(p, x[i], q * m[i]);  // D_n
    store<N, T>(args.data, index, m);
    const W data_weight = c[kDataWeight], weight_0 = c[kFirstWeight];
#pragma unroll
    for (int i = 0; i < N; ++i) state[i] = multiply_add(weight_0, x[i], data_weight * m[i]);
#pragma unroll 4
    for (int k = 1; k < args.terms; ++k) {
      const W weight = c[kFirstWeight + k];
      load<N, T>(args.history[k], index, x);
#pragma unroll
      for (int i = 0; i < N; ++i) state[i] = multiply_add(weight, x[i], state[i]);
    }
    store<N, T>(args.state, index, state);
    if (args.next_input == nullptr) return;
    const W next_scale = c[kNextScale];
#pragma unroll
    for (int i = 0; i < N; ++i) state[i] = next_scale * state[i];
    if (args.next_input_in_state_dtype) {
      store<N, T>(args.next_input, index, state);
    } else {
      store<N, M>(args.next_input, index, state);
    }
  }
};

template <class T, class M>
__global__ void __launch_bounds__(kBlockThreads)
    forward_kernel(const __grid_constant__ ForwardArgs args, const __grid_constant__ VectorPlan plan) {
  using W = work_t<T>;
  __shared__ W c[kMaxCoefficients];
  load_coefficients(args.coefficients, args.coefficients_are_double, kFirstWeight + args.terms, c);
  for_each_element<16 / sizeof(T)>(plan, args.numel, ForwardBody<T, M>{args, c});
}

// G = dL/dx_{n+1} + s dL/dy; g_next receives dL/dy.
template <int N, class T, class M, class W>
__device__ __forceinline__ void state_gradient(const BackwardArgs& args, W next_scale, int64_t index,
                                               W (&G)[N], W (&g_next)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) G[i] = g_next[i] = W(0);
  if (args.grad_state != nullptr) load<N, T>(args.grad_state, index, G);
  if (args.grad_next_input == nullptr) return;
  if (args.next_input_in_state_dtype) {
    load<N, T>(args.grad_next_input, index, g_next);
  } else {
    load<N, M>(args.grad_next_input, index, g_next);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) G[i] = multiply_add(next_scale, g_next[i], G[i]);
}

template <int N, class W>
__device__ __forceinline__ void add_inner_product(const W (&a)[N], const W (&b)[N], W& sum) {
#pragma unroll
  for (int i = 0; i < N; ++i) sum = multiply_add(a[i], b[i], sum);
}

// Row 0 of the backward grid: gradients of m, m_u and x_n, and the inner products with D_n and its parts.
inline constexpr int kHeadSums = kFirstWeight + 1;  // the scalars, and the weight of x_n

template <class T, class M>
struct BackwardHeadBody {
  const BackwardArgs& args;
  const work_t<T>* c;
  work_t<T>* sums;

  template <int N>
  __device__ __forceinline__ void operator()(int64_t index) const {
    using W = work_t<T>;
    W G[N], g_next[N], H[N];
    state_gradient<N, T, M>(args, c[kNextScale], index, G, g_next);
#pragma unroll
    for (int i = 0; i < N; ++i) H[i] = W(0);
    if (args.grad_data != nullptr) load<N, T>(args.grad_data, index, H);
#pragma unroll
    for (int i = 0; i < N; ++i) H[i] = multiply_add(c[kDataWeight], G[i], H[i]);
    write_gradients<N>(index, G, H);
    if (args.partials != nullptr) add_sums<N>(index, G, H, g_next);
  }

  template <int N, class W>
  __device__ __forceinline__ void write_gradients(int64_t index, const W (&G)[N], const W (&H)[N]) const {
    W gradient[N];
    const W q = c[kOutputScale], w = c[kGuidance];
    if (args.grad_output != nullptr) {
      const W scale = args.output_uncond != nullptr ? q * w : q;
#pragma unroll
      for (int i = 0; i < N; ++i) gradient[i] = scale * H[i];
      store<N, M>(args.grad_output, index, gradient);
      if (args.output_uncond != nullptr) {
        const W scale_uncond = q * (W(1) - w);
#pragma unroll
        for (int i = 0; i < N; ++i) gradient[i] = scale_uncond * H[i];
        store<N, M>(args.grad_output_uncond, index, gradient);
      }
    }
    if (args.grad_history[0] != nullptr) {
#pragma unroll
      for (int i = 0; i < N; ++i) gradient[i] = multiply_add(c[kSampleScale], H[i], c[kFirstWeight] * G[i]);
      store<N, T>(args.grad_history[0], index, gradient);
    }
  }

  template <int N, class W>
  __device__ __forceinline__ void add_sums(int64_t index, const W (&G)[N], const W (&H)[N],
                                           const W (&g_next)[N]) const {
    W m[N], x[N], other[N];
#pragma unroll
    for (int i = 0; i < N; ++i) other[i] = W(0);
    guided_output<N, M>(args.output, args.output_uncond, index, c[kGuidance], m, other);
    add_inner_product(H, other, sums[kGuidance]);
    add_inner_product(H, m, sums[kOutputScale]);
    load<N, T>(args.history[0], index, x);
    add_inner_product(H, x, sums[kSampleScale]);
    add_inner_product(G, x, sums[kFirstWeight]);
#pragma unroll
    for (int i = 0; i < N; ++i)
      other[i] = multiply_add(c[kSampleScale], x[i], c[kOutputScale] * m[i]);  // D_n
    add_inner_product(G, other, sums[kDataWeight]);
    if (args.grad_next_input != nullptr) {
      load<N, T>(args.state, index, other);
      add_inner_product(g_next, other, sums[kNextScale]);
    }
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
  __device__ __forceinline__ void operator()(int64_t index) const {
    using W = work_t<T>;
    W G[N], values[N];
    state_gradient<N, T, M>(args, c[kNextScale], index, G, values);
#pragma unroll
    for (int j = 0; j < kTermsPerGroup; ++j) {
      const int k = first + j;
      if (k >= args.terms) break;
      if (args.partials != nullptr) {
        load<N, T>(args.history[k], index, values);
        add_inner_product(G, values, sums[j]);
      }
      if (args.grad_history[k] != nullptr) {
        const W weight = c[kFirstWeight + k];
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] = weight * G[i];
        store<N, T>(args.grad_history[k], index, values);
      }
    }
  }
};

// Sum each thread's `sums` over the block and write them to partials[(first + j) * gridDim.x + blockIdx.x].
// The order of addition is fixed: lanes by halving, then warps in order.
template <int S, class W>
__device__ __forceinline__ void write_block_sums(const W (&sums)[S], int first, int count, W* partials) {
  constexpr int kWarps = kBlockThreads / 32;
  __shared__ W warp_sums[kWarps][S];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int j = 0; j < S; ++j) {
    W sum = sums[j];
#pragma unroll
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
  load_coefficients(args.coefficients, args.coefficients_are_double, kFirstWeight + args.terms, c);
  W* partials = static_cast<W*>(args.partials);
  if (blockIdx.y == 0) {
    W sums[kHeadSums] = {};
    for_each_element<V>(plan, args.numel, BackwardHeadBody<T, M>{args, c, sums});
    if (args.output_uncond == nullptr) sums[kGuidance] = W(0);  // not infinity times the difference's zero
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

}  // namespace gas_ext::cuda
