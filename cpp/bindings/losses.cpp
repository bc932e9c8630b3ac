// Losses of elements with their gradient, and norms: checks the arrays, drops the GIL, sums over blocks.

#include "losses.hpp"

#include "module.hpp"
#include "norm.hpp"

namespace steepest {
namespace {

// Measured: one element costs as much as so many bytes of an optimizer's traffic.
constexpr std::ptrdiff_t kErrorBytes = 24, kBinaryBytes = 96;

// From so many bytes on, a gradient doesn't stay in a cache until it is used.
constexpr std::ptrdiff_t kBeyondCaches = 32 << 20;

template <class T>
bool is_sound(const View& w) {
  const T* x = w.as<const T>();
  bool sound = true;
  for (std::ptrdiff_t i = 0; i < w.size; ++i) sound = sound && x[i] >= 0 && std::isfinite(x[i]);
  return sound;
}

template <class T>
double sum_of(const T* x, std::ptrdiff_t n) {
  return sum_blocks((n + kSumBlock - 1) / kSumBlock, kSumBlock * 8, false, [&](std::ptrdiff_t b) noexcept {
    const std::ptrdiff_t begin = b * kSumBlock;
    return losses<T>().sum(x + begin, std::min(kSumBlock, n - begin));
  });
}

template <class T>
double elementwise(typename LossKernels<T>::Elementwise kernel, std::ptrdiff_t bytes, const View& x, const View& y,
                   const Weights& w, const View& g, bool mean, double delta) {
  const T* const weight = w.data<T>();
  const double total =
      weight != nullptr ? sum_of(weight, w.view->size) * static_cast<double>(w.inner) : static_cast<double>(x.size);
  const double scale = scale_for(mean, total);
  const std::ptrdiff_t blocks = (x.size + kSumBlock - 1) / kSumBlock;
  const bool past_caches = g.data != x.data && x.size * static_cast<std::ptrdiff_t>(sizeof(T)) >= kBeyondCaches &&
                           reinterpret_cast<std::uintptr_t>(g.data) % 16 == 0;
  const double sum = sum_blocks(blocks, kSumBlock * bytes, past_caches, [&](std::ptrdiff_t b) noexcept {
    const std::ptrdiff_t begin = b * kSumBlock, n = std::min(kSumBlock, x.size - begin);
    T spread[kSumBlock];
    const T* block_weight = weight == nullptr ? nullptr : weight + begin;
    if (weight != nullptr && w.inner > 1) {
      for (std::ptrdiff_t i = 0; i < n; ++i) spread[i] = weight[(begin + i) / w.inner];
      block_weight = spread;
    }
    const Output<T> gradient{g.as<T>() + begin, past_caches};
    return kernel(x.as<const T>() + begin, y.as<const T>() + begin, block_weight, gradient, scale, delta, n);
  });
  return sum * scale / kTermScale<T>;
}

template <class T>
using KernelOf = typename LossKernels<T>::Elementwise LossKernels<T>::*;

// A loss of elements by its name, and what it calls its first argument.
struct Elementwise {
  const char *name, *prediction;
  KernelOf<float> f32;
  KernelOf<double> f64;
  std::ptrdiff_t bytes;
};

constexpr Elementwise kElementwise[] = {
    {"mse", "prediction", &LossKernels<float>::mse, &LossKernels<double>::mse, kErrorBytes},
    {"mae", "prediction", &LossKernels<float>::mae, &LossKernels<double>::mae, kErrorBytes},
    {"huber", "prediction", &LossKernels<float>::huber, &LossKernels<double>::huber, kErrorBytes},
    {"binary_cross_entropy", "logits", &LossKernels<float>::binary_cross_entropy,
     &LossKernels<double>::binary_cross_entropy, kBinaryBytes}};

std::pair<double, py::array> call_elementwise(const Elementwise& loss, const py::object& prediction,
                                              const py::object& target, bool mean, const py::object& sample_weight,
                                              const py::object& out, double delta) {
  const View x = view(prediction, loss.prediction, Use::read);
  const View y = view(target, "target", Use::read);
  check_c_order(x, loss.prediction);
  check_dtype(y, "target", x.is_double);
  check_shape(y, "target", shape_of(x.array));
  check_c_order(y, "target");
  const Weights w = weights_for(x, sample_weight, x.array.ndim());
  const View g = gradient_for(x, out);
  if (g.data != x.data) check_apart(g, "out", x, loss.prediction);
  check_apart(g, "out", y, "target");
  if (w.view) check_apart(g, "out", *w.view, "sample_weight");
  const py::array none;
  const std::vector<const py::array*> arrays = {&x.array, &y.array, &g.array, w.view ? &w.view->array : &none};
  const double value = without_gil(x.size * loss.bytes, arrays, [&] {
    return x.is_double ? elementwise<double>(losses<double>().*loss.f64, loss.bytes, x, y, w, g, mean, delta)
                       : elementwise<float>(losses<float>().*loss.f32, loss.bytes, x, y, w, g, mean, delta);
  });
  return {value, g.array};
}

double call_global_norm(const py::object& arrays) {
  if (!py::isinstance<py::iterable>(arrays)) {
    throw py::type_error("arrays: expected a sequence of arrays, got " + type_name(arrays));
  }
  std::vector<View> views;
  std::vector<Span> spans;
  std::vector<const py::array*> held;
  std::ptrdiff_t bytes = 0;
  for (const auto array : py::list(arrays)) {
    views.push_back(view(array, "arrays[" + std::to_string(views.size()) + "]", Use::read, Also::bfloat16));
  }
  for (const View& v : views) {
    spans.push_back(span(v));
    held.push_back(&v.array);
    bytes += v.size * v.itemsize;
  }
  return without_gil(bytes, held, [&] { return global_norm(spans); });
}

template <class T>
using Function = void (*LossKernels<T>::*)(const T*, T*, std::ptrdiff_t) noexcept;

template <class T>
py::array map(Function<T> f, const View& x) {
  py::array_t<T> y(shape_of(x.array));
  (losses<T>().*f)(x.as<const T>(), y.mutable_data(), x.size);
  return y;
}

void register_function(py::module_& m, const char* name, Function<float> f32, Function<double> f64) {
  m.def(
      name,
      [=](const py::object& array) {
        const parallel::DefaultFloatMode mode;
        const View x = view(array, "x", Use::read);
        check_c_order(x, "x");
        return x.is_double ? map<double>(f64, x) : map<float>(f32, x);
      },
      py::arg("x"));
}

}  // namespace

View gradient_for(const View& input, const py::object& out) {
  if (out.is_none()) {
    const auto dtype = input.array.dtype();
    return view(py::array(dtype, shape_of(input.array)), "out", Use::write);
  }
  const View g = view(out, "out", Use::write);
  check_dtype(g, "out", input.is_double);
  check_shape(g, "out", shape_of(input.array));
  check_c_order(g, "out");
  return g;
}

Weights weights_for(const View& input, const py::object& sample_weight, py::ssize_t max_axes) {
  if (sample_weight.is_none()) return {};
  const std::string name = "sample_weight";
  const View w = view(sample_weight, name, Use::read);
  check_dtype(w, name, input.is_double);
  check_c_order(w, name);
  auto shape = shape_of(input.array);
  const auto axes = std::min<py::ssize_t>(w.array.ndim(), max_axes);
  shape.resize(static_cast<std::size_t>(axes));
  check_shape(w, name, shape);
  if (!(input.is_double ? is_sound<double>(w) : is_sound<float>(w))) {
    throw py::value_error(name + ": expected finite weights >= 0, got others");
  }
  return {w, w.size == 0 ? 1 : input.size / w.size};
}

Loss loss_named(const std::string& name) {
  if (name == "softmax_cross_entropy") return mean_softmax_cross_entropy;
  for (const Elementwise& loss : kElementwise) {
    if (name != loss.name) continue;
    return [&loss](const py::array& outputs, const py::array& targets, const py::array& out) {
      return call_elementwise(loss, outputs, targets, true, py::none(), out, 1.0).first;
    };
  }
  throw py::value_error("loss: expected the name of one, got '" + name + "'");
}

void register_losses(py::module_& m) {
  using F = LossKernels<float>;
  using D = LossKernels<double>;
  for (const Elementwise& loss : kElementwise) {
    m.def(
        loss.name,
        [&loss](const py::object& x, const py::object& target, bool mean, const py::object& weight,
                const py::object& out,
                double delta) { return call_elementwise(loss, x, target, mean, weight, out, delta); },
        py::arg(loss.prediction), py::arg("target"), py::arg("mean"), py::arg("sample_weight"), py::arg("out"),
        py::arg("delta") = 0.0);
  }
  m.def("global_norm", call_global_norm, py::arg("arrays"),
        "The 2-norm of all elements of float32 and float64 arrays together, as a float.\n\n"
        "The same bits with any ISA and any number of threads; neither overflows nor underflows unless the norm "
        "itself does.");
  register_function(m, "_exp", &F::exp, &D::exp);
  register_function(m, "_log", &F::log, &D::log);
  register_function(m, "_log1p", &F::log1p, &D::log1p);
}

}  // namespace steepest
