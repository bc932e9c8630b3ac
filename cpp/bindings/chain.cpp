// Dense layers in a row, and all that a training step needs of them before the optimizer, in one call.
#include "chain.hpp"

#include "losses.hpp"
#include "module.hpp"
#include "rows.hpp"

namespace steepest {
namespace {

// Of some rows of x and their targets: the loss, and the gradients of the chain's parameters.
class Backpropagation {
 public:
  Backpropagation(const py::object& chain, const py::array& x, const py::array& targets, const std::string& loss,
                  std::ptrdiff_t most_rows)
      : owner_(chain),
        chain_(chain.cast<Chain&>()),
        x_(x),
        targets_(targets),
        loss_(loss_named(loss)),
        most_rows_(most_rows) {}

  // (loss, outputs, targets), in arrays that the next call reuses; or None for more than `most_rows` that are not
  // mostly zero: NumPy's products are better then. `rows` is a slice, or int64. A loss that is not finite leaves the
  // gradients as they are.
  py::object operator()(const py::object& rows) {
    const py::array x = taken(x_, rows, x_rows_), targets = taken(targets_, rows, target_rows_);
    if (x.ndim() != 2 || (x.shape(0) > most_rows_ && !is_mostly_zero(c_view(x, "x", Use::read)))) return py::none();
    const py::array outputs = chain_.forward(x);
    const py::array gradient = gradient_.of(shape_of(outputs), outputs.dtype());
    const double loss = loss_(outputs, targets, gradient);
    if (std::isfinite(loss)) chain_.backward(gradient);
    return py::make_tuple(loss, outputs, targets);
  }

 private:
  static py::array taken(const py::array& array, const py::object& rows, Kept& kept) {
    if (!py::isinstance<Rows>(rows)) return array[rows];
    const auto numbers = py::reinterpret_borrow<Rows>(rows);
    std::vector<py::ssize_t> shape = shape_of(array);
    if (shape.empty()) throw py::value_error("rows: expected an array that has some, got shape ()");
    shape[0] = numbers.size();
    const py::array out = kept.of(shape, array.dtype());
    take_rows(array, numbers, out);
    return out;
  }

  py::object owner_;
  Chain& chain_;
  py::array x_, targets_;
  Loss loss_;
  std::ptrdiff_t most_rows_;
  Kept x_rows_, target_rows_, gradient_;
};

}  // namespace

void register_chain(py::module_& m) {
  py::class_<Chain>(m, "Chain")
      .def(py::init<const py::list&, std::size_t>(), py::arg("layers"), py::arg("first"))
      .def("forward", &Chain::forward, py::arg("x"))
      .def("forward_sparse", &Chain::forward_sparse, py::arg("starts"), py::arg("columns"), py::arg("values"))
      .def("backward", &Chain::backward, py::arg("grad"));
  py::class_<Backpropagation>(m, "Backpropagation")
      .def(py::init<const py::object&, const py::array&, const py::array&, const std::string&, std::ptrdiff_t>(),
           py::arg("chain"), py::arg("x"), py::arg("targets"), py::arg("loss"), py::arg("most_rows"))
      .def("__call__", &Backpropagation::operator(), py::arg("rows"));
}

}  // namespace steepest
