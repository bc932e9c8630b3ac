// float32 to and from 8-bit codes and bfloat16, by registers: integer operations on its bits alone. Internal linkage:
// each ISA has its own copy.
#pragma once

#include "packing.hpp"

namespace steepest {
namespace {

constexpr std::uint32_t kSign = 0x80000000, kInfinite = 0x7f800000, kNan = 0x7fc00000;

template <class B>
inline B bits_of_magnitude(B b) {
  return b & ~kSign;
}

// Elements that are encoded at a time, a whole number of registers of packed bytes.
constexpr int kEncoded = 4 * kLanes > kSharing ? 4 * kLanes : kSharing, kRegisters = kEncoded / kLanes;

// Random bits of kEncoded elements after the other, `dropped` of them each: of two elements, kSharing / 2 apart, one
// takes the upper end of a hash, the other the lower.
template <int dropped>
class Random {
 public:
  explicit Random(std::uint32_t counter) {
    for (int k = 0; k < kLanes; ++k) x_[k] = first_mix(counter + static_cast<std::uint32_t>(k));
  }
  void next(Words (&random)[kRegisters]) {
    constexpr int apart = kSharing / 2 / kLanes;
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; r += r % apart == apart - 1 ? apart + 1 : 1) {
      const Words y = second_mix(x_);
      x_ += first_mix(kLanes);
      random[r] = y >> (32 - dropped);
      random[r + apart] = y & ((1u << dropped) - 1);
    }
  }

 private:
  Words x_;
};

// Element i's.
template <int dropped>
inline std::uint32_t random_bits(std::uint32_t counter, std::uint32_t i) {
  constexpr std::uint32_t half = kSharing / 2;
  const std::uint32_t y = second_mix(first_mix(counter + i / kSharing * half + i % half));
  return i % kSharing < half ? y >> (32 - dropped) : y & ((1u << dropped) - 1);
}

// What to add before the lowest `dropped` bits are cut off: so many random bits, which round up with the probability of
// what is cut off, or what rounds to nearest, ties to even.
template <int dropped, bool is_random, class B>
inline B rounding(B b, B random) {
  if constexpr (is_random) return random;
  return (1u << (dropped - 1)) - 1 + (b >> dropped & 1);
}

// bfloat16: the upper half of a float32.

inline Vector<float> widened(const std::uint16_t* x) { return from_bits<Vector<float>>(spread(x)); }

// Two registers. An average of squares is a NaN where its sign says that it is negative.
template <bool is_squares, bool is_random>
inline void narrow(const float* x, std::uint16_t* y, const Words* random) {
  const auto rounded = [=](int k) {
    const Vector<float> value = load_register(x + k * kLanes);
    const Words nan = Words{} + kNan;
    Words b = bits(value);
    if constexpr (is_squares) {
      b = smaller(b, nan);
    } else {
      b = value == value ? b : nan;
    }
    return b + rounding<16, is_random>(b, random[k]);
  };
  store_halves(y, in_order(upper_halves(rounded(0), rounded(1))));
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

// Two registers of codes of a group without infinities and NaN.
template <bool is_signed>
inline void decode(const std::uint8_t* codes, std::uint32_t base, Vector<float> (&x)[2]) {
  constexpr int down = 24 - kDropped;
  Halves code = spread(codes), size;
  if constexpr (is_signed) {
    code = code >> down & static_cast<std::int16_t>(0x8000 | 0x7f << (8 - down));
    size = code << 1;
  } else {
    size = code = reinterpret_cast<Halves>(reinterpret_cast<UnsignedHalves>(code) >> down);
  }
  code += where_positive(size, Halves{} + static_cast<std::int16_t>(base << down));
  x[0] = from_bits<Vector<float>>(first_words(code));
  x[1] = from_bits<Vector<float>>(last_words(code));
}

// A code of any group.
template <bool is_signed>
inline float decoded_special(std::uint8_t c, std::uint32_t base) {
  constexpr std::uint32_t highest = highest_code<is_signed>;
  const std::uint32_t code = is_signed ? c & 0x7f : c;
  const std::uint32_t upper = code == 0 ? 0 : code > highest ? code - highest + kSpecialBase : code + base;
  return from_bits<float>(upper << kDropped | (is_signed ? (c & 0x80u) << 24 : 0));
}

inline std::uint32_t base_of(float scale, std::uint32_t highest) {
  return (bits_of_magnitude(bits(scale)) >> kDropped) - highest;
}

// The upper bits of the scale of a group whose largest magnitude has these bits.
template <bool is_signed>
inline std::uint32_t top_of(std::uint32_t largest) {
  constexpr std::uint32_t least = kLowestBase + highest_code<is_signed>;
  const std::uint32_t top = (largest + (1u << kDropped) - 1) >> kDropped;
  return top > least ? top : least;
}

// The codes of upper halves of rounded numbers, which packing puts in the lower bytes. An average of squares must not
// become zero.
template <bool is_signed>
inline Halves codes_of(Halves upper, Halves base) {
  constexpr int down = 24 - kDropped;
  if constexpr (is_signed) return less(upper & 0x7fff, base) >> down;
  const Halves above = less(upper, base), one = Halves{} + static_cast<std::int16_t>(1 << down);
  const Halves least = upper < one ? upper : one;
  return (above > least ? above : least) >> down;
}

// Four registers of a group without infinities and NaN.
template <bool is_signed, bool is_random>
inline void encode(const float* x, std::uint8_t* codes, std::uint32_t base, const Words* random) {
  const auto rounded = [=](int k) {
    const Words b = bits(load_register(x + k * kLanes));
    return b + rounding<kDropped, is_random>(b, random[k]);
  };
  const Halves below = Halves{} + static_cast<std::int16_t>(base << (24 - kDropped));
  const Halves a = upper_halves(rounded(0), rounded(1)), b = upper_halves(rounded(2), rounded(3));
  Bytes code = packed(codes_of<is_signed>(a, below), codes_of<is_signed>(b, below));
  if constexpr (is_signed) code |= packed_signs(a, b) & 0x80;
  store_bytes(codes, in_order(code));
}

// An element of any group.
template <bool is_signed, bool is_random>
inline std::uint8_t encoded_special(float x, std::uint32_t base, std::uint32_t random) {
  constexpr std::uint32_t highest = highest_code<is_signed>;
  const std::uint32_t b = bits(x), size = bits_of_magnitude(b);
  const std::uint32_t upper = (size + rounding<kDropped, is_random>(size, random)) >> kDropped;
  const std::uint32_t lowest = is_signed || upper == 0 ? 0 : 1;
  std::uint32_t code = upper > base + lowest ? upper - base : lowest;
  code = code < highest ? code : highest;
  if (size >= kInfinite) code = size == kInfinite ? highest + 1 : highest + 2;
  return static_cast<std::uint8_t>(is_signed ? code | (b >> 24 & 0x80) : code);
}

}  // namespace
}  // namespace steepest
