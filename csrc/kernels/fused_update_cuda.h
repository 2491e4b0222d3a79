// Launchers of the CUDA kernels. All pointers are to memory of the current device; `stream` is a
// cudaStream_t; `blocks` is the grid's first dimension, 0 for that of launch_plan.h (the tests choose
// others). They return null, or the text of the CUDA error. Nothing is allocated and nothing waits.
#pragma once

#include "fused_update.h"

namespace gas_ext {

const char* cuda_forward(const ForwardArgs& args, void* stream, int64_t blocks = 0);

// args.partials: cuda_workspace_elements() numbers in the work type (double for double, else float); with
// `blocks`, that many for each coefficient.
const char* cuda_backward(const BackwardArgs& args, void* stream, int64_t blocks = 0);

}  // namespace gas_ext
