// What is used of DLPack, major version 1: how another library shows its tensors without a call into Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

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

// What the capsule `__dlpack_c_exchange_api__` of a tensor type points to.
struct Exchange {
  static constexpr const char* kCapsule = "dlpack_exchange_api";

  std::uint32_t major, minor;
  void *previous, *allocate;
  void *from_object, *to_object;
  int (*look)(void* object, Tensor* out);  // borrows; not 0: a Python error is set
  void* stream;
};

}  // namespace steepest::dlpack

// What is used of PyTorch's C interface, whose ABI is stable: a tensor of which one has a handle is looked at without
// Python. 0 is success.
namespace steepest::torch_c {

using Handle = void*;

struct Functions {
  int (*drop)(Handle);
  int (*data)(Handle, void**);
  int (*dtype)(Handle, std::int32_t*);
  int (*dim)(Handle, std::int64_t*);
  int (*sizes)(Handle, std::int64_t**);
  int (*strides)(Handle, std::int64_t**);
};

// A reference to a tensor, and how it lay in memory then.
class Seen {
 public:
  Seen(const Functions& f, Handle handle) : f_(f), handle_(handle, f.drop) {
    Look t;
    if (!look(t)) return;
    data_ = t.data;
    dtype_ = t.dtype;
    axes_.assign(t.sizes, t.sizes + t.dim);
    axes_.insert(axes_.end(), t.strides, t.strides + t.dim);
  }

  bool is_unmoved() const {
    Look t;
    return look(t) && t.data == data_ && t.dtype == dtype_ && 2 * t.dim == static_cast<std::int64_t>(axes_.size()) &&
           std::equal(t.sizes, t.sizes + t.dim, axes_.begin()) &&
           std::equal(t.strides, t.strides + t.dim, axes_.begin() + t.dim);
  }

 private:
  struct Look {
    void* data;
    std::int32_t dtype;
    std::int64_t dim;
    std::int64_t *sizes, *strides;
  };

  bool look(Look& t) const {
    Handle const h = handle_.get();
    return f_.data(h, &t.data) == 0 && f_.dtype(h, &t.dtype) == 0 && f_.dim(h, &t.dim) == 0 &&
           f_.sizes(h, &t.sizes) == 0 && f_.strides(h, &t.strides) == 0;
  }

  Functions f_;
  std::unique_ptr<void, int (*)(Handle)> handle_;
  void* data_ = nullptr;
  std::int32_t dtype_ = -1;
  std::vector<std::int64_t> axes_;  // sizes, then strides
};

}  // namespace steepest::torch_c
