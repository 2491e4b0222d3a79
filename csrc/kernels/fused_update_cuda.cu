// Launch code of the fused update; grid and alignment come from launch_plan.h. Not run on a GPU yet.
#include "fused_update.cuh"
#include "fused_update_cuda.h"

// The tests define this to run the kernels on the CPU.
#ifndef GAS_EXT_LAUNCH
#define GAS_EXT_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

namespace gas_ext {
namespace {

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

dim3 grid_of(int64_t columns, int rows = 1) {
  return dim3(static_cast<unsigned>(columns), static_cast<unsigned>(rows));
}

template <class T, class M>
const char* launch_forward(const ForwardArgs& args, const VectorPlan& plan, int64_t blocks,
                           cudaStream_t stream) {
  GAS_EXT_LAUNCH((cuda::forward_kernel<T, M>), grid_of(blocks), kBlockThreads, stream, args, plan);
  return last_error();
}

template <class T, class M>
const char* launch_backward(const BackwardArgs& args, const VectorPlan& plan, int64_t blocks,
                            cudaStream_t stream) {
  using W = work_t<T>;
  GAS_EXT_LAUNCH((cuda::backward_kernel<T, M>), grid_of(blocks, backward_groups(args)), kBlockThreads, stream,
                 args, plan);
  const char* error = last_error();
  if (error != nullptr || args.partials == nullptr) return error;
  GAS_EXT_LAUNCH((cuda::sum_partials_kernel<W>), grid_of(args.coefficient_count()), kBlockThreads, stream,
                 static_cast<const W*>(args.partials), blocks, args.coefficients,
                 args.coefficients_are_double, args.grad_coefficients);
  return last_error();
}

// Return body.operator()<T, M>() with the types of a pair.
template <class Body>
const char* with_types(DtypePair dtypes, Body&& body) {
  switch (dtypes) {
    case DtypePair::f64_f64: return body.template operator()<double, double>();
    case DtypePair::f32_f32: return body.template operator()<float, float>();
    case DtypePair::f32_f16: return body.template operator()<float, __half>();
    case DtypePair::f32_bf16: return body.template operator()<float, __nv_bfloat16>();
    case DtypePair::f16_f16: return body.template operator()<__half, __half>();
    case DtypePair::bf16_bf16: return body.template operator()<__nv_bfloat16, __nv_bfloat16>();
  }
  return "unknown dtype pair";
}

}  // namespace

const char* cuda_forward(const ForwardArgs& args, void* stream, int64_t blocks) {
  if (args.numel == 0) return nullptr;
  const VectorPlan plan = plan_vectors(args);
  if (blocks == 0) blocks = blocks_for(plan, args.numel, kMaxForwardBlocks);
  return with_types(args.dtypes, [&]<class T, class M>() {
    return launch_forward<T, M>(args, plan, blocks, static_cast<cudaStream_t>(stream));
  });
}

const char* cuda_backward(const BackwardArgs& args, void* stream, int64_t blocks) {
  if (args.numel == 0 && args.partials == nullptr) return nullptr;
  const VectorPlan plan = plan_vectors(args);
  if (blocks == 0) blocks = blocks_for(plan, args.numel, kMaxReductionBlocks);
  return with_types(args.dtypes, [&]<class T, class M>() {
    return launch_backward<T, M>(args, plan, blocks, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace gas_ext
