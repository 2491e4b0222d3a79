// The few tensor helpers that the operators need; the only header that includes LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace gas_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// How messages show a tensor.
struct Shape {
  const Tensor& of;
};
inline std::ostream& operator<<(std::ostream& stream, const Shape& shape) {
  const char* separator = "";
  stream << "(";
  for (const int64_t size : shape.of.sizes()) stream << std::exchange(separator, ", ") << size;
  return stream << (shape.of.dim() == 1 ? ",)" : ")");
}

struct Dtype {
  ScalarType of;
};
inline std::ostream& operator<<(std::ostream& stream, const Dtype& dtype) {
  switch (dtype.of) {
    case ScalarType::Double: return stream << "float64";
    case ScalarType::Float: return stream << "float32";
    case ScalarType::Half: return stream << "float16";
    case ScalarType::BFloat16: return stream << "bfloat16";
    default: return stream << torch::headeronly::toString(dtype.of);
  }
}

// history[2], or output
struct Name {
  const char* of;
  int index = -1;
};
inline std::ostream& operator<<(std::ostream& stream, const Name& name) {
  stream << name.of;
  return name.index < 0 ? stream : stream << "[" << name.index << "]";
}

// Throw, unless the condition holds, with a message of these parts: one sentence with values and remedy. It
// arrives in Python as a RuntimeError.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto sizes_a = a.sizes(), sizes_b = b.sizes();
  return std::equal(sizes_a.begin(), sizes_a.end(), sizes_b.begin(), sizes_b.end());
}

// Whether the elements fill one stretch of memory, each exactly once.
inline bool is_dense(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) == 0) return true;
    if (tensor.size(d) > 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// New tensor of the given sizes and strides, on the device of `like`.
inline Tensor empty_strided(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                            torch::headeronly::IntHeaderOnlyArrayRef strides, ScalarType dtype,
                            const Tensor& like) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), to<int32_t>(from(dtype)),
                                                         device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor empty_1d(const Tensor& like, int64_t size, ScalarType dtype) {
  const int64_t stride = 1;
  return empty_strided({&size, 1}, {&stride, 1}, dtype, like);
}

// New tensor with the sizes and memory order of `like` (torch.empty_like, which keeps dense strides; the
// dispatcher takes several times as long as allocating a small tensor).
inline Tensor empty_like(const Tensor& like, ScalarType dtype) {
  if (is_dense(like)) return empty_strided(like.sizes(), like.strides(), dtype, like);
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(like),         from(std::optional<ScalarType>(dtype)),
                                    from(std::nullopt), from(std::nullopt),
                                    from(std::nullopt), from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor made_dense(const Tensor& tensor) {
  if (is_dense(tensor)) return tensor;
  Tensor copy = empty_like(tensor, tensor.scalar_type());
  torch::stable::copy_(copy, tensor);
  return copy;
}

// Whether element i of `a` in memory is element i of `b`, given equal sizes and that `b` is dense.
inline bool same_layout(const Tensor& a, const Tensor& b) {
  const auto strides_a = a.strides(), strides_b = b.strides();
  if (std::equal(strides_a.begin(), strides_a.end(), strides_b.begin(), strides_b.end())) return true;
  if (b.numel() <= 1) return true;
  const auto sizes = a.sizes();
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] > 1 && strides_a[d] != strides_b[d]) return false;
  }
  return true;
}

inline bool same_device(const Tensor& a, const Tensor& b) { return a.device() == b.device(); }

inline int64_t element_bytes(ScalarType dtype) {
  return dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
}

// Whether the memory of two dense tensors overlaps.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto start = [](const Tensor& t) { return reinterpret_cast<std::uintptr_t>(t.const_data_ptr()); };
  const auto bytes = [](const Tensor& t) {
    return static_cast<std::uintptr_t>(t.numel() * element_bytes(t.scalar_type()));
  };
  if (a.numel() == 0 || b.numel() == 0) return false;
  return start(a) < start(b) + bytes(b) && start(b) < start(a) + bytes(a);
}

}  // namespace gas_ext
