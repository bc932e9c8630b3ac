// What an optimizer is made of: its tensors and their state, by groups that have options of their own.
#include <algorithm>

#include "optimizer.hpp"

namespace steepest {
namespace {

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

}  // namespace

std::string key_name(const std::string& what, py::handle key) {
  return what + "[" + py::repr(key).cast<std::string>() + "]";
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
  take_outputs();
}

void Optimizer::take_outputs() {
  outputs_ = sorted_outputs(tensors_);
  pins_.clear();
  for (Tensor& tensor : tensors_) tensor.apart = nullptr;
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

}  // namespace steepest
