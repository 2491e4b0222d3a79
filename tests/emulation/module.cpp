// Python module over the emulated kernels: bytes in, bytes out. Every tensor is copied to memory of its
// exact size and back, so that the sanitizers see its bounds.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda_on_cpu/device_memory.h"
#include "cuda_on_cpu/scheduler.h"
#include "emulated_kernels.h"
#include "fused_update_cuda.h"
#include "launch_plan.h"

namespace py = pybind11;
using cuda_on_cpu::DeviceMemory;
using namespace gas_ext;

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Tensors = std::vector<Bytes>;

struct Pair {
  const char* name;
  DtypePair pair;
  int state_bytes, network_bytes, work_bytes;
};
constexpr Pair kPairs[] = {
    {"f64_f64", DtypePair::f64_f64, 8, 8, 8}, {"f32_f32", DtypePair::f32_f32, 4, 4, 4},
    {"f32_f16", DtypePair::f32_f16, 4, 2, 4}, {"f32_bf16", DtypePair::f32_bf16, 4, 2, 4},
    {"f16_f16", DtypePair::f16_f16, 2, 2, 4}, {"bf16_bf16", DtypePair::bf16_bf16, 2, 2, 4},
};

const Pair& find_pair(const std::string& name) {
  for (const Pair& pair : kPairs) {
    if (pair.name == name) return pair;
  }
  throw py::value_error("unknown dtype pair " + name);
}

void check_launch(const char* error) {
  if (error != nullptr) throw cuda_on_cpu::Error(std::string("CUDA error: ") + error);
}

// The device memory of one call. Tensor number j begins phases[j % size] elements after an aligned address.
class Device {
 public:
  Device(int64_t numel, std::vector<int> phases) : numel_(numel), phases_(std::move(phases)) {}

  void* fresh(int element_bytes) {
    const int phase = phases_[memories_.size() % phases_.size()];
    const auto bytes = static_cast<size_t>(numel_) * static_cast<size_t>(element_bytes);
    memories_.emplace_back(bytes, static_cast<size_t>(phase * element_bytes));
    return memories_.back().data();
  }

  void* copy(const Bytes& source, int element_bytes) {
    void* memory = fresh(element_bytes);
    if (static_cast<size_t>(source.nbytes()) != memories_.back().bytes()) {
      throw py::value_error("a tensor has not the size that the case asks for");
    }
    std::memcpy(memory, source.data(), memories_.back().bytes());
    return memory;
  }

  const void* copy_if_given(const Tensors& tensors, const Tensors::size_type i, int element_bytes) {
    return i < tensors.size() ? copy(tensors[i], element_bytes) : nullptr;
  }

  // Aligned, whatever the phases: coefficients and workspaces.
  void* fresh_row(size_t bytes) {
    rows_.emplace_back(bytes);
    return rows_.back().data();
  }

  void* copy_row(const Bytes& source) {
    void* memory = fresh_row(static_cast<size_t>(source.nbytes()));
    std::memcpy(memory, source.data(), static_cast<size_t>(source.nbytes()));
    return memory;
  }

  Bytes read(const void* memory) const {
    for (const auto* list : {&memories_, &rows_}) {
      for (const DeviceMemory& one : *list) {
        if (!one.intact()) throw cuda_on_cpu::Error("bytes before or behind a tensor were written");
        if (one.data() == memory) {
          return Bytes(static_cast<py::ssize_t>(one.bytes()), static_cast<const uint8_t*>(memory));
        }
      }
    }
    throw py::value_error("not memory of this call");
  }

  void check_guards() const {
    for (const auto* list : {&memories_, &rows_}) {
      for (const DeviceMemory& one : *list) {
        if (!one.intact()) throw cuda_on_cpu::Error("bytes before or behind a tensor were written");
      }
    }
  }

 private:
  int64_t numel_;
  std::vector<int> phases_;
  std::vector<DeviceMemory> memories_, rows_;
};

// What forward and backward share. `blocks` 0 takes the library's own grid.
struct Call {
  const Pair& pair;
  Device device;
  int64_t numel;
  int64_t blocks;

  Call(const std::string& dtypes, int64_t numel_, std::vector<int> phases, int64_t blocks_)
      : pair(find_pair(dtypes)), device(numel_, std::move(phases)), numel(numel_), blocks(blocks_) {}

  template <class Args>
  void fill(Args& args, const Tensors& history, const Tensors& outputs, const Bytes& coefficients) {
    args.dtypes = pair.pair;
    args.numel = numel;
    args.terms = static_cast<int>(history.size());
    if (history.empty() || args.terms > kMaxTerms) throw py::value_error("1 to 64 history tensors");
    for (int k = 0; k < args.terms; ++k) {
      args.history[k] = device.copy(history[static_cast<size_t>(k)], pair.state_bytes);
    }
    args.output = device.copy(outputs.at(0), pair.network_bytes);
    args.output_uncond = device.copy_if_given(outputs, 1, pair.network_bytes);
    const auto row = static_cast<py::ssize_t>(kFirstWeight + args.terms);
    args.coefficients = device.copy_row(coefficients);
    args.coefficients_are_double = coefficients.nbytes() == 8 * row;
    if (!args.coefficients_are_double && coefficients.nbytes() != 4 * row) {
      throw py::value_error("coefficients have a wrong size");
    }
  }
};

// `next_input`: "" (not asked), "state" or "network".
std::map<std::string, Bytes> forward(const std::string& dtypes, int64_t numel, const Tensors& history,
                                     const Tensors& outputs, const Bytes& coefficients,
                                     const std::string& next_input, const std::vector<int>& phases,
                                     int64_t blocks) {
  Call call(dtypes, numel, phases, blocks);
  ForwardArgs args;
  call.fill(args, history, outputs, coefficients);
  args.data = call.device.fresh(call.pair.state_bytes);
  args.state = call.device.fresh(call.pair.state_bytes);
  args.next_input_in_state_dtype = next_input == "state";
  if (!next_input.empty()) {
    const int bytes = args.next_input_in_state_dtype ? call.pair.state_bytes : call.pair.network_bytes;
    args.next_input = call.device.fresh(bytes);
  }
  check_launch(cuda_forward(args, nullptr, blocks));
  call.device.check_guards();
  std::map<std::string, Bytes> result{{"data", call.device.read(args.data)},
                                      {"state", call.device.read(args.state)}};
  if (args.next_input != nullptr) result["next_input"] = call.device.read(args.next_input);
  return result;
}

// `grads` may hold "data", "state" and "next_input"; `wanted` the indices of history, "output" and
// "coefficients".
std::map<std::string, Bytes> backward(const std::string& dtypes, int64_t numel,
                                      const std::map<std::string, Bytes>& grads, const Tensors& history,
                                      const Tensors& outputs, const Bytes& state, const Bytes& coefficients,
                                      const std::string& next_input, const std::vector<std::string>& wanted,
                                      const std::vector<int>& phases, int64_t blocks) {
  Call call(dtypes, numel, phases, blocks);
  const auto [state_bytes, network_bytes] = std::pair(call.pair.state_bytes, call.pair.network_bytes);
  BackwardArgs args;
  call.fill(args, history, outputs, coefficients);
  args.next_input_in_state_dtype = next_input == "state";
  const auto give = [&](const char* name, int bytes) -> const void* {
    const auto found = grads.find(name);
    return found == grads.end() ? nullptr : call.device.copy(found->second, bytes);
  };
  args.grad_data = give("data", state_bytes);
  args.grad_state = give("state", state_bytes);
  args.grad_next_input = give("next_input", args.next_input_in_state_dtype ? state_bytes : network_bytes);

  std::map<std::string, const void*> made;
  for (const std::string& name : wanted) {
    if (name == "coefficients") {
      const auto count = static_cast<size_t>(args.coefficient_count());
      args.grad_coefficients = call.device.fresh_row(count * (args.coefficients_are_double ? 8 : 4));
      const int64_t most =
          blocks > 0 ? blocks * args.coefficient_count() : cuda_workspace_elements(numel, args.terms);
      args.partials = call.device.fresh_row(static_cast<size_t>(most * call.pair.work_bytes));
      if (args.grad_next_input != nullptr) args.state = call.device.copy(state, state_bytes);
      made[name] = args.grad_coefficients;
    } else if (name == "output") {
      args.grad_output = call.device.fresh(network_bytes);
      made[name] = args.grad_output;
      if (args.output_uncond == nullptr) continue;
      args.grad_output_uncond = call.device.fresh(network_bytes);
      made["output_uncond"] = args.grad_output_uncond;
    } else {
      void*& target = args.grad_history[std::stoul(name)];
      target = call.device.fresh(state_bytes);
      made[name] = target;
    }
  }
  check_launch(cuda_backward(args, nullptr, blocks));
  call.device.check_guards();
  std::map<std::string, Bytes> result;
  for (const auto& [name, memory] : made) result[name] = call.device.read(memory);
  return result;
}

std::map<std::string, int64_t> take_counts() {
  auto& counts = cuda_on_cpu::counts;
  return {{"launches", counts.launches.exchange(0)},
          {"bytes_loaded", counts.bytes_loaded.exchange(0)},
          {"bytes_stored", counts.bytes_stored.exchange(0)}};
}

Bytes run_planted(const std::string& name, bool broken, const Bytes& in, int out_floats) {
  Device device(0, {0});
  const void* source = device.copy_row(in);
  void* target = device.fresh_row(static_cast<size_t>(out_floats) * sizeof(float));
  check_launch(emulation::run_planted(
      name.c_str(), broken, static_cast<const float*>(source), static_cast<float*>(target),
      static_cast<int>(in.nbytes() / static_cast<py::ssize_t>(sizeof(float)))));
  device.check_guards();
  return device.read(target);
}

template <class To, class From>
auto converter(To (*convert)(From)) {
  return py::vectorize([convert](From value) { return convert(value); });
}

VectorPlan make_plan(int64_t numel, int width, const std::vector<std::pair<uint64_t, int>>& tensors) {
  VectorPlanner planner(numel, width);
  for (const auto& [address, bytes] : tensors) planner.add(reinterpret_cast<const void*>(address), bytes);
  return planner.plan();
}

}  // namespace

PYBIND11_MODULE(EMULATION_MODULE, m) {
  py::register_exception<cuda_on_cpu::Error>(m, "EmulationError", PyExc_RuntimeError);
  m.def("set_order", &cuda_on_cpu::set_order);
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("take_counts", &take_counts);

  m.def("run_planted", &run_planted);
  m.def("planted_names", &emulation::planted_names);
  m.def("half_to_float", converter(&emulation::half_to_float));
  m.def("float_to_half", converter(&emulation::float_to_half));
  m.def("bfloat16_to_float", converter(&emulation::bfloat16_to_float));
  m.def("float_to_bfloat16", converter(&emulation::float_to_bfloat16));

  py::class_<VectorPlan>(m, "VectorPlan")
      .def(
          py::init([](int64_t head, int64_t vectors, int width) { return VectorPlan{head, vectors, width}; }))
      .def_readonly("head", &VectorPlan::head)
      .def_readonly("vectors", &VectorPlan::vectors)
      .def_readonly("width", &VectorPlan::width)
      .def("scalars", &VectorPlan::scalars);
  m.def("make_plan", &make_plan);
  m.def("blocks_for", &blocks_for);
  m.def("backward_groups", py::overload_cast<int>(&backward_groups));
  m.def("cuda_workspace_elements", &cuda_workspace_elements);
  m.attr("BLOCK_THREADS") = kBlockThreads;
  m.attr("MAX_FORWARD_BLOCKS") = kMaxForwardBlocks;
  m.attr("MAX_REDUCTION_BLOCKS") = kMaxReductionBlocks;
  m.attr("TERMS_PER_GROUP") = kTermsPerGroup;
  m.attr("FIRST_WEIGHT") = static_cast<int>(kFirstWeight);
}
