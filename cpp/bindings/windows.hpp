// Windows that slide over batches of images.
#pragma once

#include "calls.hpp"

namespace steepest {

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
