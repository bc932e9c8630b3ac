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

// Bytes of what is read again and again that a core's first cache can hold, beside the rest; 0 if its size is unknown.
std::ptrdiff_t room_in_first_cache();

// Of work that moves more bytes than caches hold, what lies so many bytes ahead in each of its arrays is asked for in
// time: as many in all as memory sends while it is waited for.
inline std::ptrdiff_t bytes_ahead(std::ptrdiff_t moved, std::size_t arrays) {
  return moved > 64 << 20 ? (8 << 10) / static_cast<std::ptrdiff_t>(arrays) : 0;
}

}  // namespace steepest
