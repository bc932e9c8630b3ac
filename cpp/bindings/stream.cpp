// The limit that benchmarks measure kernels against: a loop that only adds, over as many arrays.
#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "../kernels/vector_math.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "gil.hpp"
#include "module.hpp"

namespace steepest {
namespace {

std::atomic<std::uint64_t> sink;  // so that what is only read is read

// `all`: the arrays that are updated, then those that are written, then those that are read.
template <class T, std::size_t updated, std::size_t written, std::size_t read>
void add(const std::vector<void*>& all, std::ptrdiff_t n) {
  std::array<T*, updated + written + read> x{};
  std::transform(all.begin(), all.end(), x.begin(), [](void* array) { return static_cast<T*>(array); });
  constexpr std::ptrdiff_t bytes = sizeof(T) * (2 * updated + written + read);
  parallel::for_ranges(n, bytes, [x](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    if constexpr (updated + written == 0) {
      decltype(bits(T{})) any = 0;
#pragma omp simd reduction(| : any)
      for (std::ptrdiff_t i = begin; i < end; ++i) any |= bits(x[0][i]);
      sink.store(any);
      return;
    }
#pragma omp simd
    for (std::ptrdiff_t i = begin; i < end; ++i) {
      T sum = 0;
      for (std::size_t k = updated + written; k < x.size(); ++k) sum += x[k][i];
      for (std::size_t k = 0; k < updated; ++k) x[k][i] += sum;
      for (std::size_t k = updated; k < updated + written; ++k) x[k][i] = sum;
    }
  });
}

using Run = void (*)(const std::vector<void*>&, std::ptrdiff_t);
struct Shape {
  std::size_t updated, written, read;
  Run of_float, of_double;
};
template <std::size_t updated, std::size_t written, std::size_t read>
constexpr Shape shape = {updated, written, read, add<float, updated, written, read>,
                         add<double, updated, written, read>};
constexpr Shape kShapes[] = {shape<1, 0, 1>, shape<2, 0, 1>, shape<3, 0, 1>, shape<4, 0, 1>,
                             shape<0, 1, 1>, shape<0, 1, 2>, shape<0, 0, 1>};

void stream(const py::list& updated, const py::list& written, const py::list& read) {
  std::vector<void*> data;
  std::ptrdiff_t n = -1;
  bool is_double = false;
  for (const auto* arrays : {&updated, &written, &read}) {
    for (const py::handle array : *arrays) {
      const View x = view(array, "stream", arrays == &read ? Use::read : Use::write);
      if (n < 0) is_double = x.is_double;
      check_dtype(x, "stream", is_double);
      if (n >= 0 && x.size != n) throw py::value_error("stream: expected arrays of one size");
      n = x.size;
      data.push_back(x.data);
    }
  }
  for (const Shape& shape : kShapes) {
    if (shape.updated == updated.size() && shape.written == written.size() && shape.read == read.size()) {
      const WithoutGil release;
      return (is_double ? shape.of_double : shape.of_float)(data, n);
    }
  }
  throw py::value_error("stream: there is no loop over so many arrays");
}

}  // namespace

void register_stream(py::module_& m) {
  m.def("_stream", stream, py::arg("updated"), py::arg("written"), py::arg("read"));
}

}  // namespace steepest
