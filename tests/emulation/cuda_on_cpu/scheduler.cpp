#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "device_memory.h"
#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

constexpr int kWarp = 32;
enum class State { ready, at_barrier, at_warp, exited };

void thread_main();

struct Thread {
  Fiber fiber{thread_main};
  uint3 index{};
  int number = 0;  // within the block
  State state = State::ready;
  Where where{};      // of the barrier or warp operation
  unsigned mask = 0;  // the rest: of the warp operation
  uint64_t value = 0;
  int source_lane = 0;
};

struct Scheduler {
  std::vector<std::unique_ptr<Thread>> threads;  // grows to the largest block; the fibers are used again
  int count = 0;                                 // threads of the current block
  std::vector<Thread*> ready;
  int at_barrier = 0;
  int exited = 0;
  Thread* current = nullptr;
  std::string error;

  void (*kernel)(const void*) = nullptr;
  const void* arguments = nullptr;

  bool random = false;
  std::mt19937_64 generator;

  // Addresses that stand for "before the block", "after the launch" and barriers in ThreadSanitizer's order.
  // Barriers alternate between two: with one, a thread that hurries to the next barrier would also order
  // itself before those that have not left the last one yet, and hide their races.
  char block_start = 0, launch_end = 0, barriers[2] = {};
  int barrier_number = 0;
};
Scheduler scheduler;

std::string text_of(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
         ")";
}

std::string place(const char* file, unsigned line) {
  const char* name = std::strrchr(file, '/');
  return std::string(name != nullptr ? name + 1 : file) + ":" + std::to_string(line);
}

std::string describe(const Thread& thread) {
  const char* doing = thread.state == State::exited       ? "has exited"
                      : thread.state == State::at_barrier ? "waits at the barrier "
                      : thread.state == State::at_warp    ? "waits at the warp operation "
                                                          : "is running";
  const bool waits = thread.state == State::at_barrier || thread.state == State::at_warp;
  return "thread " + text_of(thread.index) + " " + doing +
         (waits ? place(thread.where.file_name(), thread.where.line()) : "");
}

[[noreturn]] void stop(const std::string& what) { throw Error("block " + text_of(blockIdx) + ": " + what); }

bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool same_place(const Thread& a, const Thread& b) {
  return a.where.line() == b.where.line() && same_text(a.where.file_name(), b.where.file_name()) &&
         same_text(a.where.function_name(), b.where.function_name());
}

void thread_main() {
  Thread& self = *scheduler.current;
  tsan_acquire(&scheduler.block_start);
  scheduler.kernel(scheduler.arguments);
  tsan_release(&scheduler.launch_end);
  self.state = State::exited;
  self.fiber.suspend();
}

// Suspend the running thread in a new state; returns when the scheduler has made it ready again.
void wait_as(State state, const Where& where) {
  Thread& self = *scheduler.current;
  self.state = state;
  self.where = where;
  self.fiber.suspend();
}

void make_ready(Thread& thread) {
  thread.state = State::ready;
  scheduler.ready.push_back(&thread);
}

Thread* lane_of(const Thread& thread, int lane) {
  const int number = thread.number / kWarp * kWarp + lane;
  return number < scheduler.count ? scheduler.threads[number].get() : nullptr;
}

// Check the lanes that `thread` waits for at its warp operation; true when all have arrived. While one is
// still on its way nothing is decided: it will be asked again when that lane arrives, or in a deadlock.
bool warp_is_complete(const Thread& thread) {
  const auto stop_at = [&thread](int lane, const std::string& which) {
    stop("the mask of a warp operation names lane " + std::to_string(lane) + ", which " + which + "; " +
         describe(thread));
  };
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((thread.mask >> lane & 1) == 0) continue;
    const Thread* other = lane_of(thread, lane);
    if (other == nullptr) stop_at(lane, "the block does not have");
    if (other->state == State::ready) return false;
    if (other->state == State::exited) stop_at(lane, "has exited");
    if (other->state == State::at_barrier) stop_at(lane, "waits at a barrier");
    if (other->mask != thread.mask || !same_place(*other, thread)) {
      stop("lanes of one mask wait at different warp operations: " + describe(thread) + ", " +
           describe(*other));
    }
  }
  return true;
}

void release_warp(const Thread& thread) {
  uint64_t values[kWarp];
  const unsigned mask = thread.mask;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) values[lane] = lane_of(thread, lane)->value;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Thread& reader = *lane_of(thread, lane);
    if ((mask >> reader.source_lane & 1) == 0) {
      stop("a shuffle reads lane " + std::to_string(reader.source_lane) + ", which is not in the mask; " +
           describe(reader));
    }
    reader.value = values[reader.source_lane];
    make_ready(reader);
  }
}

void release_barrier() {
  const Thread& first = *scheduler.threads[0];
  for (int i = 1; i < scheduler.count; ++i) {
    if (!same_place(first, *scheduler.threads[i])) {
      stop("threads wait at different barriers: " + describe(first) + ", " + describe(*scheduler.threads[i]));
    }
  }
  scheduler.at_barrier = 0;
  ++scheduler.barrier_number;
  for (int i = 0; i < scheduler.count; ++i) make_ready(*scheduler.threads[i]);
}

// What follows from the state in which `thread` has just stopped.
void after_stop(Thread& thread) {
  if (thread.state == State::at_barrier && ++scheduler.at_barrier == scheduler.count) release_barrier();
  if (thread.state == State::at_warp && warp_is_complete(thread)) release_warp(thread);
  if (thread.state == State::exited) ++scheduler.exited;
}

[[noreturn]] void stop_deadlock() {
  const Thread* waiting = nullptr;
  const Thread* other = nullptr;
  for (int i = 0; i < scheduler.count; ++i) {
    const Thread& thread = *scheduler.threads[i];
    if (thread.state == State::at_warp) warp_is_complete(thread);  // says what is wrong with its mask
    if (thread.state == State::at_barrier) waiting = &thread;
    if (thread.state != State::at_barrier) other = &thread;
  }
  stop("a barrier that not all threads reach: " + describe(*waiting) + ", " + describe(*other));
}

Thread& take_ready() {
  std::vector<Thread*>& ready = scheduler.ready;
  if (scheduler.random) std::swap(ready[scheduler.generator() % ready.size()], ready.back());
  Thread& thread = *ready.back();
  ready.pop_back();
  return thread;
}

void run_block(dim3 block) {
  reset_shared_memory();
  scheduler.ready.clear();
  scheduler.at_barrier = scheduler.exited = 0;
  for (int i = scheduler.count - 1; i >= 0; --i) {
    Thread& thread = *scheduler.threads[i];
    const auto number = static_cast<unsigned>(i);
    thread.number = i;
    thread.index = {number % block.x, number / block.x % block.y, number / (block.x * block.y)};
    thread.fiber.restart();
    make_ready(thread);
  }
  tsan_release(&scheduler.block_start);
  while (!scheduler.ready.empty()) {
    Thread& thread = take_ready();
    scheduler.current = &thread;
    threadIdx = thread.index;
    thread.fiber.resume();
    scheduler.current = nullptr;
    if (!scheduler.error.empty()) stop(std::exchange(scheduler.error, ""));
    after_stop(thread);
  }
  if (scheduler.exited != scheduler.count) stop_deadlock();
}

bool within_limits(dim3 grid, dim3 block) {
  const bool grid_fits = 1 <= grid.x && grid.x <= 0x7fffffffu && 1 <= grid.y && grid.y <= 65535 &&
                         1 <= grid.z && grid.z <= 65535;
  const bool block_fits = 1 <= block.x && block.x <= 1024 && 1 <= block.y && block.y <= 1024 &&
                          1 <= block.z && block.z <= 64 &&
                          static_cast<uint64_t>(block.x) * block.y * block.z <= 1024;
  return grid_fits && block_fits;
}

}  // namespace

void set_order(uint64_t seed) {
  scheduler.random = seed != 0;
  scheduler.generator.seed(seed);
}

bool run(dim3 grid, dim3 block, void (*kernel)(const void*), const void* arguments) {
  if (!within_limits(grid, block)) return false;
  scheduler.kernel = kernel;
  scheduler.arguments = arguments;
  scheduler.count = static_cast<int>(block.x * block.y * block.z);
  while (static_cast<int>(scheduler.threads.size()) < scheduler.count)
    scheduler.threads.push_back(std::make_unique<Thread>());
  gridDim = grid;
  blockDim = block;
  std::vector<uint64_t> blocks(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (scheduler.random) std::shuffle(blocks.begin(), blocks.end(), scheduler.generator);
  for (const uint64_t number : blocks) {
    blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / grid.x / grid.y)};
    run_block(block);
  }
  tsan_acquire(&scheduler.launch_end);
  return true;
}

void fault(const std::string& what, const char* file, unsigned line) {
  const std::string text = what + " at " + place(file, line);
  if (scheduler.current == nullptr) throw Error(text);
  scheduler.error = "thread " + text_of(threadIdx) + ": " + text;
  scheduler.current->fiber.suspend();
  __builtin_unreachable();
}

void sync_threads(const Where& where) {
  // All threads of a block pass the same number of barriers, so this one's number is the same for all.
  char* const barrier = &scheduler.barriers[scheduler.barrier_number % 2];
  tsan_release(barrier);
  wait_as(State::at_barrier, where);
  tsan_acquire(barrier);
}

uint64_t exchange(unsigned mask, uint64_t value, int source_lane, const Where& where) {
  Thread& self = *scheduler.current;
  if ((mask >> lane() & 1) == 0) {
    fault("the mask of a warp operation does not name the calling lane " + std::to_string(lane()),
          where.file_name(), where.line());
  }
  self.mask = mask;
  self.value = value;
  self.source_lane = source_lane;
  wait_as(State::at_warp, where);
  return self.value;
}

int lane() { return scheduler.current->number % kWarp; }

}  // namespace cuda_on_cpu
