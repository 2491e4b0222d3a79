// Choice among the instruction sets that fused_update_cpu.cpp was compiled for.
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>

#include "fused_update_cpu.h"

namespace gas_ext {

// GAS_EXT_ISA_LIST is X(set, supported)..., worst first; CMake compiles one object for each.
#if defined(__x86_64__)
#define GAS_EXT_ISA_LIST(X)                         \
  X(x86_64_v3, __builtin_cpu_supports("x86-64-v3")) \
  X(x86_64_v4, __builtin_cpu_supports("x86-64-v4"))
#else
#define GAS_EXT_ISA_LIST(X) X(plain, true)
#endif

#define GAS_EXT_DECLARE(set, supported) \
  namespace set {                       \
  extern const CpuKernels kernels;      \
  }
GAS_EXT_ISA_LIST(GAS_EXT_DECLARE)
#undef GAS_EXT_DECLARE

namespace {

struct Candidate {
  const CpuKernels* kernels;
  bool supported;
};

std::vector<Candidate> candidates() {
#define GAS_EXT_CANDIDATE(set, supported) Candidate{&set::kernels, static_cast<bool>(supported)},
  return {GAS_EXT_ISA_LIST(GAS_EXT_CANDIDATE)};
#undef GAS_EXT_CANDIDATE
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const CpuKernels& choose() {
  const char* variable = std::getenv("GAS_EXT_CPU_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
  const std::vector<std::string> supported = cpu_isas_supported();
  if (supported.empty()) {
    throw std::runtime_error("This processor is below x86-64-v3 (AVX2, FMA), which the CPU kernels need.");
  }
  const std::string name = wanted.empty() ? supported.back() : wanted;
  for (const Candidate& candidate : candidates()) {
    if (candidate.supported && candidate.kernels->name == name) return *candidate.kernels;
  }
  throw std::runtime_error("GAS_EXT_CPU_ISA is '" + wanted + "', but this processor offers " +
                           joined(supported) + "; name one of these, or unset it.");
}

}  // namespace

std::vector<std::string> cpu_isas_compiled() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) names.emplace_back(candidate.kernels->name);
  return names;
}

std::vector<std::string> cpu_isas_supported() {
  std::vector<std::string> names;
  for (const Candidate& candidate : candidates()) {
    if (candidate.supported) names.emplace_back(candidate.kernels->name);
  }
  return names;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

bool cpu_should_stream(int64_t bytes, double caches) {
  static const int64_t cache = [] {
    int64_t size = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 ? size : int64_t{32} << 20;
  }();
  return static_cast<double>(bytes) > caches * static_cast<double>(cache);
}

void cpu_sum_partials(const BackwardArgs& args) {
  const int count = args.coefficient_count();
  const double* rows = static_cast<const double*>(args.partials);
  const int64_t chunks = cpu_chunks(args.numel);
  for (int i = 0; i < count; ++i) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += rows[chunk * count + i];
    if (args.coefficients_are_double) {
      static_cast<double*>(args.grad_coefficients)[i] = sum;
    } else {
      static_cast<float*>(args.grad_coefficients)[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace gas_ext
