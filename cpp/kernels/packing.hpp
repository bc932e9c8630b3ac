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
using Bytes = Vector<std::uint8_t>;
constexpr int kLanes = kLanesOf<float>;

inline Words load_words(const std::uint32_t* x) { return load_register(x); }

// A register of as many smaller integers: one instruction, but with SSE2
template <class T, int... i>
inline Integers spread(const T* x, std::integer_sequence<int, i...>) {
  return Integers{static_cast<std::int32_t>(x[i])...};
}
template <class T>
inline Words spread(const T* x) {
  return reinterpret_cast<Words>(spread(x, std::make_integer_sequence<int, kLanes>{}));
}

inline void store_halves(std::uint16_t* y, Halves x) { __builtin_memcpy(y, &x, sizeof x); }
inline void store_bytes(std::uint8_t* y, Bytes x) { __builtin_memcpy(y, &x, sizeof x); }

// Two registers as one of elements of half the size; what lies beyond their range becomes its end. Each 128 bits of the
// result come from the same 128 bits of both: `in_order` puts what was packed once, or twice, as it was.
#if defined(__AVX512F__)
using Packed = __m512i;
inline Halves packed(Integers a, Integers b) { return (Halves)_mm512_packs_epi32((Packed)a, (Packed)b); }
inline Bytes packed_signed(Halves a, Halves b) { return (Bytes)_mm512_packs_epi16((Packed)a, (Packed)b); }
inline Bytes packed_unsigned(Halves a, Halves b) { return (Bytes)_mm512_packus_epi16((Packed)a, (Packed)b); }
inline Halves in_order(Halves x) {
  return (Halves)_mm512_maskz_permutexvar_epi64(0xff, _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), (Packed)x);
}
inline Bytes in_order(Bytes x) {
  const Packed order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (Bytes)_mm512_maskz_permutexvar_epi32(0xffff, order, (Packed)x);
}
#elif defined(__AVX2__)
using Packed = __m256i;
inline Halves packed(Integers a, Integers b) { return (Halves)_mm256_packs_epi32((Packed)a, (Packed)b); }
inline Bytes packed_signed(Halves a, Halves b) { return (Bytes)_mm256_packs_epi16((Packed)a, (Packed)b); }
inline Bytes packed_unsigned(Halves a, Halves b) { return (Bytes)_mm256_packus_epi16((Packed)a, (Packed)b); }
inline Halves in_order(Halves x) { return (Halves)_mm256_permute4x64_epi64((Packed)x, 0xd8); }
inline Bytes in_order(Bytes x) {
  return (Bytes)_mm256_permutevar8x32_epi32((Packed)x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
#elif defined(__SSE2__)
using Packed = __m128i;
inline Halves packed(Integers a, Integers b) { return (Halves)_mm_packs_epi32((Packed)a, (Packed)b); }
inline Bytes packed_signed(Halves a, Halves b) { return (Bytes)_mm_packs_epi16((Packed)a, (Packed)b); }
inline Bytes packed_unsigned(Halves a, Halves b) { return (Bytes)_mm_packus_epi16((Packed)a, (Packed)b); }
inline Halves in_order(Halves x) { return x; }
inline Bytes in_order(Bytes x) { return x; }
#else
template <class To, int low, int high, class V>
inline To packed_within(V a, V b) {
  constexpr int n = sizeof(V) / sizeof(a[0]);
  To y;
  for (int k = 0; k < 2 * n; ++k) {
    const int x = k < n ? a[k] : b[k - n];
    y[k] = static_cast<std::remove_reference_t<decltype(y[k])>>(x < low ? low : x > high ? high : x);
  }
  return y;
}
inline Halves packed(Integers a, Integers b) { return packed_within<Halves, -0x8000, 0x7fff>(a, b); }
inline Bytes packed_signed(Halves a, Halves b) { return packed_within<Bytes, -0x80, 0x7f>(a, b); }
inline Bytes packed_unsigned(Halves a, Halves b) { return packed_within<Bytes, 0, 0xff>(a, b); }
inline Halves in_order(Halves x) { return x; }
inline Bytes in_order(Bytes x) { return x; }
#endif

}  // namespace
}  // namespace steepest
