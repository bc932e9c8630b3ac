// exp, log, the logistic function and tanh. Internal linkage: each ISA has its own copy.
#pragma once

#include "vector_math.hpp"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace steepest {
namespace {

// a b + c, rounded once
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#if defined(__AVX2__) || defined(__aarch64__)
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
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
#else
// Of floats. Where the exact sum lies between two doubles, the one with an odd last bit then rounds as the sum would.
inline Vector<double> fused_to_odd(Vector<double> a, Vector<double> b, Vector<double> c) {
  const Vector<double> product = a * b, sum = product + c, part = sum - product;
  const Vector<double> error = (product - (sum - part)) + (c - part);
  const auto inexact = (error > 0.0) | (error < 0.0), beyond = (error > 0.0) ^ (sum > 0.0);
  return (Vector<double>)((std::decay_t<decltype(inexact)>(sum) + (beyond & inexact)) | (inexact & 1));
}
inline Vector<float> fused(Vector<float> a, Vector<float> b, Vector<float> c) {
  const auto upper = [](Vector<float> x) { return _mm_cvtps_pd(_mm_movehl_ps(x, x)); };
  const Vector<double> low = fused_to_odd(_mm_cvtps_pd(a), _mm_cvtps_pd(b), _mm_cvtps_pd(c));
  return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(fused_to_odd(upper(a), upper(b), upper(c))));
}
inline float fused(float a, float b, float c) { return fused(Vector<float>{a}, Vector<float>{b}, Vector<float>{c})[0]; }
inline Vector<double> fused(Vector<double> a, Vector<double> b, Vector<double> c) {
  return Vector<double>{fused(a[0], b[0], c[0]), fused(a[1], b[1], c[1])};  // the C library's
}
#endif

#if defined(__AVX512F__)
// x 2^k
inline Vector<float> scaled(Vector<float> x, Vector<float> k) { return _mm512_maskz_scalef_ps(0xffff, x, k); }
inline Vector<double> scaled(Vector<double> x, Vector<double> k) { return _mm512_maskz_scalef_pd(0xff, x, k); }
#endif

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
  if constexpr (i + 1 < n) {
    return fused(x, polynomial<i + 1>(c, x), all<V>(c[i]));
  } else {
    return all<V>(c[i]);
  }
}

// Within 1.2 ULP. 2^k in two factors, so that a subnormal result is rounded once.
template <class T>
inline T exponential(T x) {
  using F = Float<T>;
  constexpr Bits<T> half_offset = 4 * F::bias;  // even, and larger than any -k: keeps the halved k unsigned
  x = clip(x, F::exp_lowest, F::exp_highest);
  const T shifted = fused(x, F::log2_e, F::magic);
  const T k = shifted - F::magic;
  const T r = fused(k, -F::ln2_lo, fused(k, -F::ln2_hi, x));
  const T y = fused(r * r, polynomial(F::exp_poly, r), r);
  const Bits<T> n = bits(shifted) - bits(F::magic);
  const Bits<T> n1 = ((n + half_offset) >> 1) - half_offset / 2;
  const Bits<T> n2 = n - n1;
  const T scale = from_bits<T>((n1 + F::bias) << F::mantissa);
  return fused(y, scale, scale) * from_bits<T>((n2 + F::bias) << F::mantissa);
}

template <std::size_t i = 0, int R, std::size_t n, class T, class V>
inline void polynomials(const T (&c)[n], const V* x, V* y) {
  if constexpr (i + 1 < n) {
    polynomials<i + 1, R>(c, x, y);
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) y[k] = fused(x[k], y[k], all<V>(c[i]));
  } else {
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) y[k] = all<V>(c[i]);
  }
}

// x[k] = exponential(x[k]), to the bit, for x <= 0 and not a number: 2^k needs no second half where it cannot overflow.
// `magic` carries the exponent of 2^(k + up) with it (even, so that ties round alike), and the shift drops the rest.
// R registers in step: one after the other, each waits for its own results.
template <int R, class V>
__attribute__((always_inline)) inline void exponentials_of_negatives(V* x) {
  using T = Element<V>;
  using F = Float<T>;
  constexpr T down = F::mantissa == 23 ? T(0x1p-33) : T(0x1p-65);
  constexpr T magic = F::magic + T(F::bias + (F::mantissa == 23 ? 33 : 65));
  V shifted[R], r[R], y[R], scale[R];
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) x[k] = above(all<V>(F::exp_lowest), x[k]);
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) shifted[k] = fused(x[k], all<V>(F::log2_e), all<V>(magic));
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) r[k] = fused(shifted[k] - magic, all<V>(-F::ln2_hi), x[k]);
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) r[k] = fused(shifted[k] - magic, all<V>(-F::ln2_lo), r[k]);
  polynomials<0, R>(F::exp_poly, r, y);
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) y[k] = fused(r[k] * r[k], y[k], r[k]);
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == kWidth) {
#pragma GCC unroll 16
    for (int k = 0; k < R; ++k) x[k] = scaled(T(1) + y[k], shifted[k] - magic);
    return;
  }
#endif
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) scale[k] = from_bits<V>(bits(shifted[k]) << F::mantissa);
#pragma GCC unroll 16
  for (int k = 0; k < R; ++k) x[k] = fused(y[k], scale[k], scale[k]) * down;
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
  const V low = fused(k, all<V>(F::ln2_lo), s * fused(z, polynomial(F::log_poly, z), half_f2));
  const V y = fused(k, all<V>(F::ln2_hi), f - (half_f2 - low));
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
  const T shifted = fused(y, F::log2_e, F::magic);
  const T k = shifted - F::magic;
  const T r = fused(k, -F::ln2_lo, fused(k, -F::ln2_hi, y));
  const T p = fused(r * r, polynomial(F::exp_poly, r), r);
  const T two_k = from_bits<T>((bits(shifted) - bits(F::magic) + F::bias) << F::mantissa);
  const T t = fused(p, two_k, two_k - T(1));
  const T result = -t / (t + T(2));
  return x < 0 ? -result : x == 0 ? x : result;
}

}  // namespace
}  // namespace steepest
