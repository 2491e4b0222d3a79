// torch.ops.gas_ext.*: schemas, and the CPU implementations.
#include "../kernels/fused_update_cpu.h"
#include "fused_update.h"

namespace gas_ext {
namespace {

// Chunks that a thread must have to be worth waking: 32,768 elements, as in torch.
constexpr int64_t kGrainChunks = 2;

struct Cpu {
  static void forward(ForwardArgs args, const Tensor&) {
    args.streaming = cpu_should_stream(args.bytes(), kUpdateCaches);
    const auto kernel = cpu_kernels().forward;
    torch::stable::parallel_for(0, cpu_chunks(args.numel), kGrainChunks,
                                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }

  static Tensor partials(const Tensor& like, int64_t numel, int terms) {
    return empty_1d(like, cpu_chunks(numel) * (kFirstWeight + terms), ScalarType::Double);
  }

  static void backward(BackwardArgs args, const Tensor&) {
    args.streaming = cpu_should_stream(args.bytes(), kGradientCaches);
    const auto kernel = cpu_kernels().backward;
    torch::stable::parallel_for(0, cpu_chunks(args.numel), kGrainChunks,
                                [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
    if (args.partials != nullptr || args.grad_coefficients != nullptr) cpu_sum_partials(args);
  }
};

}  // namespace
}  // namespace gas_ext

STABLE_TORCH_LIBRARY(gas_ext, library) {
  library.def(gas_ext::kForwardSchema);
  library.def(gas_ext::kForwardOutSchema);
  library.def(gas_ext::kBackwardSchema);
}

STABLE_TORCH_LIBRARY_IMPL(gas_ext, CPU, library) { gas_ext::implement<gas_ext::Cpu>(library); }
