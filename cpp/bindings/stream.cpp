// What benchmarks measure kernels against: the loops of kernels/stream.cpp, on the same threads.
#include <vector>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "gil.hpp"
#include "module.hpp"

namespace steepest {
namespace {

template <class T>
void run(const py::list& updated, const py::list& written, const py::list& read) {
  std::vector<T*> arrays;
  std::ptrdiff_t n = -1;
  for (const auto* list : {&updated, &written, &read}) {
    for (const py::handle array : *list) {
      const View x = view(array, "stream", list == &read ? Use::read : Use::write);
      check_dtype(x, "stream", sizeof(T) == sizeof(double));
      if (n >= 0 && x.size != n) throw py::value_error("stream: expected arrays of one size");
      n = x.size;
      arrays.push_back(x.as<T>());
    }
  }
  for (const Stream<T>& s : streams<T>().shapes) {
    if (s.updated != updated.size() || s.written != written.size() || s.read != read.size()) continue;
    const auto bytes = static_cast<std::ptrdiff_t>(sizeof(T) * (2 * s.updated + s.written + s.read));
    const std::ptrdiff_t ahead = bytes_ahead(n * bytes, arrays.size());
    const WithoutGil release;
    parallel::for_ranges(
        n, bytes, [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept { s.run(arrays.data(), begin, end, ahead); });
    return;
  }
  throw py::value_error("stream: there is no loop over so many arrays");
}

void stream(const py::list& updated, const py::list& written, const py::list& read) {
  const bool is_double = read.size() > 0 && view(read[0], "stream", Use::read).is_double;
  (is_double ? run<double> : run<float>)(updated, written, read);
}

}  // namespace

void register_stream(py::module_& m) {
  m.def("_stream", stream, py::arg("updated"), py::arg("written"), py::arg("read"));
}

}  // namespace steepest
