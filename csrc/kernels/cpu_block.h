// Blocks of elements, the unit of work of the CPU kernels: a fixed number of native vectors, which stay in
// registers from a tensor's memory to another's.
//
// Written with the vector types of GCC and Clang. Left to their vectorizers, plain loops come out well or
// many times slower, depending on what stands around them.
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
#elif defined(__AVX__)
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

// a b + c, rounded once on every machine, so that all instruction sets give the same bits.
template <class V>
GAS_EXT_INLINE V multiply_add(V a, V b, V c) {
  [[maybe_unused]] constexpr bool kIsFloat = std::is_same_v<V, vector_t<float>>;
#if defined(__AVX512F__)
  if constexpr (kIsFloat) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (!kIsFloat) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  if constexpr (kIsFloat) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (!kIsFloat) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  V sum;
  for (int i = 0; i < static_cast<int>(sizeof(V) / sizeof(a[0])); ++i) sum[i] = std::fma(a[i], b[i], c[i]);
  return sum;
#endif
}

inline constexpr int kBlock = 64;
// Partial sums of an inner product, fixed so that every set adds in one order.
inline constexpr int kLanes = 16;
static_assert(kBlock % kLanes == 0);

template <class W>
struct Block {
  using Vector = vector_t<W>;
  static constexpr int kWidth = kVectorBytes / sizeof(W);
  static constexpr int kVectors = kBlock / kWidth;
  Vector vectors[kVectors];

  Vector& operator[](int i) { return vectors[i]; }
  const Vector& operator[](int i) const { return vectors[i]; }
};

// Call body(i) for each vector of a block.
template <class W, class Body>
GAS_EXT_INLINE void for_each_vector(Body&& body) {
  GAS_EXT_UNROLL
  for (int i = 0; i < Block<W>::kVectors; ++i) body(i);
}

template <class W>
GAS_EXT_INLINE vector_t<W> broadcast(W value) {
  return value - vector_t<W>{};
}

// The elements of each tensor that a block holds: kBlock of them, a constant, or fewer in the last one.
using WholeBlock = std::integral_constant<int, kBlock>;
template <class Count>
struct Part {
  int64_t offset;
  Count count;
};

// bfloat16 where every tensor is so. The order of elements within a block is free then: first those at even
// places, then those at odd ones, each a half of 32 bits that one operation converts.
struct split_bfloat16 {
  uint16_t bits;
};
inline float to_work(split_bfloat16 value) { return to_float(bfloat16{value.bits}); }
inline split_bfloat16 from_work(float value, split_bfloat16) { return {to_bfloat16(value).bits}; }

template <class T>
GAS_EXT_INLINE void read_block(const T* source, Block<work_t<T>>& block) {
  using W = work_t<T>;
  using B = Block<W>;
  [[maybe_unused]] constexpr int kWidth = B::kWidth;
  if constexpr (std::is_same_v<T, W>) {
    for_each_vector<W>([&](int i) { block[i] = load<vector_t<W>>(source + i * kWidth); });
  } else if constexpr (std::is_same_v<T, split_bfloat16>) {
    GAS_EXT_UNROLL
    for (int i = 0; i < B::kVectors / 2; ++i) {
      const auto words = load<vector_t<uint32_t>>(source + 2 * i * kWidth);
      block[i] = (vector_t<float>)(words << 16);
      block[i + B::kVectors / 2] = (vector_t<float>)(words & 0xffff0000u);
    }
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    for_each_vector<W>([&](int i) {
      const auto bits = load<vector_t<uint16_t, kVectorBytes / 2>>(source + i * kWidth);
      block[i] = (vector_t<float>)(__builtin_convertvector(bits, vector_t<uint32_t>) << 16);
    });
  } else {
    for_each_vector<W>([&](int i) {
#if defined(__AVX512F__)
      block[i] = (vector_t<float>)_mm512_maskz_cvtph_ps(0xffff, load<__m256i>(source + i * kWidth));
#elif defined(__F16C__)
      block[i] = (vector_t<float>)_mm256_cvtph_ps(load<__m128i>(source + i * kWidth));
#else
      W values[kWidth];
      for (int j = 0; j < kWidth; ++j) values[j] = to_work(source[i * kWidth + j]);
      block[i] = load<vector_t<W>>(values);
#endif
    });
  }
}

// to_bfloat16() of every element, in the upper halves; the lower ones are arbitrary.
GAS_EXT_INLINE vector_t<uint32_t> rounded_to_bfloat16(vector_t<float> value) {
  const auto bits = (vector_t<uint32_t>)value;
  const auto rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return value != value ? 0x7fc00000u - vector_t<uint32_t>{} : rounded;
}

// Round a block to the dtype of a tensor.
template <class T>
GAS_EXT_INLINE void write_block(const Block<work_t<T>>& block, T* target) {
  using W = work_t<T>;
  using B = Block<W>;
  [[maybe_unused]] constexpr int kWidth = B::kWidth;
  if constexpr (std::is_same_v<T, W>) {
    for_each_vector<W>([&](int i) { store(block[i], target + i * kWidth); });
  } else if constexpr (std::is_same_v<T, split_bfloat16>) {
    GAS_EXT_UNROLL
    for (int i = 0; i < B::kVectors / 2; ++i) {
      const auto even = rounded_to_bfloat16(block[i]);
      const auto odd = rounded_to_bfloat16(block[i + B::kVectors / 2]);
      store((even >> 16) | (odd & 0xffff0000u), target + 2 * i * kWidth);
    }
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    for_each_vector<W>([&](int i) {
      const auto bits = rounded_to_bfloat16(block[i]) >> 16;
      store(__builtin_convertvector(bits, vector_t<uint16_t, kVectorBytes / 2>), target + i * kWidth);
    });
  } else {
    for_each_vector<W>([&](int i) {
#if defined(__AVX512F__)
      store(_mm512_maskz_cvtps_ph(0xffff, (__m512)block[i], _MM_FROUND_TO_NEAREST_INT), target + i * kWidth);
#elif defined(__F16C__)
      store(_mm256_cvtps_ph((__m256)block[i], _MM_FROUND_TO_NEAREST_INT), target + i * kWidth);
#else
      W values[kWidth];
      store(block[i], values);
      for (int j = 0; j < kWidth; ++j) target[i * kWidth + j] = from_work(values[j], T{});
#endif
    });
  }
}

// Copy a block to memory past the caches: what is larger than they are would be evicted before it is read
// again, and an ordinary store fetches the line that it overwrites.
template <class T>
GAS_EXT_INLINE void stream_block(const T* block, T* target) {
  GAS_EXT_UNROLL
  for (int i = 0; i < static_cast<int>(kBlock * sizeof(T)); i += kVectorBytes) {
    const char* from = reinterpret_cast<const char*>(block) + i;
    char* to = reinterpret_cast<char*>(target) + i;
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), load<__m512i>(from));
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), load<__m256i>(from));
#else
    std::memcpy(to, from, kVectorBytes);
#endif
  }
}

// Streamed blocks must have arrived before another thread reads them.
inline void finish_streaming(bool streaming) {
#if defined(__x86_64__)
  if (streaming) _mm_sfence();
#else
  static_cast<void>(streaming);
#endif
}

template <class T, class W, class Count>
GAS_EXT_INLINE void read(const void* base, Part<Count> part, Block<W>& block) {
  const T* source = static_cast<const T*>(base) + part.offset;
  if constexpr (std::is_same_v<Count, WholeBlock>) {
    read_block(source, block);
  } else {
    W values[kBlock] = {};
    for (int i = 0; i < part.count; ++i) values[i] = to_work(source[i]);
    std::memcpy(&block, values, sizeof(values));
  }
}

template <class T, class W, class Count>
GAS_EXT_INLINE void write(const Block<W>& block, void* base, Part<Count> part, bool streaming) {
  T* target = static_cast<T*>(base) + part.offset;
  if constexpr (std::is_same_v<Count, WholeBlock>) {
    if (streaming && reinterpret_cast<std::uintptr_t>(target) % 64 == 0) {
      T rounded[kBlock];
      write_block(block, rounded);
      stream_block(rounded, target);
    } else {
      write_block(block, target);
    }
  } else {
    W values[kBlock];
    std::memcpy(values, &block, sizeof(values));
    for (int i = 0; i < part.count; ++i) target[i] = from_work(values[i], T{});
  }
}

// out = c a
template <class W>
GAS_EXT_INLINE void scale(W c, const Block<W>& a, Block<W>& out) {
  for_each_vector<W>([&](int i) { out[i] = c * a[i]; });
}

// out = c a + out
template <class W>
GAS_EXT_INLINE void accumulate(W c, const Block<W>& a, Block<W>& out) {
  for_each_vector<W>([&](int i) { out[i] = multiply_add(broadcast(c), a[i], out[i]); });
}

// lanes += a b, element i into lane i % kLanes
template <class W>
GAS_EXT_INLINE void inner_product(const Block<W>& a, const Block<W>& b, W* lanes) {
  constexpr int kWidth = Block<W>::kWidth, kLaneVectors = kLanes / kWidth;
  vector_t<W> sums[kLaneVectors];
  GAS_EXT_UNROLL
  for (int j = 0; j < kLaneVectors; ++j) sums[j] = load<vector_t<W>>(lanes + j * kWidth);
  for_each_vector<W>(
      [&](int i) { sums[i % kLaneVectors] = multiply_add(a[i], b[i], sums[i % kLaneVectors]); });
  GAS_EXT_UNROLL
  for (int j = 0; j < kLaneVectors; ++j) store(sums[j], lanes + j * kWidth);
}

}  // namespace gas_ext::GAS_EXT_ISA
