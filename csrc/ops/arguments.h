// From tensors to the plain structures of the kernels: dtypes, sizes, devices and memory order are checked
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
  check(state == S::Double || state == S::Float || state == S::Half || state == S::BFloat16,
        "The history is ", Dtype{state}, "; convert it to float64, float32, float16 or bfloat16.");
  check(false, "No kernel takes a ", Dtype{network}, " output with a ", Dtype{state},
        " history; convert the output to ", Dtype{state}, ".");
  return DtypePair::f32_f32;  // not reached
}

// Check a tensor against history[0], which gives `layout` its shape and device.
inline void check_like(const Tensor& layout, const Tensor& tensor, ScalarType dtype, Name name) {
  check(tensor.scalar_type() == dtype, name, " is ", Dtype{tensor.scalar_type()}, "; convert it to ",
        Dtype{dtype}, ".");
  check(same_sizes(tensor, layout), name, " has shape ", Shape{tensor}, ", but history[0] has ",
        Shape{layout}, "; give tensors of one shape.");
  check(same_device(tensor, layout), name, " is on another device than history[0]; move it.");
}

// `tensor` in the memory order of `layout`: itself, or a copy.
inline Tensor dense_like(const Tensor& layout, const Tensor& tensor, ScalarType dtype, Name name) {
  check_like(layout, tensor, dtype, name);
  if (same_layout(tensor, layout)) return tensor;
  Tensor copy = empty_like(layout, dtype);
  torch::stable::copy_(copy, tensor);
  return copy;
}

inline void check_coefficients(const Tensor& coefficients, const Tensor& layout, int64_t terms) {
  check(coefficients.dim() == 1 && coefficients.numel() == kFirstWeight + terms,
        "The coefficients have shape ", Shape{coefficients}, "; give a vector of ",
        static_cast<int>(kFirstWeight), " + ", terms, " numbers for ", terms, " history tensors.");
  check(coefficients.is_contiguous(), "The coefficients are a strided view; make them contiguous.");
  const ScalarType dtype = coefficients.scalar_type();
  check(dtype == ScalarType::Double || dtype == ScalarType::Float, "The coefficients are ", Dtype{dtype},
        "; give float64 or float32.");
  check(same_device(coefficients, layout),
        "The coefficients are on another device than history[0]; move them.");
}

inline void check_output(const Tensor& output, const Tensor& layout, bool guided) {
  if (!guided) {
    check(same_sizes(output, layout), "The output has shape ", Shape{output}, ", but history[0] has ",
          Shape{layout}, "; give one of that shape.");
    return;
  }
  check(layout.dim() >= 1, "Guidance needs a batch dimension to double, but history[0] has none; add one.");
  bool doubled = output.dim() == layout.dim();
  for (int64_t d = 0; doubled && d < layout.dim(); ++d) {
    doubled = output.size(d) == (d == 0 ? 2 : 1) * layout.size(d);
  }
  check(doubled, "The output has shape ", Shape{output}, ", but with guidance it must hold the batch of ",
        Shape{layout}, " twice; give both halves, the unconditional one first.");
}

// The inputs that forward and backward share, brought to one memory order: that of `layout`, which is x_n
// where x_n is dense, else a dense copy of it. Copies made on the way live as long as this object.
class Inputs {
 public:
  Inputs(const std::vector<Tensor>& history, const Tensor& output, const Tensor& coefficients, bool guided)
      : layout_(first(history)), guided_(guided) {
    state_dtype_ = layout_.scalar_type();
    network_dtype_ = output.scalar_type();
    dtypes_ = dtype_pair(state_dtype_, network_dtype_);
    check_coefficients(coefficients, layout_, static_cast<int64_t>(history.size()));
    check_output(output, layout_, guided);
    history_.reserve(history.size());
    history_.push_back(layout_);
    for (size_t k = 1; k < history.size(); ++k) {
      history_.push_back(dense(history[k], state_dtype_, {"history", static_cast<int>(k)}));
    }
    const auto [conditional, unconditional] = halves(output);
    output_ = dense(conditional, network_dtype_, {"output"});
    if (guided) output_uncond_ = dense(*unconditional, network_dtype_, {"output"});
    coefficients_ = coefficients;
  }

  Tensor dense(const Tensor& tensor, ScalarType dtype, Name name) const {
    return dense_like(layout_, tensor, dtype, name);
  }

  // The next input is in the dtype of the states or of the output; return whether in that of the states.
  bool next_input_in_state_dtype(ScalarType dtype) const {
    check(dtype == state_dtype_ || dtype == network_dtype_, "The next input is ", Dtype{dtype},
          "; choose the dtype of the history (", Dtype{state_dtype_}, ") or of the output (",
          Dtype{network_dtype_}, ").");
    return dtype == state_dtype_;
  }

  // (conditional, unconditional) views of a doubled batch, unconditional half first; (tensor, none) else.
  std::tuple<Tensor, std::optional<Tensor>> halves(Tensor tensor) const {
    if (!guided_) return {tensor, std::nullopt};
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
    check(!history.empty() && history.size() <= static_cast<size_t>(kMaxTerms), "The history has ",
          history.size(), " tensors; give 1 to ", kMaxTerms, ", x_n first.");
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
