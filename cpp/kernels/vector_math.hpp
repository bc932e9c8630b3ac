// What the kernels share, written so that the compiler vectorises it and every ISA gives the same bits: + - * /,
// comparisons and integer operations only. Internal linkage: each ISA has its own copy.
#pragma once

#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.hpp"

#ifdef __FAST_MATH__
#error "steepest promises exact results: build it without -ffast-math"
#endif

// Appends the name of the ISA to a name.
#define STEEPEST_PASTE(name, isa) name##_##isa
#define STEEPEST_EXPAND(name, isa) STEEPEST_PASTE(name, isa)
#define STEEPEST_NAME(name) STEEPEST_EXPAND(name, STEEPEST_ISA)

namespace steepest {
namespace {

template <bool on>
struct Flag {
  static constexpr bool value = on;
};

template <class T>
struct Float;

template <>
struct Float<float> {
  using Bits = std::uint32_t;
  static constexpr int mantissa = 23;
  static constexpr Bits bias = 127;
  static constexpr float min_normal = 0x1p-126f, largest = 0x1.fffffep127f;
  static constexpr float infinity = __builtin_inff();
  static constexpr float nan = __builtin_nanf("");
  static constexpr float magic = 0x1.8p23f;  // adding it rounds to an integer, which then stands in the low bits
  // ln2_hi and ln2_lo have so few digits that their products with the k of 2^k are exact.
  static constexpr float log2_e = 0x1.715476p+0f, ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7ep-20f;
  static constexpr float exp_lowest = -105, exp_highest = 89;  // beyond these exp is 0 and infinity
  static constexpr Bits sqrt_half = 0x3f3504f3;
  // exp(r) = 1 + r + r^2 P(r), |r| <= ln(2) / 2
  static constexpr float exp_poly[] = {0x1.0p-1f, 0x1.5554dcp-3f, 0x1.55551ap-5f, 0x1.120b6ep-7f, 0x1.6d110ap-10f};
  // log((1 + s) / (1 - s)) = 2 s + s z P(z), z = s^2
  static constexpr float log_poly[] = {0x1.555556p-1f, 0x1.9999ecp-2f, 0x1.245c38p-2f, 0x1.ddd172p-3f};
};

template <>
struct Float<double> {
  using Bits = std::uint64_t;
  static constexpr int mantissa = 52;
  static constexpr Bits bias = 1023;
  static constexpr double min_normal = 0x1p-1022, largest = 0x1.fffffffffffffp1023;
  static constexpr double infinity = __builtin_inf();
  static constexpr double nan = __builtin_nan("");
  static constexpr double magic = 0x1.8p52;
  static constexpr double log2_e = 0x1.71547652b82fep+0, ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35794p-33;
  static constexpr double exp_lowest = -746, exp_highest = 710;
  static constexpr Bits sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double exp_poly[] = {0x1.0p-1,
                                        0x1.5555555555557p-3,
                                        0x1.5555555555556p-5,
                                        0x1.11111111100dcp-7,
                                        0x1.6c16c16c162d4p-10,
                                        0x1.a01a01abe7fe1p-13,
                                        0x1.a01a01a6d889cp-16,
                                        0x1.71de0231960ebp-19,
                                        0x1.27e4db646b17ep-22,
                                        0x1.af4de97ca4194p-26,
                                        0x1.1f730349868cep-29};
  static constexpr double log_poly[] = {0x1.5555555555558p-1, 0x1.99999999952b2p-2, 0x1.2492492df6947p-2,
                                        0x1.c71c62debf86bp-3, 0x1.7462b69705382p-3, 0x1.39fe208c33457p-3,
                                        0x1.2b5b5fb2eac92p-3};
};

// A register full of T, for loops that the compiler doesn't vectorise by itself (reductions in lanes, selections). What
// is written for V below is for a number and for a register of them alike.
#if defined(__AVX512F__)
constexpr int kWidth = 64;
#elif defined(__AVX2__)
constexpr int kWidth = 32;
#else
constexpr int kWidth = 16;
#endif

template <class T, int width = kWidth>
struct VectorOf {
  typedef T type __attribute__((vector_size(width)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanesOf = kWidth / static_cast<int>(sizeof(T));

template <class V>
struct Of {
  using Element = V;
  using Bits = typename Float<V>::Bits;
};
template <>
struct Of<Vector<float>> {
  using Element = float;
  using Bits = Vector<std::uint32_t>;
};
template <>
struct Of<Vector<double>> {
  using Element = double;
  using Bits = Vector<std::uint64_t>;
};
template <class V>
using Element = typename Of<V>::Element;
template <class V>
using Bits = typename Of<V>::Bits;

template <class V>
inline V all(Element<V> x) {
  return x - V{};
}

template <class T>
inline Vector<T> load_register(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
inline void store_register(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Stays in its register for all its uses: g++ would load it anew for each.
template <class V>
inline V loaded_once(V x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

#if defined(__AVX512F__)
template <class T>
inline auto first_lanes(std::ptrdiff_t n) {
  using Mask = std::conditional_t<sizeof(T) == sizeof(float), __mmask16, __mmask8>;
  return n >= kLanesOf<T> ? static_cast<Mask>(~0u) : static_cast<Mask>((1u << n) - 1);
}
#endif

// The first n elements of a register, at most all; `rest` stands for the others.
template <class T>
inline Vector<T> load_part(const T* p, std::ptrdiff_t n, T rest) {
  Vector<T> v = rest - Vector<T>{};
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return _mm512_mask_loadu_ps(v, first_lanes<T>(n), p);
  } else {
    return _mm512_mask_loadu_pd(v, first_lanes<T>(n), p);
  }
#elif defined(__AVX2__)
  const auto end = static_cast<int>(n < kLanesOf<T> ? n : kLanesOf<T>);
  if constexpr (sizeof(T) == sizeof(float)) {
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(end), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    return _mm256_blendv_ps(v, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
  } else {
    const __m256i mask = _mm256_cmpgt_epi64(_mm256_set1_epi64x(end), _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_blendv_pd(v, _mm256_maskload_pd(p, mask), _mm256_castsi256_pd(mask));
  }
#else
  for (std::ptrdiff_t l = 0; l < n && l < kLanesOf<T>; ++l) v[l] = p[l];
  return v;
#endif
}

template <class T>
inline void store_part(T* p, std::ptrdiff_t n, Vector<T> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float)) {
    _mm512_mask_storeu_ps(p, first_lanes<T>(n), v);
  } else {
    _mm512_mask_storeu_pd(p, first_lanes<T>(n), v);
  }
#else
  for (std::ptrdiff_t l = 0; l < n && l < kLanesOf<T>; ++l) p[l] = v[l];
#endif
}

// As many elements as there are doubles in a register
inline Vector<double> load_double(const double* p) { return load_register(p); }
template <int... i>
inline Vector<double> widened(const float* p, std::integer_sequence<int, i...>) {
  return Vector<double>{static_cast<double>(p[i])...};  // one instruction, where g++ 12 makes five of a convertvector
}
inline Vector<double> load_double(const float* p) {
  return widened(p, std::make_integer_sequence<int, kLanesOf<double>>{});
}

// Two registers rounded to one of floats
template <int... i>
inline Vector<float> joined(Vector<double> a, Vector<double> b, std::integer_sequence<int, i...>) {
  return Vector<float>{static_cast<float>(a[i])..., static_cast<float>(b[i])...};
}
inline Vector<float> joined(Vector<double> a, Vector<double> b) {
  return joined(a, b, std::make_integer_sequence<int, kLanesOf<double>>{});
}

// Rounded to the element type
inline void store_as(double* p, Vector<double> v) { store_register(p, v); }
inline void store_as(float* p, Vector<double> v) {
  const auto half = __builtin_convertvector(v, VectorOf<float, kWidth / 2>::type);
  __builtin_memcpy(p, &half, sizeof half);
}

// The same past the caches, where the CPU has such stores: p is a multiple of 16 bytes, or of the lanes' size.
template <class T>
inline void store_past_caches(T* p, Vector<double> v) {
#if defined(__x86_64__)
  T lanes[kLanesOf<double>];
  store_as(lanes, v);
  if constexpr (sizeof lanes == sizeof(long long)) {
    _mm_stream_si64(reinterpret_cast<long long*>(p), __builtin_bit_cast(long long, lanes));
  } else {
    constexpr std::size_t step = sizeof(__m128i) / sizeof(T);
    for (std::size_t l = 0; l < kLanesOf<double>; l += step) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(p + l), _mm_loadu_si128(reinterpret_cast<__m128i*>(lanes + l)));
    }
  }
#else
  store_as(p, v);
#endif
}

template <class V>
inline Bits<V> bits(V x) {
  return __builtin_bit_cast(Bits<V>, x);
}

template <class V>
inline V from_bits(Bits<V> b) {
  return __builtin_bit_cast(V, b);
}

// Bits as good as random, different for every x.
inline std::uint32_t hash(std::uint32_t x) {
  x = (x ^ (x >> 16)) * 0x21f0aaad;
  x = (x ^ (x >> 15)) * 0xd35a2d97;
  return x ^ (x >> 15);
}

// Random bits for stochastic rounding: of a counter that begins at a hash, so what an element gets is independent from
// step to step, and a short mix will do for its neighbours. In two parts: the first of x + y is that of x and y's sum.
inline std::uint32_t first_mix(std::uint32_t counter) { return counter * 0x9e3779b1; }
template <class B>
inline B second_mix(B x) {
  return (x ^ (x >> 15)) * 0xd35a2d97;
}

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }
template <class V>
inline V square_root(V x) {
#pragma GCC unroll 16
  for (int k = 0; k < kLanesOf<Element<V>>; ++k) x[k] = square_root(x[k]);  // one instruction
  return x;
}
inline float magnitude(float x) { return __builtin_fabsf(x); }
inline double magnitude(double x) { return __builtin_fabs(x); }
template <class V>
inline V magnitude(V x) {
  return from_bits<V>(bits(x) & ~bits(Element<V>(-0.0)));
}

// +1, -1, +0 for both zeros, NaN for NaN
template <class V>
inline V sgn(V x) {
  return x > 0 ? all<V>(1) : x < 0 ? all<V>(-1) : x - x;
}

// A state that decays into subnormals would slow every later step some fifty times.
template <class V>
inline V flush(V x) {
#if defined(__AVX512F__)  // two instructions instead of three: what has no bit of an exponent becomes zero
  if constexpr (std::is_same_v<V, Vector<float>>) {
    return _mm512_maskz_mov_ps(_mm512_test_epi32_mask((__m512i)x, _mm512_set1_epi32(0x7f800000)), x);
  } else if constexpr (std::is_same_v<V, Vector<double>>) {
    return _mm512_maskz_mov_pd(_mm512_test_epi64_mask((__m512i)x, _mm512_set1_epi64(0x7ff0000000000000)), x);
  }
#elif defined(__AVX2__)  // the same in two, which the "sign" of those bits, 0 or 1, makes possible
  if constexpr (std::is_same_v<V, Vector<float>>) {
    return (V)_mm256_sign_epi32((__m256i)x, _mm256_and_si256((__m256i)x, _mm256_set1_epi32(0x7f800000)));
  }
#endif
  return magnitude(x) < Float<Element<V>>::min_normal ? V{} : x;
}

template <class V>
inline V larger(V a, V b) {
  return a <= b ? b : a;
}

template <class V>
inline V clip(V x, Element<V> lower, Element<V> upper) {
  const V y = lower > x ? all<V>(lower) : x;
  return upper < y ? all<V>(upper) : y;
}

// Adds x to the sum. What rounding loses goes to lo (Knuth's two-sum); of a float it is next to nothing.
template <class V>
inline void add(V& hi, V& lo, V x) {
  const V s = hi + x;
  const V t = s - hi;
  lo += (hi - (s - t)) + (x - t);
  hi = s;
}
inline void add(double& hi, double&, float x) { hi += static_cast<double>(x); }

}  // namespace
}  // namespace steepest
