// The kernels of csrc/kernels compiled for the CPU, on grids that the tests choose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fused_update.h"

namespace emulation {

// As gas_ext::cuda_forward and cuda_backward, but on `blocks` blocks in x.
const char* forward_on_grid(const gas_ext::ForwardArgs& args, int64_t blocks);
const char* backward_on_grid(const gas_ext::BackwardArgs& args, int64_t blocks);

// Conversions of the stand-in headers.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat16_to_float(uint16_t bits);
uint16_t float_to_bfloat16(float value);

// A kernel with a planted bug (planted_bugs.cu), or its correct twin: out is what it makes of in. The text
// of the CUDA error, or null.
const char* run_planted(const char* name, bool broken, const float* in, float* out, int n);
std::vector<std::string> planted_names();

}  // namespace emulation
