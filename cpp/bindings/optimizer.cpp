#include "optimizer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "../parallel.hpp"
#include "gil.hpp"

namespace steepest {
namespace {

constexpr int kAligned = 0x100, kWriteable = 0x400;  // NumPy's flags

// What a step reads and writes of one element, at most: bytes.
constexpr std::ptrdiff_t kBytesPerElement = 28;

constexpr std::ptrdiff_t kPrefetchBytes = 1024;  // of each array of the next tensor

py::object item(const py::object& container, const py::object& key) {
  PyObject* const found = PyObject_GetItem(container.ptr(), key.ptr());
  if (found != nullptr) return py::reinterpret_steal<py::object>(found);
  if (PyErr_ExceptionMatches(PyExc_LookupError) == 0) throw py::error_already_set();
  PyErr_Clear();
  return {};
}

// What a container has under a key, or null; `i` is the key of a sequence. Python's own are asked without a detour.
inline py::object find(const py::object& container, const py::object& key, std::size_t i) {
#ifndef Py_GIL_DISABLED  // what is borrowed is safe under the GIL alone
  if (PyDict_CheckExact(container.ptr())) {
    PyObject* const found = PyDict_GetItemWithError(container.ptr(), key.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(found);
  }
  if (PyList_CheckExact(container.ptr()) && i < static_cast<std::size_t>(PyList_GET_SIZE(container.ptr()))) {
    return py::reinterpret_borrow<py::object>(PyList_GET_ITEM(container.ptr(), static_cast<py::ssize_t>(i)));
  }
#endif
  return item(container, key);
}

// Without the call that std::equal makes of it.
bool have_same_shape(const Py_intptr_t* a, const Py_intptr_t* b, int n) {
  for (int i = 0; i < n; ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

// Python's own are known at a glance.
bool is_sequence(const py::object& x) {
  return PyList_CheckExact(x.ptr()) || PyTuple_CheckExact(x.ptr()) ||
         (!py::isinstance<py::array>(x) && py::isinstance<py::sequence>(x));
}

// Whether g is, at first sight, a gradient for the tensor: a plain array of its dtype, shape and memory order.
bool fits(const py::object& g, const Tensor& tensor) {
  PyTypeObject* const type = Py_TYPE(g.ptr());
  if (type != Py_TYPE(tensor.p.array.ptr()) && type != py::detail::npy_api::get().PyArray_Type_) return false;
  const auto *a = py::detail::array_proxy(g.ptr()), *p = py::detail::array_proxy(tensor.p.array.ptr());
  return a->descr == tensor.dtype.ptr() && (a->flags & p->flags & (c_order | f_order)) != 0 &&
         (a->flags & kAligned) != 0 && a->nd == p->nd && have_same_shape(a->dimensions, p->dimensions, a->nd);
}

// Asks for the beginning of the next tensor's arrays while this one's are worked on: among many small tensors the
// hardware sees no pattern.
void prefetch(const Work& w) noexcept {
  const auto fetch = [n = std::min<std::ptrdiff_t>(w.g.size * w.g.itemsize, kPrefetchBytes)](const View& x) {
    for (std::ptrdiff_t at = 0; at < n; at += 64) __builtin_prefetch(x.begin() + at);
  };
  fetch(w.g);
  fetch(w.tensor->p);
  for (const View& state : w.tensor->state) fetch(state);
}

}  // namespace

Turn::Turn(Optimizer& optimizer) : optimizer_(optimizer) {
  const std::uint64_t mine = parallel::forks() + 1;
  const auto self = std::this_thread::get_id();
  if (optimizer.turn_.load() == mine && optimizer.turn_of_.load() == self) {
    throw std::runtime_error("the optimizer is in the middle of a step: a schedule cannot use it");
  }
  std::uint64_t found = 0;
  if (optimizer.waiting_.load() == mine || !optimizer.turn_.compare_exchange_strong(found, mine)) {
    const WithoutGil release;
    do {
      optimizer.waiting_.store(mine);
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      found = optimizer.turn_.load();
      if (found == mine) found = 0;  // else free, or taken before a fork by another process, which cannot give it back
    } while (!optimizer.turn_.compare_exchange_strong(found, mine));
    optimizer.waiting_.store(0);
  }
  optimizer.turn_of_.store(self, std::memory_order_relaxed);  // only its own thread looks for it
}

Turn::~Turn() {
  optimizer_.turn_of_.store({}, std::memory_order_relaxed);
  optimizer_.turn_.store(0, std::memory_order_release);
}

// The parameter or state that a gradient overlaps, or null.
const Optimizer::Output* Optimizer::overlapped(const View& g) const {
  const auto after = std::upper_bound(outputs_.begin(), outputs_.end(), g.begin(),
                                      [](const char* begin, auto& output) { return begin < output.first->end(); });
  return after != outputs_.end() && after->first->begin() < g.end() && g.size > 0 ? &*after : nullptr;
}

// Whether the container still holds the tensor's array, and that its memory.
bool Optimizer::is_in_place(const Group& group, std::size_t i, const Tensor& tensor) {
  const auto* proxy = py::detail::array_proxy(tensor.p.array.ptr());
  if (!tensor.p.still_holds() || proxy->descr != tensor.dtype.ptr()) return false;
  return group.kind == Kind::single || find(group.container, group.keys[i], i).is(tensor.p.array);
}

std::string Optimizer::gradient_name(const Tensor& tensor, const Group& group, std::size_t i) const {
  const std::string whole = group_name("grads", tensor.group);
  return group.kind == Kind::single ? whole : key_name(whole, group.keys[i]);
}

// What did not fit at first sight: a view of it all the same, or an exception that says what is wrong.
View Optimizer::fitted(const Tensor& tensor, const std::string& name, py::object g) {
  const auto& p = tensor.p.array;
  if (p.ndim() == 0 && !py::isinstance<py::array>(g) &&
      py::isinstance(g, py::module_::import("numpy").attr("generic"))) {
    g = py::module_::import("numpy").attr("asarray")(g);  // what arithmetic on 0-d arrays gives
  }
  const View v = view(g, name, Use::read, Also::bfloat16);
  if (v.is_double != tensor.p.is_double || v.is_bfloat16 != tensor.p.is_bfloat16) {
    throw py::type_error(name + ": expected dtype " + dtype_name(tensor.p) + ", got " + dtype_name(v) +
                         "; convert it with .astype(" + tensor.name + ".dtype)");
  }
  check_shape(v, name, shape_of(p));
  const int layout = p.flags() & (c_order | f_order);
  if ((v.layout & layout) == 0) {
    throw py::value_error(name + ": expected the memory order of " + tensor.name + ", got the other one; numpy." +
                          ((layout & c_order) != 0 ? "ascontiguousarray" : "asfortranarray") + "(x) has it");
  }
  return v;
}

void Optimizer::collect_tensor(Tensor& tensor, const Group& group, std::size_t i, const py::object& g) {
  if (!is_in_place(group, i, tensor)) {
    throw py::value_error(tensor.name +
                          ": expected the array that the optimizer was made with, got another; update it in "
                          "place (x[...] = y), or make a new optimizer");
  }
  if ((tensor.p.array.flags() & kWriteable) == 0) {
    throw py::value_error(tensor.name + ": expected a writeable array, got a read-only one");
  }
  if (g.is_none()) return;
  const std::ptrdiff_t begin = work_.empty() ? 0 : work_.back().end, size = tensor.p.size;
  if (fits(g, tensor)) {
    void* const data = py::detail::array_proxy(g.ptr())->data;
    work_.push_back({&tensor,
                     {py::reinterpret_borrow<py::array>(g), data, size, tensor.p.is_double, tensor.p.layout,
                      tensor.p.is_bfloat16, tensor.p.itemsize},
                     begin + size});
  } else {
    work_.push_back({&tensor, fitted(tensor, gradient_name(tensor, group, i), g), begin + size});
  }
  const View& v = work_.back().g;
  if (v.data == tensor.apart) return;  // as at the last step
  if (const Output* output = overlapped(v)) {
    check_apart(v, gradient_name(tensor, group, i), *output->first, *output->second);
  }
  tensor.apart = v.data;
}

void Optimizer::collect_group(std::size_t index, const py::object& gradients) {
  const Group& group = groups_[index];
  const auto name = [&] { return group_name("grads", index); };
  const auto refuse = [&](const std::string& why) { throw py::value_error(name() + ": " + why); };
  if (group.kind == Kind::single) {
    collect_tensor(tensors_[group.first], group, 0, gradients);
    return;
  }
  if (group.kind == Kind::mapping) {
    if (!PyDict_CheckExact(gradients.ptr()) && !py::hasattr(gradients, "keys")) {
      throw py::type_error(name() + ": expected a mapping with the names of params, got " + type_name(gradients));
    }
    for (std::size_t i = 0; i < group.keys.size(); ++i) {
      const py::object& key = group.keys[i];
      const bool is_plain = PyDict_CheckExact(gradients.ptr());  // others might make what they lack
      const py::object g = is_plain || gradients.contains(key) ? find(gradients, key, i) : py::object();
      if (!g) refuse("expected a gradient for " + std::string(py::repr(key)) + ", got none; None skips it");
      collect_tensor(tensors_[group.first + i], group, i, g);
    }
    if (py::len(gradients) != group.keys.size()) {
      const py::object surplus = py::set(gradients.attr("keys")()) - py::set(py::cast(group.keys));
      refuse("expected the names of params, got also " + text(py::list(surplus)));
    }
    return;
  }
  if (!is_sequence(gradients)) {
    throw py::type_error(name() + ": expected a sequence of " + std::to_string(group.keys.size()) + " gradients, got " +
                         type_name(gradients));
  }
  if (py::len(gradients) != group.keys.size()) {
    refuse("expected " + std::to_string(group.keys.size()) + " gradients, got " + std::to_string(py::len(gradients)) +
           "; None skips a parameter");
  }
  for (std::size_t i = 0; i < group.keys.size(); ++i) {
    const py::object g = find(gradients, group.keys[i], i);
    if (!g) refuse("expected " + std::to_string(group.keys.size()) + " gradients, got a sequence that lacks some");
    collect_tensor(tensors_[group.first + i], group, i, g);
  }
}

void Optimizer::collect(const py::object& gradients) {
  if (!grouped) {
    collect_group(0, gradients);
    return;
  }
  const auto expected = [&] {
    return "grads: expected a sequence of " + std::to_string(groups_.size()) +
           (groups_.size() == 1 ? " entry" : " entries") + ", one for each param group, got ";
  };
  if (!is_sequence(gradients)) {
    throw py::type_error(expected() + type_name(gradients));
  }
  if (py::len(gradients) != groups_.size()) throw py::value_error(expected() + std::to_string(py::len(gradients)));
  for (std::size_t i = 0; i < groups_.size(); ++i) collect_group(i, gradients[py::int_(i)]);
}

void Optimizer::apply_schedules() {
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    Common& c = groups_[i].common;
    if (!c.schedule) continue;
    const py::object rate = c.schedule(steps_);
    const double lr = number_from(rate, "lr: at step " + std::to_string(steps_) + " of its schedule");
    const bool has_float = std::any_of(tensors_.begin(), tensors_.end(),
                                       [=](const Tensor& tensor) { return tensor.group == i && !tensor.p.is_double; });
    if (!(lr >= 0) || !std::isfinite(has_float ? static_cast<float>(lr) : lr)) {
      throw py::value_error("lr: expected a schedule that gives finite rates >= 0, got " + text(rate) + " at step " +
                            std::to_string(steps_));
    }
    c.lr = lr;
  }
}

Span Optimizer::span(const Work& w) { return steepest::span(w.g, w.tensor->mask.keep); }

bool Optimizer::stays_finite(const Work& w, double scale) {
  const Span g = span(w);
  const double norm = global_norm({g});
  if (g.is_double) return std::isfinite(norm * scale);
  if (!std::isfinite(norm)) return false;
  if (norm * scale <= std::numeric_limits<float>::max()) return true;
  for (std::ptrdiff_t i = 0; i < g.size; ++i) {
    const Span element{static_cast<const char*>(g.data) + i * (g.is_bfloat16 ? 2 : 4), 1, false, g.is_bfloat16};
    const bool counts = g.mask == nullptr || g.mask[i] != 0;
    if (counts && global_norm({element}) * scale >= 0x1.ffffffp127) return false;  // which rounds to infinity
  }
  return true;
}

void Optimizer::raise_nonfinite(double scale) const {
  std::string which = "the norm of the gradients is";
  const auto name = [&](double by, const char* how) {
    const auto at = std::find_if(work_.begin(), work_.end(), [=](const Work& w) { return !stays_finite(w, by); });
    if (at == work_.end()) return false;
    which = "the gradient of " + at->tensor->name + how + " has a value that is";
    return true;
  };
  if (!name(1, "")) name(scale, ", scaled,");
  PyErr_SetString(PyExc_FloatingPointError, (which + " not finite; nothing was changed").c_str());
  throw py::error_already_set();
}

void Optimizer::step(const py::object& gradients, const py::object& scale) {
  const double grad_scale = number_from(scale, "grad_scale");
  if (!std::isfinite(grad_scale)) {
    throw py::value_error("grad_scale: expected a finite number, got " + text(scale));
  }
  const Turn turn(*this);
  const parallel::DefaultFloatMode mode;
  const Release work_until_return{work_};
  announce();
  work_.clear();  // in the child of a fork there may be the rest of another thread's step
  collect(gradients);
  apply_schedules();
  for (const Work& w : work_) {  // schedules and containers may be the user's code
    if (w.g.still_holds()) continue;
    throw py::value_error("grads: expected arrays that stay as they are, got one that was resized during the step");
  }
  take(grad_scale);
}

// The step over what was collected.
void Optimizer::take(double grad_scale) {
  const std::ptrdiff_t total = work_.empty() ? 0 : work_.back().end;
  last_bytes_ = total * kBytesPerElement;
  Pins pins;
  std::optional<WithoutGil> release;
  if (parallel::is_large(last_bytes_)) {
    for (const Work& w : work_) pins.pin(w.g.array);
    release.emplace();
  }
  std::optional<double> norm;
  if (std::isfinite(max_norm_) || nonfinite_ != Nonfinite::propagate) {
    std::vector<Span> spans;
    for (const Work& w : work_) spans.push_back(span(w));
    norm = std::abs(grad_scale) * global_norm(spans);
  }
  double clip = 1;
  if (std::isfinite(max_norm_)) {
    clip = max_norm_ / (*norm + 1e-6);
    if (clip > 1) clip = 1;
  }
  // Where even the norm of all of them is in float32's range, no element leaves it.
  if (nonfinite_ != Nonfinite::propagate && !(*norm * clip <= std::numeric_limits<float>::max())) {
    const double scale = std::abs(grad_scale) * clip;
    const bool is_finite = std::isfinite(*norm) && std::all_of(work_.begin(), work_.end(),
                                                               [=](const Work& w) { return stays_finite(w, scale); });
    if (!is_finite) {
      release.reset();
      if (nonfinite_ == Nonfinite::raise) raise_nonfinite(scale);
      last_norm_ = norm;
      return;
    }
  }
  prepare(work_, grad_scale * clip);
  parallel::for_ranges(total, kBytesPerElement, [this](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    auto i = static_cast<std::size_t>(std::upper_bound(work_.begin(), work_.end(), begin,
                                                       [](std::ptrdiff_t at, const Work& w) { return at < w.end; }) -
                                      work_.begin());
    for (; begin < end; ++i) {
      const std::ptrdiff_t first = work_[i].end - work_[i].g.size;
      const std::ptrdiff_t last = std::min(end, work_[i].end);
      if (i + 1 < work_.size()) prefetch(work_[i + 1]);
      const std::ptrdiff_t from = work_[i].tensor->edge(begin - first), to = work_[i].tensor->edge(last - first);
      run(work_[i], from, to - from);
      begin = last;
    }
  });
  release.reset();
  last_norm_ = norm;
  ++steps_;
}

}  // namespace steepest
