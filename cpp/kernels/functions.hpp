// exp, log, the logistic function and tanh. Internal linkage: each ISA has its own copy.
#pragma once

#include "vector_math.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace steepest {
namespace {

// a b + c, rounded once, where the CPU has it in one instruction
#if defined(__AVX2__) || defined(__aarch64__)
constexpr bool kFuses = true;
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
constexpr bool kFuses = false;
template <class V>
V fused(V a, V b, V c) = delete;
#endif
#if defined(__AVX512F__)
inline Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__AVX2__)
inline Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(__aarch64__)
inline Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) { return vfmaq_f32(c, a, b); }
inline Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) { return vfmaq_f64(c, a, b); }
#endif

// a b + c for an a b that is exact: whether it is rounded by itself makes no difference then.
template <class V>
inline V plus_exact(V a, Element<V> b, V c) {
  if constexpr (kFuses) {
    return fused(a, all<V>(b), c);
  } else {
    return a * b + c;
  }
}

// (1 + x) scale, for a power of two: rounded once either way.
template <class V>
inline V scaled_1p(V x, V scale) {
  if constexpr (kFuses) {
    return fused(x, scale, scale);
  } else {
    return (Element<V>(1) + x) * scale;
  }
}

// The larger one; b if a is not a number. One instruction, but for NEON, whose own differs in zeros.
template <class V>
inline V above(V a, V b) {
  return a > b ? a : b;
}
#if defined(__AVX512F__)
inline Vector<float> above(Vector<float> a, Vector<float> b) { return _mm512_maskz_max_ps(0xffff, a, b); }
inline Vector<double> above(Vector<double> a, Vector<double> b) { return _mm512_maskz_max_pd(0xff, a, b); }
#elif defined(__AVX2__)
inline Vector<float> above(Vector<float> a, Vector<float> b) { return _mm256_max_ps(a, b); }
inline Vector<double> above(Vector<double> a, Vector<double> b) { return _mm256_max_pd(a, b); }
#elif defined(__x86_64__)
inline Vector<float> above(Vector<float> a, Vector<float> b) { return _mm_max_ps(a, b); }
inline Vector<double> above(Vector<double> a, Vector<double> b) { return _mm_max_pd(a, b); }
#endif

template <std::size_t i = 0, std::size_t n, class T, class V>
inline V polynomial(const T (&c)[n], V x) {
  if constexpr (i + 2 < n) {
    return c[i] + x * polynomial<i + 1>(c, x);
  } else {
    return c[i] + x * c[i + 1];
  }
}

// Within 1.2 ULP. 2^k in two factors, so that a subnormal result is rounded once.
template <class T>
inline T exponential(T x) {
  using F = Float<T>;
  constexpr Bits<T> half_offset = 4 * F::bias;  // even, and larger than any -k: keeps the halved k unsigned
  x = clip(x, F::exp_lowest, F::exp_highest);
  const T shifted = x * F::log2_e + F::magic;
  const T k = shifted - F::magic;
  const T r = plus_exact(k, -F::ln2_lo, plus_exact(k, -F::ln2_hi, x));
  const T y = r + r * r * polynomial(F::exp_poly, r);
  const Bits<T> n = bits(shifted) - bits(F::magic);
  const Bits<T> n1 = ((n + half_offset) >> 1) - half_offset / 2;
  const Bits<T> n2 = n - n1;
  return scaled_1p(y, from_bits<T>((n1 + F::bias) << F::mantissa)) * from_bits<T>((n2 + F::bias) << F::mantissa);
}

template <std::size_t i = 0, int R, std::size_t n, class T, class V>
inline void polynomials(const T (&c)[n], const V* x, V* y) {
  if constexpr (i + 1 < n) {
    polynomials<i + 1, R>(c, x, y);
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) y[k] = c[i] + x[k] * y[k];
  } else {
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) y[k] = all<V>(c[i]);
  }
}

// x[k] = exponential(x[k]), to the bit, for x <= 0 and not a number: 2^k needs no second half where it cannot overflow.
// `magic` carries the exponent of 2^(k + up) with it (even, so that ties round alike), and the shift drops the rest.
// R registers in step: one after the other, each waits for its own results.
template <int R, class V>
inline void exponentials_of_negatives(V* x) {
  using T = Element<V>;
  using F = Float<T>;
  constexpr T down = F::mantissa == 23 ? T(0x1p-33) : T(0x1p-65);
  constexpr T magic = F::magic + T(F::bias + (F::mantissa == 23 ? 33 : 65));
  V shifted[R], r[R], y[R];
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) x[k] = above(all<V>(F::exp_lowest), x[k]);
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) shifted[k] = x[k] * F::log2_e + magic;
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) r[k] = plus_exact(shifted[k] - magic, -F::ln2_hi, x[k]);
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) r[k] = plus_exact(shifted[k] - magic, -F::ln2_lo, r[k]);
  polynomials<0, R>(F::exp_poly, r, y);
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) y[k] = r[k] + r[k] * r[k] * y[k];
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) x[k] = scaled_1p(y[k], from_bits<V>(bits(shifted[k]) << F::mantissa)) * down;
}

template <class V>
inline V exponential_of_negative(V x) {
  exponentials_of_negatives<1>(&x);
  return x;
}

// Within 1 ULP.
template <class V>
inline V logarithm(V x) {
  using F = Float<Element<V>>;
  using T = Element<V>;
  constexpr T up = F::mantissa == 23 ? T(0x1p24) : T(0x1p54);
  constexpr T up_exponent = F::mantissa == 23 ? T(24) : T(54);
  using U = typename F::Bits;
  constexpr U one = F::bias << F::mantissa;
  constexpr U fraction = (U(1) << F::mantissa) - 1;
  const auto subnormal = x < F::min_normal;
  const Bits<V> b = bits<V>(subnormal ? x * up : x) + (one - F::sqrt_half);
  // k: the exponent that leaves m = x / 2^k in [sqrt(1/2), sqrt(2))
  const V k = (from_bits<V>((b >> F::mantissa) + bits(F::magic)) - F::magic) - T(F::bias) -
              (subnormal ? all<V>(up_exponent) : all<V>(0));
  const V f = from_bits<V>((b & fraction) + F::sqrt_half) - T(1);
  const V s = f / (T(2) + f);
  const V z = s * s;
  const V half_f2 = T(0.5) * f * f;
  const V low = plus_exact(k, F::ln2_lo, s * (half_f2 + z * polynomial(F::log_poly, z)));
  const V y = plus_exact(k, F::ln2_hi, f - (half_f2 - low));
  const V special = x == 0 ? all<V>(-F::infinity) : x == F::infinity ? x : all<V>(F::nan);
  return ((x > 0) & (x < F::infinity)) ? y : special;
}

// log(1 + x) for x >= 0, keeping the digits of a small x. Within 2 ULP.
template <class V>
inline V logarithm_1p(V x) {
  using T = Element<V>;
  const V u = T(1) + x;
  const V lost = (x - (u - T(1))) / u;
  return u < Float<T>::infinity ? logarithm(u) + lost : u;
}

// 1 / (1 + e^-x), keeping the digits of small results. Within 3 ULP.
template <class T>
inline T logistic(T x) {
  const T e = exponential_of_negative(-magnitude(x));
  return (x >= 0 ? T(1) : e) / (T(1) + e);
}

// As -t / (t + 2) with t = e^(-2|x|) - 1 = 2^k p + (2^k - 1), which is exact where p is small. Within 4 ULP.
template <class T>
inline T hyperbolic_tangent(T x) {
  using F = Float<T>;
  constexpr T far = F::mantissa == 23 ? T(20) : T(44);  // beyond it the result rounds to 1
  const T y = T(-2) * (magnitude(x) > far ? far : magnitude(x));
  const T shifted = y * F::log2_e + F::magic;
  const T k = shifted - F::magic;
  const T r = plus_exact(k, -F::ln2_lo, plus_exact(k, -F::ln2_hi, y));
  const T p = r + r * r * polynomial(F::exp_poly, r);
  const T two_k = from_bits<T>((bits(shifted) - bits(F::magic) + F::bias) << F::mantissa);
  const T t = plus_exact(p, two_k, two_k - T(1));
  const T result = -t / (t + T(2));
  return x < 0 ? -result : x == 0 ? x : result;
}

}  // namespace
}  // namespace steepest
