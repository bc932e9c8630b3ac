// What the losses share: their arrays, weights and the sum's scale.
#pragma once

#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../dispatch.hpp"
#include "arrays.hpp"
#include "gil.hpp"
#include "sums.hpp"

namespace steepest {

// The arrays of one call, pinned while it runs without the GIL.
template <class F>
auto without_gil(std::ptrdiff_t bytes, const std::vector<const py::array*>& arrays, const F& f) {
  const parallel::DefaultFloatMode mode;
  if (!parallel::is_large(bytes)) return f();
  Pins pins;
  for (const py::array* a : arrays) pins.pin(*a);
  const WithoutGil release;
  return f();
}

// `out`, checked, or a new array like the input
View gradient_for(const View& input, const py::object& out);

// Sample weights: one for each of the leading axes' positions, or none.
struct Weights {
  std::optional<View> view;
  std::ptrdiff_t inner = 1;  // elements that share a weight

  template <class T>
  const T* data() const {
    return view ? view->as<const T>() : nullptr;
  }
};

// Finite and >= 0, for at most so many leading axes
Weights weights_for(const View& input, const py::object& sample_weight, py::ssize_t max_axes);

// The mean loss of outputs, whose gradient goes to `out`: by the names of `steepest.losses`, with the defaults there.
using Loss = std::function<double(const py::array& outputs, const py::array& targets, const py::array& out)>;
Loss loss_named(const std::string& name);
double mean_softmax_cross_entropy(const py::array& logits, const py::array& labels, const py::array& out);

// What a sum is multiplied with: 1, or one over the number (or the weight) of what is summed; 0 where there is nothing.
inline double scale_for(bool mean, double total) { return !mean ? 1 : total > 0 ? 1 / total : 0; }

}  // namespace steepest
