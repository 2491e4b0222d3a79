// The fused update on the CPU. CMake compiles this file once for each instruction set, with GAS_EXT_ISA
// naming it; fused_update_cpu_dispatch.cpp picks one at run time.
//
// Every tensor is walked once, block by block; fused multiply-adds are explicit, so that the order of
// rounding is the same in every set and in the CUDA kernels.
//
// Processors follow about ten streams through memory well. Steps with more tensors walk them in groups, tile
// by tile: all blocks of a tile by one group, then by the next, while sums stand in the second-level cache.
#include "fused_update_cpu.h"

#include <algorithm>

#include "cpu_block.h"

namespace gas_ext::GAS_EXT_ISA {
namespace {

template <class W>
void load_coefficients(const void* source, bool is_double, int count, W* target) {
  for (int i = 0; i < count; ++i) {
    target[i] = is_double ? static_cast<W>(static_cast<const double*>(source)[i])
                          : static_cast<W>(static_cast<const float*>(source)[i]);
  }
}

// Call body(part) for each block of the elements [begin, end).
template <class Body>
GAS_EXT_INLINE void for_each_block(int64_t begin, int64_t end, Body&& body) {
  for (; begin + kBlock <= end; begin += kBlock) body(Part<WholeBlock>{begin, {}});
  if (begin < end) body(Part<int>{begin, static_cast<int>(end - begin)});
}

inline constexpr int kStreams = 10;
inline constexpr int64_t kTile = 8192;
static_assert(kCpuChunk % kTile == 0 && kTile % kBlock == 0);

// History terms [begin, end) that are walked side by side.
struct Group {
  int begin;
  int end;
};

// Call body(group, part) for each block of the elements [begin, end) and each of even groups of at most
// `most` out of `terms` terms: tile by tile, and in each tile group by group.
template <class Body>
GAS_EXT_INLINE void for_each_group_of_blocks(int64_t begin, int64_t end, int terms, int most, Body&& body) {
  const int groups = (terms + most - 1) / most;
  for (; begin < end; begin += kTile) {
    for (int i = 0; i < groups; ++i) {
      const Group group{terms * i / groups, terms * (i + 1) / groups};
      for_each_block(begin, std::min(begin + kTile, end), [&](auto part) { body(group, part); });
    }
  }
}

// What one group leaves to the next, for the elements of a tile.
template <class W>
struct Carried {
  alignas(64) W values[kTile];

  template <class Count>
  GAS_EXT_INLINE void put(const Block<W>& block, Part<Count> part) {
    part.offset %= kTile;  // tiles begin at multiples of kTile
    write<W>(block, values, part, false);
  }
  template <class Count>
  GAS_EXT_INLINE void get(Part<Count> part, Block<W>& block) const {
    part.offset %= kTile;
    read<W>(values, part, block);
  }
};

// m~ = m_u + w (m - m_u), and m - m_u; without guidance m itself, and zero.
template <class M, class W, class Count>
GAS_EXT_INLINE void guided_output(const void* output, const void* uncond, Part<Count> part, W guidance,
                                  Block<W>& m, Block<W>& difference) {
  read<M>(output, part, m);
  difference = {};
  if (uncond == nullptr) return;
  Block<W> m_u;
  read<M>(uncond, part, m_u);
  for_each_vector<W>([&](int i) {
    difference[i] = m[i] - m_u[i];
    m[i] = multiply_add(broadcast(guidance), difference[i], m_u[i]);
  });
}

// D_n = p x_n + q m~
template <class W>
GAS_EXT_INLINE void data_prediction(const W* c, const Block<W>& x, const Block<W>& m, Block<W>& data) {
  const W p = c[kSampleScale], q = c[kOutputScale];
  for_each_vector<W>([&](int i) { data[i] = multiply_add(broadcast(p), x[i], q * m[i]); });
}

// D_n, and the part of x_{n+1} that is of D_n and x_n.
template <class T, class M, class Count>
GAS_EXT_INLINE void begin_state(const ForwardArgs& args, const work_t<T>* c, Part<Count> part,
                                Block<work_t<T>>& state) {
  using W = work_t<T>;
  Block<W> m, difference, x, data;
  guided_output<M>(args.output, args.output_uncond, part, c[kGuidance], m, difference);
  read<T>(args.history[0], part, x);
  data_prediction(c, x, m, data);
  scale(c[kDataWeight], data, state);
  accumulate(c[kFirstWeight], x, state);
  write<T>(data, args.data, part, args.streaming);
}

template <class T, class M, class Count>
GAS_EXT_INLINE void finish_state(const ForwardArgs& args, const work_t<T>* c, Part<Count> part,
                                 const Block<work_t<T>>& state) {
  write<T>(state, args.state, part, args.streaming);
  if (args.next_input == nullptr) return;
  Block<work_t<T>> next;
  scale(c[kNextScale], state, next);
  if (args.next_input_in_state_dtype) {
    write<T>(next, args.next_input, part, args.streaming);
  } else {
    write<M>(next, args.next_input, part, args.streaming);
  }
}

template <class T, class M, class Count>
GAS_EXT_INLINE void forward_block(const ForwardArgs& args, const work_t<T>* c, Group group, Part<Count> part,
                                  Carried<work_t<T>>& sums) {
  using W = work_t<T>;
  Block<W> state, h;
  if (group.begin == 0) {
    begin_state<T, M>(args, c, part, state);
  } else {
    sums.get(part, state);
  }
  for (int k = std::max(group.begin, 1); k < group.end; ++k) {
    read<T>(args.history[k], part, h);
    accumulate(c[kFirstWeight + k], h, state);
  }
  if (group.end == args.terms) {
    finish_state<T, M>(args, c, part, state);
  } else {
    sums.put(state, part);
  }
}

template <class T, class M>
void forward_chunks(const ForwardArgs& args, int64_t begin, int64_t end) {
  using W = work_t<T>;
  W c[kMaxCoefficients];
  load_coefficients(args.coefficients, args.coefficients_are_double, kFirstWeight + args.terms, c);
  Carried<W> sums;
  for_each_group_of_blocks(begin * kCpuChunk, std::min(end * kCpuChunk, args.numel), args.terms, kStreams,
                           [&](Group group, auto part) { forward_block<T, M>(args, c, group, part, sums); });
  finish_streaming(args.streaming);
}

// Partial sums of every coefficient's gradient over one chunk.
template <class W>
struct InnerProducts {
  alignas(64) W lanes[kMaxCoefficients][kLanes] = {};

  void write(int count, double* row) const {
    for (int i = 0; i < count; ++i) {
      double sum = 0;
      for (int j = 0; j < kLanes; ++j) sum += static_cast<double>(lanes[i][j]);
      row[i] = sum;
    }
  }
};

// G = dL/dx_{n+1} + s dL/dy, and <dL/dy, x_{n+1}>
template <class T, class M, class W, class Count>
GAS_EXT_INLINE void total_state_gradient(const BackwardArgs& args, const W* c, Part<Count> part, Block<W>& G,
                                         W* next_scale_lanes) {
  if (args.grad_state != nullptr) {
    read<T>(args.grad_state, part, G);
  } else {
    G = {};
  }
  if (args.grad_next_input == nullptr) return;
  Block<W> g_next;
  if (args.next_input_in_state_dtype) {
    read<T>(args.grad_next_input, part, g_next);
  } else {
    read<M>(args.grad_next_input, part, g_next);
  }
  accumulate(c[kNextScale], g_next, G);
  if (args.partials == nullptr) return;
  Block<W> state;
  read<T>(args.state, part, state);
  inner_product(g_next, state, next_scale_lanes);
}

// H = dL/dD_n + c_nn G
template <class T, class W, class Count>
GAS_EXT_INLINE void total_data_gradient(const BackwardArgs& args, const W* c, Part<Count> part,
                                        const Block<W>& G, Block<W>& H) {
  if (args.grad_data != nullptr) {
    read<T>(args.grad_data, part, H);
  } else {
    H = {};
  }
  accumulate(c[kDataWeight], G, H);
}

template <class M, class W, class Count>
GAS_EXT_INLINE void output_gradient(const BackwardArgs& args, const W* c, Part<Count> part,
                                    const Block<W>& H) {
  if (args.grad_output == nullptr) return;
  const W q = c[kOutputScale], w = c[kGuidance];
  Block<W> gradient;
  scale(args.output_uncond != nullptr ? q * w : q, H, gradient);
  write<M>(gradient, args.grad_output, part, args.streaming);
  if (args.output_uncond == nullptr) return;
  scale(q * (W(1) - w), H, gradient);
  write<M>(gradient, args.grad_output_uncond, part, args.streaming);
}

// <H, x_n>, <H, m~>, <H, m - m_u> and <G, D_n>
template <class T, class M, class W, class Count>
GAS_EXT_INLINE void data_inner_products(const BackwardArgs& args, const W* c, Part<Count> part,
                                        const Block<W>& G, const Block<W>& H, InnerProducts<W>& sums) {
  Block<W> x, m, difference, data;
  guided_output<M>(args.output, args.output_uncond, part, c[kGuidance], m, difference);
  read<T>(args.history[0], part, x);
  data_prediction(c, x, m, data);
  inner_product(H, x, sums.lanes[kSampleScale]);
  inner_product(H, m, sums.lanes[kOutputScale]);
  if (args.output_uncond != nullptr) inner_product(H, difference, sums.lanes[kGuidance]);
  inner_product(G, data, sums.lanes[kDataWeight]);
}

// G and H, and all that is of D_n alone: its inner products and the output's gradient.
template <class T, class M, class Count>
GAS_EXT_INLINE void data_gradients(const BackwardArgs& args, const work_t<T>* c, Part<Count> part,
                                   InnerProducts<work_t<T>>& sums, Block<work_t<T>>& G, Block<work_t<T>>& H) {
  total_state_gradient<T, M>(args, c, part, G, sums.lanes[kNextScale]);
  total_data_gradient<T>(args, c, part, G, H);
  if (args.partials != nullptr) data_inner_products<T, M>(args, c, part, G, H, sums);
  output_gradient<M>(args, c, part, H);
}

template <class T, class M, class Count>
GAS_EXT_INLINE void backward_block(const BackwardArgs& args, const work_t<T>* c, Group group,
                                   Part<Count> part, InnerProducts<work_t<T>>& sums,
                                   Carried<work_t<T>>& state_gradient) {
  using W = work_t<T>;
  Block<W> G, H = {};
  if (group.begin == 0) {
    data_gradients<T, M>(args, c, part, sums, G, H);
  } else {
    state_gradient.get(part, G);
  }
  // All terms are read before any of their gradients is written: a load whose address agrees with that of a
  // recent store in the last 12 bits, as addresses in large tensors do, would wait for it.
  for (int k = group.begin; args.partials != nullptr && k < group.end; ++k) {
    Block<W> h;
    read<T>(args.history[k], part, h);
    inner_product(G, h, sums.lanes[kFirstWeight + k]);
  }
  if (group.begin == 0 && group.end < args.terms) state_gradient.put(G, part);
  for (int k = group.begin; k < group.end; ++k) {
    if (args.grad_history[k] == nullptr) continue;
    Block<W> gradient;
    scale(c[kFirstWeight + k], G, gradient);
    if (k == 0) accumulate(c[kSampleScale], H, gradient);
    write<T>(gradient, args.grad_history[k], part, args.streaming);
  }
}

// Terms to walk side by side, so that the histories read and the gradients written are at most ten streams.
int backward_group(const BackwardArgs& args) {
  int streams = args.partials != nullptr ? args.terms : 0;
  for (int k = 0; k < args.terms; ++k) streams += args.grad_history[k] != nullptr;
  return kStreams * args.terms / std::max(streams, args.terms);
}

template <class T, class M>
void backward_chunks(const BackwardArgs& args, int64_t begin, int64_t end) {
  using W = work_t<T>;
  const int count = args.coefficient_count();
  const int most = backward_group(args);
  W c[kMaxCoefficients];
  load_coefficients(args.coefficients, args.coefficients_are_double, count, c);
  Carried<W> state_gradient;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    InnerProducts<W> sums;
    const int64_t last = std::min((chunk + 1) * kCpuChunk, args.numel);
    for_each_group_of_blocks(chunk * kCpuChunk, last, args.terms, most, [&](Group group, auto part) {
      backward_block<T, M>(args, c, group, part, sums, state_gradient);
    });
    if (args.partials == nullptr) continue;
    double* row = static_cast<double*>(args.partials) + chunk * count;
    sums.write(count, row);
    row[kGuidance] *= static_cast<double>(c[kOutputScale]);
  }
  finish_streaming(args.streaming);
}

void forward(const ForwardArgs& args, int64_t begin, int64_t end) {
  switch (args.dtypes) {
    case DtypePair::f64_f64: return forward_chunks<double, double>(args, begin, end);
    case DtypePair::f32_f32: return forward_chunks<float, float>(args, begin, end);
    case DtypePair::f32_f16: return forward_chunks<float, half>(args, begin, end);
    case DtypePair::f32_bf16: return forward_chunks<float, bfloat16>(args, begin, end);
    case DtypePair::f16_f16: return forward_chunks<half, half>(args, begin, end);
    case DtypePair::bf16_bf16: return forward_chunks<split_bfloat16, split_bfloat16>(args, begin, end);
  }
}

void backward(const BackwardArgs& args, int64_t begin, int64_t end) {
  switch (args.dtypes) {
    case DtypePair::f64_f64: return backward_chunks<double, double>(args, begin, end);
    case DtypePair::f32_f32: return backward_chunks<float, float>(args, begin, end);
    case DtypePair::f32_f16: return backward_chunks<float, half>(args, begin, end);
    case DtypePair::f32_bf16: return backward_chunks<float, bfloat16>(args, begin, end);
    case DtypePair::f16_f16: return backward_chunks<half, half>(args, begin, end);
    case DtypePair::bf16_bf16: return backward_chunks<split_bfloat16, split_bfloat16>(args, begin, end);
  }
}

}  // namespace

#define GAS_EXT_STRING_(name) #name
#define GAS_EXT_STRING(name) GAS_EXT_STRING_(name)
extern const CpuKernels kernels;
const CpuKernels kernels = {GAS_EXT_STRING(GAS_EXT_ISA), forward, backward};

}  // namespace gas_ext::GAS_EXT_ISA
