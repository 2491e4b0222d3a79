#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(CUDA_ON_CPU_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CUDA_ON_CPU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_on_cpu {
namespace {

constexpr size_t kStackBytes = 128 << 10;  // kernels take some kilobytes, the report of an error more

void* map_memory(void* address, size_t bytes, int flags) {
  void* memory = mmap(address, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

Fiber* starting = nullptr;  // the fiber whose entry function is about to be called

}  // namespace

#if defined(CUDA_ON_CPU_TSAN)
void tsan_release(void* object) { __tsan_release(object); }
void tsan_acquire(void* object) { __tsan_acquire(object); }
#else
void tsan_release(void*) {}
void tsan_acquire(void*) {}
#endif

#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)

void Fiber::switch_to_fiber() { swapcontext(&host_, &fiber_); }
void Fiber::switch_to_host() { swapcontext(&fiber_, &host_); }

#else

// Save the registers that a call preserves, exchange the stack pointers, restore. (The portable swapcontext
// makes a system call each time, which takes a hundred times as long.)
extern "C" void cuda_on_cpu_switch_stack(void** save, void* load);
asm(R"(
.text
.globl cuda_on_cpu_switch_stack
.hidden cuda_on_cpu_switch_stack
.type cuda_on_cpu_switch_stack, @function
cuda_on_cpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch_stack, .-cuda_on_cpu_switch_stack
)");

void Fiber::switch_to_fiber() { cuda_on_cpu_switch_stack(&host_, fiber_); }
void Fiber::switch_to_host() { cuda_on_cpu_switch_stack(&fiber_, host_); }

#endif

Fiber::Fiber(void (*entry)())
    : entry_(entry), stack_(static_cast<char*>(map_memory(nullptr, kStackBytes, 0))) {
  restart();
}

Fiber::~Fiber() {
  munmap(stack_, kStackBytes);
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_destroy_fiber(tsan_fiber_);
#endif
}

void Fiber::restart() {
#if defined(CUDA_ON_CPU_ASAN)
  // A fiber that was given up half way leaves the red zones of its frames behind.
  __asan_unpoison_memory_region(stack_, kStackBytes);
  fiber_fake_stack_ = nullptr;
#endif
#if defined(CUDA_ON_CPU_TSAN)
  if (tsan_fiber_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
  tsan_fiber_ = __tsan_create_fiber(0);
  // The runtime takes memory that is mapped anew for untouched; without this it would see the new thread
  // race with the old one for their stack. A kernel that needs more than this part shows just that.
  constexpr size_t kUsed = 32 << 10;
  map_memory(stack_ + kStackBytes - kUsed, kUsed, MAP_FIXED);
#endif
#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
  getcontext(&fiber_);
  fiber_.uc_stack.ss_sp = stack_;
  fiber_.uc_stack.ss_size = kStackBytes;
  fiber_.uc_link = nullptr;
  makecontext(&fiber_, &Fiber::enter, 0);
#else
  // The stack as if cuda_on_cpu_switch_stack had been called by enter()'s caller: six registers, the address
  // to return to, and one word so that enter() finds the stack aligned as after a call.
  auto top = reinterpret_cast<std::uintptr_t>(stack_ + kStackBytes) / 16 * 16;
  void** words = reinterpret_cast<void**>(top);
  *--words = nullptr;
  *--words = reinterpret_cast<void*>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--words = nullptr;
  fiber_ = words;
#endif
}

void Fiber::enter() {
  Fiber& self = *starting;
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &self.host_stack_, &self.host_stack_size_);
#endif
  self.entry_();
  __builtin_unreachable();
}

void Fiber::resume() {
  starting = this;
#if defined(CUDA_ON_CPU_TSAN)
  tsan_host_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_start_switch_fiber(&host_fake_stack_, stack_, kStackBytes);
#endif
  switch_to_fiber();
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_finish_switch_fiber(host_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_switch_to_fiber(tsan_host_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_start_switch_fiber(&fiber_fake_stack_, host_stack_, host_stack_size_);
#endif
  switch_to_host();
#if defined(CUDA_ON_CPU_ASAN)
  __sanitizer_finish_switch_fiber(fiber_fake_stack_, &host_stack_, &host_stack_size_);
#endif
}

}  // namespace cuda_on_cpu
