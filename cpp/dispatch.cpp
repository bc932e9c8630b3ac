#include "dispatch.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "isas.hpp"  // made by CMakeLists.txt

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#ifndef _WIN32
#include <unistd.h>
#endif

namespace steepest {

#define STEEPEST_DECLARE(isa)                             \
  extern const RuleKernels<float> rules_f32_##isa;        \
  extern const RuleKernels<double> rules_f64_##isa;       \
  extern const LossKernels<float> losses_f32_##isa;       \
  extern const LossKernels<double> losses_f64_##isa;      \
  extern const LayerKernels<float> layers_f32_##isa;      \
  extern const LayerKernels<double> layers_f64_##isa;     \
  extern const QuantizedKernels quantized_f32_##isa;      \
  extern const CodedRuleKernels coded_f32_##isa;          \
  extern const CodecKernels codecs_f32_##isa;             \
  extern const ProductKernels<float> products_f32_##isa;  \
  extern const ProductKernels<double> products_f64_##isa; \
  extern const StreamKernels<float> streams_f32_##isa;    \
  extern const StreamKernels<double> streams_f64_##isa;
STEEPEST_FOR_EACH_ISA(STEEPEST_DECLARE)
#undef STEEPEST_DECLARE
extern const QuantizedKernels quantized_f32_avx512vnni;

namespace {

struct Isa {
  const char* name;
  bool (*is_supported)();
  Kernels kernels;
};

#if defined(__x86_64__)

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf) {
  Registers r;
  __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// Whether the operating system saves the registers of this mask on a context switch.
bool os_saves(unsigned mask) {
  constexpr unsigned osxsave = 1u << 27;
  if ((cpuid(1).ecx & osxsave) == 0) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & mask) == mask;
}

bool has_sse2() { return true; }

bool has_avx2() {
  constexpr unsigned avx = 1u << 28, fma = 1u << 12, avx2 = 1u << 5, both = avx | fma;
  return os_saves(0x06) && (cpuid(1).ecx & both) == both && (cpuid(7).ebx & avx2) != 0;
}

bool has_avx512() {
  constexpr unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, all = f | dq | bw | vl;
  return has_avx2() && os_saves(0xe6) && (cpuid(7).ebx & all) == all;
}

// A CPU with AVX-512 that also adds products of int16 in one instruction takes other kernels for these alone.
const QuantizedKernels& fitting(const QuantizedKernels& quantized) {
  constexpr unsigned vnni = 1u << 11;
  const bool has_vnni = has_avx512() && (cpuid(7).ecx & vnni) != 0;
  return &quantized == &quantized_f32_avx512 && has_vnni ? quantized_f32_avx512vnni : quantized;
}

#else

bool has_neon() { return true; }

const QuantizedKernels& fitting(const QuantizedKernels& quantized) { return quantized; }

#endif

#define STEEPEST_ENTRY(isa)                                                                                   \
  {#isa,                                                                                                      \
   has_##isa,                                                                                                 \
   {rules_f32_##isa, rules_f64_##isa, losses_f32_##isa, losses_f64_##isa, layers_f32_##isa, layers_f64_##isa, \
    fitting(quantized_f32_##isa), coded_f32_##isa, codecs_f32_##isa, products_f32_##isa, products_f64_##isa,  \
    streams_f32_##isa, streams_f64_##isa}},
const auto& all_isas() {
  static const Isa all[] = {STEEPEST_FOR_EACH_ISA(STEEPEST_ENTRY)};  // without a destructor: used while others exit
  return all;
}
#undef STEEPEST_ENTRY

const Isa* find(const std::string& name) {
  std::string known;
  for (const Isa& candidate : all_isas()) {
    if (candidate.name == name) {
      if (candidate.is_supported()) return &candidate;
      throw std::runtime_error("ISA " + name + " is not supported by this CPU or its operating system; it has " +
                               isas().back() + " and below");
    }
    known += std::string(known.empty() ? "" : ", ") + candidate.name;
  }
  throw std::runtime_error("ISA \"" + name + "\" is not known; expected one of " + known);
}

const Isa* choose() {
  const char* name = std::getenv("STEEPEST_ISA");
  if (name == nullptr || *name == '\0') return find(isas().back());
  try {
    return find(name);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string("STEEPEST_ISA: ") + error.what());
  }
}

std::atomic<const Isa*> chosen{nullptr};

const Isa& current() {
  const Isa* isa = chosen.load(std::memory_order_acquire);
  if (isa == nullptr) {
    isa = choose();
    chosen.store(isa, std::memory_order_release);
  }
  return *isa;
}

}  // namespace

const Kernels& kernels() { return current().kernels; }

const CodedRuleKernels& coded_rules() { return current().kernels.coded_f32; }

const CodecKernels& codecs() { return current().kernels.codecs_f32; }

std::string isa() { return current().name; }

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Isa& candidate : all_isas()) {
    if (candidate.is_supported()) names.emplace_back(candidate.name);
  }
  return names;
}

void set_isa(const std::string& name) { chosen.store(find(name), std::memory_order_release); }

std::ptrdiff_t room_in_first_cache() {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  static const std::ptrdiff_t room = std::max(sysconf(_SC_LEVEL1_DCACHE_SIZE), 0L) * 2 / 3;
  return room;
#else
  return 0;
#endif
}

template <>
const RuleKernels<float>& rules<float>() {
  return kernels().rules_f32;
}
template <>
const RuleKernels<double>& rules<double>() {
  return kernels().rules_f64;
}
template <>
const LossKernels<float>& losses<float>() {
  return kernels().losses_f32;
}
template <>
const LossKernels<double>& losses<double>() {
  return kernels().losses_f64;
}
template <>
const LayerKernels<float>& layers<float>() {
  return kernels().layers_f32;
}
template <>
const LayerKernels<double>& layers<double>() {
  return kernels().layers_f64;
}
template <>
const ProductKernels<float>& products<float>() {
  return kernels().products_f32;
}
template <>
const ProductKernels<double>& products<double>() {
  return kernels().products_f64;
}
template <>
const StreamKernels<float>& streams<float>() {
  return kernels().streams_f32;
}
template <>
const StreamKernels<double>& streams<double>() {
  return kernels().streams_f64;
}

}  // namespace steepest
