#include "rows.hpp"

#include <cstring>

#include "calls.hpp"
#include "module.hpp"

namespace steepest {
namespace {

constexpr std::ptrdiff_t kAhead = 4096, kLine = 64;  // bytes
constexpr std::ptrdiff_t kFarByte = 16;              // what a byte from memory costs, in bytes from a cache

const char* bytes_of(const py::array& array) { return static_cast<const char*>(array.data()); }

void check_arrays(const py::array& array, const py::array& out, const Rows& rows) {
  std::vector<py::ssize_t> expected = shape_of(array);
  if (expected.empty() || (array.flags() & c_order) == 0 || (array.dtype().flags() & 1) != 0) {
    throw py::value_error("array: expected rows next to each other, of plain values, got others");
  }
  if (rows.ndim() != 1) throw py::value_error("rows: expected one axis, got shape " + describe(shape_of(rows)));
  expected[0] = rows.size();
  if (!out.dtype().is(array.dtype()) && !out.dtype().equal(array.dtype())) {
    throw py::type_error("out: expected dtype " + text(array.dtype()) + ", got " + text(out.dtype()));
  }
  if (shape_of(out) != expected || (out.flags() & c_order) == 0 || !out.writeable()) {
    throw py::value_error("out: expected a writeable, C-contiguous array of shape " + describe(expected) + ", got " +
                          describe(shape_of(out)));
  }
  if (bytes_of(out) < bytes_of(array) + array.nbytes() && bytes_of(array) < bytes_of(out) + out.nbytes()) {
    throw py::value_error("out: overlaps array; pass another");
  }
}

// Fetches as much from `later`: rows lie anywhere, so the hardware does not.
inline void copy(char* to, const char* from, std::ptrdiff_t bytes, const char* later) {
  std::ptrdiff_t at = 0;
  for (; at + kLine <= bytes; at += kLine) {
    __builtin_prefetch(later + at, 0, 2);
    std::memcpy(to + at, from + at, kLine);
  }
  __builtin_prefetch(later + at, 0, 2);
  std::memcpy(to + at, from + at, static_cast<std::size_t>(bytes - at));
}

}  // namespace

void take_rows(const py::array& array, const Rows& rows, const py::array& out) {
  check_arrays(array, out, rows);
  const std::ptrdiff_t n = rows.size();
  const std::vector<std::int64_t> from(rows.data(), rows.data() + n);  // a copy, which nobody changes
  bool inside = true;
  for (const std::int64_t row : from) inside &= row >= 0 && row < array.shape(0);
  if (!inside) throw py::value_error("rows: expected 0 to " + std::to_string(array.shape(0) - 1) + ", got others");
  if (out.nbytes() == 0) return;
  const std::ptrdiff_t bytes = out.nbytes() / n;
  const std::ptrdiff_t distance = std::clamp<std::ptrdiff_t>(kAhead / bytes, 1, 64);
  const char* const source = bytes_of(array);
  char* const target = const_cast<char*>(bytes_of(out));
  const Released released(out.nbytes(), {array, out});
  parallel::for_ranges(
      n, kFarByte * bytes,
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          const char* const later = source + from[std::min(i + distance, n - 1)] * bytes;
          copy(target + i * bytes, source + from[i] * bytes, bytes, later);
        }
      },
      parallel::Pace::brisk);
}

void register_rows(py::module_& m) {
  m.def("take_rows", take_rows, py::arg("array").noconvert(), py::arg("rows").noconvert(), py::arg("out").noconvert());
}

}  // namespace steepest
