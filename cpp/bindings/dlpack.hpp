// What is used of DLPack, major version 1: how another library shows its tensors without a call into Python.
#pragma once

#include <cstdint>

namespace steepest::dlpack {

constexpr std::int32_t kCpu = 1;
constexpr std::uint8_t kUnsigned = 1, kFloat = 2, kBfloat = 4;

struct Tensor {
  void* data;
  std::int32_t device, device_id;
  std::int32_t ndim;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  const std::int64_t* shape;
  const std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;

  void* begin() const { return static_cast<char*>(data) + byte_offset; }
};

// A tensor with a reference to it, which `drop` gives back.
struct Managed {
  std::uint32_t major, minor;
  void* context;
  void (*drop)(Managed*);
  std::uint64_t flags;
  Tensor tensor;
};

// What the capsule `__dlpack_c_exchange_api__` of a tensor type points to.
struct Exchange {
  static constexpr const char* kCapsule = "dlpack_exchange_api";

  std::uint32_t major, minor;
  void *previous, *allocate;
  int (*from_object)(void* object, Managed** out);
  void* to_object;
  int (*look)(void* object, Tensor* out);  // borrows; not 0: a Python error is set
  void* stream;
};

}  // namespace steepest::dlpack
