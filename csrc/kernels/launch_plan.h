// Shape of a CUDA launch as plain C++: alignment, grid and workspace sizes, testable without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "fused_update.h"

namespace gas_ext {

inline constexpr int kBlockThreads = 256;
inline constexpr int64_t kMaxForwardBlocks = 8192;
// The reductions' first stage writes one number for each block, so the grid is bounded. It depends on size
// and alignment alone, never on the device: the sums have the same bits on every GPU.
inline constexpr int64_t kMaxReductionBlocks = 1024;
// Inner products that one thread carries in registers; more history terms go to further rows of blocks.
inline constexpr int kTermsPerGroup = 8;

// Elements [0, head) and the tail are handled one by one; `vectors` aligned groups of `width` in between.
struct VectorPlan {
  int64_t head = 0;
  int64_t vectors = 0;
  int width = 1;

  int64_t scalars(int64_t numel) const { return numel - vectors * width; }
};

// Collects the addresses that a kernel will touch and finds the elements at which all are aligned.
class VectorPlanner {
 public:
  VectorPlanner(int64_t numel, int width) : numel_(numel), width_(width) {}

  void add(const void* pointer, int element_bytes) {
    if (pointer == nullptr) return;
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    const auto phase =
        static_cast<int>((address / static_cast<unsigned>(element_bytes)) % static_cast<unsigned>(width_));
    if (address % static_cast<unsigned>(element_bytes) != 0) common_ = false;
    if (phase_ < 0) phase_ = phase;
    if (phase_ != phase) common_ = false;
  }

  // Without a common phase every element is a scalar: correct, and rare (unequal storage offsets).
  VectorPlan plan() const {
    if (!common_) return {0, 0, width_};
    const int64_t head = std::min<int64_t>(numel_, phase_ <= 0 ? 0 : width_ - phase_);
    return {head, (numel_ - head) / width_, width_};
  }

 private:
  int64_t numel_;
  int width_;
  int phase_ = -1;
  bool common_ = true;
};

inline VectorPlan plan_vectors(const ForwardArgs& args) {
  const int state = state_bytes(args.dtypes), network = network_bytes(args.dtypes);
  VectorPlanner planner(args.numel, 16 / state);
  for (int k = 0; k < args.terms; ++k) planner.add(args.history[k], state);
  for (const void* tensor : {args.output, args.output_uncond}) planner.add(tensor, network);
  planner.add(args.data, state);
  planner.add(args.state, state);
  planner.add(args.next_input, args.next_input_in_state_dtype ? state : network);
  return planner.plan();
}

inline VectorPlan plan_vectors(const BackwardArgs& args) {
  const int state = state_bytes(args.dtypes), network = network_bytes(args.dtypes);
  VectorPlanner planner(args.numel, 16 / state);
  for (int k = 0; k < args.terms; ++k) {
    planner.add(args.history[k], state);
    planner.add(args.grad_history[k], state);
  }
  for (const void* tensor : {args.grad_data, args.grad_state, args.state}) planner.add(tensor, state);
  planner.add(args.grad_next_input, args.next_input_in_state_dtype ? state : network);
  for (const void* tensor : {args.output, args.output_uncond}) planner.add(tensor, network);
  for (const void* tensor : {args.grad_output, args.grad_output_uncond}) planner.add(tensor, network);
  return planner.plan();
}

inline int64_t blocks_for(const VectorPlan& plan, int64_t numel, int64_t most) {
  const int64_t items = std::max(plan.vectors, plan.scalars(numel));
  return std::clamp<int64_t>((items + kBlockThreads - 1) / kBlockThreads, 1, most);
}

// Rows of blocks in the backward launch: one for x_n and m, then one for each group of older terms. Without
// inner products to sum the rows still share the gradients to write, up to the last that is requested.
inline int backward_groups(int terms) { return 1 + (terms - 1 + kTermsPerGroup - 1) / kTermsPerGroup; }
inline int backward_groups(const BackwardArgs& args) {
  int terms = args.terms;
  while (args.partials == nullptr && terms > 1 && args.grad_history[terms - 1] == nullptr) --terms;
  return backward_groups(terms);
}

// Elements of BackwardArgs::partials: a column of kMaxReductionBlocks numbers at most for each coefficient.
inline int64_t cuda_workspace_elements(int64_t numel, int terms) {
  const int64_t blocks =
      std::clamp<int64_t>((numel + kBlockThreads - 1) / kBlockThreads, 1, kMaxReductionBlocks);
  return blocks * (kFirstWeight + terms);
}

}  // namespace gas_ext
