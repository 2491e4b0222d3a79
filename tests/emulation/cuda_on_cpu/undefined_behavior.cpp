// Handlers that the plain build gives to -fsanitize=alignment,null,bounds,object-size: a misaligned, null or
// out-of-range access of a kernel becomes an Error like any other. The layouts of the structures are the
// interface between compiler and sanitizer runtime (the sanitized builds use the real runtime).
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace {

struct Place {
  const char* file;
  uint32_t line;
  uint32_t column;
};

struct TypeMismatch {
  Place place;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

struct OutOfBounds {
  Place place;
  const void* array_type;
  const void* index_type;
};

}  // namespace

extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* data, uintptr_t address) {
  const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
  const std::string what = address == 0               ? "access through a null pointer"
                           : address % alignment != 0 ? "misaligned access, which needs a multiple of " +
                                                            std::to_string(alignment) + " bytes,"
                                                      : "access outside a variable";
  cuda_on_cpu::fault(what, data->place.file, data->place.line);
}

extern "C" [[noreturn]] void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, uintptr_t index) {
  cuda_on_cpu::fault("array index " + std::to_string(index) + " out of bounds", data->place.file,
                     data->place.line);
}
