// Runs the CPU kernels over sizes, dtypes, offsets and options, for the sanitizers to watch.
//
// Every tensor is a block of exactly its size, so that a step beyond its end is seen, and one before its
// beginning where the offset is 0. Results begin as NaN, and every element must have been written. One
// thread, two threads, and stores past the cache must give the same bits; the number of cases goes to stdout.
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "fused_update_cpu.h"

namespace {

using namespace gas_ext;

int element_bytes(DtypePair dtypes, bool network) {
  return network ? network_bytes(dtypes) : state_bytes(dtypes);
}

// Stores past the cache go to whole lines: without an offset a tensor begins one.
constexpr std::align_val_t kLine{64};

// A tensor that begins `offset` elements into its block.
class Tensor {
 public:
  Tensor(int64_t numel, int bytes, int offset)
      : bytes_(static_cast<size_t>(bytes)),
        size_(static_cast<size_t>(numel) * bytes_),
        start_(static_cast<size_t>(offset) * bytes_),
        block_(static_cast<std::byte*>(::operator new[](start_ + size_, kLine))) {
    std::memset(block_.get(), 0xff, start_ + size_);  // NaN in every dtype
  }

  void* at() { return block_.get() + start_; }
  const std::byte* begin() const { return block_.get() + start_; }
  size_t size() const { return size_; }

  // Whether no element is as it was at first.
  bool written() const {
    const auto untouched = [](std::byte byte) { return byte == std::byte{0xff}; };
    for (const std::byte* element = begin(); element != begin() + size_; element += bytes_) {
      if (std::all_of(element, element + bytes_, untouched)) return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(std::byte* block) const { ::operator delete[](block, kLine); }
  };

  size_t bytes_, size_, start_;
  std::unique_ptr<std::byte[], Free> block_;
};

// Numbers between 1/4 and 5/4 of either sign, in the bits of the dtype.
Tensor random_tensor(std::mt19937& random, int64_t numel, DtypePair dtypes, bool network, int offset) {
  const int bytes = element_bytes(dtypes, network);
  const bool brain = dtypes == DtypePair::bf16_bf16 || (network && dtypes == DtypePair::f32_bf16);
  Tensor tensor(numel, bytes, offset);
  for (int64_t i = 0; i < numel; ++i) {
    const double value = (random() % 2 == 0 ? 1 : -1) * (0.25 + static_cast<double>(random() % 1024) / 1024);
    std::byte* place = static_cast<std::byte*>(tensor.at()) + i * bytes;
    if (bytes == 8) {
      std::memcpy(place, &value, 8);
    } else if (bytes == 4) {
      const float single = static_cast<float>(value);
      std::memcpy(place, &single, 4);
    } else {
      const uint32_t sign = random() % 2 << 15, low = brain ? 0x3e80 : 0x3400;
      const uint16_t bits = static_cast<uint16_t>(sign | (low + random() % (brain ? 0x0100 : 0x0800)));
      std::memcpy(place, &bits, 2);
    }
  }
  return tensor;
}

struct Case {
  DtypePair dtypes;
  int64_t numel;
  int terms;
  int offset;
  bool guided;
  int next_input;  // 0: none, 1: in the network's dtype, 2: in the states'
  bool double_coefficients;
  int wanted;  // which gradients: 0 all, 1 the tensors', 2 the coefficients' alone
};

// How the chunks are shared out.
void run_chunks(int threads, int64_t numel, const std::function<void(int64_t, int64_t)>& kernel) {
  const int64_t chunks = cpu_chunks(numel);
  if (threads == 1) return kernel(0, chunks);
  std::thread other([&] { kernel(chunks / 2, chunks); });
  kernel(0, chunks / 2);
  other.join();
}

// Inputs of a case, the same for the same case.
class Problem {
 public:
  explicit Problem(const Case& c) : case_(c), random_(static_cast<unsigned>(c.numel * 31 + c.terms)) {
    for (int k = 0; k < c.terms; ++k) history_.push_back(tensor(false));
    output_.push_back(tensor(true));
    if (c.guided) output_.push_back(tensor(true));
    for (int i = 0; i < 2; ++i) gradients_.push_back(tensor(false));  // of D_n and x_{n+1}
    gradients_.push_back(tensor(c.next_input == 1));
    for (int i = 0; i < kFirstWeight + c.terms; ++i) doubles_.push_back(0.1 * (i % 7) - 0.3);
    floats_.assign(doubles_.begin(), doubles_.end());
  }

  std::vector<Tensor> forward(const CpuKernels& kernels, int threads, bool streaming) {
    ForwardArgs args;
    give_inputs(args);
    std::vector<Tensor> results;
    for (int i = 0; i < 2; ++i) results.push_back(empty(false));
    args.data = results[0].at();
    args.state = results[1].at();
    if (case_.next_input != 0) {
      results.push_back(empty(case_.next_input == 1));
      args.next_input = results[2].at();
      args.next_input_in_state_dtype = case_.next_input == 2;
    }
    args.streaming = streaming;
    run_chunks(threads, case_.numel, [&](int64_t begin, int64_t end) { kernels.forward(args, begin, end); });
    return results;
  }

  std::vector<Tensor> backward(const CpuKernels& kernels, int threads, bool streaming) {
    BackwardArgs args;
    give_inputs(args);
    args.grad_data = case_.next_input == 1 ? nullptr : gradients_[0].at();
    args.grad_state = gradients_[1].at();
    if (case_.next_input != 0) args.grad_next_input = gradients_[2].at();
    args.next_input_in_state_dtype = case_.next_input == 2;
    args.state = gradients_[0].at();  // some numbers for x_{n+1}
    std::vector<Tensor> results;
    results.reserve(static_cast<size_t>(case_.terms) + 4);
    const auto result = [&](Tensor tensor) { return results.emplace_back(std::move(tensor)).at(); };
    if (case_.wanted != 2) {
      for (int k = case_.wanted; k < case_.terms; ++k) args.grad_history[k] = result(empty(false));
      args.grad_output = result(empty(true));
      if (case_.guided) args.grad_output_uncond = result(empty(true));
    }
    if (case_.wanted != 1) {
      const int count = args.coefficient_count();
      args.partials = result(Tensor(cpu_chunks(case_.numel) * count, 8, 0));
      args.grad_coefficients = result(Tensor(count, case_.double_coefficients ? 8 : 4, 0));
    }
    args.streaming = streaming;
    run_chunks(threads, case_.numel, [&](int64_t begin, int64_t end) { kernels.backward(args, begin, end); });
    if (args.partials != nullptr) cpu_sum_partials(args);
    return results;
  }

 private:
  // What forward and backward read alike.
  template <class Args>
  void give_inputs(Args& args) {
    args.dtypes = case_.dtypes;
    args.numel = case_.numel;
    args.terms = case_.terms;
    for (int k = 0; k < case_.terms; ++k) args.history[k] = history_[static_cast<size_t>(k)].at();
    args.output = output_[0].at();
    if (case_.guided) args.output_uncond = output_[1].at();
    args.coefficients = coefficients();
    args.coefficients_are_double = case_.double_coefficients;
  }
  Tensor tensor(bool network) {
    return random_tensor(random_, case_.numel, case_.dtypes, network, case_.offset);
  }
  Tensor empty(bool network) { return {case_.numel, element_bytes(case_.dtypes, network), case_.offset}; }
  const void* coefficients() const {
    return case_.double_coefficients ? static_cast<const void*>(doubles_.data()) : floats_.data();
  }

  Case case_;
  std::mt19937 random_;
  std::vector<Tensor> history_, output_, gradients_;
  std::vector<double> doubles_;
  std::vector<float> floats_;
};

bool same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size() || std::memcmp(a[i].begin(), b[i].begin(), a[i].size()) != 0) return false;
  }
  return true;
}

bool agree(const CpuKernels& kernels, const Case& c) {
  Problem problem(c);
  for (auto direction : {&Problem::forward, &Problem::backward}) {
    const auto run = [&](int threads, bool streaming) {
      return (problem.*direction)(kernels, threads, streaming);
    };
    const std::vector<Tensor> alone = run(1, false);
    for (const Tensor& tensor : alone) {
      if (!tensor.written()) return false;
    }
    if (!same(alone, run(2, false)) || !same(alone, run(1, true)) || !same(alone, run(2, true))) return false;
  }
  return true;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const int64_t sizes[] = {1,
                           15,
                           63,
                           64,
                           65,
                           1000,
                           kCpuChunk / 2 - 1,
                           kCpuChunk / 2 + 1,
                           kCpuChunk - 1,
                           kCpuChunk + 1,
                           2 * kCpuChunk + 77};
  int i = 0;
  for (const auto dtypes : {DtypePair::f64_f64, DtypePair::f32_f32, DtypePair::f32_f16, DtypePair::f32_bf16,
                            DtypePair::f16_f16, DtypePair::bf16_bf16}) {
    for (const int64_t numel : sizes) {
      for (int variant = 0; variant < 4; ++variant, ++i) {
        const int terms = numel < 100 && variant == 0 ? kMaxTerms : 1 + (i * 5) % 23;
        all.push_back({dtypes, numel, terms, (i / 4) % 2 == 0 ? 0 : (i * 3) % 8, i % 2 == 0, i % 3,
                       i % 5 != 0, (i / 2) % 3});
      }
    }
  }
  return all;
}

}  // namespace

int main() {
  const CpuKernels& kernels = cpu_kernels();
  int done = 0;
  for (const Case& c : cases()) {
    if (!agree(kernels, c)) {
      std::printf("other bits, or none: dtypes %d, numel %lld, terms %d, offset %d\n",
                  static_cast<int>(c.dtypes), static_cast<long long>(c.numel), c.terms, c.offset);
      return 1;
    }
    ++done;
  }
  std::printf("%s: %d cases\n", kernels.name, done);
  return 0;
}
