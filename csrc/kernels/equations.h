// The equations of fused_update.h for a few elements at a time, in registers: the part of the kernels that
// CUDA and every instruction set of the CPU have in common, and with it the order of rounding.
//
// A backend includes this file after it has defined, in its namespace gas_ext::GAS_EXT_ISA,
//     B                            elements in the work type W: B::kCount items (vectors on the CPU)
//     read<T>(tensor, at, B&)      fetch the elements at a position of a tensor of dtype T
//     write<T>(B, tensor, at)      round them to T and store them
//     multiply_add(a, b, c)        a b + c of items, rounded once;  broadcast(W) makes an item of a number
//     inner_product(a, b, sum)     sum += a b
// and the macros GAS_EXT_INLINE and GAS_EXT_UNROLL. `c` is the coefficient row in the work type.
#pragma once

#include "fused_update.h"

namespace gas_ext::GAS_EXT_ISA {

// A number of the coefficient row, in the work type.
template <class W>
GAS_EXT_INLINE W coefficient(const void* row, bool is_double, int i) {
  return is_double ? static_cast<W>(static_cast<const double*>(row)[i])
                   : static_cast<W>(static_cast<const float*>(row)[i]);
}

// Call body(i) for each item of a B.
template <class B, class Body>
GAS_EXT_INLINE void for_each_item(Body&& body) {
  GAS_EXT_UNROLL
  for (int i = 0; i < B::kCount; ++i) body(i);
}

// out = factor a
template <class W, class B>
GAS_EXT_INLINE void scale(W factor, const B& a, B& out) {
  for_each_item<B>([&](int i) { out[i] = factor * a[i]; });
}

// out = factor a + out
template <class W, class B>
GAS_EXT_INLINE void accumulate(W factor, const B& a, B& out) {
  for_each_item<B>([&](int i) { out[i] = multiply_add(broadcast(factor), a[i], out[i]); });
}

// A tensor that may be absent, which is zero.
template <class T, class At, class B>
GAS_EXT_INLINE void read_or_zero(const void* tensor, At at, B& out) {
  if (tensor != nullptr) {
    read<T>(tensor, at, out);
  } else {
    out = {};
  }
}

// m~ = m_u + w (m - m_u), and m - m_u; without guidance m itself, and zero.
template <class M, class Args, class At, class W, class B>
GAS_EXT_INLINE void guided_output(const Args& args, const W* c, At at, B& m, B& difference) {
  read<M>(args.output, at, m);
  difference = {};
  if (args.output_uncond == nullptr) return;
  B m_u;
  read<M>(args.output_uncond, at, m_u);
  for_each_item<B>([&](int i) {
    difference[i] = m[i] - m_u[i];
    m[i] = multiply_add(broadcast(c[kGuidance]), difference[i], m_u[i]);
  });
}

// D_n = p x_n + q m~
template <class W, class B>
GAS_EXT_INLINE void data_prediction(const W* c, const B& x, const B& m, B& data) {
  scale(c[kOutputScale], m, data);
  accumulate(c[kSampleScale], x, data);
}

// --- Forward ----------------------------------------------------------------------------------------------

// D_n, and c_nn D_n + w_0 x_n, the beginning of x_{n+1}
template <class T, class M, class At, class W, class B>
GAS_EXT_INLINE void begin_state(const ForwardArgs& args, const W* c, At at, B& state) {
  B m, difference, x, data;
  guided_output<M>(args, c, at, m, difference);
  read<T>(args.history[0], at, x);
  data_prediction(c, x, m, data);
  scale(c[kDataWeight], data, state);
  accumulate(c[kFirstWeight], x, state);
  write<T>(data, args.data, at);
}

// state += w_k h_k
template <class T, class At, class W, class B>
GAS_EXT_INLINE void add_term(const ForwardArgs& args, const W* c, int k, At at, B& state) {
  B h;
  read<T>(args.history[k], at, h);
  accumulate(c[kFirstWeight + k], h, state);
}

// x_{n+1}, and y = s x_{n+1}
template <class T, class M, class At, class W, class B>
GAS_EXT_INLINE void finish_state(const ForwardArgs& args, const W* c, At at, const B& state) {
  write<T>(state, args.state, at);
  if (args.next_input == nullptr) return;
  B next;
  scale(c[kNextScale], state, next);
  if (args.next_input_in_state_dtype) {
    write<T>(next, args.next_input, at);
  } else {
    write<M>(next, args.next_input, at);
  }
}

// --- Backward ---------------------------------------------------------------------------------------------

// G = dL/dx_{n+1} + s dL/dy; sum += <dL/dy, x_{n+1}>, unless null
template <class T, class M, class At, class W, class B, class Sum>
GAS_EXT_INLINE void total_state_gradient(const BackwardArgs& args, const W* c, At at, B& G, Sum* sum) {
  read_or_zero<T>(args.grad_state, at, G);
  if (args.grad_next_input == nullptr) return;
  B g_next;
  if (args.next_input_in_state_dtype) {
    read<T>(args.grad_next_input, at, g_next);
  } else {
    read<M>(args.grad_next_input, at, g_next);
  }
  accumulate(c[kNextScale], g_next, G);
  if (args.partials == nullptr || sum == nullptr) return;
  B state;
  read<T>(args.state, at, state);
  inner_product(g_next, state, *sum);
}

// H = dL/dD_n + c_nn G
template <class T, class At, class W, class B>
GAS_EXT_INLINE void total_data_gradient(const BackwardArgs& args, const W* c, At at, const B& G, B& H) {
  read_or_zero<T>(args.grad_data, at, H);
  accumulate(c[kDataWeight], G, H);
}

// <H, m - m_u>, <H, m~>, <H, x_n>, <G, x_n> and <G, D_n>; of the orders tried, this needs fewest registers.
template <class T, class M, class At, class W, class B, class Sum>
GAS_EXT_INLINE void data_inner_products(const BackwardArgs& args, const W* c, At at, const B& G, const B& H,
                                        Sum* sums) {
  B m, difference, x, data;
  guided_output<M>(args, c, at, m, difference);
  read<T>(args.history[0], at, x);
  data_prediction(c, x, m, data);
  if (args.output_uncond != nullptr) inner_product(H, difference, sums[kGuidance]);
  inner_product(H, m, sums[kOutputScale]);
  inner_product(H, x, sums[kSampleScale]);
  inner_product(G, x, sums[kFirstWeight]);
  inner_product(G, data, sums[kDataWeight]);
}

// dm = q w H, dm_u = q (1 - w) H; dm = q H without guidance
template <class M, class At, class W, class B>
GAS_EXT_INLINE void output_gradients(const BackwardArgs& args, const W* c, At at, const B& H) {
  if (args.grad_output == nullptr) return;
  const W q = c[kOutputScale], w = c[kGuidance];
  B gradient;
  scale(args.output_uncond != nullptr ? q * w : q, H, gradient);
  write<M>(gradient, args.grad_output, at);
  if (args.output_uncond == nullptr) return;
  scale(q * (W(1) - w), H, gradient);
  write<M>(gradient, args.grad_output_uncond, at);
}

// G and H, the inner products with D_n, its parts and x_{n+1}, and the output's gradients.
template <class T, class M, class At, class W, class B, class Sum>
GAS_EXT_INLINE void data_gradients(const BackwardArgs& args, const W* c, At at, Sum* sums, B& G, B& H) {
  total_state_gradient<T, M>(args, c, at, G, &sums[kNextScale]);
  total_data_gradient<T>(args, c, at, G, H);
  if (args.partials != nullptr) data_inner_products<T, M>(args, c, at, G, H, sums);
  output_gradients<M>(args, c, at, H);
}

// dh_0 = w_0 G + p H
template <class T, class At, class W, class B>
GAS_EXT_INLINE void first_gradient(const BackwardArgs& args, const W* c, At at, const B& G, const B& H) {
  if (args.grad_history[0] == nullptr) return;
  B gradient;
  scale(c[kFirstWeight], G, gradient);
  accumulate(c[kSampleScale], H, gradient);
  write<T>(gradient, args.grad_history[0], at);
}

// <G, h_k>
template <class T, class At, class B, class Sum>
GAS_EXT_INLINE void term_inner_product(const BackwardArgs& args, int k, At at, const B& G, Sum& sum) {
  if (args.partials == nullptr) return;
  B h;
  read<T>(args.history[k], at, h);
  inner_product(G, h, sum);
}

// dh_k = w_k G
template <class T, class At, class W, class B>
GAS_EXT_INLINE void term_gradient(const BackwardArgs& args, const W* c, int k, At at, const B& G) {
  if (args.grad_history[k] == nullptr) return;
  B gradient;
  scale(c[kFirstWeight + k], G, gradient);
  write<T>(gradient, args.grad_history[k], at);
}

}  // namespace gas_ext::GAS_EXT_ISA
