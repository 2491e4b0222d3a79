// gas_ext._build_info: what this binary is, for `gas-ext info` and bug reports. Holds no tensors, so it needs
// pybind11 alone and no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "../kernels/fused_update_cpu.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_info() {
  py::dict info;
  info["version"] = GAS_EXT_VERSION;
  info["sources"] = GAS_EXT_SOURCES;  // their hash: a clone does not use a build of other sources
  info["compiler"] = compiler();
  info["cmake"] = GAS_EXT_CMAKE_VERSION;
  info["torch_headers"] = GAS_EXT_TORCH_VERSION;
  info["torch_target"] = GAS_EXT_TORCH_TARGET;
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  info["cuda_toolkit"] = GAS_EXT_CUDA_TOOLKIT;  // empty: built without CUDA
  info["cuda_architectures"] = GAS_EXT_CUDA_ARCHITECTURES;
  info["cpu_isas_compiled"] = gas_ext::cpu_isas_compiled();
  info["cpu_isas_supported"] = gas_ext::cpu_isas_supported();
  return info;
}

}  // namespace

PYBIND11_MODULE(_build_info, module) {
  module.doc() = "Build information of gas_ext: versions, compilers, instruction sets, CUDA architectures.";
  module.def("build_info", &build_info, "What the extension was built from and with.");
  module.def(
      "cpu_isa_in_use", [] { return std::string(gas_ext::cpu_kernels().name); },
      "Instruction set of the CPU kernels that this process uses (GAS_EXT_CPU_ISA overrides).");
}
