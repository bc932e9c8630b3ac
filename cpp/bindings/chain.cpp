// Dense layers in a row, and all that a training step needs of them before the optimizer, in one call.
#include "chain.hpp"

#include <chrono>

#include "losses.hpp"
#include "module.hpp"
#include "norm.hpp"
#include "optimizer.hpp"
#include "rows.hpp"

namespace steepest {
namespace {

// Of some rows of x and their targets: the loss, and the gradients of the chain's parameters.
class Backpropagation {
 public:
  Backpropagation(const py::object& chain, const py::array& x, const py::array& targets, const std::string& loss,
                  std::ptrdiff_t dense_rows, std::ptrdiff_t sparse_rows)
      : owner_(chain),
        chain_(chain.cast<Chain&>()),
        x_(x),
        targets_(targets),
        are_labels_(targets.ndim() == 1 && (targets.dtype().kind() == 'i' || targets.dtype().kind() == 'u')),
        loss_(loss_named(loss)),
        dense_rows_(dense_rows),
        sparse_rows_(sparse_rows) {
    if (x.ndim() == 0 || targets.ndim() == 0) throw py::value_error("x, targets: expected rows, got shape ()");
  }

  // (loss, outputs, targets), and the gradients are filled unless the loss is not finite; or (None, rows of x,
  // targets) for more than `dense_rows`, or `sparse_rows` if they are mostly zero: NumPy's products are better then.
  // `rows` is a slice, or int64, for which the arrays are reused. Numbers of another dtype are converted, but not
  // labels: one axis of integers.
  py::object operator()(const py::object& rows) {
    const Batch batch = run(rows);
    return py::make_tuple(batch.loss, batch.outputs, batch.targets);
  }

  // Trains on batches of `size` of the rows begin..end, as numbered in `order` (or None: as they stand), for about
  // a millisecond; other threads and signals have their turn between two calls. Returns where the next batch begins,
  // and `total` plus each batch's loss times its rows. A batch's loss is `scale` times the loss function's plus
  // `penalty` times the square of the norm of `penalised` (if it is not None), divided by the rows. Ends before a batch
  // that cannot be done so, or whose loss is not finite. `observe`, if it is not None, is called with outputs and
  // targets.
  py::tuple train(const py::object& order, std::ptrdiff_t begin, std::ptrdiff_t end, std::ptrdiff_t size,
                  Optimizer& optimizer, const py::object& gradients, const py::object& grad_scale, double total,
                  const py::object& observe, double scale, double penalty, const py::object& penalised) {
    constexpr std::chrono::milliseconds most{1};
    const auto numbers = order.is_none() ? std::nullopt : std::optional<Rows>(order.cast<Rows>());
    if (numbers && numbers->ndim() != 1) {
      throw py::value_error("order: expected one axis, got shape " + describe(shape_of(*numbers)));
    }
    if (begin < 0 || end > (numbers ? numbers->size() : x_.shape(0)) || size < 1) {
      throw py::value_error("begin, end, size: expected rows that there are, and at least one at a time, got others");
    }
    const auto start = std::chrono::steady_clock::now();
    do {
      const std::ptrdiff_t n = std::min(size, end - begin);
      if (n <= 0 || n > sparse_rows_) break;
      const Batch batch = run(numbers ? static_cast<py::object>(Rows({n}, numbers->data() + begin, *numbers))
                                      : py::slice(begin, begin + n, 1));
      if (!batch.loss || !std::isfinite(*batch.loss)) break;
      if (!observe.is_none()) observe(batch.outputs, batch.targets);
      double loss = *batch.loss * scale;
      if (!penalised.is_none()) {
        const View w = view(penalised, "penalised", Use::read);
        const double norm = without_gil(w.size * w.itemsize, {&w.array}, [&] { return global_norm({span(w)}); });
        loss += penalty * norm * norm / static_cast<double>(n);
      }
      optimizer.step(gradients, grad_scale);
      total += loss * static_cast<double>(n);
      begin += n;
    } while (std::chrono::steady_clock::now() - start < most);
    return py::make_tuple(begin, total);
  }

 private:
  struct Batch {
    std::optional<double> loss;
    py::array outputs, targets;  // or rows of x and of the targets
  };

  Batch run(const py::object& rows) {
    Pins pins;
    pins.pin(x_);
    pins.pin(targets_);
    py::array x = taken(x_, rows, x_rows_), targets = taken(targets_, rows, target_rows_);
    const std::ptrdiff_t n = x.shape(0);
    if (n <= sparse_rows_) x = converted(x, x_converted_);
    if (n > sparse_rows_ || (n > dense_rows_ && !is_mostly_zero(matrix(x, "x", Use::read)))) {
      return {std::nullopt, x, targets};
    }
    const py::array outputs = chain_.forward(x);
    if (!are_labels_) targets = converted(targets, targets_converted_);
    const py::array gradient = gradient_.of(shape_of(outputs), outputs.dtype());
    const double loss = loss_(outputs, targets, gradient);
    if (std::isfinite(loss)) chain_.backward(gradient);
    return {loss, outputs, targets};
  }

  static py::array taken(const py::array& array, const py::object& rows, Kept& kept) {
    if (py::isinstance<py::slice>(rows)) return array[rows];
    if (!py::isinstance<Rows>(rows)) {
      throw py::type_error("rows: expected a slice or a contiguous array of int64, got " + type_name(rows));
    }
    const auto numbers = py::reinterpret_borrow<Rows>(rows);
    std::vector<py::ssize_t> shape = shape_of(array);
    if (shape.empty()) throw py::value_error("rows: expected an array that has some, got shape ()");
    shape[0] = numbers.size();
    const py::array out = kept.of(shape, array.dtype());
    take_rows(array, numbers, out);
    return out;
  }

  // In the chain's dtype
  py::array converted(const py::array& array, Kept& kept) const {
    if (array.dtype().equal(chain_.dtype())) return array;
    const py::array out = kept.of(shape_of(array), chain_.dtype());
    copyto_(out, array, "same_kind");
    return out;
  }

  py::object owner_;
  Chain& chain_;
  py::array x_, targets_;
  bool are_labels_;
  Loss loss_;
  std::ptrdiff_t dense_rows_, sparse_rows_;
  py::object copyto_ = py::module_::import("numpy").attr("copyto");
  Kept x_rows_, target_rows_, x_converted_, targets_converted_, gradient_;
};

}  // namespace

void register_chain(py::module_& m) {
  py::class_<Chain>(m, "Chain")
      .def(py::init<const py::list&, std::size_t>(), py::arg("layers"), py::arg("first"))
      .def("forward", &Chain::forward, py::arg("x"))
      .def("forward_sparse", &Chain::forward_sparse, py::arg("starts"), py::arg("columns"), py::arg("values"))
      .def("backward", &Chain::backward, py::arg("grad"));
  py::class_<Backpropagation>(m, "Backpropagation")
      .def(py::init<const py::object&, const py::array&, const py::array&, const std::string&, std::ptrdiff_t,
                    std::ptrdiff_t>(),
           py::arg("chain"), py::arg("x"), py::arg("targets"), py::arg("loss"), py::arg("dense_rows"),
           py::arg("sparse_rows"))
      .def("__call__", &Backpropagation::operator(), py::arg("rows"))
      .def("train", &Backpropagation::train, py::arg("order"), py::arg("begin"), py::arg("end"), py::arg("size"),
           py::arg("optimizer"), py::arg("gradients"), py::arg("grad_scale"), py::arg("total"),
           py::arg("observe") = py::none(), py::arg("scale") = 1.0, py::arg("penalty") = 0.0,
           py::arg("penalised") = py::none());
}

}  // namespace steepest
