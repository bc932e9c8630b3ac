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

std::atomic<std::uint32_t> sink;  // so that what is only read is read

// `all`: the arrays that are updated, then those that are written, then those that are read.
template <std::size_t updated, std::size_t written, std::size_t read>
void add(const std::vector<float*>& all, std::ptrdiff_t n) {
  std::array<float*, updated + written + read> x{};
  std::copy(all.begin(), all.end(), x.begin());
  constexpr std::ptrdiff_t bytes = sizeof(float) * (2 * updated + written + read);
  parallel::for_ranges(n, bytes, [x](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    if constexpr (updated + written == 0) {
      std::uint32_t any = 0;
#pragma omp simd reduction(| : any)
      for (std::ptrdiff_t i = begin; i < end; ++i) any |= bits(x[0][i]);
      sink.store(any);
      return;
    }
#pragma omp simd
    for (std::ptrdiff_t i = begin; i < end; ++i) {
      float sum = 0;
      for (std::size_t k = updated + written; k < x.size(); ++k) sum += x[k][i];
      for (std::size_t k = 0; k < updated; ++k) x[k][i] += sum;
      for (std::size_t k = updated; k < updated + written; ++k) x[k][i] = sum;
    }
  });
}

struct Shape {
  std::size_t updated, written, read;
  void (*run)(const std::vector<float*>&, std::ptrdiff_t);
};
constexpr Shape kShapes[] = {{1, 0, 1, add<1, 0, 1>}, {2, 0, 1, add<2, 0, 1>}, {3, 0, 1, add<3, 0, 1>},
                             {4, 0, 1, add<4, 0, 1>}, {0, 1, 1, add<0, 1, 1>}, {0, 1, 2, add<0, 1, 2>},
                             {0, 0, 1, add<0, 0, 1>}};

void stream(const py::list& updated, const py::list& written, const py::list& read) {
  std::vector<float*> data;
  std::ptrdiff_t n = -1;
  for (const auto* arrays : {&updated, &written, &read}) {
    for (const py::handle array : *arrays) {
      const View x = view(array, "stream", arrays == &read ? Use::read : Use::write);
      check_dtype(x, "stream", false);
      if (n >= 0 && x.size != n) throw py::value_error("stream: expected arrays of one size");
      n = x.size;
      data.push_back(x.as<float>());
    }
  }
  for (const Shape& shape : kShapes) {
    if (shape.updated == updated.size() && shape.written == written.size() && shape.read == read.size()) {
      const WithoutGil release;
      return shape.run(data, n);
    }
  }
  throw py::value_error("stream: there is no loop over so many arrays");
}

}  // namespace

void register_stream(py::module_& m) {
  m.def("_stream", stream, py::arg("updated"), py::arg("written"), py::arg("read"));
}

}  // namespace steepest
