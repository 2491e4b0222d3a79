// Compiles the very file that nvcc compiles; cuda_on_cpu/ comes first on the include path.
#include "emulated_kernels.h"

#include "fused_update_cuda.cu"

namespace emulation {

float half_to_float(uint16_t bits) { return __half2float({bits}); }
uint16_t float_to_half(float value) { return __float2half_rn(value).bits; }
float bfloat16_to_float(uint16_t bits) { return __bfloat162float({bits}); }
uint16_t float_to_bfloat16(float value) { return __float2bfloat16_rn(value).bits; }

}  // namespace emulation
