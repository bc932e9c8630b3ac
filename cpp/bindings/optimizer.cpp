#include "optimizer.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "../parallel.hpp"
#include "gil.hpp"

namespace steepest {
namespace {

constexpr int kAligned = 0x100, kWriteable = 0x400;  // NumPy's flags

std::string key_name(const std::string& what, py::handle key) {
  return what + "[" + py::repr(key).cast<std::string>() + "]";
}

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

// Smaller arrays keep their state in float32: there is nothing to gain.
constexpr std::ptrdiff_t kSmallest = 4096;

// Sums and averages of squares are never negative, and change too slowly for rounding to nearest.
bool holds_squares(const std::string& name) {
  return name == "sum" || name.find("_sq") != name.npos || name == "square_avg";
}

// Every element of the state becomes what `value` is to nearest.
void fill(const Tensor& tensor, double value) {
  const auto x = static_cast<float>(value);
  for (std::size_t i = 0; i < tensor.slots; ++i) {
    py::array array = tensor.state[i].array;
    if (tensor.storage == Storage::full) {
      array.attr("fill")(value);
    } else if (tensor.storage == Storage::bfloat16) {
      std::uint16_t code;
      codecs().narrow(&x, &code, 1);
      array.attr("fill")(code);
    } else {
      float scale;
      const std::uint8_t code = coded_rules().encode(x, &scale);
      array.attr("fill")(code);
      tensor.state[tensor.slots + i].array.attr("fill")(scale);
    }
  }
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

Optimizer::Group Optimizer::outline(const py::object& container) {
  Group group;
  group.container = container;
  if (py::isinstance<py::array>(container)) {
    group.kind = Kind::single;
    group.keys.emplace_back(py::none());
  } else if (py::hasattr(container, "keys")) {
    group.kind = Kind::mapping;
    for (const auto key : py::list(container.attr("keys")()))
      group.keys.push_back(py::reinterpret_borrow<py::object>(key));
  } else {
    group.kind = Kind::sequence;
    for (std::size_t i = 0; i < py::len(container); ++i) group.keys.push_back(py::int_(i));
  }
  return group;
}

std::string Optimizer::group_name(const std::string& what, std::size_t group) const {
  return grouped || group > 0 ? key_name(what, py::int_(group)) : what;
}

Tensor Optimizer::make_tensor(const py::object& array, const std::string& name, std::size_t group) const {
  const View p = view(array, name, Use::write, Also::bfloat16);
  Tensor tensor{name, p, p.array.dtype(), {}, group};
  const Storage own = p.is_bfloat16 ? Storage::bfloat16 : Storage::full;
  if (precision_.storage && p.is_double) {
    throw py::value_error("state_dtype: expected None beside the float64 array " + name +
                          ", whose state is float64; or convert it with .astype(numpy.float32)");
  }
  const Storage wanted = precision_.storage.value_or(own);
  if (wanted != Storage::full) check_differences(group, wanted);
  if (p.size >= kSmallest) tensor.storage = wanted;
  add_state(tensor);
  return tensor;
}

// A variance, the difference of two averages, has none of the digits that low precision keeps.
void Optimizer::check_differences(std::size_t group, Storage wanted) const {
  for (const std::string name : state_names(group)) {
    if (name != "grad_avg") continue;
    throw py::value_error(std::string("state_dtype: expected \"float32\" beside centered=True, got \"") +
                          (wanted == Storage::bfloat16 ? "bfloat16" : "8bit") +
                          "\": a variance, as the difference of two averages, needs more digits");
  }
}

void Optimizer::count_slots(Tensor& tensor) const {
  for (const char* name : state_names(tensor.group)) tensor.is_squares[tensor.slots++] = holds_squares(name);
}

void Optimizer::add_state(Tensor& tensor) const {
  const py::object shape = py::cast(shape_of(tensor.p.array));
  const char* order = (tensor.p.layout & c_order) != 0 ? "C" : "F";
  // State in full begins in a cache line where the parameter does, other state with one.
  const bool is_full = tensor.storage == Storage::full;
  const std::uintptr_t place = is_full ? reinterpret_cast<std::uintptr_t>(tensor.p.data) : 0;
  const auto add = [&](const std::string& key, const py::object& of_shape, std::ptrdiff_t n, const char* dtype) {
    tensor.keys.push_back(key);
    const py::array zeros = zeros_at(n, py::dtype(dtype), place);
    tensor.state.push_back(view_of_own(zeros.attr("reshape")(of_shape, py::arg("order") = order)));
  };
  const char* dtype = tensor.storage == Storage::eight_bit  ? "uint8"
                      : tensor.storage == Storage::bfloat16 ? "uint16"
                                                            : dtype_name(tensor.p.is_double);
  count_slots(tensor);
  const auto names = state_names(tensor.group);
  const std::ptrdiff_t n = tensor.p.size, groups = (n + kCodeGroup - 1) / kCodeGroup, bytes = (n + 7) / 8;
  for (const char* name : names) add(name, shape, n, dtype);
  if (tensor.storage == Storage::eight_bit) {
    for (const char* name : names) add(std::string(name) + "_scale", py::int_(groups), groups, "float32");
    for (const char* name : names) {
      if (!holds_squares(name)) add(std::string(name) + "_bits", py::int_(bytes), bytes, "uint8");
    }
  }
  if (const double initial = initial_state(tensor.group); initial != 0) fill(tensor, initial);
  if (!tensor.p.is_bfloat16) return;
  // Zeros, too: to the bit the parameters, as they have no correction yet, or are taken over by the first step.
  add(precision_.has_whole_masters ? "master_weights" : "weight_correction", shape, n,
      precision_.has_whole_masters ? "float32" : "int16");
}

// Parameters and state arrays by address; refuses overlaps.
std::vector<Optimizer::Output> Optimizer::sorted_outputs(const std::vector<Tensor>& all) {
  std::vector<Output> outputs;
  for (const Tensor& tensor : all) {
    if (tensor.p.size == 0) continue;
    outputs.emplace_back(&tensor.p, &tensor.name);
    for (const View& state : tensor.state) outputs.emplace_back(&state, &tensor.name);
  }
  std::sort(outputs.begin(), outputs.end(), [](auto a, auto b) { return a.first->begin() < b.first->begin(); });
  for (std::size_t i = 1; i < outputs.size(); ++i) {
    check_apart(*outputs[i].first, *outputs[i].second, *outputs[i - 1].first, *outputs[i - 1].second);
  }
  return outputs;
}

void Optimizer::add_group(const py::object& container, const py::dict& options) {
  const Turn turn(*this);
  Group group = outline(container);
  group.first = tensors_.size();
  const std::size_t index = groups_.size();
  set_rule(index, options);
  groups_.push_back(group);
  auto all = tensors_;
  try {
    groups_.back().common = read_common(options);
    for (const py::object& key : group.keys) {
      const bool single = group.kind == Kind::single;
      const std::string name = group_name("params", index);
      all.push_back(
          make_tensor(single ? container : py::object(container[key]), single ? name : key_name(name, key), index));
    }
    sorted_outputs(all);
  } catch (...) {
    groups_.pop_back();
    drop_rule();
    throw;
  }
  tensors_ = std::move(all);
  outputs_ = sorted_outputs(tensors_);
  for (Tensor& tensor : tensors_) tensor.apart = nullptr;
  pin_outputs();
}

void Optimizer::pin_outputs() {
  pins_.clear();
  for (const Tensor& tensor : tensors_) {
    pins_.pin(tensor.p.array);
    for (const View& state : tensor.state) pins_.pin(state.array);
  }
}

void Optimizer::set_options(std::size_t group, const py::dict& options) {
  const Turn turn(*this);
  const Common common = read_common(options);
  check_rule(group, options);
  set_rule(group, options);
  groups_[group].common = common;
}

void Optimizer::set_precision(const py::object& state_dtype, const py::object& seed, bool has_whole_masters) {
  const Turn turn(*this);
  precision_ = {};
  if (!state_dtype.is_none()) {
    const auto name = state_dtype.cast<std::string>();
    precision_.storage = name == "8bit" ? Storage::eight_bit : name == "bfloat16" ? Storage::bfloat16 : Storage::full;
  }
  if (!seed.is_none()) precision_.seed = seed.cast<std::uint32_t>();
  precision_.has_whole_masters = has_whole_masters;
}

void Optimizer::set_clipping(double max_norm, const std::string& nonfinite) {
  const Turn turn(*this);
  max_norm_ = max_norm;
  nonfinite_ = nonfinite == "skip" ? Nonfinite::skip : nonfinite == "raise" ? Nonfinite::raise : Nonfinite::propagate;
}

Common Optimizer::read_common(const py::dict& options) {
  Common c;
  const py::object lr = options["lr"];
  if (PyCallable_Check(lr.ptr()) != 0) {
    c.schedule = lr;
  } else {
    c.lr = lr.cast<double>();
  }
  c.l1 = options["l1"].cast<double>();
  c.l2 = options["l2"].cast<double>();
  if (!options["max_value"].is_none()) c.max_value = options["max_value"].cast<double>();
  c.maximize = options["maximize"].cast<bool>();
  return c;
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

void Optimizer::raise_nonfinite() const {
  std::string which = "the norm of the gradients is";
  for (const Work& w : work_) {
    if (std::isfinite(global_norm({span(w)}))) continue;
    which = "the gradient of " + w.tensor->name + " has a value that is";
    break;
  }
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
    if (nonfinite_ != Nonfinite::propagate && !std::isfinite(*norm)) {
      release.reset();
      if (nonfinite_ == Nonfinite::raise) raise_nonfinite();
      last_norm_ = norm;
      return;
    }
  }
  double clip = 1;
  if (std::isfinite(max_norm_)) {
    clip = max_norm_ / (*norm + 1e-6);
    if (clip > 1) clip = 1;
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

// A copy of the mask, as contiguous as the tensor.
Mask Optimizer::make_mask(const py::object& mask, const Tensor& tensor, const std::string& name) {
  if (mask.is_none()) return {};
  const bool is_array = py::isinstance<py::array>(mask) && !is_masked(mask);
  if (!is_array || py::array(mask).dtype().num() != py::detail::npy_api::NPY_BOOL_) {
    throw py::type_error(name + ": expected a numpy.ndarray of bool, True for what to keep, got " +
                         (is_array ? "dtype " + text(mask.attr("dtype")) : type_name(mask)));
  }
  const auto shape = shape_of(tensor.p.array), got = shape_of(py::array(mask));
  if (got != shape) {
    throw py::value_error(name + ": expected the shape of " + tensor.name + ", " + describe(shape) + ", got " +
                          describe(got));
  }
  const py::array copy =
      py::module_::import("numpy").attr("array")(mask, py::arg("order") = (tensor.p.layout & c_order) != 0 ? "C" : "F");
  return {copy, static_cast<const std::uint8_t*>(copy.data())};
}

void Optimizer::set_masks(const py::list& masks) {
  const Turn turn(*this);
  if (masks.size() != tensors_.size()) {
    throw py::value_error("masks: expected " + std::to_string(tensors_.size()) + ", one for each parameter, got " +
                          std::to_string(masks.size()));
  }
  std::vector<Mask> made;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const std::string place = tensors_[i].name.substr(std::strlen("params"));
    made.push_back(make_mask(masks[i], tensors_[i], "masks" + place));
  }
  for (std::size_t i = 0; i < tensors_.size(); ++i) tensors_[i].mask = made[i];
}

py::list Optimizer::masks() {
  const Turn turn(*this);
  py::list result;
  for (const Tensor& tensor : tensors_) {
    const py::object& mask = tensor.mask.array;
    result.append(mask.is_none() ? mask : mask.attr("copy")("K"));
  }
  return result;
}

py::list Optimizer::snapshot(bool copy) {
  const Turn turn(*this);
  py::list result;
  for (const Tensor& tensor : tensors_) {
    py::dict d;
    d["step"] = tensor.progress.step;
    if (keeps_mu_product()) d["mu_product"] = tensor.progress.mu_product;
    if (tensor.mask.keep != nullptr) d["mask"] = tensor.mask.array.attr("copy")("K");
    for (std::size_t i = 0; i < tensor.keys.size(); ++i) {
      const py::array& state = tensor.state[i].array;
      d[py::str(tensor.keys[i])] = copy ? state.attr("copy")("K").cast<py::array>() : state;
    }
    result.append(d);
  }
  return result;
}

// Checks what was saved of tensor i.
void Optimizer::read_state(std::size_t i, py::handle saved, Use use, Progress& progress, Mask& mask,
                           std::vector<View>& arrays) const {
  const Tensor& tensor = tensors_[i];
  const std::string name = key_name("state", py::int_(i));
  if (!py::isinstance<py::dict>(saved)) throw py::type_error(name + ": expected a dict, got " + type_name(saved));
  py::list expected;
  expected.append("step");
  if (keeps_mu_product()) expected.append("mu_product");
  if (saved.contains("mask")) expected.append("mask");
  for (const std::string& key : tensor.keys) expected.append(key);
  const py::list got(py::reinterpret_borrow<py::dict>(saved));
  if (py::set(got).not_equal(py::set(expected))) {
    throw py::value_error(name + ": expected the keys " + text(expected) + ", got " + text(got));
  }
  progress.step = count_from(saved["step"], key_name(name, py::str("step")));
  if (saved.contains("mask")) mask = make_mask(saved["mask"], tensor, key_name(name, py::str("mask")));
  if (keeps_mu_product()) {
    const std::string mu_name = key_name(name, py::str("mu_product"));
    progress.mu_product = number_from(saved["mu_product"], mu_name);
    if (!(progress.mu_product >= 0 && progress.mu_product <= 1)) {
      throw py::value_error(mu_name + ": expected a number from 0 to 1, got " + text(saved["mu_product"]));
    }
  }
  for (std::size_t k = 0; k < tensor.keys.size(); ++k) {
    const View& own = tensor.state[k];
    const std::string state_name = key_name(name, py::str(tensor.keys[k]));
    const View v = view_like(own, saved[py::str(tensor.keys[k])], state_name, use);
    check_shape(v, state_name, shape_of(own.array));
    if ((v.layout & own.layout) == 0) {
      throw py::value_error(state_name + ": expected the memory order of " + tensor.name + ", got the other one");
    }
    arrays.push_back(v);
  }
}

void Optimizer::restore(const py::list& saved, const py::object& steps, const py::list& options, bool copy) {
  const Turn turn(*this);
  if (saved.size() != tensors_.size()) {
    throw py::value_error("state: expected " + std::to_string(tensors_.size()) + " tensors, got " +
                          std::to_string(saved.size()));
  }
  const std::int64_t new_steps = count_from(steps, "steps");
  std::vector<Progress> progress(tensors_.size());
  std::vector<Mask> masks(tensors_.size());
  std::vector<View> arrays;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    read_state(i, saved[i], copy ? Use::read : Use::write, progress[i], masks[i], arrays);
  }
  std::vector<Tensor> all;
  if (!copy) {
    all = tensors_;
    auto next = arrays.begin();
    for (Tensor& tensor : all) {
      for (View& state : tensor.state) state = *next++;
    }
    sorted_outputs(all);
  }
  std::vector<Common> commons;
  for (std::size_t i = 0; i < options.size(); ++i) {
    commons.push_back(read_common(options[i]));
    check_rule(i, options[i]);
  }

  for (std::size_t i = 0; i < options.size(); ++i) {
    set_rule(i, options[i]);
    groups_[i].common = commons[i];
  }
  if (!copy) {
    tensors_ = std::move(all);
    outputs_ = sorted_outputs(tensors_);
    pin_outputs();
  }
  auto next = arrays.begin();
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].progress = progress[i];
    tensors_[i].mask = masks[i];
    for (const View& state : tensors_[i].state) {
      if (copy && state.size > 0) {
        std::memmove(state.data, next->data, static_cast<std::size_t>(state.size * state.itemsize));
      }
      ++next;
    }
  }
  steps_ = new_steps;
}

}  // namespace steepest
