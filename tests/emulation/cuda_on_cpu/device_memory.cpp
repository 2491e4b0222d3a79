#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <utility>

// Bounds of the section that shared_memory.ld gathers from the kernels' function-local static variables.
extern "C" unsigned char cuda_shared_begin[], cuda_shared_end[];

namespace cuda_on_cpu {
namespace {

constexpr size_t kAlignment = 256;
constexpr unsigned char kFresh = 0xff;
constexpr unsigned char kGuard = 0xfd;
#if defined(CUDA_ON_CPU_ASAN)
constexpr size_t kGuardBytes = 0;
#else
constexpr size_t kGuardBytes = kAlignment;
#endif

}  // namespace

DeviceMemory::DeviceMemory(size_t bytes, size_t offset) : offset_(kGuardBytes + offset), bytes_(bytes) {
  const size_t total = offset_ + bytes + kGuardBytes;
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, std::max<size_t>(total, 1)) != 0) throw std::bad_alloc();
  base_ = static_cast<unsigned char*>(memory);
  std::fill(base_, base_ + total, kGuard);
  std::fill_n(base_ + offset_, bytes, kFresh);
}

DeviceMemory::DeviceMemory(DeviceMemory&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), offset_(other.offset_), bytes_(other.bytes_) {}

DeviceMemory::~DeviceMemory() { std::free(base_); }

bool DeviceMemory::intact() const {
  const auto is_guard = [](unsigned char byte) { return byte == kGuard; };
  const unsigned char* end = base_ + offset_ + bytes_;
  return std::all_of(base_, base_ + offset_, is_guard) && std::all_of(end, end + kGuardBytes, is_guard);
}

void reset_shared_memory() {
#if defined(CUDA_ON_CPU_TSAN)
  const size_t size = static_cast<size_t>(cuda_shared_end - cuda_shared_begin);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  if (size > 0 && mmap(cuda_shared_begin, size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
    throw std::runtime_error("the section of shared variables could not be mapped anew");
  }
#endif
  // By a plain loop: memset is intercepted by AddressSanitizer, which forbids the gaps between variables.
  auto* const end = reinterpret_cast<volatile uint64_t*>(cuda_shared_end);
  for (auto* word = reinterpret_cast<volatile uint64_t*>(cuda_shared_begin); word != end; ++word) {
    *word = ~uint64_t{0};
  }
}

}  // namespace cuda_on_cpu
