// A step over tensors of PyTorch's, which are looked at anew in every step: they may have been moved, or replaced.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "../parallel.hpp"
#include "dlpack.hpp"
#include "module.hpp"
#include "optimizer.hpp"

namespace steepest {
namespace {

const char* const kDone = "done";
const char* const kStale = "stale";          // other groups, parameters or state than `watch` was told of
const char* const kOptions = "options";      // other options in a group
const char* const kGradients = "gradients";  // one that does not lie in memory as its parameter does

bool is_float(const dlpack::Tensor& t) {
  return t.device == dlpack::kCpu && t.code == dlpack::kFloat && t.lanes == 1 && (t.bits == 32 || t.bits == 64);
}

// Whether its elements are as those of v, which may be codes.
bool is_like(const dlpack::Tensor& t, const View& v) {
  const std::uint8_t code = v.is_bfloat16 ? dlpack::kBfloat : v.itemsize == 1 ? dlpack::kUnsigned : dlpack::kFloat;
  return t.device == dlpack::kCpu && t.code == code && t.lanes == 1 && t.bits == 8 * v.itemsize;
}

std::ptrdiff_t size_of(const dlpack::Tensor& t) {
  std::ptrdiff_t size = 1;
  for (std::int32_t i = 0; i < t.ndim; ++i) size *= t.shape[i];
  return size;
}

// Whether its elements fill one piece of memory, in whatever order.
bool is_dense(const dlpack::Tensor& t) {
  std::vector<std::pair<std::int64_t, std::int64_t>> axes;
  for (std::int32_t i = 0; i < t.ndim; ++i) {
    if (t.shape[i] == 0) return true;
    if (t.shape[i] > 1) axes.emplace_back(t.strides[i], t.shape[i]);
  }
  std::sort(axes.begin(), axes.end());
  std::int64_t expected = 1;
  for (const auto& [stride, n] : axes) {
    if (stride != expected) return false;
    expected *= n;
  }
  return true;
}

// A value that can't be changed in place, so that the same object means the same value.
bool is_immutable(PyObject* x) {
  if (x == Py_None || PyBool_Check(x) || PyFloat_CheckExact(x) || PyLong_CheckExact(x)) return true;
  if (!PyTuple_CheckExact(x)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(x); ++i) {
    if (!is_immutable(PyTuple_GET_ITEM(x, i))) return false;
  }
  return true;
}

// Calls visit(object) with what must stay the same objects; stops where it gives false.
template <class Visit>
bool visit_structure(const py::list& groups, const py::dict& state, const Visit& visit) {
  for (const py::handle group : groups) {
    if (!visit(group.ptr())) return false;
    PyObject* params = PyDict_GetItemString(group.ptr(), "params");
    if (params == nullptr || !PyList_Check(params)) throw py::type_error("param_groups: expected a list of params");
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
      if (!visit(PyList_GET_ITEM(params, i))) return false;
    }
  }
  PyObject *key, *value, *name, *entry;
  for (Py_ssize_t at = 0; PyDict_Next(state.ptr(), &at, &key, &value) != 0;) {
    if (!visit(key) || !visit(value)) return false;
    if (!PyDict_Check(value)) continue;
    for (Py_ssize_t i = 0; PyDict_Next(value, &i, &name, &entry) != 0;) {
      if (!visit(name) || !visit(entry)) return false;
    }
  }
  return true;
}

// Likewise with the options; null is a value that may be another by now.
template <class Visit>
bool visit_options(const py::list& groups, const Visit& visit) {
  PyObject *key, *value;
  for (const py::handle group : groups) {
    for (Py_ssize_t at = 0; PyDict_Next(group.ptr(), &at, &key, &value) != 0;) {
      if (!visit(key)) return false;
      if (PyUnicode_CompareWithASCIIString(key, "params") == 0) continue;  // a part of the structure
      if (!visit(is_immutable(value) ? value : nullptr)) return false;
    }
  }
  return true;
}

View no_array(void* data, std::ptrdiff_t size, bool is_double) {
  return {py::reinterpret_steal<py::array>(py::handle()), data, size, is_double, 0};
}

using Objects = std::vector<py::object>;

template <class Walk>
Objects remembered(const Walk& walk) {
  Objects seen;
  walk([&](PyObject* x) {
    seen.push_back(py::reinterpret_borrow<py::object>(x));
    return true;
  });
  return seen;
}

template <class Walk>
bool are_same(const Objects& seen, const Walk& walk) {
  std::size_t i = 0;
  const bool same = walk([&](PyObject* x) { return i < seen.size() && x != nullptr && seen[i++].ptr() == x; });
  return same && i == seen.size();
}

}  // namespace

class Tensors {
 public:
  Tensors(Optimizer& optimizer, const py::object& tensor_type, const py::object& count_writes,
          const py::object& make_handle, const std::vector<std::uintptr_t>& functions)
      : optimizer_(optimizer), tensor_type_(tensor_type), count_writes_(count_writes), make_handle_(make_handle) {
    auto get = [&, i = 0u](auto& f) mutable { f = reinterpret_cast<std::decay_t<decltype(f)>>(functions.at(i++)); };
    torch_c::Functions& f = functions_;
    get(f.drop), get(f.data), get(f.dtype), get(f.dim), get(f.sizes), get(f.strides);
    const py::object exchange = tensor_type.attr("__dlpack_c_exchange_api__");
    exchange_ = static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(exchange.ptr(), dlpack::Exchange::kCapsule));
    if (exchange_ == nullptr) throw py::error_already_set();
    if (exchange_->major != 1 || exchange_->look == nullptr) {
      throw py::import_error("steepest.torch knows version 1 of DLPack, not " + std::to_string(exchange_->major));
    }
  }

  std::vector<const char*> set_options(std::size_t group, const py::dict& options);
  void watch(const py::list& groups, const py::dict& state, const py::list& params);
  void watch_options(const py::list& groups);
  const char* step(const py::list& groups, const py::dict& state, const py::object& gradients);
  int traverse(visitproc visit, void* arg) const;  // for the garbage collector: parameters may have hooks that
  void clear();                                    // refer to the optimizer

 private:
  struct Scalar {  // the count of steps, the product of mu
    py::object object;
    dlpack::Tensor seen;

    explicit operator bool() const { return static_cast<bool>(object); }
    double get() const {
      return seen.bits == 64 ? *static_cast<double*>(seen.begin()) : *static_cast<float*>(seen.begin());
    }
    void set(double x) const {
      if (seen.bits == 64) {
        *static_cast<double*>(seen.begin()) = x;
      } else {
        *static_cast<float*>(seen.begin()) = static_cast<float>(x);
      }
    }
  };
  struct Watched {
    py::object param, target;  // where the gradient is; what is stepped
    Objects state;
    std::vector<std::int64_t> shape, strides;
    Scalar step, mu_product;
    std::vector<torch_c::Seen> seen;  // the state and its numbers, not parameters: those may be a part of a cycle
    bool is_ready;                    // has its state
  };

  dlpack::Tensor look(py::handle tensor) const {
    dlpack::Tensor t{};
    if (exchange_->look(tensor.ptr(), &t) != 0) throw py::error_already_set();
    return t;
  }
  View view_of(py::handle tensor, const std::string& name) const;
  View view_of_state(py::handle tensor, const std::string& name) const;
  void watch_state(const py::list& arrays, Watched& w, Tensor& tensor) const;
  torch_c::Seen seen(py::handle tensor) const;
  Scalar scalar_of(const py::object& tensor) const;
  bool is_unmoved(py::handle tensor, const View& v, const Watched& w) const;
  bool is_unmoved_state(std::size_t i, const Watched& w, const Tensor& tensor) const;
  static bool lies_alike(const dlpack::Tensor& t, const Watched& w);
  const char* collect(const Objects& gradients);
  bool collect_gradient(const Watched& w, Tensor& tensor, py::handle gradient);

  Optimizer& optimizer_;
  const dlpack::Exchange* exchange_;
  torch_c::Functions functions_;
  py::object tensor_type_, count_writes_, make_handle_;
  std::vector<Watched> watched_;
  Objects structure_, options_;
  py::list targets_;
  bool are_options_new_ = false;  // no need to compare them in the next step
  py::str grad_ = "grad", is_neg_ = "is_neg";
};

// The group's options, or those of a new one; gives the names of its state.
std::vector<const char*> Tensors::set_options(std::size_t group, const py::dict& options) {
  const Turn turn(optimizer_);
  const Common common = Optimizer::read_common(options);
  optimizer_.set_rule(group, options);
  if (group == optimizer_.groups_.size()) {
    optimizer_.groups_.push_back({py::none(), Optimizer::Kind::sequence, {}, 0, common});
  } else {
    optimizer_.groups_[group].common = common;
  }
  return optimizer_.state_names(group);
}

View Tensors::view_of(py::handle tensor, const std::string& name) const {
  const dlpack::Tensor t = look(tensor);
  if (!is_float(t) || !is_dense(t)) throw py::type_error(name + ": expected a dense float32 or float64 CPU tensor");
  return no_array(t.begin(), size_of(t), t.bits == 64);
}

// Of what may be in codes: bfloat16, or a byte each.
View Tensors::view_of_state(py::handle tensor, const std::string& name) const {
  const dlpack::Tensor t = look(tensor);
  View v = no_array(t.begin(), size_of(t), t.bits == 64);
  v.itemsize = t.bits / 8;
  v.is_bfloat16 = t.code == dlpack::kBfloat;
  const bool is_code = v.itemsize == 1 || v.is_bfloat16;
  if (!(is_float(t) || (is_code && is_like(t, v))) || !is_dense(t)) {
    throw py::type_error(name + ": expected a dense CPU tensor of floating-point numbers or of codes");
  }
  return v;
}

torch_c::Seen Tensors::seen(py::handle tensor) const {
  return {functions_, make_handle_(tensor).cast<py::capsule>().get_pointer()};
}

Tensors::Scalar Tensors::scalar_of(const py::object& tensor) const {
  if (tensor.is_none()) return {};
  const Scalar s{tensor, look(tensor)};
  if (!is_float(s.seen) || size_of(s.seen) != 1) throw py::type_error("state: expected a number in a CPU tensor");
  return s;
}

// The rule's arrays, then the scales of their codes if they are in 8 bits.
void Tensors::watch_state(const py::list& arrays, Watched& w, Tensor& tensor) const {
  optimizer_.count_slots(tensor);
  for (const py::handle x : arrays) {
    w.state.push_back(py::reinterpret_borrow<py::object>(x));
    tensor.state.push_back(view_of_state(x, tensor.name + "'s state"));
  }
  const std::ptrdiff_t itemsize = tensor.state.empty() ? tensor.p.itemsize : tensor.state[0].itemsize;
  tensor.storage = itemsize == 1 ? Storage::eight_bit : itemsize == 2 ? Storage::bfloat16 : Storage::full;
  const std::size_t groups = tensor.storage == Storage::eight_bit ? 2 : 1;
  if (tensor.state.size() != groups * tensor.slots) throw py::value_error(tensor.name + ": lacks state");
  for (std::size_t i = 0; i < tensor.state.size(); ++i) {
    const std::ptrdiff_t expected = i >= tensor.slots                 ? 4
                                    : tensor.storage == Storage::full ? tensor.p.itemsize
                                                                      : itemsize;
    if (tensor.state[i].itemsize != expected || !is_unmoved_state(i, w, tensor)) {
      throw py::value_error(tensor.name + ": expected state of the parameter's dtype, shape and memory order");
    }
  }
}

// `params` has for each parameter: its group, itself, what is stepped, its state's tensors (None: not made yet), its
// step and mu_product (or None) and the steps taken so far where there is no such tensor.
void Tensors::watch(const py::list& groups, const py::dict& state, const py::list& params) {
  const Turn turn(optimizer_);
  std::vector<Watched> watched;
  std::vector<Tensor> tensors;
  for (const py::handle item : params) {
    const py::tuple entry = py::reinterpret_borrow<py::tuple>(item);
    Watched w{
        entry[1], entry[2], {}, {}, {}, scalar_of(entry[4]), scalar_of(entry[5]), {}, !py::object(entry[3]).is_none()};
    const std::string name = "parameter " + std::to_string(watched.size());
    if (!w.is_ready) {
      watched.push_back(std::move(w));
      tensors.push_back({name, no_array(nullptr, 0, false), {}, {}, entry[0].cast<std::size_t>()});
      continue;
    }
    const dlpack::Tensor t = look(w.target);
    w.shape.assign(t.shape, t.shape + t.ndim);
    w.strides.assign(t.strides, t.strides + t.ndim);
    Tensor tensor{name, view_of(w.target, name), {}, {}, entry[0].cast<std::size_t>()};
    tensor.progress.step = entry[6].cast<std::int64_t>();
    tensor.progress.in_float = w.mu_product && w.mu_product.seen.bits == 32;
    watch_state(entry[3], w, tensor);
    for (const py::object& x : w.state) w.seen.push_back(seen(x));
    for (const Scalar& x : {w.step, w.mu_product}) {
      if (x) w.seen.push_back(seen(x.object));
    }
    watched.push_back(std::move(w));
    tensors.push_back(std::move(tensor));
  }
  Optimizer::sorted_outputs(tensors);  // refuses what overlaps
  watched_ = std::move(watched);
  targets_ = py::list();
  for (const Watched& w : watched_) targets_.append(w.target);
  optimizer_.tensors_ = std::move(tensors);
  optimizer_.outputs_ = Optimizer::sorted_outputs(optimizer_.tensors_);
  structure_ = remembered([&](const auto& visit) { visit_structure(groups, state, visit); });
}

void Tensors::watch_options(const py::list& groups) {
  options_ = remembered([&](const auto& visit) { visit_options(groups, visit); });
  are_options_new_ = true;
}

bool Tensors::lies_alike(const dlpack::Tensor& t, const Watched& w) {
  if (static_cast<std::size_t>(t.ndim) != w.shape.size()) return false;
  for (std::size_t i = 0; i < w.shape.size(); ++i) {
    if (t.shape[i] != w.shape[i] || (t.strides[i] != w.strides[i] && w.shape[i] != 1)) return false;
  }
  return true;
}

bool Tensors::is_unmoved(py::handle tensor, const View& v, const Watched& w) const {
  const dlpack::Tensor t = look(tensor);
  return t.begin() == v.data && is_like(t, v) && lies_alike(t, w);
}

bool Tensors::is_unmoved_state(std::size_t i, const Watched& w, const Tensor& tensor) const {
  const View& v = tensor.state[i];
  if (i < tensor.slots) return is_unmoved(w.state[i], v, w);
  const dlpack::Tensor t = look(w.state[i]);  // scales
  return t.begin() == v.data && is_like(t, v) && t.ndim == 1 && is_dense(t) &&
         t.shape[0] == (tensor.p.size + kCodeGroup - 1) / kCodeGroup;
}

// Whether the gradient can be used as it lies there.
bool Tensors::collect_gradient(const Watched& w, Tensor& tensor, py::handle gradient) {
  if (!py::type::handle_of(gradient).is(tensor_type_)) return false;
  const dlpack::Tensor t = look(gradient);
  if (!is_float(t) || (t.bits == 64) != tensor.p.is_double || !lies_alike(t, w)) return false;
  // Its memory has the opposite sign: the imaginary part of a conjugate, whose stride of 2 says so if there are more.
  if (tensor.p.size == 1 && !gradient.attr(is_neg_)().is(py::handle(Py_False))) return false;
  const View v = no_array(t.begin(), tensor.p.size, tensor.p.is_double);
  if (tensor.apart != v.data) {
    if (optimizer_.overlapped(v) != nullptr) return false;
    tensor.apart = v.data;
  }
  auto& work = optimizer_.work_;
  work.push_back({&tensor, v, (work.empty() ? 0 : work.back().end) + v.size});
  return true;
}

const char* Tensors::collect(const Objects& gradients) {
  for (std::size_t i = 0; i < watched_.size(); ++i) {
    if (gradients[i].is_none()) continue;
    const Watched& w = watched_[i];
    Tensor& tensor = optimizer_.tensors_[i];
    if (!w.is_ready || !is_unmoved(w.target, tensor.p, w)) return kStale;
    for (const torch_c::Seen& x : w.seen) {
      if (!x.is_unmoved()) return kStale;
    }
    if (!collect_gradient(w, tensor, gradients[i])) return kGradients;
    if (w.step) {
      const double steps = w.step.get();
      if (!(steps >= 0 && steps < 0x1p53)) throw py::value_error("state: expected a step >= 0");
      tensor.progress.step = static_cast<std::int64_t>(steps);
    }
    if (w.mu_product) tensor.progress.mu_product = w.mu_product.get();
  }
  return kDone;
}

// A step over what `watch` was told of, if it is still that; else nothing is done, and why is returned. `gradients` has
// one, or None, for each parameter; without it they are the parameters' `grad`.
const char* Tensors::step(const py::list& groups, const py::dict& state, const py::object& gradients) {
  const Turn turn(optimizer_);
  optimizer_.announce();
  if (!are_same(structure_, [&](const auto& visit) { return visit_structure(groups, state, visit); })) return kStale;
  if (!std::exchange(are_options_new_, false) &&
      !are_same(options_, [&](const auto& visit) { return visit_options(groups, visit); })) {
    return kOptions;
  }
  Objects held;  // while other threads may run
  held.reserve(watched_.size());
  for (std::size_t i = 0; i < watched_.size(); ++i) {
    held.push_back(gradients.is_none() ? py::object(watched_[i].param.attr(grad_))
                                       : py::object(py::reinterpret_borrow<py::list>(gradients)[i]));
  }
  const parallel::DefaultFloatMode mode;
  const Release work_until_return{optimizer_.work_};
  optimizer_.work_.clear();
  if (const char* why = collect(held); why != kDone) return why;
  const auto watched = [this](const Work& work) -> const Watched& {
    return watched_[static_cast<std::size_t>(work.tensor - optimizer_.tensors_.data())];
  };
  if (optimizer_.work_.size() == watched_.size()) {
    count_writes_(targets_);
  } else {
    py::list stepped;
    for (const Work& work : optimizer_.work_) stepped.append(watched(work).target);
    count_writes_(stepped);
  }
  optimizer_.take(1);
  for (const Work& work : optimizer_.work_) {
    const Watched& w = watched(work);
    if (w.step) w.step.set(static_cast<double>(work.tensor->progress.step));
    if (w.mu_product) w.mu_product.set(work.tensor->progress.mu_product);
  }
  return kDone;
}

int Tensors::traverse(visitproc visit, void* arg) const {
  for (const Objects* objects : {&structure_, &options_}) {
    for (const py::object& x : *objects) Py_VISIT(x.ptr());
  }
  Py_VISIT(targets_.ptr());
  for (const Watched& w : watched_) {
    Py_VISIT(w.param.ptr());
    Py_VISIT(w.target.ptr());
    Py_VISIT(w.step.object.ptr());
    Py_VISIT(w.mu_product.object.ptr());
    for (const py::object& x : w.state) Py_VISIT(x.ptr());
  }
  return 0;
}

void Tensors::clear() {
  const Objects structure = std::move(structure_), options = std::move(options_);
  const std::vector<Watched> watched = std::move(watched_);
  const py::list targets = std::move(targets_);  // empty from here on, whatever runs as they go
}

namespace {

// pybind11's objects are unknown to the garbage collector unless they say what they hold.
void collectable(PyHeapTypeObject* heap_type) {
  PyTypeObject* type = &heap_type->ht_type;
  type->tp_flags |= Py_TPFLAGS_HAVE_GC;
  type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    return py::detail::is_holder_constructed(self) ? py::cast<Tensors&>(py::handle(self)).traverse(visit, arg) : 0;
  };
  type->tp_clear = [](PyObject* self) {
    if (py::detail::is_holder_constructed(self)) py::cast<Tensors&>(py::handle(self)).clear();
    return 0;
  };
}

}  // namespace

void register_tensors(py::module_& m) {
  py::class_<Tensors>(m, "Tensors", py::custom_type_setup(collectable))
      .def(py::init<Optimizer&, const py::object&, const py::object&, const py::object&,
                    const std::vector<std::uintptr_t>&>(),
           py::keep_alive<1, 2>(), py::arg("optimizer"), py::arg("tensor_type"), py::arg("count_writes"),
           py::arg("make_handle"), py::arg("functions"))
      .def("set_options", &Tensors::set_options, py::arg("group"), py::arg("options"))
      .def("watch", &Tensors::watch, py::arg("groups"), py::arg("state"), py::arg("params"))
      .def("watch_options", &Tensors::watch_options, py::arg("groups"))
      .def("step", &Tensors::step, py::arg("groups"), py::arg("state"), py::arg("gradients"));
}

}  // namespace steepest
