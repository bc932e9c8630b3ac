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

// How bits are rounded: to nearest, ties to even, or up with the probability of what is cut off, by one end of the
// random bits or the other.
enum class Mode { nearest, upper, lower };

// What to add before the lowest `dropped` bits are cut off.
template <int dropped, Mode mode, class B>
inline B rounding(B b, B random) {
  if constexpr (mode == Mode::nearest) return (1u << (dropped - 1)) - 1 + (b >> dropped & 1);
  return (mode == Mode::upper ? random : random << kLowerEnd) >> (32 - dropped);
}

// bfloat16: the upper half of a float32.

inline Vector<float> widened(const std::uint16_t* x) { return from_bits<Vector<float>>(spread(x) << 16); }

// To be packed.
template <Mode mode>
inline Integers narrowed(Vector<float> x, Words random) {
  const Words b = x == x ? bits(x) : Words{} + kNan;
  return reinterpret_cast<Integers>(b + rounding<16, mode>(b, random)) >> 16;
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

template <bool is_signed>
using Code = std::conditional_t<is_signed, std::int8_t, std::uint8_t>;

// A register of codes of a group without infinities and NaN.
template <bool is_signed>
inline Vector<float> decoded(const std::uint8_t* codes, std::uint32_t base) {
  Words b = spread(reinterpret_cast<const Code<is_signed>*>(codes)) << kDropped;
  if constexpr (is_signed) b &= kSign | 0x7fu << kDropped;
  const Words size = is_signed ? b << 1 : b;
  return from_bits<Vector<float>>(b + (size == 0 ? Words{} : Words{} + (base << kDropped)));
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
inline std::uint32_t top_of(std::int32_t largest) {
  constexpr std::uint32_t least = kLowestBase + highest_code<is_signed>;
  const std::uint32_t top = (static_cast<std::uint32_t>(largest) + (1u << kDropped) - 1) >> kDropped;
  return top > least ? top : least;
}

// The codes of rounded upper bits, which packing will bring up to 0. An average of squares must not become zero.
template <bool is_signed>
inline Halves codes_of(Halves upper, std::int16_t base) {
  if constexpr (is_signed) return (upper & 0x7ff) - base;
  const Halves above = upper - base, one = Halves{} + 1;
  return upper == 0 ? Halves{} : above > one ? above : one;
}

// Four registers of a group without infinities and NaN.
template <bool is_signed, Mode mode>
inline void encode(const float* x, std::uint8_t* codes, std::uint32_t base, const Words* random) {
  const auto uppers = [=](int k) {
    const Words b = bits(load_register(x + k * kLanes));
    return reinterpret_cast<Integers>(b + rounding<kDropped, mode>(b, random[k])) >> kDropped;
  };
  const auto base16 = static_cast<std::int16_t>(base);
  const Halves a = packed(uppers(0), uppers(1)), b = packed(uppers(2), uppers(3));
  Bytes code = packed_unsigned(codes_of<is_signed>(a, base16), codes_of<is_signed>(b, base16));
  if constexpr (is_signed) code |= packed_signed(a, b) & 0x80;  // of all of them the sign survives
  store_bytes(codes, in_order(code));
}

// An element of any group.
template <bool is_signed, Mode mode>
inline std::uint8_t encoded_special(float x, std::uint32_t base, std::uint32_t random) {
  constexpr std::uint32_t highest = highest_code<is_signed>;
  const std::uint32_t b = bits(x), size = bits_of_magnitude(b);
  const std::uint32_t upper = (size + rounding<kDropped, mode>(size, random)) >> kDropped;
  const std::uint32_t lowest = is_signed || upper == 0 ? 0 : 1;
  std::uint32_t code = upper > base + lowest ? upper - base : lowest;
  code = code < highest ? code : highest;
  if (size >= kInfinite) code = size == kInfinite ? highest + 1 : highest + 2;
  return static_cast<std::uint8_t>(is_signed ? code | (b >> 24 & 0x80) : code);
}

}  // namespace
}  // namespace steepest
