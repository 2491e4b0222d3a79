// CPU kernels of the fused update, compiled for several instruction sets and chosen at run time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fused_update.h"

namespace gas_ext {

// The work is cut into chunks of a fixed size whatever the number of threads: a chunk is one unit of the
// two-stage reductions, so the sums are the same bits for 1, 2 or more threads.
inline constexpr int64_t kCpuChunk = 16384;

inline int64_t cpu_chunks(int64_t numel) { return (numel + kCpuChunk - 1) / kCpuChunk; }

// One instruction set's kernels. `begin` and `end` are chunk indices; disjoint ranges may run in parallel.
struct CpuKernels {
  const char* name;
  void (*forward)(const ForwardArgs&, int64_t begin, int64_t end);
  // First stage: gradients of the tensors, and (with args.partials) each chunk's inner products, a row of
  // args.coefficient_count() doubles.
  void (*backward)(const BackwardArgs&, int64_t begin, int64_t end);
};

// Second stage: add the rows of args.partials in chunk order into args.grad_coefficients.
void cpu_sum_partials(const BackwardArgs& args);

// The kernels in use: the best set that this processor runs, or the one that the environment variable
// GAS_EXT_CPU_ISA names. Throws std::runtime_error if that set is unknown or cannot run here.
const CpuKernels& cpu_kernels();

// Use non-temporal stores once a call moves more than `caches` times the last-level cache. The results of a
// forward call are read again soon: streaming took twice as long near the cache size, and pays only from 3
// times that size. Of a backward call only the output's gradient is read soon: streaming pays from 1.5 times
// that size, where it takes two thirds of the time.
inline constexpr double kUpdateCaches = 3, kGradientCaches = 1.5;
bool cpu_should_stream(int64_t bytes, double caches);

// Names of the sets in this binary, best last, and of those that this processor runs.
std::vector<std::string> cpu_isas_compiled();
std::vector<std::string> cpu_isas_supported();

}  // namespace gas_ext
