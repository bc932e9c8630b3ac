// Registers of smaller integers from registers of larger ones, and back. Internal linkage: each ISA has its own copy.
#pragma once

#include <type_traits>

#include "vector_math.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// What is `spread` stands in the upper half of each element, zeros below it. `first_words` and `last_words` spread the
// halves again, which are in the order that lets them. Two registers become one of `upper_halves`, and two of those
// `packed` bytes, in an order that `in_order` undoes. `less` is a - b, or 0 if b is more; x of `where_positive` is not
// negative.
#if defined(__AVX512F__)
using Wide = __m512i;
inline Words spread(const std::uint16_t* x) {
  return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)x)) << 16;
}
inline Halves spread(const std::uint8_t* x) {
  const Wide y = _mm512_maskz_cvtepu8_epi16(~0u, _mm256_loadu_si256((const __m256i*)x));
  return (Halves)_mm512_maskz_permutexvar_epi64(0xff, _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), y) << 8;
}
inline Words first_words(Halves x) { return (Words)_mm512_unpacklo_epi16(Wide{}, (Wide)x); }
inline Words last_words(Halves x) { return (Words)_mm512_unpackhi_epi16(Wide{}, (Wide)x); }
inline Halves upper_halves(Words a, Words b) {
  return (Halves)_mm512_packs_epi32((Wide)((Integers)a >> 16), (Wide)((Integers)b >> 16));
}
inline Bytes packed(Halves a, Halves b) { return (Bytes)_mm512_packus_epi16((Wide)a, (Wide)b); }
inline Bytes packed_signs(Halves a, Halves b) { return (Bytes)_mm512_packs_epi16((Wide)a, (Wide)b); }
inline Halves in_order(Halves x) {
  return (Halves)_mm512_maskz_permutexvar_epi64(0xff, _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), (Wide)x);
}
inline Bytes in_order(Bytes x) {
  const Wide order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Bytes)_mm512_maskz_permutexvar_epi32(0xffff, order, (Wide)x);
}
inline Halves less(Halves a, Halves b) { return (Halves)_mm512_subs_epu16((Wide)a, (Wide)b); }
inline Halves where_positive(Halves x, Halves y) { return (x > 0) & y; }
#elif defined(__AVX2__)
using Wide = __m256i;
inline Wide twice(const void* x) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)x)); }
inline Words spread(const std::uint16_t* x) {
  const Wide order = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                      -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
  return (Words)_mm256_shuffle_epi8(twice(x), order);
}
inline Halves spread(const std::uint8_t* x) {
  const Wide order = _mm256_setr_epi8(-1, 0, -1, 1, -1, 2, -1, 3, -1, 8, -1, 9, -1, 10, -1, 11,  //
                                      -1, 4, -1, 5, -1, 6, -1, 7, -1, 12, -1, 13, -1, 14, -1, 15);
  return (Halves)_mm256_shuffle_epi8(twice(x), order);
}
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
#elif defined(__SSE2__)
using Wide = __m128i;
inline Words spread(const std::uint16_t* x) {
  return (Words)_mm_unpacklo_epi16(Wide{}, _mm_loadl_epi64((const __m128i*)x));
}
inline Halves spread(const std::uint8_t* x) {
  return (Halves)_mm_unpacklo_epi8(Wide{}, _mm_loadl_epi64((const __m128i*)x));
}
inline Words first_words(Halves x) { return (Words)_mm_unpacklo_epi16(Wide{}, (Wide)x); }
inline Words last_words(Halves x) { return (Words)_mm_unpackhi_epi16(Wide{}, (Wide)x); }
inline Halves upper_halves(Words a, Words b) {
  return (Halves)_mm_packs_epi32((Wide)((Integers)a >> 16), (Wide)((Integers)b >> 16));
}
inline Bytes packed(Halves a, Halves b) { return (Bytes)_mm_packus_epi16((Wide)a, (Wide)b); }
inline Bytes packed_signs(Halves a, Halves b) { return (Bytes)_mm_packs_epi16((Wide)a, (Wide)b); }
inline Halves in_order(Halves x) { return x; }
inline Bytes in_order(Bytes x) { return x; }
inline Halves less(Halves a, Halves b) { return (Halves)_mm_subs_epu16((Wide)a, (Wide)b); }
inline Halves where_positive(Halves x, Halves y) { return (x > 0) & y; }
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
inline Words spread(const std::uint16_t* x) { return raised<Words, 16>(x, kEach); }
inline Halves spread(const std::uint8_t* x) {
  return raised<Halves, 8>(x, std::make_integer_sequence<int, 2 * kLanes>{});
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
inline Halves in_order(Halves x) { return x; }
inline Bytes in_order(Bytes x) { return x; }
inline Halves less(Halves a, Halves b) { return a > b ? a - b : Halves{}; }
inline Halves where_positive(Halves x, Halves y) { return (x > 0) & y; }
#endif

}  // namespace
}  // namespace steepest
