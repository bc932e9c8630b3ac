// Losses of rows of logits with their gradient: softmax cross-entropy, which is also the divergence, and distillation.
#include "losses.hpp"
#include "module.hpp"

namespace steepest {
namespace {

// Measured: one element costs as much as so many bytes of an optimizer's traffic, and so does a row.
constexpr std::ptrdiff_t kSoftmaxBytes = 48, kSoftmaxRowBytes = 1 << 10, kDistillationBytes = 160;

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

std::pair<double, py::array> call_softmax_cross_entropy(const py::object& logits, const py::object& labels,
                                                        double label_smoothing,
                                                        const std::optional<std::int64_t>& ignore_index,
                                                        bool divergence, bool mean, const py::object& sample_weight,
                                                        const py::object& out) {
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
  return {loss, g.array};
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

}  // namespace

double mean_softmax_cross_entropy(const py::array& logits, const py::array& labels, const py::array& out) {
  return call_softmax_cross_entropy(logits, labels, 0.0, std::nullopt, false, true, py::none(), out).first;
}

void register_softmax(py::module_& m) {
  m.def("softmax_cross_entropy", call_softmax_cross_entropy, py::arg("logits"), py::arg("labels"),
        py::arg("label_smoothing"), py::arg("ignore_index"), py::arg("divergence"), py::arg("mean"),
        py::arg("sample_weight"), py::arg("out"));
  m.def("distillation", call_distillation, py::arg("logits"), py::arg("teacher_logits"), py::arg("labels"),
        py::arg("alpha"), py::arg("temperature"), py::arg("mean"), py::arg("sample_weight"), py::arg("out"));
}

}  // namespace steepest
