// Memory as a kernel finds it: fresh memory holds NaN (all bits set) in every floating-point type.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

// Global memory of an exact size. Under AddressSanitizer the bytes behind it are forbidden; in other builds
// guard bytes lie on both sides, and intact() tells whether they were overwritten.
class DeviceMemory {
 public:
  // The memory begins `offset` bytes after an address that is a multiple of 256, as cudaMalloc's are.
  explicit DeviceMemory(size_t bytes, size_t offset = 0);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* data() const { return base_ + offset_; }
  size_t bytes() const { return bytes_; }
  bool intact() const;

 private:
  unsigned char* base_;
  size_t offset_;
  size_t bytes_;
};

// Give all __shared__ variables the contents of fresh memory, and to ThreadSanitizer the look of memory that
// no one has touched: the next block's shared memory is not the last one's.
void reset_shared_memory();

}  // namespace cuda_on_cpu
