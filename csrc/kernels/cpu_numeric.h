// Scalar arithmetic and dtype conversion of the CPU kernels.
//
// Compiled once for each instruction set, therefore in that set's own namespace: an inline function of the
// same name in two translation units with different -march would be merged by the linker into one of them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#ifndef GAS_EXT_ISA
#error "define GAS_EXT_ISA: the namespace of the instruction set that this file is compiled for"
#endif

namespace gas_ext::GAS_EXT_ISA {

// IEEE binary16 and bfloat16 as stored; arithmetic happens in float.
struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

// Fused multiply-add, rounded once on every machine, so that all instruction sets give the same bits.
#if defined(__FMA__) || defined(__aarch64__)
inline float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// Without the instruction: the product of two floats is exact in double; the sum is rounded to odd there
// (Boldo and Melquiond 2008), after which rounding to float equals a single rounding.
inline float fused_multiply_add(float a, float b, float c) {
  const double product = static_cast<double>(a) * b;
  const double addend = c;
  const double sum = product + addend;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (addend - back);
  int64_t bits = std::bit_cast<int64_t>(sum);
  const bool inexact = error < 0 || error > 0;  // false for NaN: infinities pass unchanged
  const bool away_from_zero = (error > 0) == (sum > 0);
  if (inexact && (bits & 1) == 0) bits += away_from_zero ? 1 : -1;
  return static_cast<float>(std::bit_cast<double>(bits));
}
#endif
inline double fused_multiply_add(double a, double b, double c) { return std::fma(a, b, c); }

inline float to_float(bfloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline bfloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded >> 16)};
}

inline float to_float(half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // Place exponent and mantissa in a float and correct the bias (15 -> 127); infinity and NaN once more, to
  // the largest exponent. A subnormal is an integer times 2^-24: no subnormal float is touched, which a
  // process may have set to be flushed to zero.
  const uint32_t bias = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const uint32_t normal = (magnitude << 13) + bias;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  return std::bit_cast<float>((magnitude < 0x400u ? std::bit_cast<uint32_t>(subnormal) : normal) | sign);
}

inline half to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};   // NaN
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal half: adding 0.5 shifts the mantissa so that the float unit in the last place is 2^-24.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

inline bfloat16 from_float(float value, bfloat16) { return to_bfloat16(value); }
inline half from_float(float value, half) { return to_half(value); }

// Type in which tensors of type T are computed with.
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

// Tile of `count` elements in the work type: the tensor's own memory where it is of that type already,
// else converted into `scratch`.
template <class T>
inline const work_t<T>* read_tile(const T* source, int count, work_t<T>* scratch) {
  if constexpr (std::is_same_v<T, work_t<T>>) {
    return source;
  } else {
    int i = 0;
#if defined(__F16C__)
    if constexpr (std::is_same_v<T, half>) {
      for (; i + 8 <= count; i += 8) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i));
        _mm256_storeu_ps(scratch + i, _mm256_cvtph_ps(packed));
      }
    }
#endif
    for (; i < count; ++i) scratch[i] = to_float(source[i]);
    return scratch;
  }
}

// Write a tile of the work type to a tensor, rounding to its dtype.
template <class T>
inline void write_tile(const work_t<T>* values, int count, T* target) {
  if constexpr (std::is_same_v<T, work_t<T>>) {
    for (int i = 0; i < count; ++i) target[i] = values[i];
  } else {
    int i = 0;
#if defined(__F16C__)
    if constexpr (std::is_same_v<T, half>) {
      for (; i + 8 <= count; i += 8) {
        const __m128i packed = _mm256_cvtps_ph(_mm256_loadu_ps(values + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(target + i), packed);
      }
    }
#endif
    for (; i < count; ++i) target[i] = from_float(values[i], T{});
  }
}

}  // namespace gas_ext::GAS_EXT_ISA
