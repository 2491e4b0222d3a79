// Compiles the very file that nvcc compiles; cuda_on_cpu/ comes first on the include path.
#include "emulated_kernels.h"

#include "fused_update_cuda.cu"

namespace emulation {
namespace {

using namespace gas_ext;

template <class T, class M>
const char* forward_pair(const ForwardArgs& args, int64_t blocks) {
  GAS_EXT_LAUNCH((cuda::forward_kernel<T, M>), dim3(static_cast<unsigned>(blocks)), dim3(kBlockThreads),
                 nullptr, args, (plan_forward<T, M>(args)));
  return last_error();
}

template <class T, class M>
const char* backward_pair(const BackwardArgs& args, int64_t blocks) {
  using W = cuda::work_t<T>;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(backward_groups(args)));
  GAS_EXT_LAUNCH((cuda::backward_kernel<T, M>), grid, dim3(kBlockThreads), nullptr, args,
                 (plan_backward<T, M>(args)));
  if (args.partials != nullptr) {
    GAS_EXT_LAUNCH((cuda::sum_partials_kernel<W>), dim3(static_cast<unsigned>(args.coefficient_count())),
                   dim3(kBlockThreads), nullptr, static_cast<const W*>(args.partials), blocks,
                   args.coefficients, args.coefficients_are_double, args.grad_coefficients);
  }
  return last_error();
}

}  // namespace

const char* forward_on_grid(const ForwardArgs& args, int64_t blocks) {
  switch (args.dtypes) {
    case DtypePair::f64_f64: return forward_pair<double, double>(args, blocks);
    case DtypePair::f32_f32: return forward_pair<float, float>(args, blocks);
    case DtypePair::f32_f16: return forward_pair<float, __half>(args, blocks);
    case DtypePair::f32_bf16: return forward_pair<float, __nv_bfloat16>(args, blocks);
    case DtypePair::f16_f16: return forward_pair<__half, __half>(args, blocks);
    case DtypePair::bf16_bf16: return forward_pair<__nv_bfloat16, __nv_bfloat16>(args, blocks);
  }
  return "unknown dtype pair";
}

const char* backward_on_grid(const BackwardArgs& args, int64_t blocks) {
  switch (args.dtypes) {
    case DtypePair::f64_f64: return backward_pair<double, double>(args, blocks);
    case DtypePair::f32_f32: return backward_pair<float, float>(args, blocks);
    case DtypePair::f32_f16: return backward_pair<float, __half>(args, blocks);
    case DtypePair::f32_bf16: return backward_pair<float, __nv_bfloat16>(args, blocks);
    case DtypePair::f16_f16: return backward_pair<__half, __half>(args, blocks);
    case DtypePair::bf16_bf16: return backward_pair<__nv_bfloat16, __nv_bfloat16>(args, blocks);
  }
  return "unknown dtype pair";
}

float half_to_float(uint16_t bits) { return __half2float({bits}); }
uint16_t float_to_half(float value) { return __float2half_rn(value).bits; }
float bfloat16_to_float(uint16_t bits) { return __bfloat162float({bits}); }
uint16_t float_to_bfloat16(float value) { return __float2bfloat16_rn(value).bits; }

}  // namespace emulation
