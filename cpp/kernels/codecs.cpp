// bfloat16 to and from float32: integer operations on its bits alone. Compiled once per ISA.
#include "codes.hpp"

namespace steepest {
namespace {

inline float widened(std::uint16_t x) { return from_bits<float>(static_cast<std::uint32_t>(x) << 16); }

void widen(const std::uint16_t* x, float* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) y[i] = widened(x[i]);
}

void narrow(const float* x, std::uint16_t* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const std::uint32_t b = bits(x[i]);
    const std::uint32_t code = (b + rounding<16, false>(b, 0u)) >> 16;
    y[i] = static_cast<std::uint16_t>(bits_of_magnitude(b) > kInfinite ? kNan >> 16 : code);
  }
}

// A float32 as a bfloat16 and what is missing. To nearest, ties away from zero: with ties to even the two would not say
// which of two numbers they are.
inline std::uint32_t split_of(std::uint32_t b) { return (b + 0x8000) >> 16; }

inline std::uint32_t without_payload(std::uint32_t b) { return bits_of_magnitude(b) > kInfinite ? kNan : b; }

void split(const float* x, std::uint16_t* p, std::int16_t* correction, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const std::uint32_t b = without_payload(bits(x[i]));
    p[i] = static_cast<std::uint16_t>(split_of(b));
    correction[i] = static_cast<std::int16_t>(b & 0xffff);
  }
}

void join(const std::uint16_t* p, const std::int16_t* correction, float* x, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    // A zero that was put there by hand has no number before it.
    const std::int32_t c = (p[i] & 0x7fff) == 0 && correction[i] < 0 ? 0 : correction[i];
    x[i] = from_bits<float>((static_cast<std::uint32_t>(p[i]) << 16) + static_cast<std::uint32_t>(c));
  }
}

void round_to_bfloat16(const float* x, std::uint16_t* p, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) p[i] = static_cast<std::uint16_t>(split_of(without_payload(bits(x[i]))));
}

// Takes over the parameters that are not the master weights' roundings: they were changed by hand.
void reconcile(const std::uint16_t* p, float* master, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const std::uint32_t b = without_payload(bits(master[i]));
    master[i] = split_of(b) == p[i] ? master[i] : widened(p[i]);
  }
}

}  // namespace

extern const CodecKernels STEEPEST_NAME(codecs_f32);
const CodecKernels STEEPEST_NAME(codecs_f32){widen, narrow, split, join, round_to_bfloat16, reconcile};

}  // namespace steepest
