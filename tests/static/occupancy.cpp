// Prints the resident blocks of a kernel on one multiprocessor, by NVIDIA's own calculator, without a GPU.
// Arguments: compute capability (90), registers a thread, static shared bytes, threads a block.
#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>

namespace {

cudaOccDeviceProp properties(int capability) {
  // Threads and shared memory of a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per
  // Compute Capability". Everything else is the same on 8.0 and later.
  const bool large = capability == 80 || capability == 90 || capability == 100;
  const int shared_kib = capability == 80 ? 164 : large ? 228 : 100;
  cudaOccDeviceProp device;
  device.computeMajor = capability / 10;
  device.computeMinor = capability % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = large ? 2048 : 1536;
  device.regsPerBlock = 65536;
  device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 * 1024;
  device.sharedMemPerMultiprocessor = shared_kib * 1024;
  device.numSms = 1;
  device.sharedMemPerBlockOptin = (shared_kib - 1) * 1024;
  device.reservedSharedMemPerBlock = 1024;
  return device;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const cudaOccDeviceProp device = properties(std::atoi(argv[1]));
  cudaOccFuncAttributes function;
  function.maxThreadsPerBlock = 1024;
  function.numRegs = std::atoi(argv[2]);
  function.sharedSizeBytes = static_cast<size_t>(std::atoi(argv[3]));
  const cudaOccDeviceState state;
  cudaOccResult result;
  const int threads = std::atoi(argv[4]);
  const cudaOccError error =
      cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state, threads, 0);
  if (error != CUDA_OCC_SUCCESS) return 1;
  std::printf("%d %d\n", result.activeBlocksPerMultiprocessor, device.maxThreadsPerMultiprocessor);
  return 0;
}
