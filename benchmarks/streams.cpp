// The floor of a kernel that touches each byte once: reads some streams, writes some, computes next to nothing.
//
//     g++ -O3 -march=native -fopenmp -shared -fPIC streams.cpp -o streams.so
//
// Each thread walks its part four cache lines at a time: it combines those of every stream read (exclusive or:
// no rounding, no slow denormal numbers) in registers and stores them to every stream written. Whether stores
// past the cache are faster, and how many streams the memory serves well side by side, depends on the processor
// and on which cache level holds the data; floor.py tries them all.
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef std::uint64_t Line __attribute__((vector_size(64)));
constexpr int kTile = 4;

void store_past_cache(Line* to, const Line& line) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<const __m512i&>(line));
#elif defined(__x86_64__)
  const auto* from = reinterpret_cast<const __m128i*>(&line);
  for (int i = 0; i < 4; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, from[i]);
#else
  *to = line;
#endif
}

struct Streams {
  const Line* const* reads;
  int n_reads;
  Line* const* writes;
  int n_writes;
};

template <int kLines>
void sweep_tile(const Streams& streams, std::size_t at, bool past_cache) {
  Line sum[kLines] = {};
  for (int k = 0; k < streams.n_reads; ++k)
    for (int i = 0; i < kLines; ++i) sum[i] ^= streams.reads[k][at + i];
  for (int k = 0; k < streams.n_writes; ++k) {
    Line* write = streams.writes[k] + at;
    for (int i = 0; i < kLines; ++i) {
      if (past_cache)
        store_past_cache(write + i, sum[i]);
      else
        write[i] = sum[i];
    }
  }
}

void sweep_part(const Streams& streams, std::size_t begin, std::size_t end, bool past_cache) {
  std::size_t at = begin;
  for (; at + kTile <= end; at += kTile) sweep_tile<kTile>(streams, at, past_cache);
  for (; at < end; ++at) sweep_tile<1>(streams, at, past_cache);
#if defined(__x86_64__)
  if (past_cache) _mm_sfence();
#endif
}

// Deals the streams evenly to passes, which run one after the other.
void sweep_passes(const Streams& all, std::size_t begin, std::size_t end, bool past_cache, int passes) {
  for (int pass = 0; pass < passes; ++pass) {
    const int read = all.n_reads * pass / passes, written = all.n_writes * pass / passes;
    const Streams some{all.reads + read, all.n_reads * (pass + 1) / passes - read, all.writes + written,
                       all.n_writes * (pass + 1) / passes - written};
    sweep_part(some, begin, end, past_cache);
  }
}

}  // namespace

// Sweeps `repeats` times over `groups` of streams in turn: group g reads reads[g * n_reads + k] and writes
// writes[g * n_writes + k], each of `lines` cache lines.
extern "C" void sweep(const void* const* reads, int n_reads, void* const* writes, int n_writes, int groups,
                      std::size_t lines, int past_cache, int passes, int threads, int repeats) {
  for (int r = 0; r < repeats; ++r) {
    const std::size_t group = r % groups;
    const Streams streams{reinterpret_cast<const Line* const*>(reads) + group * n_reads, n_reads,
                          reinterpret_cast<Line* const*>(writes) + group * n_writes, n_writes};
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int part = 0; part < threads; ++part)
      sweep_passes(streams, lines * part / threads, lines * (part + 1) / threads, past_cache != 0, passes);
  }
}
