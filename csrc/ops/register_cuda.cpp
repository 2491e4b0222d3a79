// The CUDA implementations of torch.ops.gas_ext.*, on torch's current stream. Not run on a GPU yet.
// The schemas are registered by register_cpu.cpp, whose library is loaded first.
#include "../kernels/fused_update_cuda.h"
#include "../kernels/launch_plan.h"
#include "fused_update.h"

namespace gas_ext {
namespace {

// Run `launch` with the tensor's device current, on that device's current stream.
template <class Launch>
void on_device_of(const Tensor& tensor, Launch launch) {
  const auto index = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  const auto stream = torch::stable::accelerator::getCurrentStream(index);
  const char* error = launch(stream.nativeHandle());
  if (error != nullptr) throw std::runtime_error(std::string("The CUDA launch failed: ") + error + ".");
}

struct Cuda {
  static void forward(const ForwardArgs& args, const Tensor& like) {
    on_device_of(like, [&](void* stream) { return cuda_forward(args, stream); });
  }

  static Tensor partials(const Tensor& like, int64_t numel, int terms) {
    const ScalarType work = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    return empty_1d(like, cuda_workspace_elements(numel, terms), work);
  }

  static void backward(const BackwardArgs& args, const Tensor& like) {
    on_device_of(like, [&](void* stream) { return cuda_backward(args, stream); });
  }
};

}  // namespace
}  // namespace gas_ext

STABLE_TORCH_LIBRARY_IMPL(gas_ext, CUDA, library) { gas_ext::implement<gas_ext::Cuda>(library); }
