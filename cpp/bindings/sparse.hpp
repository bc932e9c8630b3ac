// Dense layers of sparse inputs: rows that hold only what is not 0 (CSR).
#pragma once

#include <vector>

#include "products.hpp"

namespace steepest {

// Row i has the values starts[i] to starts[i + 1], and their columns in ascending order.
struct SparseView {
  py::array starts, columns;  // int64, int32
  View values;
  std::ptrdiff_t rows;
};

template <class T>
struct SparseRows {
  const std::int64_t* starts;
  const std::int32_t* columns;
  const T* values;
  std::ptrdiff_t rows;

  explicit SparseRows(const SparseView& x)
      : starts(static_cast<const std::int64_t*>(x.starts.data())),
        columns(static_cast<const std::int32_t*>(x.columns.data())),
        values(x.values.as<const T>()),
        rows(x.rows) {}
};

// A copy: what was checked must stay so until the gradient is made.
inline py::array copy_of(const py::object& object, const char* name, const py::dtype& dtype) {
  const bool is_array = py::isinstance<py::array>(object);
  const auto array = is_array ? py::reinterpret_borrow<py::array>(object) : py::array();
  if (!is_array || !array.dtype().equal(dtype) || array.ndim() != 1 || (array.flags() & c_order) == 0) {
    throw py::type_error(std::string(name) + ": expected a contiguous array of " + text(dtype) + ", got " +
                         (is_array ? text(array.dtype()) + " " + describe(shape_of(array)) : type_name(object)));
  }
  return array.attr("copy")();
}

inline SparseView sparse_view(const py::object& starts, const py::object& columns, const py::object& values,
                              std::ptrdiff_t width) {
  SparseView x{copy_of(starts, "starts", py::dtype::of<std::int64_t>()),
               copy_of(columns, "columns", py::dtype::of<std::int32_t>()), c_view(values, "values", Use::read), 0};
  x.rows = x.starts.size() - 1;
  const auto* start = static_cast<const std::int64_t*>(x.starts.data());
  const auto* column = static_cast<const std::int32_t*>(x.columns.data());
  const std::int64_t n = x.columns.size();
  bool fits = x.rows >= 0 && x.values.size == n && start[0] == 0 && start[x.rows] == n;
  for (std::ptrdiff_t i = 0; fits && i < x.rows; ++i) fits = start[i] <= start[i + 1];
  for (std::ptrdiff_t i = 0; fits && i < x.rows; ++i) {
    for (std::int64_t k = start[i], before = -1; k < start[i + 1]; before = column[k++]) {
      fits &= before < column[k] && column[k] < width;
    }
  }
  if (!fits) {
    throw py::value_error("starts, columns, values: expected rows of ascending columns below " + std::to_string(width) +
                          ", got others");
  }
  return x;
}

// What a row costs, in bytes of an optimizer's traffic.
template <class T>
std::ptrdiff_t cost_of_row(const SparseRows<T>& x, std::ptrdiff_t rows, std::ptrdiff_t units) {
  return (x.starts[x.rows] / std::max<std::ptrdiff_t>(rows, 1) + 1) * units;
}

// y = f(x w + bias)
template <class T>
void sparse_dense(const SparseRows<T>& x, const T* w, std::ptrdiff_t units, Activation f, const T* bias, double alpha,
                  T* y) noexcept {
  const ProductKernels<T>& kernels = products<T>();
  const auto activate = layers<T>().activate;
  parallel::for_ranges(
      x.rows, cost_of_row(x, x.rows, units),
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          const std::int64_t from = x.starts[i];
          T* const row = y + i * units;
          kernels.sparse_row(x.columns + from, x.values + from, x.starts[i + 1] - from, w, units, row);
          activate(f, row, bias, static_cast<T>(alpha), row, 1, units);
        }
      },
      parallel::Pace::brisk);
}

// dw = x' g: the values are first put in the order of their columns.
template <class T>
void sparse_gradient(const SparseRows<T>& x, std::ptrdiff_t width, const T* g, std::ptrdiff_t units, T* dw) {
  const auto n = static_cast<std::size_t>(x.starts[x.rows]);
  std::vector<std::int64_t> starts(static_cast<std::size_t>(width) + 1);
  std::vector<std::int32_t> rows(n);
  std::vector<T> values(n);
  for (std::size_t k = 0; k < n; ++k) ++starts[static_cast<std::size_t>(x.columns[k])];
  std::int64_t end = 0;
  for (std::int64_t& start : starts) start = end += start;
  for (std::ptrdiff_t i = x.rows; i-- > 0;) {  // from the back, so that rows ascend
    for (std::int64_t k = x.starts[i + 1]; k-- > x.starts[i];) {
      const auto at = static_cast<std::size_t>(--starts[static_cast<std::size_t>(x.columns[k])]);
      rows[at] = static_cast<std::int32_t>(i);
      values[at] = x.values[k];
    }
  }
  const ProductKernels<T>& kernels = products<T>();
  parallel::for_ranges(
      width, cost_of_row(x, width, units),
      [&](std::ptrdiff_t begin, std::ptrdiff_t stop) noexcept {
        while (begin < stop) {
          const std::int64_t from = starts[static_cast<std::size_t>(begin)];
          std::ptrdiff_t next = begin;
          while (next < stop && starts[static_cast<std::size_t>(next) + 1] == from) ++next;
          std::fill(dw + begin * units, dw + next * units, T(0));
          if (next < stop) {
            const std::int64_t count = starts[static_cast<std::size_t>(next) + 1] - from;
            kernels.sparse_row(rows.data() + from, values.data() + from, count, g, units, dw + next * units);
            ++next;
          }
          begin = next;
        }
      },
      parallel::Pace::brisk);
}

}  // namespace steepest
