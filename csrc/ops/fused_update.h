// The operators, written once for every device. `Device` has three static functions:
//     forward(ForwardArgs, Tensor like), backward(BackwardArgs, Tensor like)
//     partials(Tensor like, numel, terms) -> workspace of the two-stage reduction
#pragma once

#include "arguments.h"

namespace gas_ext {

inline constexpr const char* kForwardSchema =
    "fused_update(Tensor[] history, Tensor output, Tensor coefficients, bool guided, "
    "ScalarType? next_input_dtype) -> (Tensor, Tensor, Tensor)";
inline constexpr const char* kForwardOutSchema =
    "fused_update_out(Tensor[] history, Tensor output, Tensor coefficients, bool guided, "
    "Tensor(a!) data, Tensor(b!) state, Tensor(c!)? next_input) -> ()";
inline constexpr const char* kBackwardSchema =
    "fused_update_backward(Tensor? grad_data, Tensor? grad_state, Tensor? grad_next_input, Tensor[] history, "
    "Tensor output, Tensor? state, Tensor coefficients, bool guided, int[] needs_history, bool needs_output, "
    "bool needs_coefficients) -> (Tensor[], Tensor, Tensor)";

template <class Device>
void run_forward(const Inputs& inputs, Tensor& data, Tensor& state, Tensor* next_input) {
  ForwardArgs args;
  inputs.fill(args);
  args.data = data.mutable_data_ptr();
  args.state = state.mutable_data_ptr();
  if (next_input != nullptr) {
    args.next_input = next_input->mutable_data_ptr();
    args.next_input_in_state_dtype = inputs.next_input_in_state_dtype(next_input->scalar_type());
  }
  Device::forward(args, state);
}

// D_n, x_{n+1} and the next network input; an empty third tensor unless that is requested.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> fused_update(std::vector<Tensor> history, Tensor output,
                                                Tensor coefficients, bool guided,
                                                std::optional<ScalarType> next_input_dtype) {
  const Inputs inputs(history, output, coefficients, guided);
  Tensor data = empty_like(inputs.layout(), inputs.state_dtype());
  Tensor state = empty_like(inputs.layout(), inputs.state_dtype());
  Tensor next_input = next_input_dtype ? empty_like(inputs.layout(), *next_input_dtype)
                                       : empty_1d(inputs.layout(), 0, inputs.state_dtype());
  run_forward<Device>(inputs, data, state, next_input_dtype ? &next_input : nullptr);
  return {data, state, next_input};
}

template <class Device>
void fused_update_out(std::vector<Tensor> history, Tensor output, Tensor coefficients, bool guided,
                      Tensor data, Tensor state, std::optional<Tensor> next_input) {
  const Inputs inputs(history, output, coefficients, guided);
  std::vector<Tensor> targets{data, state};
  if (next_input) targets.push_back(*next_input);
  for (size_t i = 0; i < targets.size(); ++i) {
    const Tensor& target = targets[i];
    const Name name{"out", static_cast<int>(i)};
    check_like(inputs.layout(), target, i == 2 ? target.scalar_type() : inputs.state_dtype(), name);
    check(same_layout(target, inputs.layout()), name,
          " has other strides than history[0]; make it with torch.empty_like(history[0]).");
    check(!inputs.overlaps(target), name, " shares memory with an input; give it memory of its own.");
    for (size_t j = 0; j < i; ++j) {
      check(!overlap(target, targets[j]), name, " shares memory with out[", j,
            "]; give it memory of its own.");
    }
  }
  run_forward<Device>(inputs, data, state, next_input ? &*next_input : nullptr);
}

// Gradients of the requested history tensors, of the output and of the coefficients; what is not
// requested is an empty tensor. `state` (x_{n+1}) is read only for the gradient of the next input's scale.
template <class Device>
std::tuple<std::vector<Tensor>, Tensor, Tensor> fused_update_backward(
    std::optional<Tensor> grad_data, std::optional<Tensor> grad_state, std::optional<Tensor> grad_next_input,
    std::vector<Tensor> history, Tensor output, std::optional<Tensor> state, Tensor coefficients, bool guided,
    std::vector<int64_t> needs_history, bool needs_output, bool needs_coefficients) {
  Inputs inputs(history, output, coefficients, guided);
  const Tensor& layout = inputs.layout();
  BackwardArgs args;
  inputs.fill(args);

  std::vector<Tensor> keep;  // dense copies of incoming gradients
  const auto dense = [&](const Tensor& tensor, ScalarType dtype, const char* name) {
    keep.push_back(inputs.dense(tensor, dtype, {name}));
    return keep.back().const_data_ptr();
  };
  if (grad_data) args.grad_data = dense(*grad_data, inputs.state_dtype(), "grad_data");
  if (grad_state) args.grad_state = dense(*grad_state, inputs.state_dtype(), "grad_state");
  if (grad_next_input) {
    const ScalarType dtype = grad_next_input->scalar_type();
    args.next_input_in_state_dtype = inputs.next_input_in_state_dtype(dtype);
    args.grad_next_input = dense(*grad_next_input, dtype, "grad_next_input");
    check(state.has_value() || !needs_coefficients,
          "The gradient of the next input's scale needs x_{n+1}, but state is None; pass it.");
    if (needs_coefficients) args.state = dense(*state, inputs.state_dtype(), "state");
  }

  std::vector<Tensor> grad_history;
  for (const int64_t k : needs_history) {
    check(0 <= k && k < args.terms && args.grad_history[k] == nullptr, "needs_history holds ", k,
          ", but the history has ", args.terms, " tensors; name each of 0 to ", args.terms - 1,
          " at most once.");
    grad_history.push_back(empty_like(layout, inputs.state_dtype()));
    args.grad_history[k] = grad_history.back().mutable_data_ptr();
  }
  Tensor grad_output =
      needs_output ? empty_like(output, output.scalar_type()) : empty_1d(layout, 0, output.scalar_type());
  std::vector<Target> output_targets;
  if (needs_output) {
    const auto [conditional, unconditional] = inputs.halves(grad_output);
    output_targets.emplace_back(conditional, layout, inputs.network_dtype());
    args.grad_output = output_targets[0].pointer();
    if (unconditional) {
      output_targets.emplace_back(*unconditional, layout, inputs.network_dtype());
      args.grad_output_uncond = output_targets[1].pointer();
    }
  }
  Tensor grad_coefficients =
      empty_1d(layout, needs_coefficients ? args.coefficient_count() : 0, coefficients.scalar_type());
  if (needs_coefficients) {
    args.grad_coefficients = grad_coefficients.mutable_data_ptr();
    keep.push_back(Device::partials(layout, args.numel, args.terms));
    args.partials = keep.back().mutable_data_ptr();
  }
  Device::backward(args, layout);
  for (Target& target : output_targets) target.finish();
  return {grad_history, grad_output, grad_coefficients};
}

template <class Device>
void implement(torch::stable::detail::StableLibrary& library) {
  library.impl("fused_update", TORCH_BOX(&fused_update<Device>));
  library.impl("fused_update_out", TORCH_BOX(&fused_update_out<Device>));
  library.impl("fused_update_backward", TORCH_BOX(&fused_update_backward<Device>));
}

}  // namespace gas_ext
