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

inline void widen(const std::uint16_t* x, Vector<float> (&y)[2]) {
  Words words[2];
  spread(x, words);
  for (int k = 0; k < 2; ++k) y[k] = from_bits<Vector<float>>(words[k]);
}

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

// 8-bit codes of a magnitude: five bits of exponent and three of mantissa, or, of numbers with a sign, four of either.
// The scale of a group is the float32 of its highest code; the others lie below it as float32s do. So a code is the
// number's upper 12 (13) bits less those of the scale: integers, whatever the scale. A byte holds a code or, where
// there is a sign, that and all of the code but its last bit, which stands in an array of bits. A negative scale says
// that some of the group are infinity or NaN, for which there are two codes more; the other groups, nearly all, need
// not look.

template <bool is_signed>
constexpr int kDropped = is_signed ? 19 : 20;  // bits of a float32 that codes don't have
constexpr int kRandomBits = kDropped<false>;
template <bool is_signed>
constexpr int kDown = kDropped<is_signed> - 16;  // where a code begins in the upper half
template <bool is_signed>
constexpr std::uint32_t kInfiniteUpper = kInfinite >> kDropped<is_signed>;
template <bool is_signed>
constexpr std::uint32_t kLowestBase = (1u << (23 - kDropped<is_signed>)) - 1;  // the least code is a normal number
constexpr std::uint32_t kHighest = 253;                                        // then infinity, then NaN

// A group's base, which decoding and encoding take as it stands in upper halves.
template <bool is_signed>
inline Halves lifted(std::uint32_t base) {
  return Halves{} + static_cast<std::int16_t>(base << kDown<is_signed>);
}

// Two registers of codes of a group without infinities and NaN.
template <bool is_signed>
inline void decode(const std::uint8_t* codes, const std::uint8_t* bits, Halves base, Vector<float> (&x)[2]) {
  Halves code = spread<is_signed>(codes);
  if constexpr (is_signed) code = with_bits<kDown<true>>(code & static_cast<std::int16_t>(0x87f0), bits);
  code = added_where_any<is_signed ? 0x7fff : -1>(code, base);
  x[0] = from_bits<Vector<float>>(first_words(code));
  x[1] = from_bits<Vector<float>>(last_words(code));
}

// A code of any group, with its sign in the highest of nine bits.
template <bool is_signed>
inline float decoded_special(std::uint32_t c, std::uint32_t base) {
  const std::uint32_t code = c & 0xff;
  const std::uint32_t upper = code == 0         ? 0
                              : code > kHighest ? code - kHighest - 1 + kInfiniteUpper<is_signed>
                                                : code + base;
  return from_bits<float>(upper << kDropped<is_signed> | (c & 0x100) << 23);
}

template <bool is_signed>
inline std::uint32_t base_of(float scale) {
  const std::uint32_t top = bits_of_magnitude(bits(scale)) >> kDropped<is_signed>;
  return top - kHighest;
}

// The upper bits of the scale of a group whose largest magnitude has these bits.
template <bool is_signed>
inline std::uint32_t top_of(std::uint32_t largest) {
  constexpr std::uint32_t least = kLowestBase<is_signed> + kHighest, below = (1u << kDropped<is_signed>)-1;
  const std::uint32_t top = (largest + below) >> kDropped<is_signed>;
  return top > least ? top : least;
}

// The codes of upper halves of rounded numbers, still kDown up. An average of squares must not become zero.
template <bool is_signed>
inline Halves codes_of(Halves upper, Halves base) {
  if constexpr (is_signed) return less(upper & 0x7fff, base);
  const Halves above = less(upper, base), one = Halves{} + static_cast<std::int16_t>(1 << kDown<false>);
  const Halves least = upper < one ? upper : one;
  return above > least ? above : least;
}

// Four registers of a group without infinities and NaN.
template <bool is_signed, bool is_random>
inline void encode(const float* x, std::uint8_t* codes, std::uint8_t* last_bits, Halves base, const Words* random) {
  const auto rounded = [=](int k) {
    const Words b = bits(load_register(x + k * kLanes));
    return b + rounding<kDropped<is_signed>, is_random>(b, random[k] >> (kRandomBits - kDropped<is_signed>));
  };
  const Halves upper[] = {upper_halves(rounded(0), rounded(1)), upper_halves(rounded(2), rounded(3))};
  const Halves code[] = {codes_of<is_signed>(upper[0], base), codes_of<is_signed>(upper[1], base)};
  Bytes packed_codes = packed(code[0] >> 4, code[1] >> 4);
  if constexpr (is_signed) {
    packed_codes |= packed_signs(upper[0], upper[1]) & 0x80;
    store_bits<kDown<true>>(code[0], code[1], last_bits);
  }
  store_bytes(codes, in_order(packed_codes));
}

// An element of any group, with its sign in the highest of nine bits.
template <bool is_signed, bool is_random>
inline std::uint32_t encoded_special(float x, std::uint32_t base, std::uint32_t random) {
  const std::uint32_t b = bits(x), size = bits_of_magnitude(b);
  const std::uint32_t rounds =
      rounding<kDropped<is_signed>, is_random>(size, random >> (kRandomBits - kDropped<is_signed>));
  const std::uint32_t upper = (size + rounds) >> kDropped<is_signed>;
  const std::uint32_t lowest = is_signed || upper == 0 ? 0 : 1;
  std::uint32_t code = upper > base + lowest ? upper - base : lowest;
  code = code < kHighest ? code : kHighest;
  if (size >= kInfinite) code = size == kInfinite ? kHighest + 1 : kHighest + 2;
  return is_signed ? code | (b >> 23 & 0x100) : code;
}

inline bool bit_at(const std::uint8_t* bits, std::ptrdiff_t i) { return (bits[i / 8] >> (i % 8) & 1) != 0; }
inline void put_bit(bool is_set, std::uint8_t* bits, std::ptrdiff_t i) {
  const unsigned bit = 1u << (i % 8);
  bits[i / 8] = static_cast<std::uint8_t>((bits[i / 8] & ~bit) | (is_set ? bit : 0));
}

// Element i's code, with its sign in the highest of nine bits.
template <bool is_signed>
inline std::uint32_t code_at(const std::uint8_t* codes, const std::uint8_t* last_bits, std::ptrdiff_t i) {
  const std::uint32_t c = codes[i];
  return is_signed ? c << 1 | bit_at(last_bits, i) : c;
}
template <bool is_signed>
inline void put_code(std::uint32_t c, std::uint8_t* codes, std::uint8_t* last_bits, std::ptrdiff_t i) {
  codes[i] = static_cast<std::uint8_t>(is_signed ? c >> 1 : c);
  if constexpr (is_signed) put_bit((c & 1) != 0, last_bits, i);
}

}  // namespace
}  // namespace steepest
