// Which ISA's kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace steepest {

// The kernels in force. Chosen at the first call: what STEEPEST_ISA names, else the widest that the CPU and the
// operating system support. Throws std::runtime_error if STEEPEST_ISA names something else.
const Kernels& kernels();

std::string isa();                // of the kernels in force
std::vector<std::string> isas();  // what this machine can run, narrowest first
void set_isa(const std::string& name);

template <class T>
const RuleKernels<T>& rules();
template <class T>
const LossKernels<T>& losses();
template <class T>
const LayerKernels<T>& layers();
const CodedRuleKernels& coded_rules();
const CodecKernels& codecs();
template <class T>
const ProductKernels<T>& products();
template <class T>
const StreamKernels<T>& streams();

}  // namespace steepest
