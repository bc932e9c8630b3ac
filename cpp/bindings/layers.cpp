// What the layers of steepest.nn call: checks the arrays, drops the GIL, runs row by row or image by image.
#include "../dispatch.hpp"
#include "module.hpp"
#include "windows.hpp"

namespace steepest {
namespace {

template <class T>
void activate(Activation f, const View& x, const View* bias, double alpha, const View& y, std::ptrdiff_t columns) {
  const std::ptrdiff_t rows = columns == 0 ? 0 : x.size / columns;
  const auto kernel = layers<T>().activate;
  const T* const b = bias != nullptr ? bias->as<const T>() : nullptr;
  parallel::for_ranges(rows, columns * 8, [=, &x, &y](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    kernel(f, x.as<const T>() + begin * columns, b, static_cast<T>(alpha), y.as<T>() + begin * columns, end - begin,
           columns);
  });
}

}  // namespace

Activation activation(const std::string& name) {
  if (name == "identity") return Activation::identity;
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu") return Activation::leaky_relu;
  if (name == "tanh") return Activation::tanh;
  if (name == "sigmoid") return Activation::sigmoid;
  throw py::value_error("activation: expected identity, relu, leaky_relu, tanh or sigmoid, got " + name);
}

namespace {

void call_activate(const std::string& name, const py::object& input, const py::object& bias, double alpha,
                   const py::object& out) {
  const Activation f = activation(name);
  const View x = c_view(input, "x", Use::read);
  const View y = like(x, out, "out", Use::write);
  if (y.data != x.data) check_apart(y, "out", x, "x");
  std::ptrdiff_t columns = x.array.ndim() == 0 ? 1 : x.array.shape(x.array.ndim() - 1);
  std::optional<View> b;
  if (!bias.is_none()) {
    b = like(x, bias, "bias", Use::read, {columns});
    check_apart(y, "out", *b, "bias");
  }
  const Released released(x.size * 8, {x.array, y.array});
  const View* const given = b ? &*b : nullptr;
  x.is_double ? activate<double>(f, x, given, alpha, y, columns) : activate<float>(f, x, given, alpha, y, columns);
}

template <class T>
void mask(Activation f, const View& g, const View& y, double alpha) {
  const auto kernel = layers<T>().mask;
  run(g.size, 3 * sizeof(T), {g.array, y.array}, [=, &g, &y](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    kernel(f, g.as<T>() + begin, y.as<const T>() + begin, static_cast<T>(alpha), end - begin);
  });
}

void call_mask(const std::string& name, const py::object& gradient, const py::object& output, double alpha) {
  const Activation f = activation(name);
  const View g = c_view(gradient, "grad", Use::write);
  const View y = like(g, output, "y", Use::read);
  check_apart(g, "grad", y, "y");
  g.is_double ? mask<double>(f, g, y, alpha) : mask<float>(f, g, y, alpha);
}

template <class T>
void dropout(const View& x, const View& uniform, double rate, const View& y) {
  const auto kernel = layers<T>().dropout;
  const T keep = static_cast<T>(1 - rate), scale = static_cast<T>(1 / (1 - rate));
  run(x.size, 3 * sizeof(T), {x.array, uniform.array, y.array},
      [=, &x, &uniform, &y](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        kernel(x.as<const T>() + begin, uniform.as<const T>() + begin, keep, scale, y.as<T>() + begin, end - begin);
      });
}

void call_dropout(const py::object& input, const py::object& uniform, double rate, const py::object& out) {
  const View x = c_view(input, "x", Use::read);
  const View u = like(x, uniform, "uniform", Use::read);
  const View y = like(x, out, "out", Use::write);
  if (y.data != x.data) check_apart(y, "out", x, "x");
  check_apart(y, "out", u, "uniform");
  x.is_double ? dropout<double>(x, u, rate, y) : dropout<float>(x, u, rate, y);
}

// Positions along one axis of `size`, padded by `before` at its start, where every window holds a pixel.
void check_axis(std::ptrdiff_t size, std::ptrdiff_t window, std::ptrdiff_t stride, std::ptrdiff_t before,
                std::ptrdiff_t out) {
  const bool sound = size > 0 && window > 0 && stride > 0 && before >= 0 && before < window && out > 0 &&
                     out <= (size - 1 + before) / stride + 1;
  if (!sound) throw py::value_error("window: expected one that holds a pixel wherever it stands, got another");
}

}  // namespace

Sliding sliding(const std::vector<py::ssize_t>& shape, const Pair& window, const Pair& stride, const Pair& pad,
                const Pair& out) {
  if (shape.size() != 4) {
    throw py::value_error("images: expected shape (batch, height, width, channels), got " + describe(shape));
  }
  // A pixel's number is an int32; and no product of what is left overflows.
  constexpr double most = std::numeric_limits<std::int32_t>::max();
  const auto product = [](const Pair& p) { return static_cast<double>(p.first) * static_cast<double>(p.second); };
  const double patch = product(window) * static_cast<double>(std::max<py::ssize_t>(shape[3], 1));
  if (product({shape[1], shape[2]}) > most || patch > most || product(out) > most) {
    throw py::value_error("images: expected fewer than 2^31 pixels, and values of a window, got " + describe(shape));
  }
  check_axis(shape[1], window.first, stride.first, pad.first, out.first);
  check_axis(shape[2], window.second, stride.second, pad.second, out.second);
  return {{shape[1], shape[2], shape[3], window.first, window.second, stride.first, stride.second, pad.first,
           pad.second, out.first, out.second},
          shape[0]};
}

namespace {

// Calls kernel(window, from + image i, to + image i) for every image of the batch.
template <class T, class Kernel>
void each_image(Kernel kernel, const Sliding& s, const View& from, std::ptrdiff_t from_size, const View& to,
                std::ptrdiff_t to_size) {
  const std::ptrdiff_t bytes = (from_size + to_size) * static_cast<std::ptrdiff_t>(sizeof(T));
  run(s.batch, bytes, {from.array, to.array}, [=, &s, &from, &to](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    for (std::ptrdiff_t i = begin; i < end; ++i) {
      kernel(s.window, from.as<const T>() + i * from_size, to.as<T>() + i * to_size);
    }
  });
}

template <class T>
using ImageKernel = void (*LayerKernels<T>::*)(const Window&, const T*, T*) noexcept;

// One of the kernels that turn an array of images into another, or back: `patches` tells whether the other one holds
// im2col's patches or pooled images.
void register_image_kernel(py::module_& m, const char* name, bool forward, bool patches, ImageKernel<float> f32,
                           ImageKernel<double> f64) {
  m.def(
      name,
      [=](const py::object& image_array, const Pair& window, const Pair& stride, const Pair& pad, const Pair& out,
          const py::object& other_array) {
        const View images = c_view(image_array, "images", forward ? Use::read : Use::write);
        const Sliding s = sliding(shape_of(images.array), window, stride, pad, out);
        const View other = like(images, other_array, patches ? "patches" : "pooled", forward ? Use::write : Use::read,
                                patches ? s.patches_shape() : s.pooled_shape());
        check_apart(images, "images", other, patches ? "patches" : "pooled");
        const std::ptrdiff_t other_size = s.outputs() * s.window.channels * (patches ? s.places() : 1);
        const View &from = forward ? images : other, &to = forward ? other : images;
        const std::ptrdiff_t from_size = forward ? s.image() : other_size, to_size = forward ? other_size : s.image();
        if (images.is_double) {
          each_image<double>(layers<double>().*f64, s, from, from_size, to, to_size);
        } else {
          each_image<float>(layers<float>().*f32, s, from, from_size, to, to_size);
        }
      },
      py::arg("images"), py::arg("window"), py::arg("stride"), py::arg("pad"), py::arg("out"),
      py::arg(patches ? "patches" : "pooled"));
}

using Sources = py::array_t<std::int32_t, py::array::c_style>;

std::int32_t* sources(const Sources& array, const Sliding& s, const View& images, const View& pooled, bool forward) {
  if (shape_of(array) != s.pooled_shape()) {
    throw py::value_error("sources: expected shape " + describe(s.pooled_shape()) + ", got " +
                          describe(shape_of(array)));
  }
  const auto from = const_cast<std::int32_t*>(array.data());
  if (reinterpret_cast<std::uintptr_t>(from) % alignof(std::int32_t) != 0 || (forward && !array.writeable())) {
    throw py::value_error("sources: expected an aligned, writeable array, got another");
  }
  const View as_view = view_of_own(array);
  check_apart(as_view, "sources", images, "images");
  check_apart(as_view, "sources", pooled, "pooled");
  const auto pixels = static_cast<std::uint32_t>(s.window.height * s.window.width);
  bool inside = true;
  for (std::ptrdiff_t i = 0; !forward && i < array.size(); ++i) inside &= static_cast<std::uint32_t>(from[i]) < pixels;
  if (!inside) throw py::value_error("sources: expected pixels of the image, got others");
  return from;
}

template <class T>
void max_pool(const Sliding& s, const View& images, const View& pooled, std::int32_t* from) {
  const std::ptrdiff_t in = s.image(), out = s.outputs() * s.window.channels;
  const auto kernel = layers<T>().max_pool;
  run(s.batch, (in + 2 * out) * 4, {images.array, pooled.array},
      [=, &s, &images, &pooled](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          kernel(s.window, images.as<const T>() + i * in, pooled.as<T>() + i * out, from + i * out);
        }
      });
}

template <class T>
void max_pool_backward(const Sliding& s, const View& images, const View& pooled, const std::int32_t* from) {
  const std::ptrdiff_t in = s.image(), out = s.outputs() * s.window.channels;
  const auto kernel = layers<T>().max_pool_backward;
  run(s.batch, (in + 2 * out) * 4, {images.array, pooled.array},
      [=, &s, &images, &pooled](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          kernel(s.window, pooled.as<const T>() + i * out, from + i * out, images.as<T>() + i * in);
        }
      });
}

void call_max_pool(const py::object& image_array, const Pair& window, const Pair& stride, const Pair& pad,
                   const Pair& out, const py::object& pooled_array, const Sources& source_array, bool forward) {
  const View images = c_view(image_array, "images", forward ? Use::read : Use::write);
  const Sliding s = sliding(shape_of(images.array), window, stride, pad, out);
  const View pooled = like(images, pooled_array, "pooled", forward ? Use::write : Use::read, s.pooled_shape());
  check_apart(images, "images", pooled, "pooled");
  std::int32_t* const from = sources(source_array, s, images, pooled, forward);
  if (forward) {
    images.is_double ? max_pool<double>(s, images, pooled, from) : max_pool<float>(s, images, pooled, from);
    return;
  }
  images.is_double ? max_pool_backward<double>(s, images, pooled, from)
                   : max_pool_backward<float>(s, images, pooled, from);
}

}  // namespace

void register_layers(py::module_& m) {
  using F = LayerKernels<float>;
  using D = LayerKernels<double>;
  m.def("activate", call_activate, py::arg("activation"), py::arg("x"), py::arg("bias"), py::arg("alpha"),
        py::arg("out"));
  m.def("mask", call_mask, py::arg("activation"), py::arg("grad"), py::arg("y"), py::arg("alpha"));
  m.def("dropout", call_dropout, py::arg("x"), py::arg("uniform"), py::arg("rate"), py::arg("out"));
  register_image_kernel(m, "im2col", true, true, &F::im2col, &D::im2col);
  register_image_kernel(m, "col2im", false, true, &F::col2im, &D::col2im);
  register_image_kernel(m, "avg_pool", true, false, &F::avg_pool, &D::avg_pool);
  register_image_kernel(m, "avg_pool_backward", false, false, &F::avg_pool_backward, &D::avg_pool_backward);
  m.def("max_pool", call_max_pool, py::arg("images"), py::arg("window"), py::arg("stride"), py::arg("pad"),
        py::arg("out"), py::arg("pooled"), py::arg("sources").noconvert(), py::arg("forward"));
}

}  // namespace steepest
