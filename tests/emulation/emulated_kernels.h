// What the tests call in addition to the launchers of fused_update_cuda.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emulation {

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
