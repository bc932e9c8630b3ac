// What is used of PyTorch's C interface, whose ABI is stable: a tensor of which one has a handle is looked at without
// Python, and without counting references.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace steepest::torch_c {

constexpr std::int32_t kCpu = 0, kStrided = 0;
constexpr std::int32_t kUint8 = 0, kFloat32 = 6, kFloat64 = 7, kBfloat16 = 15;  // dtypes

using Handle = const void*;  // points to a C++ tensor, which is a pointer to what it refers to

struct Functions {  // 0 is success
  int (*drop)(Handle);
  int (*device)(Handle, std::int32_t*);
  int (*layout)(Handle, std::int32_t*);
  int (*dtype)(Handle, std::int32_t*);
  int (*data)(Handle, void**);
  int (*dim)(Handle, std::int64_t*);
  int (*sizes)(Handle, const std::int64_t**);
  int (*strides)(Handle, const std::int64_t**);
};

// How a strided CPU tensor lies in memory; as long as it is not changed.
struct Tensor {
  void* data;
  std::int32_t dtype;
  std::int64_t dim;
  const std::int64_t *sizes, *strides;  // in elements

  std::ptrdiff_t size() const {
    std::ptrdiff_t n = 1;
    for (std::int64_t i = 0; i < dim; ++i) n *= sizes[i];
    return n;
  }
};

// Whether it is a strided CPU tensor; then `t` is how it lies in memory.
inline bool look(const Functions& f, Handle h, Tensor& t) {
  std::int32_t device, layout;
  return f.device(h, &device) == 0 && device == kCpu && f.layout(h, &layout) == 0 && layout == kStrided &&
         f.dtype(h, &t.dtype) == 0 && f.data(h, &t.data) == 0 && f.dim(h, &t.dim) == 0 && f.sizes(h, &t.sizes) == 0 &&
         f.strides(h, &t.strides) == 0;
}

// How a tensor lay in memory once.
class Seen {
 public:
  explicit Seen(const Tensor& t) : data_(t.data), dtype_(t.dtype) {
    for (std::int64_t i = 0; i < t.dim; ++i) axes_.push_back({t.sizes[i], t.strides[i]});
  }

  std::int32_t dtype() const { return dtype_; }
  bool is_same(const Tensor& t) const { return t.data == data_ && t.dtype == dtype_ && lies_alike<true>(t); }

  // Whether its elements lie in the same places of other memory.
  template <bool exactly = false>
  bool lies_alike(const Tensor& t) const {
    if (static_cast<std::size_t>(t.dim) != axes_.size()) return false;
    const std::int64_t *size = t.sizes, *stride = t.strides;
    for (const Axis& axis : axes_) {
      if (*size != axis.size || (*stride != axis.stride && (exactly || axis.size != 1))) return false;
      ++size, ++stride;
    }
    return true;
  }

 private:
  struct Axis {
    std::int64_t size, stride;
  };

  void* data_;
  std::int32_t dtype_;
  std::vector<Axis> axes_;
};

}  // namespace steepest::torch_c
