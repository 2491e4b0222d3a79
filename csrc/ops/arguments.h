// From tensors to the plain structures of the kernels: dtypes, sizes, devices and memory order are settled
// here, for CPU and CUDA alike.
#pragma once

#include "../kernels/fused_update.h"
#include "tensors.h"

namespace gas_ext {

inline DtypePair dtype_pair(ScalarType state, ScalarType network) {
  using S = ScalarType;
  if (state == S::Double && network == S::Double) return DtypePair::f64_f64;
  if (state == S::Float && network == S::Float) return DtypePair::f32_f32;
  if (state == S::Float && network == S::Half) return DtypePair::f32_f16;
  if (state == S::Float && network == S::BFloat16) return DtypePair::f32_bf16;
  if (state == S::Half && network == S::Half) return DtypePair::f16_f16;
  if (state == S::BFloat16 && network == S::BFloat16) return DtypePair::bf16_bf16;
  throw std::runtime_error(
      "gas_ext: no kernel for this pair of state and output dtypes; convert the output first");
}

// `tensor` in the memory order of `layout`: itself, or a copy.
inline Tensor dense_like(const Tensor& layout, const Tensor& tensor, ScalarType dtype) {
  check(same_sizes(tensor, layout),
        "all tensors must have the shape of history[0] (output: twice the batch with guidance)");
  check(tensor.scalar_type() == dtype, "a tensor's dtype differs from its group's");
  check(same_device(tensor, layout), "all tensors must be on one device");
  if (same_layout(tensor, layout)) return tensor;
  Tensor copy = empty_like(layout, dtype);
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline void check_coefficients(const Tensor& coefficients, const Tensor& like) {
  check(coefficients.dim() == 1 && coefficients.is_contiguous(), "coefficients must be a contiguous vector");
  check(coefficients.scalar_type() == ScalarType::Double || coefficients.scalar_type() == ScalarType::Float,
        "coefficients must be float64 or float32");
  check(same_device(coefficients, like), "coefficients must be on the device of the history");
}

// The inputs that forward and backward share, brought to one memory order: that of `layout`, which is x_n
// where x_n is dense, else a dense copy of it. Copies made on the way live as long as this object.
class Inputs {
 public:
  Inputs(const std::vector<Tensor>& history, const Tensor& output, const Tensor& coefficients, bool guided)
      : layout_(first(history)), guided_(guided) {
    const Tensor& x = history[0];
    state_dtype_ = x.scalar_type();
    network_dtype_ = output.scalar_type();
    dtypes_ = dtype_pair(state_dtype_, network_dtype_);
    check(history.size() <= static_cast<size_t>(kMaxTerms), "at most 64 history tensors");
    const int64_t count = kFirstWeight + static_cast<int64_t>(history.size());
    check_coefficients(coefficients, x);
    check(coefficients.numel() == count, "coefficients must be 5 + len(history) numbers");
    history_.reserve(history.size());
    history_.push_back(layout_);
    for (size_t k = 1; k < history.size(); ++k) history_.push_back(dense(history[k], state_dtype_));
    const auto [conditional, unconditional] = halves(output);
    output_ = dense(conditional, network_dtype_);
    if (guided) output_uncond_ = dense(*unconditional, network_dtype_);
    coefficients_ = coefficients;
  }

  Tensor dense(const Tensor& tensor, ScalarType dtype) { return dense_like(layout_, tensor, dtype); }

  // (conditional, unconditional) views of a doubled batch, unconditional half first; (tensor, none) else.
  std::tuple<Tensor, std::optional<Tensor>> halves(Tensor tensor) const {
    if (!guided_) return {tensor, std::nullopt};
    check(layout_.dim() >= 1 && tensor.dim() >= 1 && tensor.size(0) == 2 * layout_.size(0),
          "with guidance the output must hold the batch twice, unconditional half first");
    const int64_t batch = layout_.size(0);
    return {torch::stable::narrow(tensor, 0, batch, batch), torch::stable::narrow(tensor, 0, 0, batch)};
  }

  // Fill the members that ForwardArgs and BackwardArgs have in common.
  template <class Args>
  void fill(Args& args) const {
    args.dtypes = dtypes_;
    args.numel = layout_.numel();
    args.terms = static_cast<int>(history_.size());
    for (size_t k = 0; k < history_.size(); ++k) args.history[k] = history_[k].const_data_ptr();
    args.output = output_.const_data_ptr();
    args.output_uncond = guided_ ? output_uncond_.const_data_ptr() : nullptr;
    args.coefficients = coefficients_.const_data_ptr();
    args.coefficients_are_double = coefficients_.scalar_type() == ScalarType::Double;
  }

  const Tensor& layout() const { return layout_; }
  ScalarType state_dtype() const { return state_dtype_; }
  ScalarType network_dtype() const { return network_dtype_; }
  const std::vector<Tensor>& history() const { return history_; }

  bool overlaps(const Tensor& target) const {
    for (const Tensor& tensor : history_) {
      if (overlap(tensor, target)) return true;
    }
    return overlap(output_, target) || (guided_ && overlap(output_uncond_, target)) ||
           overlap(coefficients_, target);
  }

 private:
  static Tensor first(const std::vector<Tensor>& history) {
    check(!history.empty(), "the history must hold at least x_n");
    return made_dense(history[0]);
  }

  Tensor layout_;
  bool guided_;
  ScalarType state_dtype_;
  ScalarType network_dtype_;
  DtypePair dtypes_;
  std::vector<Tensor> history_;
  Tensor output_;
  Tensor output_uncond_;
  Tensor coefficients_;
};

// A gradient to be written in the common memory order: into `view` itself, or through a copy.
class Target {
 public:
  Target(const Tensor& view, const Tensor& layout, ScalarType dtype)
      : view_(view), dense_(same_layout(view, layout) ? view : empty_like(layout, dtype)) {}

  void* pointer() { return dense_.mutable_data_ptr(); }
  void finish() {
    if (dense_.get() != view_.get()) torch::stable::copy_(view_, dense_);
  }

 private:
  Tensor view_;
  Tensor dense_;
};

}  // namespace gas_ext
