#include "module.hpp"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.attr("__version__") = STEEPEST_VERSION;
  steepest::register_chain(m);
  steepest::register_rows(m);
  steepest::register_runtime(m);
  steepest::register_stream(m);
  steepest::register_rules(m);
  steepest::register_tensors(m);
  steepest::register_losses(m);
  steepest::register_softmax(m);
  steepest::register_layers(m);
  steepest::register_quantized(m);
  steepest::register_products(m);
}
