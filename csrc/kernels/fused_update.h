// The one operation of a generalized solver, as plain structures: no torch header below csrc/kernels.
//
// Forward, for every element (equations of docs/kernels.md):
//     m~      = m_u + w (m - m_u)              with guidance, else m
//     D_n     = p x_n + q m~
//     x_{n+1} = c_nn D_n + sum_k w_k h_k       h_0 = x_n
//     y       = s x_{n+1}                      next network input, if requested
//
// Backward, with G = dL/dx_{n+1} + s dL/dy and H = dL/dD_n + c_nn G:
//     dh_k = w_k G (+ p H for k = 0)           dm = q w H,  dm_u = q (1 - w) H
//     dw_k = <G, h_k>   dc_nn = <G, D_n>   dp = <H, x_n>   dq = <H, m~>
//     dw   = q <H, m - m_u>                ds = <dL/dy, x_{n+1}>
#pragma once

#include <cstdint>
#include <type_traits>

namespace gas_ext {

inline constexpr int kMaxTerms = 64;

// Positions in a coefficient row: the scalars first, then one weight for each history tensor.
enum Coefficient : int {
  kSampleScale = 0,  // p
  kOutputScale = 1,  // q
  kGuidance = 2,     // w
  kNextScale = 3,    // s
  kDataWeight = 4,   // c_nn
  kFirstWeight = 5,  // w_0, w_1, ...
};
inline constexpr int kMaxCoefficients = kFirstWeight + kMaxTerms;

// State dtype and network dtype, the only pairs that are compiled.
enum class DtypePair { f64_f64, f32_f32, f32_f16, f32_bf16, f16_f16, bf16_bf16 };

inline int state_bytes(DtypePair dtypes) {
  if (dtypes == DtypePair::f64_f64) return 8;
  return dtypes == DtypePair::f16_f16 || dtypes == DtypePair::bf16_bf16 ? 2 : 4;
}
inline int network_bytes(DtypePair dtypes) {
  if (dtypes == DtypePair::f64_f64) return 8;
  return dtypes == DtypePair::f32_f32 ? 4 : 2;
}

// The type that tensors of dtype T are computed in.
template <class T>
using work_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// All tensors have `numel` elements in one common memory order; the pointers are to the first element.
struct ForwardArgs {
  DtypePair dtypes;
  int64_t numel = 0;
  int terms = 0;                           // history tensors, 1..kMaxTerms
  const void* history[kMaxTerms] = {};     // state dtype; history[0] is x_n
  const void* output = nullptr;            // m, network dtype
  const void* output_uncond = nullptr;     // m_u, network dtype; null without guidance
  const void* coefficients = nullptr;      // kFirstWeight + terms numbers
  bool coefficients_are_double = true;     // else float
  void* data = nullptr;                    // D_n, state dtype
  void* state = nullptr;                   // x_{n+1}, state dtype
  void* next_input = nullptr;              // y; null unless requested
  bool next_input_in_state_dtype = false;  // else in the network dtype
  bool streaming = false;                  // CPU: write past the caches

  // Bytes that must move between memory and processor: each input and each output once.
  int64_t bytes() const {
    const int state = state_bytes(dtypes), network = network_bytes(dtypes);
    const int next = next_input == nullptr ? 0 : next_input_in_state_dtype ? state : network;
    return numel * ((terms + 2) * state + (output_uncond == nullptr ? 1 : 2) * network + next);
  }
};

// Null gradients are absent (inputs) or not requested (outputs).
struct BackwardArgs {
  DtypePair dtypes;
  int64_t numel = 0;
  int terms = 0;
  const void* grad_data = nullptr;        // dL/dD_n, state dtype
  const void* grad_state = nullptr;       // dL/dx_{n+1}, state dtype
  const void* grad_next_input = nullptr;  // dL/dy
  bool next_input_in_state_dtype = false;
  const void* history[kMaxTerms] = {};
  const void* output = nullptr;
  const void* output_uncond = nullptr;
  const void* state = nullptr;  // x_{n+1}; needed for ds only
  const void* coefficients = nullptr;
  bool coefficients_are_double = true;
  void* grad_history[kMaxTerms] = {};
  void* grad_output = nullptr;
  void* grad_output_uncond = nullptr;
  void* grad_coefficients = nullptr;  // in the dtype of `coefficients`
  void* partials = nullptr;           // workspace of the two-stage reduction; null without grad_coefficients
  bool streaming = false;             // CPU: write past the caches

  int coefficient_count() const { return kFirstWeight + terms; }

  int64_t bytes() const {
    const int state = state_bytes(dtypes), network = network_bytes(dtypes);
    int states = (grad_data != nullptr) + (grad_state != nullptr), networks = 0;
    for (int k = 0; k < terms; ++k) states += (partials != nullptr) + (grad_history[k] != nullptr);
    if (partials != nullptr) networks += output_uncond == nullptr ? 1 : 2;
    networks += (grad_output != nullptr) + (grad_output_uncond != nullptr);
    if (grad_next_input != nullptr) {
      (next_input_in_state_dtype ? states : networks) += 1;
      states += partials != nullptr;  // x_{n+1}
    }
    return numel * (static_cast<int64_t>(states) * state + networks * network);
  }
};

}  // namespace gas_ext
