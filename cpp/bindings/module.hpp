// One register function per topic.
#pragma once

#include <pybind11/pybind11.h>

namespace steepest {

void register_chain(pybind11::module_& m);
void register_rules(pybind11::module_& m);
void register_layers(pybind11::module_& m);
void register_losses(pybind11::module_& m);
void register_quantized(pybind11::module_& m);
void register_products(pybind11::module_& m);
void register_rows(pybind11::module_& m);
void register_runtime(pybind11::module_& m);
void register_softmax(pybind11::module_& m);
void register_stream(pybind11::module_& m);
void register_tensors(pybind11::module_& m);

}  // namespace steepest
