// Losses with their gradient, and norms: checks the arrays, drops the GIL, sums over blocks.

#include <cmath>
#include <cstring>

#include "../dispatch.hpp"
#include "arrays.hpp"
#include "gil.hpp"
#include "module.hpp"
#include "norm.hpp"
#include "sums.hpp"

namespace steepest {
namespace {

// Measured: one element costs as much as so many bytes of an optimizer's traffic; a row of softmax has its own cost.
constexpr std::ptrdiff_t kErrorBytes = 24, kBinaryBytes = 96, kSoftmaxBytes = 48, kSoftmaxRowBytes = 1 << 10,
                         kDistillationBytes = 160;

// From so many bytes on, a gradient doesn't stay in a cache until it is used.
constexpr std::ptrdiff_t kBeyondCaches = 32 << 20;

// The arrays of one call, pinned while it runs without the GIL.
template <class F>
auto without_gil(std::ptrdiff_t bytes, const std::vector<const py::array*>& arrays, const F& f) {
  const parallel::DefaultFloatMode mode;
  if (!parallel::is_large(bytes)) return f();
  Pins pins;
  for (const py::array* a : arrays) pins.pin(*a);
  const WithoutGil release;
  return f();
}

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

// Sample weights: one for each of the leading axes' positions, or none.
struct Weights {
  std::optional<View> view;
  std::ptrdiff_t inner = 1;  // elements that share a weight

  template <class T>
  const T* data() const {
    return view ? view->as<const T>() : nullptr;
  }
};

template <class T>
bool is_sound(const View& w) {
  const T* x = w.as<const T>();
  bool sound = true;
  for (std::ptrdiff_t i = 0; i < w.size; ++i) sound = sound && x[i] >= 0 && std::isfinite(x[i]);
  return sound;
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

template <class T>
double sum_of(const T* x, std::ptrdiff_t n) {
  return sum_blocks((n + kSumBlock - 1) / kSumBlock, kSumBlock * 8, false, [&](std::ptrdiff_t b) noexcept {
    const std::ptrdiff_t begin = b * kSumBlock;
    return losses<T>().sum(x + begin, std::min(kSumBlock, n - begin));
  });
}

// What a sum is multiplied with: 1, or one over the number (or the weight) of what is summed; 0 where there is nothing.
double scale_for(bool mean, double total) { return !mean ? 1 : total > 0 ? 1 / total : 0; }

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

py::tuple call_elementwise(KernelOf<float> f32, KernelOf<double> f64, std::ptrdiff_t bytes, const char* x_name,
                           const py::object& prediction, const py::object& target, bool mean,
                           const py::object& sample_weight, const py::object& out, double delta) {
  const View x = view(prediction, x_name, Use::read);
  const View y = view(target, "target", Use::read);
  check_c_order(x, x_name);
  check_dtype(y, "target", x.is_double);
  check_shape(y, "target", shape_of(x.array));
  check_c_order(y, "target");
  const Weights w = weights_for(x, sample_weight, x.array.ndim());
  const View g = gradient_for(x, out);
  if (g.data != x.data) check_apart(g, "out", x, x_name);
  check_apart(g, "out", y, "target");
  if (w.view) check_apart(g, "out", *w.view, "sample_weight");
  const py::array none;
  const double loss = without_gil(x.size * bytes, {&x.array, &y.array, &g.array, w.view ? &w.view->array : &none}, [&] {
    return x.is_double ? elementwise<double>(losses<double>().*f64, bytes, x, y, w, g, mean, delta)
                       : elementwise<float>(losses<float>().*f32, bytes, x, y, w, g, mean, delta);
  });
  return py::make_tuple(loss, g.array);
}

template <class Int>
void read_labels(const py::array& labels, std::vector<std::int64_t>& result, std::int64_t classes,
                 const std::optional<std::int64_t>& ignored) {
  const auto* x = static_cast<const Int*>(labels.data());
  for (std::size_t i = 0; i < result.size(); ++i) {
    const Int label = *const_cast<const volatile Int*>(x + i);  // read once, whoever writes to it
    const bool is_ignored =
        ignored && static_cast<std::int64_t>(label) == *ignored && !(std::is_unsigned_v<Int> && *ignored < 0);
    const bool in_range = label >= 0 && static_cast<std::uint64_t>(label) < static_cast<std::uint64_t>(classes);
    if (!is_ignored && !in_range) {
      throw py::value_error("labels: expected 0 to " + std::to_string(classes - 1) + " for " + std::to_string(classes) +
                            " classes, got " + std::to_string(label) + " at position " + std::to_string(i));
    }
    result[i] = is_ignored ? -1 : static_cast<std::int64_t>(label);
  }
}

// Copies the labels and checks each, so that nobody can change one between the check and its use. Ignored: -1.
std::vector<std::int64_t> checked_labels(const py::array& labels, const std::vector<py::ssize_t>& shape,
                                         std::int64_t classes, const std::optional<std::int64_t>& ignored) {
  const std::string name = "labels";
  if (is_masked(labels)) {
    throw py::type_error(name +
                         ": expected a plain array, got a masked array, whose mask would be ignored; give what is "
                         "masked a label of its own, and pass it as ignore_index");
  }
  if (shape_of(labels) != shape) {
    throw py::value_error(name + ": expected shape " + describe(shape) + ", got " + describe(shape_of(labels)));
  }
  const auto dtype = labels.dtype();
  constexpr int plain = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const bool is_plain = (labels.flags() & plain) == plain && is_native(dtype.byteorder());
  const py::array own = is_plain ? labels
                                 : py::array(py::module_::import("numpy").attr("array")(
                                       labels, dtype.attr("newbyteorder")("="), py::arg("order") = "C"));
  std::vector<std::int64_t> result(static_cast<std::size_t>(own.size()));
  const bool is_signed = dtype.kind() == 'i';
  switch (dtype.itemsize()) {
    case 1:
      is_signed ? read_labels<std::int8_t>(own, result, classes, ignored)
                : read_labels<std::uint8_t>(own, result, classes, ignored);
      break;
    case 2:
      is_signed ? read_labels<std::int16_t>(own, result, classes, ignored)
                : read_labels<std::uint16_t>(own, result, classes, ignored);
      break;
    case 4:
      is_signed ? read_labels<std::int32_t>(own, result, classes, ignored)
                : read_labels<std::uint32_t>(own, result, classes, ignored);
      break;
    default:
      is_signed ? read_labels<std::int64_t>(own, result, classes, ignored)
                : read_labels<std::uint64_t>(own, result, classes, ignored);
  }
  return result;
}

std::ptrdiff_t rows_per_block(std::ptrdiff_t classes) {
  if (classes < kFewClasses) return std::min(kSumBlock / classes, kMaxRows) / kTile * kTile;
  return std::clamp<std::ptrdiff_t>(kRowBlock / classes, 1, kMaxRows);
}

// The sum of the weights of the rows that count, one after the other.
template <class T>
double total_weight(const std::vector<std::int64_t>& labels, const T* weight, std::ptrdiff_t rows) {
  double total = 0;
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    const bool counts = labels.empty() || labels[static_cast<std::size_t>(i)] >= 0;
    total += counts ? (weight != nullptr ? static_cast<double>(weight[i]) : 1) : 0;
  }
  return total;
}

// kernel(first row, rows) over the blocks of rows
template <class BlockOfRows>
double sum_rows(std::ptrdiff_t rows, std::ptrdiff_t classes, std::ptrdiff_t element_bytes, const BlockOfRows& kernel) {
  const std::ptrdiff_t per_block = rows_per_block(classes);
  const std::ptrdiff_t bytes = per_block * (classes * element_bytes + kSoftmaxRowBytes);
  return sum_blocks((rows + per_block - 1) / per_block, bytes, false, [&](std::ptrdiff_t b) noexcept {
    return kernel(b * per_block, std::min(per_block, rows - b * per_block));
  });
}

template <class T>
double softmax_cross_entropy(const View& x, const std::vector<std::int64_t>& labels, const std::optional<View>& q,
                             const Weights& w, const View& g, std::ptrdiff_t classes, double smoothing, bool divergence,
                             bool mean) {
  const std::ptrdiff_t rows = x.size / classes;
  const T* const weight = w.data<T>();
  const double scale = scale_for(mean, total_weight(labels, weight, rows));
  const double sum = sum_rows(rows, classes, kSoftmaxBytes, [&](std::ptrdiff_t row, std::ptrdiff_t count) noexcept {
    const std::ptrdiff_t begin = row * classes;
    return losses<T>().softmax_cross_entropy({x.as<const T>() + begin, g.as<T>() + begin, count, classes,
                                              q ? nullptr : labels.data() + row, q ? q->as<const T>() + begin : nullptr,
                                              weight != nullptr ? weight + row : nullptr, scale, smoothing,
                                              divergence});
  });
  return sum * scale / kTermScale<T>;
}

// Logits of shape (..., classes)
struct Logits {
  View view;
  std::vector<py::ssize_t> rows_shape;
  std::ptrdiff_t classes;
};

Logits logits_from(const py::object& logits) {
  const View x = view(logits, "logits", Use::read);
  check_c_order(x, "logits");
  auto rows_shape = shape_of(x.array);
  if (rows_shape.empty() || rows_shape.back() == 0) {
    throw py::value_error("logits: expected shape (..., classes), got " + describe(rows_shape));
  }
  const std::ptrdiff_t classes = rows_shape.back();
  rows_shape.pop_back();
  return {x, std::move(rows_shape), classes};
}

py::array array_of_labels(const py::object& labels, const char* what) {
  if (py::isinstance<py::array>(labels)) return py::reinterpret_borrow<py::array>(labels);
  throw py::type_error(std::string("labels: expected a numpy.ndarray of integers") + what + ", got " +
                       type_name(labels) + "; numpy.asarray(x) makes one");
}

// An array that stands beside the logits, of their dtype and shape
View beside(const py::object& array, const std::string& name, const View& x) {
  const View y = view(array, name, Use::read);
  check_dtype(y, name, x.is_double);
  check_shape(y, name, shape_of(x.array));
  check_c_order(y, name);
  return y;
}

Weights row_weights(const Logits& x, const py::object& sample_weight) {
  const Weights w = weights_for(x.view, sample_weight, x.view.array.ndim() - 1);
  if (w.view && shape_of(w.view->array) != x.rows_shape) check_shape(*w.view, "sample_weight", x.rows_shape);
  return w;
}

py::tuple call_softmax_cross_entropy(const py::object& logits, const py::object& labels, double label_smoothing,
                                     const std::optional<std::int64_t>& ignore_index, bool divergence, bool mean,
                                     const py::object& sample_weight, const py::object& out) {
  const Logits shaped = logits_from(logits);
  const View& x = shaped.view;
  const std::ptrdiff_t classes = shaped.classes;
  const py::array array = array_of_labels(labels, " or of probabilities");
  const char kind = array.dtype().kind();
  std::vector<std::int64_t> checked;
  std::optional<View> q;
  if (kind == 'i' || kind == 'u') {
    checked = checked_labels(array, shaped.rows_shape, classes, ignore_index);
  } else if (kind == 'f' && array.ndim() == x.array.ndim()) {
    q = beside(labels, "labels", x);
    if (ignore_index) throw py::value_error("ignore_index: expected None with probabilities, got a number");
  } else {
    throw py::type_error("labels: expected integers of shape " + describe(shaped.rows_shape) +
                         " or probabilities of shape " + describe(shape_of(x.array)) + ", got dtype " +
                         text(array.dtype()) + " of shape " + describe(shape_of(array)) +
                         "; convert class numbers with .astype(numpy.int64)");
  }
  const Weights w = row_weights(shaped, sample_weight);
  const View g = gradient_for(x, out);
  if (g.data != x.data) check_apart(g, "out", x, "logits");
  if (q) check_apart(g, "out", *q, "labels");
  if (w.view) check_apart(g, "out", *w.view, "sample_weight");
  const std::ptrdiff_t bytes = x.size * kSoftmaxBytes + x.size / classes * kSoftmaxRowBytes;
  const double loss = without_gil(bytes, {&x.array, &array, &g.array, w.view ? &w.view->array : &array}, [&] {
    return x.is_double ? softmax_cross_entropy<double>(x, checked, q, w, g, classes, label_smoothing, divergence, mean)
                       : softmax_cross_entropy<float>(x, checked, q, w, g, classes, label_smoothing, divergence, mean);
  });
  return py::make_tuple(loss, g.array);
}

template <class T>
double distillation(const View& x, const View& t, const std::vector<std::int64_t>& labels, const Weights& w,
                    const View& g, std::ptrdiff_t classes, double alpha, double temperature, bool mean) {
  const std::ptrdiff_t rows = x.size / classes;
  const T* const weight = w.data<T>();
  const double scale = scale_for(mean, total_weight(labels, weight, rows));
  const double sum =
      sum_rows(rows, classes, kDistillationBytes, [&](std::ptrdiff_t row, std::ptrdiff_t count) noexcept {
        const std::ptrdiff_t begin = row * classes;
        return losses<T>().distillation({x.as<const T>() + begin, t.as<const T>() + begin, g.as<T>() + begin, count,
                                         classes, labels.data() + row, weight != nullptr ? weight + row : nullptr,
                                         scale, alpha, temperature});
      });
  return sum * scale / kTermScale<T>;
}

py::tuple call_distillation(const py::object& logits, const py::object& teacher_logits, const py::object& labels,
                            double alpha, double temperature, bool mean, const py::object& sample_weight,
                            const py::object& out) {
  const Logits shaped = logits_from(logits);
  const View& x = shaped.view;
  const View t = beside(teacher_logits, "teacher_logits", x);
  const py::array array = array_of_labels(labels, "");
  if (array.dtype().kind() != 'i' && array.dtype().kind() != 'u') {
    throw py::type_error("labels: expected integers, got dtype " + text(array.dtype()) +
                         "; convert class numbers with .astype(numpy.int64)");
  }
  const std::vector<std::int64_t> checked = checked_labels(array, shaped.rows_shape, shaped.classes, std::nullopt);
  const Weights w = row_weights(shaped, sample_weight);
  const View g = gradient_for(x, out);
  check_apart(g, "out", x, "logits");
  check_apart(g, "out", t, "teacher_logits");
  if (w.view) check_apart(g, "out", *w.view, "sample_weight");
  const std::ptrdiff_t bytes = x.size * kDistillationBytes + x.size / shaped.classes * kSoftmaxRowBytes;
  const double loss = without_gil(bytes, {&x.array, &t.array, &g.array, w.view ? &w.view->array : &array}, [&] {
    return x.is_double ? distillation<double>(x, t, checked, w, g, shaped.classes, alpha, temperature, mean)
                       : distillation<float>(x, t, checked, w, g, shaped.classes, alpha, temperature, mean);
  });
  return py::make_tuple(loss, g.array);
}

double call_global_norm(const py::iterable& arrays) {
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

void register_elementwise(py::module_& m, const char* name, const char* x_name, KernelOf<float> f32,
                          KernelOf<double> f64, std::ptrdiff_t bytes) {
  m.def(
      name,
      [=](const py::object& x, const py::object& target, bool mean, const py::object& weight, const py::object& out,
          double delta) { return call_elementwise(f32, f64, bytes, x_name, x, target, mean, weight, out, delta); },
      py::arg(x_name), py::arg("target"), py::arg("mean"), py::arg("sample_weight"), py::arg("out"),
      py::arg("delta") = 0.0);
}

}  // namespace

void register_losses(py::module_& m) {
  using F = LossKernels<float>;
  using D = LossKernels<double>;
  register_elementwise(m, "mse", "prediction", &F::mse, &D::mse, kErrorBytes);
  register_elementwise(m, "mae", "prediction", &F::mae, &D::mae, kErrorBytes);
  register_elementwise(m, "huber", "prediction", &F::huber, &D::huber, kErrorBytes);
  register_elementwise(m, "binary_cross_entropy", "logits", &F::binary_cross_entropy, &D::binary_cross_entropy,
                       kBinaryBytes);
  m.def("softmax_cross_entropy", call_softmax_cross_entropy, py::arg("logits"), py::arg("labels"),
        py::arg("label_smoothing"), py::arg("ignore_index"), py::arg("divergence"), py::arg("mean"),
        py::arg("sample_weight"), py::arg("out"));
  m.def("distillation", call_distillation, py::arg("logits"), py::arg("teacher_logits"), py::arg("labels"),
        py::arg("alpha"), py::arg("temperature"), py::arg("mean"), py::arg("sample_weight"), py::arg("out"));
  m.def("global_norm", call_global_norm, py::arg("arrays"),
        "The 2-norm of all elements of float32 and float64 arrays together, as a float.\n\n"
        "The same bits with any ISA and any number of threads; neither overflows nor underflows unless the norm "
        "itself does.");
  register_function(m, "_exp", &F::exp, &D::exp);
  register_function(m, "_log", &F::log, &D::log);
  register_function(m, "_log1p", &F::log1p, &D::log1p);
}

}  // namespace steepest
