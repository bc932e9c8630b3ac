// A gradient that is computed while the step goes over it.
#pragma once

#include <functional>

#include "arrays.hpp"

namespace steepest {

class LateGradient {
 public:
  using Finished = std::function<void(std::ptrdiff_t begin, std::ptrdiff_t end)>;

  virtual ~LateGradient() = default;

  // The array that it is to fill, or null if there is nothing to do.
  virtual const View* array() const = 0;
  // Keeps alive what it is computed of.
  virtual void pin(Pins&) const = 0;
  // Computes it, on several threads, each of which says which elements it has finished.
  virtual void compute(const Finished&) noexcept = 0;
};

}  // namespace steepest
