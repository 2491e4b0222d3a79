// Blocks of elements, the unit of work of the CPU kernels: a fixed number of native vectors, which stay in
// registers between loads and stores.
//
// Written with the vector types of GCC and Clang. Left to their vectorizers, plain loops come out well or
// many times slower, depending on the code around them.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu_numeric.h"

// A block stays in registers only where the functions that share it are compiled as one and its loops are
// unrolled.
#define GAS_EXT_INLINE [[gnu::always_inline]] inline
#define GAS_EXT_UNROLL _Pragma("GCC unroll 16")

namespace gas_ext::GAS_EXT_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T, int Bytes = kVectorBytes>
struct vector_of {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <class T, int Bytes = kVectorBytes>
using vector_t = typename vector_of<T, Bytes>::type;
using Floats = vector_t<float>;
using Doubles = vector_t<double>;

template <class V>
GAS_EXT_INLINE V load(const void* source) {
  V vector;
  std::memcpy(&vector, source, sizeof(V));
  return vector;
}
template <class V>
GAS_EXT_INLINE void store(const V& vector, void* target) {
  std::memcpy(target, &vector, sizeof(V));
}

// Operations that each set implements with its own instructions: a b + c, rounded once, so that all sets give
// the same bits; a vector of halves to float and back; non-temporal stores, which must have arrived before
// another thread reads them.
#if defined(__AVX512F__)
GAS_EXT_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
GAS_EXT_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
  return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
GAS_EXT_INLINE Floats read_halves(const half* source) {
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(source));
}
GAS_EXT_INLINE void write_halves(Floats values, half* target) {
  store(_mm512_maskz_cvtps_ph(0xffff, (__m512)values, _MM_FROUND_TO_NEAREST_INT), target);
}
GAS_EXT_INLINE void stream(const char* from, char* to) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), load<__m512i>(from));
}
inline void finish_streaming() { _mm_sfence(); }
#elif defined(__AVX2__)
GAS_EXT_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
GAS_EXT_INLINE Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
  return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
GAS_EXT_INLINE Floats read_halves(const half* source) {
  return (Floats)_mm256_cvtph_ps(load<__m128i>(source));
}
GAS_EXT_INLINE void write_halves(Floats values, half* target) {
  store(_mm256_cvtps_ph((__m256)values, _MM_FROUND_TO_NEAREST_INT), target);
}
GAS_EXT_INLINE void stream(const char* from, char* to) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), load<__m256i>(from));
}
inline void finish_streaming() { _mm_sfence(); }
#else
template <class V>
GAS_EXT_INLINE V multiply_add(V a, V b, V c) {
  V sum;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(a[0])); ++i) sum[i] = std::fma(a[i], b[i], c[i]);
  return sum;
}
GAS_EXT_INLINE Floats read_halves(const half* source) {
  Floats values;
  for (int i = 0; i < kVectorBytes / 4; ++i) values[i] = to_float(source[i]);
  return values;
}
GAS_EXT_INLINE void write_halves(Floats values, half* target) {
  for (int i = 0; i < kVectorBytes / 4; ++i) target[i] = to_half(values[i]);
}
GAS_EXT_INLINE void stream(const char* from, char* to) { std::memcpy(to, from, kVectorBytes); }
inline void finish_streaming() {}
#endif

template <class W>
GAS_EXT_INLINE vector_t<W> broadcast(W value) {
  return value - vector_t<W>{};
}

inline constexpr int kBlock = 64;

template <class W>
struct Block {
  using Vector = vector_t<W>;
  static constexpr int kWidth = kVectorBytes / sizeof(W);
  static constexpr int kCount = kBlock / kWidth;
  Vector vectors[kCount];

  Vector& operator[](int i) { return vectors[i]; }
  const Vector& operator[](int i) const { return vectors[i]; }
};

// Partial sums of an inner product, fixed so that every set adds in one order.
inline constexpr int kLanes = 16;
static_assert(kBlock % kLanes == 0);
template <class W>
struct Lanes {
  alignas(64) W values[kLanes] = {};
};

// The elements of each tensor that a block holds: kBlock of them, a constant, or fewer in the last one.
using WholeBlock = std::integral_constant<int, kBlock>;
template <class Count>
struct Part {
  int64_t offset;
  Count count;
  bool streaming;  // whether stores are non-temporal
};

template <class T>
GAS_EXT_INLINE void read_block(const T* source, Block<work_t<T>>& block) {
  using B = Block<work_t<T>>;
  [[maybe_unused]] constexpr int kWidth = B::kWidth;
  if constexpr (std::is_same_v<T, split_bfloat16>) {
    GAS_EXT_UNROLL
    for (int i = 0; i < B::kCount / 2; ++i) {
      const auto words = load<vector_t<uint32_t>>(source + 2 * i * kWidth);
      block[i] = (Floats)(words << 16);
      block[i + B::kCount / 2] = (Floats)(words & 0xffff0000u);
    }
  } else {
    GAS_EXT_UNROLL
    for (int i = 0; i < B::kCount; ++i) {
      const T* from = source + i * kWidth;
      if constexpr (std::is_same_v<T, bfloat16>) {
        const auto bits = load<vector_t<uint16_t, kVectorBytes / 2>>(from);
        block[i] = (Floats)(__builtin_convertvector(bits, vector_t<uint32_t>) << 16);
      } else if constexpr (std::is_same_v<T, half>) {
        block[i] = read_halves(from);
      } else {
        block[i] = load<vector_t<T>>(from);
      }
    }
  }
}

// to_bfloat16() of every element, in the upper halves; the lower ones are arbitrary.
GAS_EXT_INLINE vector_t<uint32_t> rounded_to_bfloat16(Floats value) {
  const auto bits = (vector_t<uint32_t>)value;
  const auto rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return value != value ? 0x7fc00000u - vector_t<uint32_t>{} : rounded;
}

// Round a block to the dtype of a tensor.
template <class T>
GAS_EXT_INLINE void write_block(const Block<work_t<T>>& block, T* target) {
  using B = Block<work_t<T>>;
  [[maybe_unused]] constexpr int kWidth = B::kWidth;
  if constexpr (std::is_same_v<T, split_bfloat16>) {
    GAS_EXT_UNROLL
    for (int i = 0; i < B::kCount / 2; ++i) {
      const auto even = rounded_to_bfloat16(block[i]);
      const auto odd = rounded_to_bfloat16(block[i + B::kCount / 2]);
      store((even >> 16) | (odd & 0xffff0000u), target + 2 * i * kWidth);
    }
  } else {
    GAS_EXT_UNROLL
    for (int i = 0; i < B::kCount; ++i) {
      T* to = target + i * kWidth;
      if constexpr (std::is_same_v<T, bfloat16>) {
        const auto bits = rounded_to_bfloat16(block[i]) >> 16;
        store(__builtin_convertvector(bits, vector_t<uint16_t, kVectorBytes / 2>), to);
      } else if constexpr (std::is_same_v<T, half>) {
        write_halves(block[i], to);
      } else {
        store(block[i], to);
      }
    }
  }
}

// Copy a block with non-temporal stores: a result larger than the caches would be evicted before it is read
// again, and an ordinary store fetches the line that it overwrites.
template <class T>
GAS_EXT_INLINE void stream_block(const T* block, T* target) {
  GAS_EXT_UNROLL
  for (int i = 0; i < static_cast<int>(kBlock * sizeof(T)); i += kVectorBytes) {
    stream(reinterpret_cast<const char*>(block) + i, reinterpret_cast<char*>(target) + i);
  }
}

template <class T, class W, class Count>
GAS_EXT_INLINE void read(const void* tensor, Part<Count> at, Block<W>& block) {
  const T* source = static_cast<const T*>(tensor) + at.offset;
  if constexpr (std::is_same_v<Count, WholeBlock>) {
    read_block(source, block);
  } else {
    W values[kBlock] = {};
    for (int i = 0; i < at.count; ++i) values[i] = to_work(source[i]);
    std::memcpy(&block, values, sizeof(values));
  }
}

template <class T, class W, class Count>
GAS_EXT_INLINE void write(const Block<W>& block, void* tensor, Part<Count> at) {
  T* target = static_cast<T*>(tensor) + at.offset;
  if constexpr (std::is_same_v<Count, WholeBlock>) {
    if (at.streaming && reinterpret_cast<std::uintptr_t>(target) % 64 == 0) {
      T rounded[kBlock];
      write_block(block, rounded);
      stream_block(rounded, target);
    } else {
      write_block(block, target);
    }
  } else {
    W values[kBlock];
    std::memcpy(values, &block, sizeof(values));
    for (int i = 0; i < at.count; ++i) target[i] = from_work<T>(values[i]);
  }
}

// sum += a b, element i into lane i % kLanes
template <class W>
GAS_EXT_INLINE void inner_product(const Block<W>& a, const Block<W>& b, Lanes<W>& sum) {
  constexpr int kWidth = Block<W>::kWidth, kLaneVectors = kLanes / kWidth;
  vector_t<W> lanes[kLaneVectors];
  GAS_EXT_UNROLL
  for (int j = 0; j < kLaneVectors; ++j) lanes[j] = load<vector_t<W>>(sum.values + j * kWidth);
  GAS_EXT_UNROLL
  for (int i = 0; i < Block<W>::kCount; ++i) {
    lanes[i % kLaneVectors] = multiply_add(a[i], b[i], lanes[i % kLaneVectors]);
  }
  GAS_EXT_UNROLL
  for (int j = 0; j < kLaneVectors; ++j) store(lanes[j], sum.values + j * kWidth);
}

}  // namespace gas_ext::GAS_EXT_ISA
