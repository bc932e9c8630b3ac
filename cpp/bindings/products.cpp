// Small matrix products: checks the arrays, drops the GIL, shares the output among threads.
#include "../dispatch.hpp"
#include "calls.hpp"
#include "module.hpp"

namespace steepest {
namespace {

// Rows or columns of a block at most: what it needs of both operands stays in cache.
constexpr std::ptrdiff_t kStrip = 256;

View matrix(const py::object& object, const char* name, Use use) {
  View v = view(object, name, use);
  if (v.array.ndim() != 2) {
    throw py::value_error(std::string(name) + ": expected shape (rows, columns), got " + describe(shape_of(v.array)));
  }
  return v;
}

// How far it is from one row to the next, and from one column to the next, in elements.
struct Strides {
  std::ptrdiff_t row, column;

  explicit Strides(const View& v)
      : row((v.layout & c_order) != 0 ? v.array.shape(1) : 1),
        column((v.layout & c_order) != 0 ? 1 : v.array.shape(0)) {}
};

template <class T>
Product<T> part(const Product<T>& p, std::ptrdiff_t row, std::ptrdiff_t rows, std::ptrdiff_t column,
                std::ptrdiff_t columns) {
  return {p.a + row * p.a_row,
          p.a_row,
          p.a_step,
          p.b + column * p.b_column,
          p.b_step,
          p.b_column,
          p.c + row * p.c_row + column,
          p.c_row,
          rows,
          columns,
          p.depth};
}

// Whether rows of c are shared rather than columns. Who takes all columns packs all of b; who takes all rows reads all
// of a, which where its steps are strided is more than it needs at a time.
template <class T>
bool by_rows(const Product<T>& p) {
  return p.a_step == 1 ? p.columns < 4 * products<T>().columns : p.rows >= p.columns;
}

// One side of c is shared, the other one cut into strips. A multiplication costs as much as a byte of an optimizer's
// traffic. What is finished is handed to `finish(c, rows, column, columns)`, c beginning there.
template <class T, class F>
void multiply(const Product<T>& p, const F& finish) noexcept {
  const bool rows = by_rows(p);
  const std::ptrdiff_t length = rows ? p.rows : p.columns, across = rows ? p.columns : p.rows;
  const ProductKernels<T>& kernels = products<T>();
  const std::ptrdiff_t share = rows ? kernels.rows : kernels.columns;
  const std::ptrdiff_t shares = (length + share - 1) / share, strips = (across + kStrip - 1) / kStrip;
  parallel::for_ranges(
      strips * shares, share * std::min(across, kStrip) * p.depth,
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t next; begin < end; begin = next) {
          const std::ptrdiff_t strip = begin / shares, side = strip * kStrip, at = begin % shares;
          next = std::min(end, (strip + 1) * shares);
          const std::ptrdiff_t from = at * share;
          const std::ptrdiff_t n = std::min((at + next - begin) * share, length) - from;
          const std::ptrdiff_t m = std::min(kStrip, across - side);
          const Product<T> block = rows ? part(p, from, n, side, m) : part(p, side, m, from, n);
          kernels.matmul(block);
          finish(block.c, block.rows, rows ? side : from, block.columns);
        }
      },
      parallel::Pace::brisk);
}

template <class T>
void multiply(const Product<T>& p) noexcept {
  multiply(p, [](T*, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t) noexcept {});
}

template <class T>
Product<T> product_of(const View& a, const View& b, const View& out) {
  const Strides s(a), t(b);
  return {a.as<const T>(), s.row,       s.column,           b.as<const T>(),  t.row,
          t.column,        out.as<T>(), out.array.shape(1), a.array.shape(0), out.array.shape(1),
          a.array.shape(1)};
}

// c[j] = sum over the rows of b: the product of ones with b.
template <class T>
void add_rows(const View& b, const View& c) {
  static constexpr T one = 1;
  const std::ptrdiff_t n = c.size;
  multiply<T>({&one, 0, 0, b.as<const T>(), n, 1, c.as<T>(), n, 1, n, b.array.shape(0)});
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

// out = f(a b + bias), each part of it while it is in cache.
template <class T>
void dense(const Operands& p, Activation f, const std::optional<View>& bias, double alpha) {
  const Product<T> product = product_of<T>(p.a, p.b, p.out);
  const auto kernel = layers<T>().activate;
  const T* const b = bias ? bias->as<const T>() : nullptr;
  multiply(product, [=, &product](T* c, std::ptrdiff_t rows, std::ptrdiff_t column, std::ptrdiff_t columns) noexcept {
    const T* const part = b != nullptr ? b + column : nullptr;
    for (std::ptrdiff_t i = 0; i < rows; ++i, c += product.c_row) {
      kernel(f, c, part, static_cast<T>(alpha), c, 1, columns);
    }
  });
}

void call_dense(const py::object& x, const py::object& weight, const py::object& bias, const std::string& name,
                double alpha, const py::object& out) {
  const Activation f = activation(name);
  const Operands p(x, "x", weight, "weight", out, "out");
  const auto b = bias_of(p, bias, "bias", Use::read);
  if (b) check_apart(p.out, "out", *b, "bias");
  const Released released(p.multiplications(), {p.a.array, p.b.array, p.out.array});
  p.a.is_double ? dense<double>(p, f, b, alpha) : dense<float>(p, f, b, alpha);
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
  if (db) p.a.is_double ? add_rows<double>(p.b, *db) : add_rows<float>(p.b, *db);
}

}  // namespace

void register_products(py::module_& m) {
  m.def("matmul", call_matmul, py::arg("a"), py::arg("b"), py::arg("out"));
  m.def("dense", call_dense, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("activation"), py::arg("alpha"),
        py::arg("out"));
  m.def("dense_gradients", call_dense_gradients, py::arg("x"), py::arg("grad"), py::arg("dweight"), py::arg("dbias"));
}

}  // namespace steepest
