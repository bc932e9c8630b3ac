// Dense layers in a row, each with its activation: forward and backward in one call each.
#pragma once

#include <new>

#include "sparse.hpp"

namespace steepest {

inline bool has_shape(const py::array& array, const std::vector<py::ssize_t>& shape) {
  return array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), array.shape());
}

// An array that begins with a cache line, of memory that nobody can resize.
inline py::array aligned(const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
  constexpr std::align_val_t line{64};
  std::ptrdiff_t bytes = dtype.itemsize();
  for (const py::ssize_t n : shape) {
    if (__builtin_mul_overflow(bytes, n, &bytes)) throw std::bad_alloc();
  }
  void* const memory = ::operator new(static_cast<std::size_t>(bytes), line);
  const py::capsule owner(memory, [](void* p) { ::operator delete(p, line); });
  return {dtype, shape, memory, owner};
}

// An array that is kept from batch to batch: a smaller one gets the first rows of the largest.
struct Kept {
  py::array all, rows;

  const py::array& of(const std::vector<py::ssize_t>& shape, const py::dtype& dtype) {
    if (has_shape(rows, shape) && rows.dtype().equal(dtype)) return rows;  // whoever was given it may have changed it
    std::vector<py::ssize_t> larger = shape;
    if (all.ndim() == static_cast<py::ssize_t>(shape.size())) larger[0] = std::max(shape[0], all.shape(0));
    if (!has_shape(all, larger) || !all.dtype().equal(dtype)) all = aligned(dtype, shape);
    rows = all.shape(0) == shape[0] ? all : py::array(dtype, shape, all.data(), all);
    return rows;
  }
};

// y = f(x W + b).
struct Link {
  View weight, dweight;
  std::optional<View> bias, dbias;
  Activation f;
  double alpha;
  std::ptrdiff_t inputs, units;  // as they were, for arrays can be given another shape
  Kept y, dx;                    // dx: the gradient of x
};

template <class T>
T* data_of(const py::array& array) {
  return static_cast<T*>(const_cast<void*>(array.data()));
}

class Chain {
 public:
  // A layer is (weight, bias or None, activation, alpha, dweight, dbias or None); those before `first` do not train.
  Chain(const py::list& layers, std::size_t first) : first_(first) {
    for (const py::handle layer : layers) links_.push_back(make_link(py::reinterpret_borrow<py::tuple>(layer)));
    if (links_.empty() || first >= links_.size()) throw py::value_error("layers: expected one that trains, got none");
  }

  py::dtype dtype() const { return links_[0].weight.array.dtype(); }

  py::array forward(const py::object& input) {
    const View x = matrix(input, "x", Use::read);
    check_dtype(x, "x", links_[0].weight.is_double);
    check_c_order(x, "x");
    const std::ptrdiff_t rows = x.array.shape(0);
    check_shape(x, "x", {rows, links_[0].inputs});
    for (const Link& link : links_) check_apart(x, "x", view_of_own(link.y.all), "out");
    make_room(rows);
    x_ = x;
    return run_forward();
  }

  // The same for rows that hold only what is not 0.
  py::array forward_sparse(const py::object& starts, const py::object& columns, const py::object& values) {
    const SparseView x = sparse_view(starts, columns, values, links_[0].inputs);
    check_dtype(x.values, "values", links_[0].weight.is_double);
    for (const Link& link : links_) check_apart(x.values, "values", view_of_own(link.y.all), "out");
    make_room(x.rows);
    sparse_ = x;
    return run_forward();
  }

  // Fills the gradients, given that of the last outputs, which an activation at the end writes over.
  void backward(const py::object& gradient) {
    const View g = matrix(gradient, "grad", Use::write);
    const Link& end = links_.back();
    const View* const input = x_ ? &*x_ : sparse_ ? &sparse_->values : nullptr;
    if (input == nullptr || !input->still_holds() || !has_shape(end.y.rows, {rows_, end.units})) {
      throw py::value_error("grad: expected forward to be called before, and its arrays to stay as they are");
    }
    check_dtype(g, "grad", input->is_double);
    check_c_order(g, "grad");
    check_shape(g, "grad", {rows_, end.units});
    if (end.f != Activation::identity) {  // else it is not written
      check_apart(g, "grad", view_of_own(end.y.rows), "out");
      check_apart(g, "grad", *input, "x");
    }
    check_apart_from_gradients(*input, "x");
    check_apart_from_gradients(g, "grad");
    g.is_double ? run_backward<double>(g) : run_backward<float>(g);
  }

 private:
  static Link make_link(const py::tuple& layer) {
    const View weight = matrix(layer[0], "weight", Use::read);
    check_c_order(weight, "weight");
    Link link{weight,
              like(weight, layer[4], "dweight", Use::write),
              {},
              {},
              activation(layer[2].cast<std::string>()),
              layer[3].cast<double>(),
              weight.array.shape(0),
              weight.array.shape(1),
              {},
              {}};
    if (!layer[1].is_none()) {
      link.bias = like(weight, layer[1], "bias", Use::read, {link.units});
      link.dbias = like(weight, layer[5], "dbias", Use::write, {link.units});
    }
    return link;
  }

  // Arrays for so many rows; there may be no memory for them, and then there is no input either.
  void make_room(std::ptrdiff_t rows) {
    x_.reset();
    sparse_.reset();
    for (std::size_t i = 0; i < links_.size(); ++i) {
      Link& link = links_[i];
      link.y.of({rows, link.units}, dtype());
      if (i > first_) link.dx.of({rows, link.inputs}, dtype());
    }
    rows_ = rows;
  }

  py::array run_forward() {
    const py::array y = links_.back().y.rows;  // other threads may call here too
    links_[0].weight.is_double ? run_forward<double>() : run_forward<float>();
    return y;
  }

  void check_apart_from_gradients(const View& v, const char* name) const {
    for (std::size_t i = first_; i < links_.size(); ++i) {
      check_apart(v, name, links_[i].dweight, "dweight");
      if (links_[i].dbias) check_apart(v, name, *links_[i].dbias, "dbias");
    }
  }

  std::vector<py::array> arrays() const {
    std::vector<py::array> all;
    if (x_) all = {x_->array};
    if (sparse_) all = {sparse_->starts, sparse_->columns, sparse_->values.array};
    for (const Link& link : links_) all.insert(all.end(), {link.y.rows, link.dx.rows});
    return all;
  }

  std::ptrdiff_t multiplications() const {
    std::ptrdiff_t n = 0;
    for (const Link& link : links_) n += rows_ * link.weight.size;
    return n;
  }

  // The products are described before the GIL goes, for other threads may call here too.
  template <class T>
  Product<T> outputs(std::size_t i) const {
    const Link& l = links_[i];
    const T* const x = i > 0 ? data_of<const T>(links_[i - 1].y.rows) : x_ ? x_->as<const T>() : nullptr;
    return {x,     l.inputs, 1,       l.weight.as<const T>(), l.units, 1, data_of<T>(l.y.rows), l.units,
            rows_, l.units,  l.inputs};
  }

  template <class T>
  const T* gradient(std::size_t i, const View& g) const {
    return i + 1 == links_.size() ? g.as<const T>() : data_of<const T>(links_[i + 1].dx.rows);
  }

  template <class T>
  Product<T> weight_gradient(std::size_t i, const View& g) const {
    const Link& l = links_[i];
    return {outputs<T>(i).a,   1,       l.inputs, gradient<T>(i, g), l.units, 1,
            l.dweight.as<T>(), l.units, l.inputs, l.units,           rows_};
  }

  template <class T>
  Product<T> input_gradient(std::size_t i, const View& g) const {
    const Link& l = links_[i];
    return {gradient<T>(i, g), l.units, 1, l.weight.as<const T>(), 1, l.units, data_of<T>(l.dx.rows), l.inputs, rows_,
            l.inputs,          l.units};
  }

  template <class T>
  std::optional<SparseRows<T>> sparse_rows() const {
    if (!sparse_) return std::nullopt;
    return SparseRows<T>(*sparse_);
  }

  template <class T>
  void run_forward() {
    std::vector<Product<T>> products;
    for (std::size_t i = 0; i < links_.size(); ++i) products.push_back(outputs<T>(i));
    const auto sparse = sparse_rows<T>();
    const Released released(multiplications(), arrays());
    for (std::size_t i = 0; i < links_.size(); ++i) {
      const Link& l = links_[i];
      const T* const bias = l.bias ? l.bias->as<const T>() : nullptr;
      if (i == 0 && sparse) {
        sparse_dense(*sparse, products[i].b, l.units, l.f, bias, l.alpha, products[i].c);
      } else {
        dense(products[i], l.f, bias, l.alpha);
      }
    }
  }

  template <class T>
  void run_backward(const View& grad) {
    std::vector<Product<T>> weights, inputs;
    for (std::size_t i = 0; i < links_.size(); ++i) {
      weights.push_back(weight_gradient<T>(i, grad));
      inputs.push_back(input_gradient<T>(i, grad));  // of which those after `first_` count
    }
    const auto mask = layers<T>().mask;
    const std::ptrdiff_t rows = rows_;
    const Link& end = links_.back();
    T* const g = grad.as<T>();
    const T* const y = data_of<const T>(end.y.rows);
    const auto sparse = sparse_rows<T>();
    std::vector<py::array> used = arrays();
    used.push_back(grad.array);
    const Released released(multiplications(), used);
    if (end.f != Activation::identity) {
      parallel::for_ranges(
          rows * end.units, 3 * sizeof(T),
          [&](std::ptrdiff_t begin, std::ptrdiff_t stop) noexcept {
            mask(end.f, g + begin, y + begin, static_cast<T>(end.alpha), stop - begin);
          },
          parallel::Pace::brisk);
    }
    for (std::size_t i = links_.size(); i-- > first_;) {
      if (i == 0 && sparse) {
        sparse_gradient(*sparse, links_[0].inputs, weights[0].b, links_[0].units, weights[0].c);
      } else {
        multiply(weights[i]);
      }
      if (links_[i].dbias) add_rows(weights[i].b, rows, links_[i].units, links_[i].dbias->as<T>());
      if (i == first_) break;
      // The gradient of the input, and at once that of what the activation before took.
      const Link& before = links_[i - 1];
      const Product<T>& p = inputs[i];
      const T* const outputs = weights[i].a;
      multiply(p, [&, outputs](T* c, std::ptrdiff_t n, std::ptrdiff_t, std::ptrdiff_t columns) noexcept {
        const T* at = outputs + (c - p.c);
        const std::ptrdiff_t at_once = columns == p.c_row ? n : 1;
        for (std::ptrdiff_t k = 0; k < n; k += at_once, c += p.c_row, at += p.c_row) {
          mask(before.f, c, at, static_cast<T>(before.alpha), at_once * columns);
        }
      });
    }
  }

  std::vector<Link> links_;
  std::size_t first_;
  std::optional<View> x_;  // the last batch, or
  std::optional<SparseView> sparse_;
  std::ptrdiff_t rows_ = 0;
};

}  // namespace steepest
