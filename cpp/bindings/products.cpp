// Small matrix products: checks the arrays, drops the GIL, shares the output among threads.
#include "products.hpp"

#include "module.hpp"

namespace steepest {
namespace {

// How far it is from one row to the next, and from one column to the next, in elements.
struct Strides {
  std::ptrdiff_t row, column;

  explicit Strides(const View& v)
      : row((v.layout & c_order) != 0 ? v.array.shape(1) : 1),
        column((v.layout & c_order) != 0 ? 1 : v.array.shape(0)) {}
};

template <class T>
Product<T> product_of(const View& a, const View& b, const View& out) {
  const Strides s(a), t(b);
  return {a.as<const T>(), s.row,       s.column,           b.as<const T>(),  t.row,
          t.column,        out.as<T>(), out.array.shape(1), a.array.shape(0), out.array.shape(1),
          a.array.shape(1)};
}

struct Operands {
  View a, b, out;

  Operands(const py::object& left, const char* a_name, const py::object& right, const char* b_name,
           const py::object& result, const char* out_name)
      : a(matrix(left, a_name, Use::read)),
        b(matrix(right, b_name, Use::read)),
        out(matrix(result, out_name, Use::write)) {
    check_dtype(b, b_name, a.is_double);
    check_shape(b, b_name, {a.array.shape(1), b.array.shape(1)});
    check_dtype(out, out_name, a.is_double);
    check_shape(out, out_name, {a.array.shape(0), b.array.shape(1)});
    check_c_order(out, out_name);
    check_apart(out, out_name, a, a_name);
    check_apart(out, out_name, b, b_name);
  }

  std::ptrdiff_t multiplications() const { return out.size * a.array.shape(1); }

  void run() const { a.is_double ? multiply(product_of<double>(a, b, out)) : multiply(product_of<float>(a, b, out)); }
};

void call_matmul(const py::object& a, const py::object& b, const py::object& out) {
  const Operands p(a, "a", b, "b", out, "out");
  const Released released(p.multiplications(), {p.a.array, p.b.array, p.out.array});
  p.run();
}

// A bias or its gradient, which may be missing.
std::optional<View> bias_of(const Operands& p, const py::object& object, const char* name, Use use) {
  if (object.is_none()) return std::nullopt;
  return like(p.a, object, name, use, {p.b.array.shape(1)});
}

void call_dense(const py::object& x, const py::object& weight, const py::object& bias, const std::string& name,
                double alpha, const py::object& out) {
  const Activation f = activation(name);
  const Operands p(x, "x", weight, "weight", out, "out");
  const auto b = bias_of(p, bias, "bias", Use::read);
  if (b) check_apart(p.out, "out", *b, "bias");
  const Released released(p.multiplications(), {p.a.array, p.b.array, p.out.array});
  if (p.a.is_double) {
    dense(product_of<double>(p.a, p.b, p.out), f, b ? b->as<const double>() : nullptr, alpha);
  } else {
    dense(product_of<float>(p.a, p.b, p.out), f, b ? b->as<const float>() : nullptr, alpha);
  }
}

void call_dense_gradients(const py::object& x, const py::object& grad, const py::object& dweight,
                          const py::object& dbias) {
  const Operands p(x, "x", grad, "grad", dweight, "dweight");
  check_c_order(p.b, "grad");
  const auto db = bias_of(p, dbias, "dbias", Use::write);
  if (db) {
    check_apart(*db, "dbias", p.a, "x");
    check_apart(*db, "dbias", p.b, "grad");
    check_apart(*db, "dbias", p.out, "dweight");
  }
  const Released released(p.multiplications(), {p.a.array, p.b.array, p.out.array});
  p.run();
  if (!db) return;
  const std::ptrdiff_t rows = p.b.array.shape(0);
  if (p.a.is_double) {
    add_rows(p.b.as<const double>(), rows, db->size, db->as<double>());
  } else {
    add_rows(p.b.as<const float>(), rows, db->size, db->as<float>());
  }
}

}  // namespace

bool is_mostly_zero(const View& x) {
  const Strides s(x);
  const std::ptrdiff_t rows = x.array.shape(0), depth = x.array.shape(1);
  return kMostlyZero >= (x.is_double ? nonzero_part(x.as<const double>(), s.row, s.column, rows, depth)
                                     : nonzero_part(x.as<const float>(), s.row, s.column, rows, depth));
}

void register_products(py::module_& m) {
  m.def("is_mostly_zero", [](const py::object& x) { return is_mostly_zero(matrix(x, "x", Use::read)); }, py::arg("x"));
  m.def("matmul", call_matmul, py::arg("a"), py::arg("b"), py::arg("out"));
  m.def("dense", call_dense, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("activation"), py::arg("alpha"),
        py::arg("out"));
  m.def("dense_gradients", call_dense_gradients, py::arg("x"), py::arg("grad"), py::arg("dweight"), py::arg("dbias"));
}

}  // namespace steepest
