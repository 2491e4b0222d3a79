// Stands in for CUDA's header of this name: IEEE binary16 as storage, with its two conversions.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

struct alignas(2) __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits >> 15) << 31;
  const uint32_t exponent = value.bits >> 10 & 0x1fu;
  const uint32_t fraction = value.bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide_exponent << 23 | fraction << 13);
}

// To nearest, ties to even.
inline __half __float2half_rn(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};  // the NaN that the GPU gives
  uint32_t rounded;
  if (magnitude < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
    rounded = static_cast<uint32_t>(std::nearbyint(std::fabs(value) * 0x1p24f));
  } else {
    const uint32_t nearest = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    rounded = std::min((nearest >> 13) - ((127u - 15u) << 10), 0x7c00u);  // at most infinity
  }
  return {static_cast<uint16_t>(sign | rounded)};
}
