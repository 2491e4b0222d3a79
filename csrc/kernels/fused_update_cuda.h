// Launchers of the CUDA kernels. All pointers are to memory of the current device; `stream` is a
// cudaStream_t. They return null, or the text of the CUDA error. Nothing is allocated and nothing waits.
#pragma once

#include "fused_update.h"

namespace gas_ext {

const char* cuda_forward(const ForwardArgs& args, void* stream);

// args.partials: cuda_workspace_elements() numbers in the work type (double for double, else float).
const char* cuda_backward(const BackwardArgs& args, void* stream);

}  // namespace gas_ext
