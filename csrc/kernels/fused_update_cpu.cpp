// The fused update on the CPU. CMake compiles this file once for each instruction set, with GAS_EXT_ISA
// naming it; fused_update_cpu_dispatch.cpp picks one at run time.
//
// Elements are walked in tiles that stay in the first-level cache. All arithmetic is in plain loops over
// such tiles, which the compiler vectorizes; fused multiply-adds are explicit, so that the order of rounding
// is the same in every set and in the CUDA kernels.
#include "fused_update_cpu.h"

#include <algorithm>

#include "cpu_numeric.h"

namespace gas_ext::GAS_EXT_ISA {
namespace {

constexpr int kTile = 1024;
constexpr int kLanes = 16;  // partial sums of an inner product, fixed so that every set adds in one order
static_assert(kCpuChunk % kTile == 0 && kTile % kLanes == 0);

template <class W>
void load_coefficients(const void* source, bool is_double, int count, W* target) {
  for (int i = 0; i < count; ++i) {
    target[i] = is_double ? static_cast<W>(static_cast<const double*>(source)[i])
                          : static_cast<W>(static_cast<const float*>(source)[i]);
  }
}

template <class T>
const T* at(const void* base, int64_t offset) {
  return static_cast<const T*>(base) + offset;
}
template <class T>
T* at(void* base, int64_t offset) {
  return static_cast<T*>(base) + offset;
}

// out = c * a
template <class W>
void scale(W c, const W* __restrict__ a, int count, W* __restrict__ out) {
  for (int i = 0; i < count; ++i) out[i] = c * a[i];
}

// out = c * a + out
template <class W>
void accumulate(W c, const W* __restrict__ a, int count, W* __restrict__ out) {
  for (int i = 0; i < count; ++i) out[i] = fused_multiply_add(c, a[i], out[i]);
}

// lanes += a * b, element i into lane i % kLanes
template <class W>
void inner_product(const W* __restrict__ a, const W* __restrict__ b, int count, W* __restrict__ lanes) {
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] = fused_multiply_add(a[i + j], b[i + j], lanes[j]);
  }
  for (; i < count; ++i) lanes[i % kLanes] = fused_multiply_add(a[i], b[i], lanes[i % kLanes]);
}

// m~ = m_u + w (m - m_u) of one tile; m itself without guidance. `difference` receives m - m_u.
template <class M, class W>
const W* guided_output(const void* output, const void* uncond, int64_t offset, int count, W guidance,
                       W* __restrict__ scratch, W* __restrict__ difference, W* __restrict__ guided) {
  const W* m = read_tile(at<M>(output, offset), count, scratch);
  if (uncond == nullptr) return m;
  W uncond_scratch[kTile];
  const W* m_u = read_tile(at<M>(uncond, offset), count, uncond_scratch);
  for (int i = 0; i < count; ++i) {
    difference[i] = m[i] - m_u[i];
    guided[i] = fused_multiply_add(guidance, difference[i], m_u[i]);
  }
  return guided;
}

// D_n = p x_n + q m~ of one tile.
template <class W>
void data_prediction(const W* c, const W* __restrict__ x, const W* __restrict__ m, int count,
                     W* __restrict__ data) {
  const W p = c[kSampleScale], q = c[kOutputScale];
  for (int i = 0; i < count; ++i) data[i] = fused_multiply_add(p, x[i], q * m[i]);
}

template <class T, class M>
void forward_tile(const ForwardArgs& args, const work_t<T>* c, int64_t offset, int count) {
  using W = work_t<T>;
  W x_scratch[kTile], m_scratch[kTile], difference[kTile], guided[kTile], data[kTile], state[kTile];
  const W* m = guided_output<M>(args.output, args.output_uncond, offset, count, c[kGuidance], m_scratch,
                                difference, guided);
  const W* x = read_tile(at<T>(args.history[0], offset), count, x_scratch);
  data_prediction(c, x, m, count, data);
  write_tile(data, count, at<T>(args.data, offset));

  scale(c[kDataWeight], data, count, state);
  accumulate(c[kFirstWeight], x, count, state);
  for (int k = 1; k < args.terms; ++k) {
    const W* h = read_tile(at<T>(args.history[k], offset), count, x_scratch);
    accumulate(c[kFirstWeight + k], h, count, state);
  }
  write_tile(state, count, at<T>(args.state, offset));
  if (args.next_input == nullptr) return;
  scale(c[kNextScale], state, count, data);
  if (args.next_input_in_state_dtype) {
    write_tile(data, count, at<T>(args.next_input, offset));
  } else {
    write_tile(data, count, at<M>(args.next_input, offset));
  }
}

template <class T, class M>
void forward_chunks(const ForwardArgs& args, int64_t begin, int64_t end) {
  work_t<T> c[kMaxCoefficients];
  load_coefficients(args.coefficients, args.coefficients_are_double, kFirstWeight + args.terms, c);
  const int64_t last = std::min(end * kCpuChunk, args.numel);
  for (int64_t offset = begin * kCpuChunk; offset < last; offset += kTile) {
    forward_tile<T, M>(args, c, offset, static_cast<int>(std::min<int64_t>(kTile, last - offset)));
  }
}

// Partial sums of every coefficient's gradient over one chunk.
template <class W>
struct InnerProducts {
  W lanes[kMaxCoefficients][kLanes] = {};

  void write(int count, double* row) const {
    for (int i = 0; i < count; ++i) {
      double sum = 0;
      for (int j = 0; j < kLanes; ++j) sum += static_cast<double>(lanes[i][j]);
      row[i] = sum;
    }
  }
};

// G = dL/dx_{n+1} + s dL/dy of one tile, and <dL/dy, x_{n+1}>.
template <class T, class M>
void total_state_gradient(const BackwardArgs& args, const work_t<T>* c, int64_t offset, int count,
                          work_t<T>* G, work_t<T>* next_scale_lanes) {
  using W = work_t<T>;
  W scratch[kTile], state_scratch[kTile];
  if (args.grad_state != nullptr) {
    const W* g = read_tile(at<T>(args.grad_state, offset), count, scratch);
    std::copy(g, g + count, G);
  } else {
    std::fill(G, G + count, W(0));
  }
  if (args.grad_next_input == nullptr) return;
  const W* g_next;
  if (args.next_input_in_state_dtype) {
    g_next = read_tile(at<T>(args.grad_next_input, offset), count, scratch);
  } else {
    g_next = read_tile(at<M>(args.grad_next_input, offset), count, scratch);
  }
  accumulate(c[kNextScale], g_next, count, G);
  if (args.partials != nullptr) {
    const W* state = read_tile(at<T>(args.state, offset), count, state_scratch);
    inner_product(g_next, state, count, next_scale_lanes);
  }
}

// H = dL/dD_n + c_nn G of one tile.
template <class T>
void total_data_gradient(const BackwardArgs& args, const work_t<T>* c, int64_t offset, int count,
                         const work_t<T>* G, work_t<T>* H) {
  using W = work_t<T>;
  W scratch[kTile];
  if (args.grad_data != nullptr) {
    const W* h = read_tile(at<T>(args.grad_data, offset), count, scratch);
    std::copy(h, h + count, H);
  } else {
    std::fill(H, H + count, W(0));
  }
  accumulate(c[kDataWeight], G, count, H);
}

template <class M, class W>
void output_gradient(const BackwardArgs& args, const W* c, int64_t offset, int count, const W* H) {
  if (args.grad_output == nullptr) return;
  W gradient[kTile];
  const W q = c[kOutputScale], w = c[kGuidance];
  scale(args.output_uncond != nullptr ? q * w : q, H, count, gradient);
  write_tile(gradient, count, at<M>(args.grad_output, offset));
  if (args.output_uncond == nullptr) return;
  scale(q * (W(1) - w), H, count, gradient);
  write_tile(gradient, count, at<M>(args.grad_output_uncond, offset));
}

// dp, dq, dw and dc_nn: the inner products with D_n and what it is made of.
template <class T, class M>
void data_inner_products(const BackwardArgs& args, const work_t<T>* c, int64_t offset, int count,
                         const work_t<T>* G, const work_t<T>* H, InnerProducts<work_t<T>>& sums) {
  using W = work_t<T>;
  W x_scratch[kTile], m_scratch[kTile], difference[kTile], guided[kTile], data[kTile];
  const W* m = guided_output<M>(args.output, args.output_uncond, offset, count, c[kGuidance], m_scratch,
                                difference, guided);
  const W* x = read_tile(at<T>(args.history[0], offset), count, x_scratch);
  data_prediction(c, x, m, count, data);
  inner_product(H, x, count, sums.lanes[kSampleScale]);
  inner_product(H, m, count, sums.lanes[kOutputScale]);
  if (args.output_uncond != nullptr) inner_product(H, difference, count, sums.lanes[kGuidance]);
  inner_product(G, data, count, sums.lanes[kDataWeight]);
}

template <class T, class M>
void backward_tile(const BackwardArgs& args, const work_t<T>* c, int64_t offset, int count,
                   InnerProducts<work_t<T>>& sums) {
  using W = work_t<T>;
  W G[kTile], H[kTile], scratch[kTile];
  total_state_gradient<T, M>(args, c, offset, count, G, sums.lanes[kNextScale]);
  total_data_gradient<T>(args, c, offset, count, G, H);
  output_gradient<M>(args, c, offset, count, H);
  if (args.partials != nullptr) data_inner_products<T, M>(args, c, offset, count, G, H, sums);
  for (int k = 0; k < args.terms; ++k) {
    if (args.partials != nullptr) {
      const W* h = read_tile(at<T>(args.history[k], offset), count, scratch);
      inner_product(G, h, count, sums.lanes[kFirstWeight + k]);
    }
    if (args.grad_history[k] != nullptr) {
      scale(c[kFirstWeight + k], G, count, scratch);
      if (k == 0) accumulate(c[kSampleScale], H, count, scratch);
      write_tile(scratch, count, at<T>(args.grad_history[k], offset));
    }
  }
}

template <class T, class M>
void backward_chunks(const BackwardArgs& args, int64_t begin, int64_t end) {
  using W = work_t<T>;
  const int count = args.coefficient_count();
  W c[kMaxCoefficients];
  load_coefficients(args.coefficients, args.coefficients_are_double, count, c);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    InnerProducts<W> sums;
    const int64_t last = std::min((chunk + 1) * kCpuChunk, args.numel);
    for (int64_t offset = chunk * kCpuChunk; offset < last; offset += kTile) {
      backward_tile<T, M>(args, c, offset, static_cast<int>(std::min<int64_t>(kTile, last - offset)), sums);
    }
    if (args.partials == nullptr) continue;
    double* row = static_cast<double*>(args.partials) + chunk * count;
    sums.write(count, row);
    row[kGuidance] *= static_cast<double>(c[kOutputScale]);
  }
}

void forward(const ForwardArgs& args, int64_t begin, int64_t end) {
  switch (args.dtypes) {
    case DtypePair::f64_f64: return forward_chunks<double, double>(args, begin, end);
    case DtypePair::f32_f32: return forward_chunks<float, float>(args, begin, end);
    case DtypePair::f32_f16: return forward_chunks<float, half>(args, begin, end);
    case DtypePair::f32_bf16: return forward_chunks<float, bfloat16>(args, begin, end);
    case DtypePair::f16_f16: return forward_chunks<half, half>(args, begin, end);
    case DtypePair::bf16_bf16: return forward_chunks<bfloat16, bfloat16>(args, begin, end);
  }
}

void backward(const BackwardArgs& args, int64_t begin, int64_t end) {
  switch (args.dtypes) {
    case DtypePair::f64_f64: return backward_chunks<double, double>(args, begin, end);
    case DtypePair::f32_f32: return backward_chunks<float, float>(args, begin, end);
    case DtypePair::f32_f16: return backward_chunks<float, half>(args, begin, end);
    case DtypePair::f32_bf16: return backward_chunks<float, bfloat16>(args, begin, end);
    case DtypePair::f16_f16: return backward_chunks<half, half>(args, begin, end);
    case DtypePair::bf16_bf16: return backward_chunks<bfloat16, bfloat16>(args, begin, end);
  }
}

}  // namespace

#define GAS_EXT_STRING_(name) #name
#define GAS_EXT_STRING(name) GAS_EXT_STRING_(name)
extern const CpuKernels kernels;
const CpuKernels kernels = {GAS_EXT_STRING(GAS_EXT_ISA), forward, backward};

}  // namespace gas_ext::GAS_EXT_ISA
