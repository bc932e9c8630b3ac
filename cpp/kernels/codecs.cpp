// Low-precision arrays to and from float32: integer operations on its bits alone. Compiled once per ISA.
#include "vector_math.hpp"

namespace steepest {
namespace {

constexpr std::uint32_t kSign = 0x80000000, kInfinite = 0x7f800000, kNan = 0x7fc00000;

inline std::uint32_t bits_of_magnitude(std::uint32_t b) { return b & ~kSign; }

// The upper bits that are left without the lowest `dropped` ones, rounded: up with the probability of what is
// dropped, or to nearest, ties to even.
template <int dropped, bool stochastic>
inline std::uint32_t rounded(std::uint32_t b, std::uint32_t random) {
  const std::uint32_t up = stochastic ? random >> (32 - dropped) : (1u << (dropped - 1)) - 1 + (b >> dropped & 1);
  return (b + up) >> dropped;
}

// Calls f(stochastic) with the flag as a type.
template <class F>
inline void with_rounding(const Rounding& r, F f) {
  if (r.is_stochastic) {
    f(Flag<true>{});
  } else {
    f(Flag<false>{});
  }
}

// bfloat16: the upper half of a float32.

inline float widened(std::uint16_t x) { return from_bits<float>(static_cast<std::uint32_t>(x) << 16); }

void widen(const std::uint16_t* x, float* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) y[i] = widened(x[i]);
}

void narrow(const float* x, std::uint16_t* y, Rounding r, std::ptrdiff_t n) noexcept {
  with_rounding(r, [=](auto stochastic) {
#pragma omp simd
    for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(n); ++i) {
      const std::uint32_t b = bits(x[i]);
      const std::uint32_t code = rounded<16, decltype(stochastic)::value>(b, random_bits(r.key + i));
      y[i] = static_cast<std::uint16_t>(bits_of_magnitude(b) > kInfinite ? kNan >> 16 : code);
    }
  });
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

// 8-bit codes: a sign if there is one, five or four bits of exponent and three of mantissa. The scale of a group is the
// float32 of its highest code; the others lie below it as float32s do, each step 1/8 to 1/16 of the number. So a code
// is the number's upper 12 bits less those of the scale: integers, whatever the scale. A negative scale says that some
// of the group are infinity or NaN, for which there are two codes more; the other groups, nearly all, need not look.

constexpr int kDropped = 20;  // bits of a float32 that codes don't have
constexpr std::uint32_t kInfiniteUpper = kInfinite >> kDropped;
constexpr std::uint32_t kLowestBase = (1u << (23 - kDropped)) - 1;  // a code of 1 is then the smallest normal number

template <bool is_signed>
constexpr std::uint32_t highest_code = is_signed ? 125 : 253;

// The codes go through a buffer of 32-bit integers: the compiler would else do parts of the arithmetic in 8 bits, and
// convert many times.
template <bool is_signed, bool is_finite>
void decode_group(const std::uint8_t* codes, std::uint32_t base, float* y, std::ptrdiff_t n) {
  constexpr std::uint32_t highest = highest_code<is_signed>;
  std::uint32_t wide[kCodeGroup];
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) wide[i] = codes[i];
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const std::uint32_t code = is_signed ? wide[i] & 0x7f : wide[i];
    std::uint32_t upper = code + base;
    if (!is_finite) upper = code > highest ? code + (kInfiniteUpper - highest - 1) : upper;
    const std::uint32_t size = code == 0 ? 0 : upper << kDropped;
    y[i] = from_bits<float>(is_signed ? size | (wide[i] & 0x80) << 24 : size);
  }
}

template <bool is_signed, bool is_finite, bool stochastic>
void encode_group(const float* x, std::uint8_t* codes, std::uint32_t base, std::uint32_t key, std::ptrdiff_t n) {
  constexpr std::uint32_t highest = highest_code<is_signed>;
  std::uint32_t wide[kCodeGroup];
#pragma omp simd
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(n); ++i) {
    const std::uint32_t b = bits(x[i]), size = bits_of_magnitude(b);
    const std::uint32_t random = stochastic ? random_bits(key + i) : 0;
    const auto above = static_cast<std::int32_t>(rounded<kDropped, stochastic>(size, random) - base);
    const std::int32_t lowest = !is_signed && size != 0;  // an average of squares must not become zero
    auto code = static_cast<std::uint32_t>(above > lowest ? above : lowest);
    if (!is_finite) {
      code = code < highest ? code : highest;
      code = size < kInfinite ? code : size == kInfinite ? highest + 1 : highest + 2;
    }
    wide[i] = is_signed ? code | (b >> 24 & 0x80) : code;
  }
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(wide[i]);
}

template <bool is_signed>
void decode_group(const std::uint8_t* codes, float scale, float* y, std::ptrdiff_t n) {
  const std::uint32_t base = (bits_of_magnitude(bits(scale)) >> kDropped) - highest_code<is_signed>;
  if ((bits(scale) & kSign) == 0) {
    decode_group<is_signed, true>(codes, base, y, n);
  } else {
    decode_group<is_signed, false>(codes, base, y, n);
  }
}

template <bool is_signed, bool stochastic>
float encode_group(const float* x, std::uint8_t* codes, std::uint32_t key, std::ptrdiff_t n) {
  constexpr std::uint32_t highest = highest_code<is_signed>;
  std::int32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const auto size = static_cast<std::int32_t>(bits_of_magnitude(bits(x[i])));
    largest = size > largest ? size : largest;
  }
  const auto rounded_up = [](std::int32_t size) {
    return (static_cast<std::uint32_t>(size) + (1u << kDropped) - 1) >> kDropped;
  };
  std::uint32_t top = rounded_up(largest);
  const bool is_finite = top < kInfiniteUpper;
  if (!is_finite) {
    largest = 0;
    for (std::ptrdiff_t i = 0; i < n; ++i) {
      const auto size = static_cast<std::int32_t>(bits_of_magnitude(bits(x[i])));
      largest = size > largest && size < static_cast<std::int32_t>(kInfinite) ? size : largest;
    }
    top = rounded_up(largest);
    top = top < kInfiniteUpper ? top : kInfiniteUpper - 1;
  }
  top = top > kLowestBase + highest ? top : kLowestBase + highest;
  const std::uint32_t base = top - highest, scale = top << kDropped;
  if (is_finite) {
    encode_group<is_signed, true, stochastic>(x, codes, base, key, n);
    return from_bits<float>(scale);
  }
  encode_group<is_signed, false, stochastic>(x, codes, base, key, n);
  return from_bits<float>(scale | kSign);
}

// Calls f(begin, n, group) for the groups of n elements.
template <class F>
inline void for_groups(std::ptrdiff_t n, F f) {
  for (std::ptrdiff_t i = 0; i < n; i += kCodeGroup) f(i, n - i < kCodeGroup ? n - i : kCodeGroup, i / kCodeGroup);
}

template <bool is_signed>
void decode(const std::uint8_t* codes, const float* scales, float* y, std::ptrdiff_t n) noexcept {
  for_groups(n, [=](std::ptrdiff_t i, std::ptrdiff_t size, std::ptrdiff_t group) {
    decode_group<is_signed>(codes + i, scales[group], y + i, size);
  });
}

template <bool is_signed>
void encode(const float* x, std::uint8_t* codes, float* scales, Rounding r, std::ptrdiff_t n) noexcept {
  with_rounding(r, [=](auto stochastic) {
    for_groups(n, [=](std::ptrdiff_t i, std::ptrdiff_t size, std::ptrdiff_t group) {
      const std::uint32_t key = r.key + static_cast<std::uint32_t>(i);
      scales[group] = encode_group<is_signed, decltype(stochastic)::value>(x + i, codes + i, key, size);
    });
  });
}

}  // namespace

extern const CodecKernels STEEPEST_NAME(codecs_f32);
const CodecKernels STEEPEST_NAME(codecs_f32){widen,     narrow,        split,        join,          round_to_bfloat16,
                                             reconcile, decode<false>, decode<true>, encode<false>, encode<true>};

}  // namespace steepest
