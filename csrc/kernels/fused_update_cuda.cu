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

template <class T, class M>
VectorPlan plan_forward(const ForwardArgs& args) {
  VectorPlanner planner(args.numel, 16 / sizeof(T));
  for (int k = 0; k < args.terms; ++k) planner.add(args.history[k], sizeof(T));
  planner.add(args.output, sizeof(M));
  planner.add(args.output_uncond, sizeof(M));
  planner.add(args.data, sizeof(T));
  planner.add(args.state, sizeof(T));
  planner.add(args.next_input, args.next_input_in_state_dtype ? sizeof(T) : sizeof(M));
  return planner.plan();
}

template <class T, class M>
VectorPlan plan_backward(const BackwardArgs& args) {
  VectorPlanner planner(args.numel, 16 / sizeof(T));
  for (int k = 0; k < args.terms; ++k) {
    planner.add(args.history[k], sizeof(T));
    planner.add(args.grad_history[k], sizeof(T));
  }
  for (const void* pointer : {args.grad_data, args.grad_state, args.state}) planner.add(pointer, sizeof(T));
  planner.add(args.grad_next_input, args.next_input_in_state_dtype ? sizeof(T) : sizeof(M));
  for (const void* pointer : {args.output, args.output_uncond}) planner.add(pointer, sizeof(M));
  for (const void* pointer : {args.grad_output, args.grad_output_uncond}) planner.add(pointer, sizeof(M));
  return planner.plan();
}

template <class T, class M>
const char* forward(const ForwardArgs& args, cudaStream_t stream) {
  const VectorPlan plan = plan_forward<T, M>(args);
  const dim3 grid(static_cast<unsigned>(blocks_for(plan, args.numel, kMaxForwardBlocks)));
  GAS_EXT_LAUNCH((cuda::forward_kernel<T, M>), grid, dim3(kBlockThreads), stream, args, plan);
  return last_error();
}

template <class T, class M>
const char* backward(const BackwardArgs& args, cudaStream_t stream) {
  using W = cuda::work_t<T>;
  const VectorPlan plan = plan_backward<T, M>(args);
  const int64_t blocks = blocks_for(plan, args.numel, kMaxReductionBlocks);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(backward_groups(args)));
  GAS_EXT_LAUNCH((cuda::backward_kernel<T, M>), grid, dim3(kBlockThreads), stream, args, plan);
  if (const char* error = last_error()) return error;
  if (args.partials == nullptr) return nullptr;
  GAS_EXT_LAUNCH((cuda::sum_partials_kernel<W>), dim3(static_cast<unsigned>(args.coefficient_count())),
                 dim3(kBlockThreads), stream, static_cast<const W*>(args.partials), blocks, args.coefficients,
                 args.coefficients_are_double, args.grad_coefficients);
  return last_error();
}

}  // namespace

const char* cuda_forward(const ForwardArgs& args, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (args.numel == 0) return nullptr;
  switch (args.dtypes) {
    case DtypePair::f64_f64: return forward<double, double>(args, s);
    case DtypePair::f32_f32: return forward<float, float>(args, s);
    case DtypePair::f32_f16: return forward<float, __half>(args, s);
    case DtypePair::f32_bf16: return forward<float, __nv_bfloat16>(args, s);
    case DtypePair::f16_f16: return forward<__half, __half>(args, s);
    case DtypePair::bf16_bf16: return forward<__nv_bfloat16, __nv_bfloat16>(args, s);
  }
  return "unknown dtype pair";
}

const char* cuda_backward(const BackwardArgs& args, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  if (args.numel == 0 && args.partials == nullptr) return nullptr;
  switch (args.dtypes) {
    case DtypePair::f64_f64: return backward<double, double>(args, s);
    case DtypePair::f32_f32: return backward<float, float>(args, s);
    case DtypePair::f32_f16: return backward<float, __half>(args, s);
    case DtypePair::f32_bf16: return backward<float, __nv_bfloat16>(args, s);
    case DtypePair::f16_f16: return backward<__half, __half>(args, s);
    case DtypePair::bf16_bf16: return backward<__nv_bfloat16, __nv_bfloat16>(args, s);
  }
  return "unknown dtype pair";
}

}  // namespace gas_ext
