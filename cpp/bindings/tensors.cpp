// A step over tensors of PyTorch's, which are looked at anew in every step: they may have been moved, or replaced.
#include <algorithm>
#include <cmath>
#include <utility>

#include "../parallel.hpp"
#include "module.hpp"
#include "optimizer.hpp"
#include "torch_c.hpp"

namespace steepest {
namespace {

const char* const kDone = "done";
const char* const kStale = "stale";          // other groups, parameters or state than `watch` was told of
const char* const kOptions = "options";      // other options in a group
const char* const kGradients = "gradients";  // one that does not lie in memory as its parameter does

bool is_float(const torch_c::Tensor& t) { return t.dtype == torch_c::kFloat32 || t.dtype == torch_c::kFloat64; }

// Whether its elements fill one piece of memory, in whatever order.
bool is_dense(const torch_c::Tensor& t) {
  std::vector<std::pair<std::int64_t, std::int64_t>> axes;
  for (std::int64_t i = 0; i < t.dim; ++i) {
    if (t.sizes[i] == 0) return true;
    if (t.sizes[i] > 1) axes.emplace_back(t.strides[i], t.sizes[i]);
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

View view_of(const torch_c::Tensor& t) {
  View v = no_array(t.data, t.size(), t.dtype == torch_c::kFloat64);
  v.is_bfloat16 = t.dtype == torch_c::kBfloat16;
  if (v.is_bfloat16) v.itemsize = 2;
  if (t.dtype == torch_c::kUint8) v.itemsize = 1;
  return v;
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
    get(f.drop), get(f.device), get(f.layout), get(f.dtype), get(f.data), get(f.dim), get(f.sizes), get(f.strides);
    find_handles();
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
    void* data;
    bool is_double;

    explicit operator bool() const { return static_cast<bool>(object); }
    double get() const { return is_double ? *static_cast<double*>(data) : *static_cast<float*>(data); }
    void set(double x) const {
      if (is_double) {
        *static_cast<double*>(data) = x;
      } else {
        *static_cast<float*>(data) = static_cast<float>(x);
      }
    }
  };
  struct Watched {
    py::object param, target;  // where the gradient is; what is stepped
    Objects state;
    Scalar step, mu_product;
    std::vector<std::pair<PyObject*, torch_c::Seen>> seen;  // the target, its state, their numbers
    bool is_ready;                                          // has its state

    void see(const py::object& tensor, const torch_c::Tensor& t) { seen.emplace_back(tensor.ptr(), torch_c::Seen(t)); }
  };

  void find_handles();
  void prefetch(PyObject* tensor) const;
  bool look(PyObject* tensor, torch_c::Tensor& t) const;
  torch_c::Tensor look_at(const py::object& tensor, const std::string& name) const;
  void watch_state(const py::list& arrays, Watched& w, Tensor& tensor) const;
  Scalar watch_scalar(const py::object& tensor, Watched& w) const;
  bool is_unmoved(const Watched& w) const;
  const char* collect(const Objects& gradients);
  bool collect_gradient(const Watched& w, Tensor& tensor, py::handle gradient);

  Optimizer& optimizer_;
  torch_c::Functions functions_;
  std::ptrdiff_t handle_at_ = 0;  // where its handle lies in a Python tensor; 0: unknown
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

// A Python tensor holds a C++ tensor, whose address is a handle. It lies where there is what a handle of it points to.
void Tensors::find_handles() {
  const py::object tensor = tensor_type_();
  torch_c::Handle const handle = make_handle_(tensor).cast<py::capsule>().get_pointer();
  const auto* const words = reinterpret_cast<void* const*>(tensor.ptr());
  const auto n = Py_TYPE(tensor.ptr())->tp_basicsize / static_cast<Py_ssize_t>(sizeof(void*));
  const auto* const found = std::find(words, words + n, *static_cast<void* const*>(handle));
  if (found != words + n) handle_at_ = (found - words) * static_cast<std::ptrdiff_t>(sizeof(void*));
  functions_.drop(handle);
}

// Whether it is a strided CPU tensor; then `t` is how it lies in memory.
bool Tensors::look(PyObject* tensor, torch_c::Tensor& t) const {
  if (handle_at_ != 0) return torch_c::look(functions_, reinterpret_cast<char*>(tensor) + handle_at_, t);
  torch_c::Handle const handle = make_handle_(py::handle(tensor)).cast<py::capsule>().get_pointer();
  const bool is_strided = torch_c::look(functions_, handle, t);
  functions_.drop(handle);
  return is_strided;
}

// Of what is dense and floating-point numbers or codes.
torch_c::Tensor Tensors::look_at(const py::object& tensor, const std::string& name) const {
  torch_c::Tensor t{};
  const bool is_strided = look(tensor.ptr(), t);
  if (!is_strided || !(is_float(t) || t.dtype == torch_c::kBfloat16 || t.dtype == torch_c::kUint8) || !is_dense(t)) {
    throw py::type_error(name + ": expected a dense CPU tensor of floating-point numbers or of codes");
  }
  return t;
}

Tensors::Scalar Tensors::watch_scalar(const py::object& tensor, Watched& w) const {
  if (tensor.is_none()) return {};
  const torch_c::Tensor t = look_at(tensor, "state");
  if (!is_float(t) || t.size() != 1) throw py::type_error("state: expected a number in a CPU tensor");
  w.see(tensor, t);
  return {tensor, t.data, t.dtype == torch_c::kFloat64};
}

// The rule's arrays, then the scales and last bits of their codes if they are in 8 bits.
void Tensors::watch_state(const py::list& arrays, Watched& w, Tensor& tensor) const {
  optimizer_.count_slots(tensor);
  std::vector<torch_c::Tensor> looks;
  for (const py::handle x : arrays) {
    w.state.push_back(py::reinterpret_borrow<py::object>(x));
    looks.push_back(look_at(w.state.back(), tensor.name + "'s state"));
    w.see(w.state.back(), looks.back());
    tensor.state.push_back(view_of(looks.back()));
  }
  const std::ptrdiff_t itemsize = looks.empty() ? tensor.p.itemsize : tensor.state[0].itemsize;
  tensor.storage = itemsize == 1 ? Storage::eight_bit : itemsize == 2 ? Storage::bfloat16 : Storage::full;
  const bool is_coded = tensor.storage == Storage::eight_bit;
  if (looks.size() != (is_coded ? tensor.bits_at(tensor.slots) : tensor.slots)) {
    throw py::value_error(tensor.name + ": lacks state");
  }
  const torch_c::Seen& target = w.seen[0].second;
  const std::int32_t own = is_coded                              ? torch_c::kUint8
                           : tensor.storage == Storage::bfloat16 ? torch_c::kBfloat16
                                                                 : target.dtype();
  for (std::size_t i = 0; i < looks.size(); ++i) {
    const torch_c::Tensor& t = looks[i];
    const std::ptrdiff_t n = tensor.p.size;
    const auto is_flat = [&](std::int32_t dtype, std::ptrdiff_t size) {
      return t.dtype == dtype && t.dim == 1 && t.size() == size;
    };
    const bool fits = i < tensor.slots       ? t.dtype == own && target.lies_alike(t)
                      : i < 2 * tensor.slots ? is_flat(torch_c::kFloat32, (n + kCodeGroup - 1) / kCodeGroup)
                                             : is_flat(torch_c::kUint8, (n + 7) / 8);
    if (!fits) throw py::value_error(tensor.name + ": expected state of the parameter's dtype, shape and memory order");
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
    Watched w{entry[1], entry[2], {}, {}, {}, {}, !py::object(entry[3]).is_none()};
    const std::string name = "parameter " + std::to_string(watched.size());
    if (!w.is_ready) {
      watched.push_back(std::move(w));
      tensors.push_back({name, no_array(nullptr, 0, false), {}, {}, entry[0].cast<std::size_t>()});
      continue;
    }
    const torch_c::Tensor t = look_at(w.target, name);
    if (!is_float(t)) throw py::type_error(name + ": expected a float32 or float64 tensor");
    w.see(w.target, t);
    Tensor tensor{name, view_of(t), {}, {}, entry[0].cast<std::size_t>()};
    watch_state(entry[3], w, tensor);
    w.step = watch_scalar(entry[4], w);
    w.mu_product = watch_scalar(entry[5], w);
    tensor.progress.step = entry[6].cast<std::int64_t>();
    tensor.progress.in_float = w.mu_product && !w.mu_product.is_double;
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

bool Tensors::is_unmoved(const Watched& w) const {
  torch_c::Tensor t;
  return std::all_of(w.seen.begin(), w.seen.end(),
                     [&](const auto& seen) { return look(seen.first, t) && seen.second.is_same(t); });
}

// Whether the gradient can be used as it lies there.
bool Tensors::collect_gradient(const Watched& w, Tensor& tensor, py::handle gradient) {
  if (!py::type::handle_of(gradient).is(tensor_type_)) return false;
  torch_c::Tensor t;
  const torch_c::Seen& target = w.seen[0].second;
  if (!look(gradient.ptr(), t) || t.dtype != target.dtype() || !target.lies_alike(t)) return false;
  // Its memory has the opposite sign: the imaginary part of a conjugate, whose stride of 2 says so if there are more.
  if (tensor.p.size == 1 && !gradient.attr(is_neg_)().is(py::handle(Py_False))) return false;
  const View v = no_array(t.data, tensor.p.size, tensor.p.is_double);
  if (tensor.apart != v.data) {
    if (optimizer_.overlapped(v) != nullptr) return false;
    tensor.apart = v.data;
  }
  auto& work = optimizer_.work_;
  work.push_back({&tensor, v, (work.empty() ? 0 : work.back().end) + v.size});
  return true;
}

// Asks for what `look` will read of a tensor: where there are many, a step's numbers have displaced it.
void Tensors::prefetch(PyObject* tensor) const {
  if (handle_at_ == 0) return;
  const char* const x = *reinterpret_cast<const char* const*>(reinterpret_cast<char*>(tensor) + handle_at_);
  for (int line = 0; line < 4; ++line) __builtin_prefetch(x + 64 * line);
}

const char* Tensors::collect(const Objects& gradients) {
  constexpr std::size_t ahead = 4;
  for (std::size_t i = 0; i < watched_.size(); ++i) {
    if (i + ahead < watched_.size() && py::type::handle_of(gradients[i + ahead]).is(tensor_type_)) {
      for (const auto& seen : watched_[i + ahead].seen) prefetch(seen.first);
      prefetch(gradients[i + ahead].ptr());
    }
    if (gradients[i].is_none()) continue;
    const Watched& w = watched_[i];
    Tensor& tensor = optimizer_.tensors_[i];
    if (!w.is_ready || !is_unmoved(w)) return kStale;
    if (!collect_gradient(w, tensor, gradients[i])) {  // perhaps for it lies where one that moved was
      const auto is_in_place = [this](const Watched& other) { return !other.is_ready || is_unmoved(other); };
      return std::all_of(watched_.begin(), watched_.end(), is_in_place) ? kGradients : kStale;
    }
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
  m.def("_zeros", zeros_at, py::arg("n"), py::arg("dtype"), py::arg("place"));
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
