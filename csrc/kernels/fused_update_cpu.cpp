// The fused update on the CPU. CMake compiles this file once for each instruction set, with GAS_EXT_ISA
// naming it; fused_update_cpu_dispatch.cpp picks one at run time.
//
// Every tensor is walked once, block by block; what is computed for a block is in equations.h.
//
// Processors follow about ten streams through memory well. Steps with more tensors walk them in groups, tile
// by tile: all blocks of a tile by one group, then by the next, while sums stay in the second-level cache.
#include "fused_update_cpu.h"

#include <algorithm>

#include "cpu_block.h"
#include "equations.h"

namespace gas_ext::GAS_EXT_ISA {
namespace {

template <class Args, class W>
void load_coefficients(const Args& args, W* c) {
  for (int i = 0; i < kFirstWeight + args.terms; ++i) {
    c[i] = coefficient<W>(args.coefficients, args.coefficients_are_double, i);
  }
}

// Call body(at) for each block of the elements [begin, end).
template <class Body>
GAS_EXT_INLINE void for_each_block(int64_t begin, int64_t end, bool streaming, Body&& body) {
  for (; begin + kBlock <= end; begin += kBlock) body(Part<WholeBlock>{begin, {}, streaming});
  if (begin < end) body(Part<int>{begin, static_cast<int>(end - begin), streaming});
}

inline constexpr int kStreams = 10;
inline constexpr int64_t kTile = 8192;
static_assert(kCpuChunk % kTile == 0 && kTile % kBlock == 0);

// History terms [begin, end) that are walked side by side.
struct Group {
  int begin;
  int end;
};

// Call body(group, at) for each block of the elements [begin, end) and each of even groups of at most `most`
// out of `terms` terms: tile by tile, and in each tile group by group.
template <class Body>
GAS_EXT_INLINE void for_each_group_of_blocks(int64_t begin, int64_t end, int terms, int most, bool streaming,
                                             Body&& body) {
  const int groups = (terms + most - 1) / most;
  for (; begin < end; begin += kTile) {
    for (int i = 0; i < groups; ++i) {
      const Group group{terms * i / groups, terms * (i + 1) / groups};
      for_each_block(begin, std::min(begin + kTile, end), streaming, [&](auto at) { body(group, at); });
    }
  }
}

// What one group leaves to the next, for the elements of a tile: x_{n+1} so far, or G.
template <class W>
struct Carried {
  alignas(64) W values[kTile];

  // Tiles begin at multiples of kTile.
  template <class Count>
  GAS_EXT_INLINE void put(const Block<W>& block, Part<Count> at) {
    write<W>(block, values, Part<Count>{at.offset % kTile, at.count, false});
  }
  template <class Count>
  GAS_EXT_INLINE void get(Part<Count> at, Block<W>& block) const {
    read<W>(values, Part<Count>{at.offset % kTile, at.count, false}, block);
  }
};

template <class T, class M, class Count>
GAS_EXT_INLINE void forward_block(const ForwardArgs& args, const work_t<T>* c, Group group, Part<Count> at,
                                  Carried<work_t<T>>& carried) {
  Block<work_t<T>> state;
  if (group.begin == 0) {
    begin_state<T, M>(args, c, at, state);
  } else {
    carried.get(at, state);
  }
  for (int k = std::max(group.begin, 1); k < group.end; ++k) add_term<T>(args, c, k, at, state);
  if (group.end == args.terms) {
    finish_state<T, M>(args, c, at, state);
  } else {
    carried.put(state, at);
  }
}

template <class T, class M>
void forward_chunks(const ForwardArgs& args, int64_t begin, int64_t end) {
  work_t<T> c[kMaxCoefficients];
  load_coefficients(args, c);
  Carried<work_t<T>> state;
  for_each_group_of_blocks(begin * kCpuChunk, std::min(end * kCpuChunk, args.numel), args.terms, kStreams,
                           args.streaming,
                           [&](Group group, auto at) { forward_block<T, M>(args, c, group, at, state); });
  if (args.streaming) finish_streaming();
}

template <class T, class M, class Count>
GAS_EXT_INLINE void backward_block(const BackwardArgs& args, const work_t<T>* c, Group group, Part<Count> at,
                                   Lanes<work_t<T>>* sums, Carried<work_t<T>>& carried) {
  Block<work_t<T>> G, H = {};
  if (group.begin == 0) {
    data_gradients<T, M>(args, c, at, sums, G, H);
  } else {
    carried.get(at, G);
  }
  // All terms are read before any of their gradients is written: a load whose address agrees with that of a
  // recent store in the last 12 bits, as addresses in large tensors do, would wait for it.
  const int older = std::max(group.begin, 1);
  for (int k = older; k < group.end; ++k) term_inner_product<T>(args, k, at, G, sums[kFirstWeight + k]);
  if (group.begin == 0) {
    if (group.end < args.terms) carried.put(G, at);
    first_gradient<T>(args, c, at, G, H);
  }
  for (int k = older; k < group.end; ++k) term_gradient<T>(args, c, k, at, G);
}

// Terms to walk side by side, so that the histories read and the gradients written are at most ten streams.
int backward_group(const BackwardArgs& args) {
  int streams = args.partials != nullptr ? args.terms : 0;
  for (int k = 0; k < args.terms; ++k) streams += args.grad_history[k] != nullptr;
  return kStreams * args.terms / std::max(streams, args.terms);
}

// Write the inner products of one chunk to its row of partials.
template <class W>
void write_sums(const BackwardArgs& args, const W* c, const Lanes<W>* sums, int64_t chunk) {
  double* row = static_cast<double*>(args.partials) + chunk * args.coefficient_count();
  for (int i = 0; i < args.coefficient_count(); ++i) {
    row[i] = 0;
    for (const W lane : sums[i].values) row[i] += static_cast<double>(lane);
  }
  row[kGuidance] *= static_cast<double>(c[kOutputScale]);
}

template <class T, class M>
void backward_chunks(const BackwardArgs& args, int64_t begin, int64_t end) {
  using W = work_t<T>;
  const int most = backward_group(args);
  W c[kMaxCoefficients];
  load_coefficients(args, c);
  Carried<W> state_gradient;
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    Lanes<W> sums[kMaxCoefficients];
    for_each_group_of_blocks(
        chunk * kCpuChunk, std::min((chunk + 1) * kCpuChunk, args.numel), args.terms, most, args.streaming,
        [&](Group group, auto at) { backward_block<T, M>(args, c, group, at, sums, state_gradient); });
    if (args.partials != nullptr) write_sums(args, c, sums, chunk);
  }
  if (args.streaming) finish_streaming();
}

// Call body.operator()<T, M>() with the types of a pair.
template <class Body>
void with_types(DtypePair dtypes, Body&& body) {
  switch (dtypes) {
    case DtypePair::f64_f64: return body.template operator()<double, double>();
    case DtypePair::f32_f32: return body.template operator()<float, float>();
    case DtypePair::f32_f16: return body.template operator()<float, half>();
    case DtypePair::f32_bf16: return body.template operator()<float, bfloat16>();
    case DtypePair::f16_f16: return body.template operator()<half, half>();
    case DtypePair::bf16_bf16: return body.template operator()<split_bfloat16, split_bfloat16>();
  }
}

void forward(const ForwardArgs& args, int64_t begin, int64_t end) {
  with_types(args.dtypes, [&]<class T, class M>() { forward_chunks<T, M>(args, begin, end); });
}

void backward(const BackwardArgs& args, int64_t begin, int64_t end) {
  with_types(args.dtypes, [&]<class T, class M>() { backward_chunks<T, M>(args, begin, end); });
}

}  // namespace

#define GAS_EXT_STRING_(name) #name
#define GAS_EXT_STRING(name) GAS_EXT_STRING_(name)
extern const CpuKernels kernels;
const CpuKernels kernels = {GAS_EXT_STRING(GAS_EXT_ISA), forward, backward};

}  // namespace gas_ext::GAS_EXT_ISA
