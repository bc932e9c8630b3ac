// What the layers need besides matrix products. Compiled once per ISA. Images are (height, width, channels).
#include "functions.hpp"

namespace steepest {
namespace {

// Each activation: f(x), and what is left of a gradient, given y = f(x).
template <class T>
struct Identity {
  static T value(T x, T) { return x; }
};
template <class T>
struct Relu {
  static T value(T x, T) { return x <= 0 ? T(0) : x; }
  static T masked(T g, T y, T) { return y > 0 ? g : T(0); }
};
template <class T>
struct LeakyRelu {
  static T value(T x, T alpha) { return x > 0 ? x : alpha * x; }
  static T masked(T g, T y, T alpha) { return y > 0 ? g : alpha * g; }
};
template <class T>
struct Tanh {
  static T value(T x, T) { return hyperbolic_tangent(x); }
  static T masked(T g, T y, T) { return g * (T(1) - y * y); }
};
template <class T>
struct Sigmoid {
  static T value(T x, T) { return logistic(x); }
  static T masked(T g, T y, T) { return g * (y * (T(1) - y)); }
};

template <class F, class T>
void activate_with(const T* x, const T* bias, T alpha, T* y, std::ptrdiff_t rows, std::ptrdiff_t columns) {
  if (bias == nullptr) {
#pragma omp simd
    for (std::ptrdiff_t i = 0; i < rows * columns; ++i) y[i] = F::value(x[i], alpha);
    return;
  }
  for (std::ptrdiff_t r = 0; r < rows; ++r, x += columns, y += columns) {
#pragma omp simd
    for (std::ptrdiff_t c = 0; c < columns; ++c) y[c] = F::value(x[c] + bias[c], alpha);
  }
}

template <class F, class T>
void mask_with(T* gradient, const T* y, T alpha, std::ptrdiff_t n) {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) gradient[i] = F::masked(gradient[i], y[i], alpha);
}

template <class T>
void activate(Activation f, const T* x, const T* bias, T alpha, T* y, std::ptrdiff_t rows,
              std::ptrdiff_t columns) noexcept {
  switch (f) {
    case Activation::identity:
      return activate_with<Identity<T>>(x, bias, alpha, y, rows, columns);
    case Activation::relu:
      return activate_with<Relu<T>>(x, bias, alpha, y, rows, columns);
    case Activation::leaky_relu:
      return activate_with<LeakyRelu<T>>(x, bias, alpha, y, rows, columns);
    case Activation::tanh:
      return activate_with<Tanh<T>>(x, bias, alpha, y, rows, columns);
    case Activation::sigmoid:
      return activate_with<Sigmoid<T>>(x, bias, alpha, y, rows, columns);
  }
}

template <class T>
void mask(Activation f, T* gradient, const T* y, T alpha, std::ptrdiff_t n) noexcept {
  switch (f) {
    case Activation::identity:
      return;
    case Activation::relu:
      return mask_with<Relu<T>>(gradient, y, alpha, n);
    case Activation::leaky_relu:
      return mask_with<LeakyRelu<T>>(gradient, y, alpha, n);
    case Activation::tanh:
      return mask_with<Tanh<T>>(gradient, y, alpha, n);
    case Activation::sigmoid:
      return mask_with<Sigmoid<T>>(gradient, y, alpha, n);
  }
}

template <class T>
void dropout(const T* x, const T* uniform, T keep, T scale, T* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) y[i] = uniform[i] < keep ? x[i] * scale : T(0);
}

// Calls f(place in the window, pixel of the image or -1 outside it) for the window at (row, column) of the output.
template <class F>
inline void for_window(const Window& w, std::ptrdiff_t row, std::ptrdiff_t column, F f) {
  for (std::ptrdiff_t i = 0, place = 0; i < w.window_height; ++i) {
    const std::ptrdiff_t y = row * w.stride_height + i - w.pad_top;
    for (std::ptrdiff_t j = 0; j < w.window_width; ++j, ++place) {
      const std::ptrdiff_t x = column * w.stride_width + j - w.pad_left;
      const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
      f(place, inside ? y * w.width + x : std::ptrdiff_t{-1});
    }
  }
}

// Calls f(output pixel, place, image pixel or -1), in the order of the output.
template <class F>
inline void for_windows(const Window& w, F f) {
  for (std::ptrdiff_t row = 0, out = 0; row < w.out_height; ++row) {
    for (std::ptrdiff_t column = 0; column < w.out_width; ++column, ++out) {
      for_window(w, row, column, [&](std::ptrdiff_t place, std::ptrdiff_t pixel) { f(out, place, pixel); });
    }
  }
}

// image (height, width, channels) -> patches (out_height out_width, window_height window_width channels)
template <class T>
void im2col(const Window& w, const T* image, T* patches) noexcept {
  const std::ptrdiff_t c = w.channels, places = w.window_height * w.window_width;
  for_windows(w, [=](std::ptrdiff_t out, std::ptrdiff_t place, std::ptrdiff_t pixel) {
    T* to = patches + (out * places + place) * c;
    if (pixel < 0) {
      for (std::ptrdiff_t k = 0; k < c; ++k) to[k] = T(0);
    } else {
      for (std::ptrdiff_t k = 0; k < c; ++k) to[k] = image[pixel * c + k];
    }
  });
}

// The transpose of im2col: adds every patch to where it was taken from.
template <class T>
void col2im(const Window& w, const T* patches, T* image) noexcept {
  const std::ptrdiff_t c = w.channels, places = w.window_height * w.window_width;
  for (std::ptrdiff_t i = 0; i < w.height * w.width * c; ++i) image[i] = T(0);
  for_windows(w, [=](std::ptrdiff_t out, std::ptrdiff_t place, std::ptrdiff_t pixel) {
    const T* from = patches + (out * places + place) * c;
    if (pixel < 0) return;
#pragma omp simd
    for (std::ptrdiff_t k = 0; k < c; ++k) image[pixel * c + k] = image[pixel * c + k] + from[k];
  });
}

// The largest of each window and the pixel it came from, the first of equals. Not-a-number wins.
template <class T>
void max_pool(const Window& w, const T* image, T* y, std::int32_t* from) noexcept {
  const std::ptrdiff_t c = w.channels;
  for (std::ptrdiff_t i = 0; i < w.out_height * w.out_width * c; ++i) {
    y[i] = -Float<T>::infinity;
    from[i] = -1;
  }
  for_windows(w, [=](std::ptrdiff_t out, std::ptrdiff_t, std::ptrdiff_t pixel) {
    if (pixel < 0) return;
    const T* x = image + pixel * c;
    T* best = y + out * c;
    std::int32_t* source = from + out * c;
    const auto here = static_cast<std::int32_t>(pixel);
#pragma omp simd
    for (std::ptrdiff_t k = 0; k < c; ++k) {
      const bool better = source[k] < 0 || x[k] > best[k] || (x[k] != x[k] && best[k] == best[k]);
      best[k] = better ? x[k] : best[k];
      source[k] = better ? here : source[k];
    }
  });
}

template <class T>
void max_pool_backward(const Window& w, const T* gradient, const std::int32_t* from, T* image) noexcept {
  const std::ptrdiff_t c = w.channels;
  for (std::ptrdiff_t i = 0; i < w.height * w.width * c; ++i) image[i] = T(0);
  for (std::ptrdiff_t out = 0; out < w.out_height * w.out_width; ++out) {
    for (std::ptrdiff_t k = 0; k < c; ++k) image[from[out * c + k] * c + k] += gradient[out * c + k];
  }
}

// The mean of each window's pixels that lie inside the image.
inline std::ptrdiff_t count_inside(const Window& w, std::ptrdiff_t out) {
  std::ptrdiff_t count = 0;
  for_window(w, out / w.out_width, out % w.out_width,
             [&](std::ptrdiff_t, std::ptrdiff_t pixel) { count += pixel >= 0; });
  return count;
}

template <class T>
void avg_pool(const Window& w, const T* image, T* y) noexcept {
  const std::ptrdiff_t c = w.channels, outputs = w.out_height * w.out_width;
  for (std::ptrdiff_t i = 0; i < outputs * c; ++i) y[i] = T(0);
  for_windows(w, [=](std::ptrdiff_t out, std::ptrdiff_t, std::ptrdiff_t pixel) {
    if (pixel < 0) return;
#pragma omp simd
    for (std::ptrdiff_t k = 0; k < c; ++k) y[out * c + k] = y[out * c + k] + image[pixel * c + k];
  });
  for (std::ptrdiff_t out = 0; out < outputs; ++out) {
    const T share = T(1) / static_cast<T>(count_inside(w, out));
#pragma omp simd
    for (std::ptrdiff_t k = 0; k < c; ++k) y[out * c + k] = y[out * c + k] * share;
  }
}

template <class T>
void avg_pool_backward(const Window& w, const T* gradient, T* image) noexcept {
  const std::ptrdiff_t c = w.channels;
  for (std::ptrdiff_t i = 0; i < w.height * w.width * c; ++i) image[i] = T(0);
  for (std::ptrdiff_t out = 0; out < w.out_height * w.out_width; ++out) {
    const T share = T(1) / static_cast<T>(count_inside(w, out));
    for_window(w, out / w.out_width, out % w.out_width, [=](std::ptrdiff_t, std::ptrdiff_t pixel) {
      if (pixel < 0) return;
#pragma omp simd
      for (std::ptrdiff_t k = 0; k < c; ++k) {
        image[pixel * c + k] = image[pixel * c + k] + gradient[out * c + k] * share;
      }
    });
  }
}

template <class T>
constexpr LayerKernels<T> kernels{activate<T>,         mask<T>,     dropout<T>,           im2col<T>,
                                  col2im<T>,           max_pool<T>, max_pool_backward<T>, avg_pool<T>,
                                  avg_pool_backward<T>};

}  // namespace

extern const LayerKernels<float> STEEPEST_NAME(layers_f32);
extern const LayerKernels<double> STEEPEST_NAME(layers_f64);
const LayerKernels<float> STEEPEST_NAME(layers_f32) = kernels<float>;
const LayerKernels<double> STEEPEST_NAME(layers_f64) = kernels<double>;

}  // namespace steepest
