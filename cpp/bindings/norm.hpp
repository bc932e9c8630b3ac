// The 2-norm of all elements of some arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "arrays.hpp"

namespace steepest {

struct Span {
  const void* data;
  std::ptrdiff_t size;
  bool is_double, is_bfloat16;
  const std::uint8_t* mask = nullptr;  // what is 0 in it counts as 0
};

inline Span span(const View& x, const std::uint8_t* mask = nullptr) {
  return {x.data, x.size, x.is_double, x.is_bfloat16, mask};
}

// sqrt(sum of squares), the same bits whatever the ISA and the threads; neither overflows nor underflows unless the
// norm itself does. Not finite exactly if an element is not, or if it overflows.
double global_norm(const std::vector<Span>& arrays);

}  // namespace steepest
