// What the calls of layers share: arrays that must be alike, and work over parts of them.
#pragma once

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "gil.hpp"

namespace steepest {

inline View c_view(const py::object& object, const char* name, Use use) {
  View v = view(object, name, use);
  check_c_order(v, name);
  return v;
}

inline View like(const View& x, const py::object& object, const char* name, Use use,
                 const std::vector<py::ssize_t>& shape) {
  View v = view(object, name, use);
  check_dtype(v, name, x.is_double);
  check_shape(v, name, shape);
  check_c_order(v, name);
  return v;
}

inline View like(const View& x, const py::object& object, const char* name, Use use) {
  return like(x, object, name, use, shape_of(x.array));
}

// Lets go of the GIL where that pays, and pins the arrays then.
class Released {
 public:
  Released(std::ptrdiff_t bytes, const std::vector<py::array>& arrays) {
    if (!parallel::is_large(bytes)) return;
    for (const py::array& array : arrays) pins_.pin(array);
    release_.emplace();
  }

 private:
  Pins pins_;
  std::optional<WithoutGil> release_;
};

// Runs f(begin, end) over parts of 0..units, without the GIL where that pays.
template <class F>
void run(std::ptrdiff_t units, std::ptrdiff_t bytes_per_unit, const std::vector<py::array>& arrays, const F& f) {
  if (units == 0 || bytes_per_unit == 0) return;
  const Released released(units * bytes_per_unit, arrays);
  parallel::for_ranges(units, bytes_per_unit, f);
}

Activation activation(const std::string& name);

}  // namespace steepest
