// Scalar arithmetic and dtype conversion of the CPU kernels.
//
// Compiled once for each instruction set, therefore in that set's own namespace: an inline function of the
// same name in two translation units with different -march would be merged by the linker into one of them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "fused_update.h"

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
// bfloat16 where every tensor is so. The order of elements within a block is free then: first those at even
// positions, then those at odd ones, each a half of 32 bits that one operation converts.
struct split_bfloat16 {
  uint16_t bits;
};

inline float to_float(bfloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline bfloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);  // to nearest, ties to even
  return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded >> 16)};
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
    // Subnormal half: adding 0.5 shifts the mantissa so that the float's last bit is worth 2^-24.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u;
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

inline double to_work(double value) { return value; }
inline float to_work(float value) { return value; }
inline float to_work(bfloat16 value) { return to_float(value); }
inline float to_work(split_bfloat16 value) { return to_float(bfloat16{value.bits}); }
inline float to_work(half value) { return to_float(value); }

template <class T>
inline T from_work(work_t<T> value) {
  if constexpr (std::is_same_v<T, half>) {
    return to_half(value);
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return to_bfloat16(value);
  } else if constexpr (std::is_same_v<T, split_bfloat16>) {
    return {to_bfloat16(value).bits};
  } else {
    return value;
  }
}

}  // namespace gas_ext::GAS_EXT_ISA
