// What of an optimizer is saved, and put back: masks, state, counts of steps.
#include <cstring>

#include "optimizer.hpp"

namespace steepest {

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
    take_outputs();
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
