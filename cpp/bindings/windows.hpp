// Runs a kernel over parts of its work; windows that slide over batches of images.
#pragma once

#include "../kernels/kernels.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "gil.hpp"

namespace steepest {

// Runs f(begin, end) over parts of 0..units, without the GIL where that pays.
template <class F>
void run(std::ptrdiff_t units, std::ptrdiff_t bytes_per_unit, const std::vector<py::array>& arrays, const F& f) {
  if (units == 0 || bytes_per_unit == 0) return;
  Pins pins;
  std::optional<WithoutGil> release;
  if (parallel::is_large(units * bytes_per_unit)) {
    for (const py::array& array : arrays) pins.pin(array);
    release.emplace();
  }
  parallel::for_ranges(units, bytes_per_unit, f);
}

// A window over a batch of images, (batch, height, width, channels), and the shapes that follow.
struct Sliding {
  Window window;
  std::ptrdiff_t batch;

  std::ptrdiff_t places() const { return window.window_height * window.window_width; }
  std::ptrdiff_t image() const { return window.height * window.width * window.channels; }
  std::ptrdiff_t outputs() const { return window.out_height * window.out_width; }
  std::vector<py::ssize_t> patches_shape() const { return {batch * outputs(), places() * window.channels}; }
  std::vector<py::ssize_t> pooled_shape() const {
    return {batch, window.out_height, window.out_width, window.channels};
  }
};

using Pair = std::pair<std::ptrdiff_t, std::ptrdiff_t>;

// The window's size, stride, padding before and positions over images of that shape; ValueError unless it always
// holds a pixel.
Sliding sliding(const std::vector<py::ssize_t>& images, const Pair& window, const Pair& stride, const Pair& pad,
                const Pair& out);

}  // namespace steepest
