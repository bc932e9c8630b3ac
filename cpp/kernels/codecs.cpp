// Low-precision arrays to and from float32: integer operations on its bits alone. Compiled once per ISA.
#include "vector_math.hpp"

namespace steepest {
namespace {

constexpr std::uint32_t kSign = 0x80000000, kInfinite = 0x7f800000, kNan = 0x7fc00000;

inline std::uint32_t bits_of_magnitude(std::uint32_t b) { return b & ~kSign; }

// What to add before the lowest `dropped` bits are cut off: random bits, which round up with the probability of what is
// cut off, or half a unit, to nearest, ties to even.
template <int dropped, bool stochastic>
inline std::uint32_t rounding(std::uint32_t b, std::uint32_t counter) {
  return stochastic ? random_bits(counter) >> (32 - dropped) : (1u << (dropped - 1)) - 1 + (b >> dropped & 1);
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
      const std::uint32_t code = (b + rounding<16, decltype(stochastic)::value>(b, r.key + i)) >> 16;
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

constexpr std::uint32_t kSpecialBase = kInfiniteUpper - 1;  // a code of `highest` + 1 is infinity, of + 2 NaN

// In halves of float32s, for in 16 bits a register holds twice as many.
template <bool is_signed, bool is_finite>
void decode_group(const std::uint8_t* codes, std::uint32_t base, float* y, std::ptrdiff_t n) {
  constexpr std::uint16_t highest = highest_code<is_signed>;
  const auto base16 = static_cast<std::uint16_t>(base);
  std::uint16_t halves[kCodeGroup];
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const std::uint16_t c = codes[i], code = is_signed ? c & 0x7f : c;
    auto upper = static_cast<std::uint16_t>(code + base16);
    if (!is_finite && code > highest) upper = static_cast<std::uint16_t>(code - highest + kSpecialBase);
    const auto size = static_cast<std::uint16_t>(upper << (kDropped - 16));
    const std::uint16_t nonzero = code == 0 ? 0 : size;
    halves[i] = is_signed ? static_cast<std::uint16_t>(nonzero | (c & 0x80) << 8) : nonzero;
  }
  widen(halves, y, n);
}

// The rounded halves of x; returns the largest magnitude's bits.
template <bool stochastic>
inline std::int32_t round_halves(const float* x, std::uint16_t* halves, std::uint32_t key, std::ptrdiff_t n) {
  std::int32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(n); ++i) {
    const std::uint32_t b = bits(x[i]);
    const auto size = static_cast<std::int32_t>(bits_of_magnitude(b));
    largest = size > largest ? size : largest;
    halves[i] = static_cast<std::uint16_t>((b + rounding<kDropped, stochastic>(b, key + i)) >> 16);
  }
  return largest;
}

template <bool is_signed>
void encode_halves(const std::uint16_t* halves, std::uint8_t* codes, std::uint32_t base, std::ptrdiff_t n) {
  const auto base16 = static_cast<std::int16_t>(base);
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const auto upper = static_cast<std::int16_t>((halves[i] & 0x7fff) >> (kDropped - 16));
    const auto above = static_cast<std::int16_t>(upper - base16);
    const std::int16_t lowest = is_signed || upper == 0 ? 0 : 1;  // an average of squares must not become zero
    const std::int16_t code = above > lowest ? above : lowest;
    codes[i] = static_cast<std::uint8_t>(is_signed ? code | (halves[i] >> 8 & 0x80) : code);
  }
}

// The same of a group with infinities or NaN.
template <bool is_signed, bool stochastic>
void encode_special(const float* x, std::uint8_t* codes, std::uint32_t base, std::uint32_t key, std::ptrdiff_t n) {
  constexpr std::uint32_t highest = highest_code<is_signed>;
  for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(n); ++i) {
    const std::uint32_t b = bits(x[i]), size = bits_of_magnitude(b);
    const std::uint32_t upper = (size + rounding<kDropped, stochastic>(size, key + i)) >> kDropped;
    const std::uint32_t lowest = is_signed || upper == 0 ? 0 : 1;
    std::uint32_t code = upper > base + lowest ? upper - base : lowest;
    code = code < highest ? code : highest;
    if (size >= kInfinite) code = size == kInfinite ? highest + 1 : highest + 2;
    codes[i] = static_cast<std::uint8_t>(is_signed ? code | (b >> 24 & 0x80) : code);
  }
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
  const auto scale_of = [](std::int32_t largest) {
    const std::uint32_t top = (static_cast<std::uint32_t>(largest) + (1u << kDropped) - 1) >> kDropped;
    return top > kLowestBase + highest ? top : kLowestBase + highest;
  };
  std::uint16_t halves[kCodeGroup];
  std::int32_t largest = round_halves<stochastic>(x, halves, key, n);
  std::uint32_t top = scale_of(largest);
  if (top < kInfiniteUpper) {
    encode_halves<is_signed>(halves, codes, top - highest, n);
    return from_bits<float>(top << kDropped);
  }
  largest = 0;  // of the finite numbers
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const auto size = static_cast<std::int32_t>(bits_of_magnitude(bits(x[i])));
    if (size > largest && size < static_cast<std::int32_t>(kInfinite)) largest = size;
  }
  top = scale_of(largest);
  top = top < kInfiniteUpper ? top : kInfiniteUpper - 1;
  encode_special<is_signed, stochastic>(x, codes, top - highest, key, n);
  return from_bits<float>(top << kDropped | kSign);
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
