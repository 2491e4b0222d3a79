// A fiber: a stack of its own, entered and left by hand. One CUDA thread runs on one fiber.
#pragma once

#include <cstddef>
#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

class Fiber {
 public:
  // The first resume() calls `entry` on the fiber's stack; `entry` must end in suspend() and never return.
  explicit Fiber(void (*entry)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Forget the fiber's position: the next resume() calls `entry` anew. ThreadSanitizer then takes it for
  // another thread, so that nothing orders two CUDA threads that happen to use the same fiber.
  void restart();

  // From the host: run the fiber until it suspends itself.
  void resume();

  // On the fiber: back to the host, behind its resume().
  void suspend();

 private:
  static void enter();
  void switch_to_fiber();
  void switch_to_host();

  void (*entry_)();
  char* stack_;
#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
  ucontext_t fiber_{}, host_{};
#else
  void* fiber_ = nullptr;  // stack pointers; the registers to restore lie on the stacks
  void* host_ = nullptr;
#endif
  // Bookkeeping of the sanitizers, see fiber.cpp.
  void* tsan_fiber_ = nullptr;
  void* tsan_host_ = nullptr;
  void* fiber_fake_stack_ = nullptr;
  void* host_fake_stack_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_stack_size_ = 0;
};

// Order of memory accesses for ThreadSanitizer; nothing in other builds. What happened before a release of
// an object happened before whatever follows an acquire of it.
void tsan_release(void* object);
void tsan_acquire(void* object);

}  // namespace cuda_on_cpu
