// Registers of smaller integers from registers of larger ones, and back. Internal linkage: each ISA has its own copy.
#pragma once

#include <type_traits>

#include "vector_math.hpp"

namespace steepest {
namespace {

using Words = Vector<std::uint32_t>;
using Integers = Vector<std::int32_t>;
using Halves = Vector<std::int16_t>;
using UnsignedHalves = Vector<std::uint16_t>;
using Bytes = Vector<std::uint8_t>;
constexpr int kLanes = kLanesOf<float>;

inline void store_halves(std::uint16_t* y, Halves x) { __builtin_memcpy(y, &x, sizeof x); }
inline void store_bytes(std::uint8_t* y, Bytes x) { __builtin_memcpy(y, &x, sizeof x); }

inline Words smaller(Words a, Words b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return (Words)_mm256_min_epu32((__m256i)a, (__m256i)b);  // g++ makes four instructions of it
#else
  return a < b ? a : b;
#endif
}

// Two registers of `spread` halves stand in the upper halves of words, zeros below them. `spread` bytes stand four bits
// up in halves, their sign above them if they have one, in an order from which `first_words` and `last_words` spread
// them again in their own. Two registers become one of `upper_halves`, and two of those `packed` bytes, in an order
// that `in_order` undoes; `packed_signs` have a sign each. `less` is a - b, or 0 if b is more. `added_where_any` is x +
// y where x has any bit of the mask, else x. `with_bits` puts an array's bits where x has zeros, `store_bits` takes
// them.
#if defined(__AVX512F__)
using Wide = __m512i;
constexpr Words kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
// Of each word the upper half is that half of x, which counts from `first`, and the lower one 0.
inline Words to_upper(Wide x, std::uint32_t first) {
  return (Words)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, (Wide)((kIota + first) << 16), x);
}
inline void spread(const std::uint16_t* x, Words (&y)[2]) {
  const Wide halves = _mm512_loadu_si512(x);
  y[0] = to_upper(halves, 0);
  y[1] = to_upper(halves, kLanes);
}
template <bool is_signed>
inline Halves spread(const std::uint8_t* x) {
  const __m256i bytes = _mm256_loadu_si256((const __m256i*)x);
  if constexpr (is_signed) return (Halves)_mm512_maskz_cvtepi8_epi16(~0u, bytes) << 4;
  return (Halves)_mm512_maskz_cvtepu8_epi16(~0u, bytes) << 4;
}
inline Words first_words(Halves x) { return to_upper((Wide)x, 0); }
inline Words last_words(Halves x) { return to_upper((Wide)x, kLanes); }
inline Halves upper_halves(Words a, Words b) {
  const Words order = kIota * 0x40004 + 0x30001;  // 1, 3, 5, ...
  return (Halves)_mm512_permutex2var_epi16((Wide)a, (Wide)order, (Wide)b);
}
inline Bytes packed(Halves a, Halves b) { return (Bytes)_mm512_packus_epi16((Wide)a, (Wide)b); }
inline Bytes packed_signs(Halves a, Halves b) { return (Bytes)_mm512_packs_epi16((Wide)a, (Wide)b); }
inline Halves in_order(Halves x) { return x; }
inline Bytes in_order(Bytes x) {
  return (Bytes)_mm512_maskz_permutexvar_epi64(0xff, _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), (Wide)x);
}
inline Halves less(Halves a, Halves b) { return (Halves)_mm512_subs_epu16((Wide)a, (Wide)b); }
template <int mask>
inline Halves added_where_any(Halves x, Halves y) {
  const __mmask32 any = _mm512_test_epi16_mask((Wide)x, _mm512_set1_epi16(static_cast<short>(mask)));
  return (Halves)_mm512_mask_add_epi16((Wide)x, any, (Wide)x, (Wide)y);
}
template <int bit>
inline Halves with_bits(Halves x, const std::uint8_t* bits) {
  __mmask32 set;
  __builtin_memcpy(&set, bits, sizeof set);
  return (Halves)_mm512_mask_add_epi16((Wide)x, set, (Wide)x, _mm512_set1_epi16(1 << bit));
}
template <int bit>
inline void store_bits(Halves a, Halves b, std::uint8_t* bits) {
  const Wide one = _mm512_set1_epi16(1 << bit);
  const __mmask32 set[] = {_mm512_test_epi16_mask((Wide)a, one), _mm512_test_epi16_mask((Wide)b, one)};
  __builtin_memcpy(bits, set, sizeof set);
}
#else
#if defined(__AVX2__)
using Wide = __m256i;
inline Wide twice(const void* x) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)x)); }
inline void spread(const std::uint16_t* x, Words (&y)[2]) {
  const Wide order = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                      -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  for (int k = 0; k < 2; ++k) y[k] = (Words)_mm256_shuffle_epi8(twice(x + k * kLanes), order);
}
template <bool is_signed>
inline Halves spread(const std::uint8_t* x) {
  const Wide order = _mm256_setr_epi8(-1, 0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11,  //
                                      -1, 4, -1, 5, -1, 6, -1, 7, -1, 12, -1, 13, -1, 14, -1, 15);
  const Wide y = _mm256_shuffle_epi8(twice(x), order);
  return is_signed ? (Halves)y >> 4 : (Halves)((UnsignedHalves)y >> 4);
}
constexpr UnsignedHalves kBits = {1, 2, 4, 8, 256, 512, 1024, 2048, 16, 32, 64, 128, 4096, 8192, 16384, 32768};
inline Words first_words(Halves x) { return (Words)_mm256_unpacklo_epi16(Wide{}, (Wide)x); }
inline Words last_words(Halves x) { return (Words)_mm256_unpackhi_epi16(Wide{}, (Wide)x); }
inline Halves upper_halves(Words a, Words b) { return (Halves)_mm256_blend_epi16((Wide)(a >> 16), (Wide)b, 0xaa); }
inline Bytes packed(Halves a, Halves b) { return (Bytes)_mm256_packus_epi16((Wide)a, (Wide)b); }
inline Bytes packed_signs(Halves a, Halves b) { return (Bytes)_mm256_packs_epi16((Wide)a, (Wide)b); }
inline Halves in_order(Halves x) {
  const Wide order = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,  //
                                      0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  return (Halves)_mm256_permute4x64_epi64(_mm256_shuffle_epi8((Wide)x, order), 0xd8);
}
inline Bytes in_order(Bytes x) {
  const Wide order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,  //
                                      0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  return (Bytes)_mm256_permutevar8x32_epi32(_mm256_shuffle_epi8((Wide)x, order),
                                            _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
inline Halves less(Halves a, Halves b) { return (Halves)_mm256_subs_epu16((Wide)a, (Wide)b); }
inline Halves where_positive(Halves x, Halves y) { return (Halves)_mm256_sign_epi16((Wide)y, (Wide)x); }
inline std::uint32_t signs_of(Bytes x) { return static_cast<std::uint32_t>(_mm256_movemask_epi8((Wide)x)); }
#elif defined(__SSE2__)
using Wide = __m128i;
inline void spread(const std::uint16_t* x, Words (&y)[2]) {
  const Wide halves = _mm_loadu_si128((const Wide*)x);
  y[0] = (Words)_mm_unpacklo_epi16(Wide{}, halves);
  y[1] = (Words)_mm_unpackhi_epi16(Wide{}, halves);
}
template <bool is_signed>
inline Halves spread(const std::uint8_t* x) {
  const Wide y = _mm_unpacklo_epi8(Wide{}, _mm_loadl_epi64((const __m128i*)x));
  return is_signed ? (Halves)y >> 4 : (Halves)((UnsignedHalves)y >> 4);
}
inline Words first_words(Halves x) { return (Words)_mm_unpacklo_epi16(Wide{}, (Wide)x); }
inline Words last_words(Halves x) { return (Words)_mm_unpackhi_epi16(Wide{}, (Wide)x); }
inline Halves upper_halves(Words a, Words b) {
  return (Halves)_mm_packs_epi32((Wide)((Integers)a >> 16), (Wide)((Integers)b >> 16));
}
inline Bytes packed(Halves a, Halves b) { return (Bytes)_mm_packus_epi16((Wide)a, (Wide)b); }
inline Bytes packed_signs(Halves a, Halves b) { return (Bytes)_mm_packs_epi16((Wide)a, (Wide)b); }
inline Halves less(Halves a, Halves b) { return (Halves)_mm_subs_epu16((Wide)a, (Wide)b); }
inline std::uint16_t signs_of(Bytes x) { return static_cast<std::uint16_t>(_mm_movemask_epi8((Wide)x)); }
#else
template <class To, int shift, class T, int... i>
inline To raised(T x, std::integer_sequence<int, i...>) {
  using E = std::remove_reference_t<decltype(To{}[0])>;
  return To{static_cast<E>(static_cast<std::uint32_t>(x[i]) << shift)...};
}
template <int from, int... i>
constexpr std::integer_sequence<int, from + i...> after(std::integer_sequence<int, i...>) {
  return {};
}
constexpr auto kEach = std::make_integer_sequence<int, kLanes>{};
inline void spread(const std::uint16_t* x, Words (&y)[2]) {
  for (int k = 0; k < 2; ++k) y[k] = raised<Words, 16>(x + k * kLanes, kEach);
}
template <bool is_signed>
inline Halves spread(const std::uint8_t* x) {
  const Halves y = raised<Halves, 8>(x, std::make_integer_sequence<int, 2 * kLanes>{});
  return is_signed ? y >> 4 : (Halves)((UnsignedHalves)y >> 4);
}
inline Words first_words(Halves x) { return raised<Words, 16>(x, kEach); }
inline Words last_words(Halves x) { return raised<Words, 16>(x, after<kLanes>(kEach)); }
inline Halves upper_halves(Words a, Words b) {
  Halves y;
  for (int k = 0; k < kLanes; ++k) {
    y[k] = static_cast<std::int16_t>(a[k] >> 16);
    y[k + kLanes] = static_cast<std::int16_t>(b[k] >> 16);
  }
  return y;
}
inline Bytes packed(Halves a, Halves b) {
  Bytes y;
  for (int k = 0; k < 2 * kLanes; ++k) {
    y[k] = static_cast<std::uint8_t>(a[k]);
    y[k + 2 * kLanes] = static_cast<std::uint8_t>(b[k]);
  }
  return y;
}
inline Bytes packed_signs(Halves a, Halves b) { return packed(a >> 8, b >> 8); }
inline Halves less(Halves a, Halves b) { return a > b ? a - b : Halves{}; }
inline std::uint16_t signs_of(Bytes x) {
  std::uint32_t y = 0;
  for (int k = 0; k < 4 * kLanes; ++k) y |= (x[k] >> 7u) << k;
  return static_cast<std::uint16_t>(y);
}
#endif
#if !defined(__AVX2__)
constexpr UnsignedHalves kBits = {1, 2, 4, 8, 16, 32, 64, 128};
inline Halves in_order(Halves x) { return x; }
inline Bytes in_order(Bytes x) { return x; }
inline Halves where_positive(Halves x, Halves y) { return (x > 0) & y; }
#endif
template <int mask>
inline Halves added_where_any(Halves x, Halves y) {
  return x + where_positive(x & static_cast<std::int16_t>(mask), y);
}
template <int bit>
inline Halves with_bits(Halves x, const std::uint8_t* bits) {
  std::conditional_t<2 * kLanes == 16, std::uint16_t, std::uint8_t> all_bits;
  __builtin_memcpy(&all_bits, bits, sizeof all_bits);
  const UnsignedHalves own = (UnsignedHalves{} + all_bits) & kBits;
  return x | ((Halves)(own == kBits) & static_cast<std::int16_t>(1 << bit));
}
template <int bit>
inline void store_bits(Halves a, Halves b, std::uint8_t* bits) {
  const auto set = signs_of(in_order(packed_signs(a << (15 - bit), b << (15 - bit))));
  __builtin_memcpy(bits, &set, sizeof set);
}
#endif

}  // namespace
}  // namespace steepest
