// exp, log and what the kernels share, written so that the compiler vectorises them and every ISA gives the same
// bits: + - * /, comparisons and integer operations only. Internal linkage: each ISA has its own copy.
#pragma once

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
  static constexpr float log2_e = 0x1.715476p+0f, ln2_hi = 0x1.63p-1f, ln2_lo = -0x1.bd0106p-13f;
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
  static constexpr double log2_e = 0x1.71547652b82fep+0, ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
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

template <class T>
using Bits = typename Float<T>::Bits;

template <class T>
inline Bits<T> bits(T x) {
  return __builtin_bit_cast(Bits<T>, x);
}

template <class T>
inline T from_bits(Bits<T> b) {
  return __builtin_bit_cast(T, b);
}

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }
inline float magnitude(float x) { return __builtin_fabsf(x); }
inline double magnitude(double x) { return __builtin_fabs(x); }

// +1, -1, +0 for both zeros, NaN for NaN
template <class T>
inline T sgn(T x) {
  return x > 0 ? T(1) : x < 0 ? T(-1) : x - x;
}

// A state that decays into subnormals would slow every later step some fifty times.
template <class T>
inline T flush(T x) {
  return magnitude(x) < Float<T>::min_normal ? T(0) : x;
}

template <class T>
inline T larger(T a, T b) {
  return a <= b ? b : a;
}

template <class T>
inline T clip(T x, T lower, T upper) {
  const T y = lower > x ? lower : x;
  return upper < y ? upper : y;
}

template <std::size_t i = 0, std::size_t n, class T>
inline T polynomial(const T (&c)[n], T x) {
  if constexpr (i + 1 < n) {
    return c[i] + x * polynomial<i + 1>(c, x);
  } else {
    return c[i];
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
  const T r = (x - k * F::ln2_hi) - k * F::ln2_lo;
  const T y = T(1) + (r + r * r * polynomial(F::exp_poly, r));
  const Bits<T> n = bits(shifted) - bits(F::magic);
  const Bits<T> n1 = ((n + half_offset) >> 1) - half_offset / 2;
  const Bits<T> n2 = n - n1;
  return y * from_bits<T>((n1 + F::bias) << F::mantissa) * from_bits<T>((n2 + F::bias) << F::mantissa);
}

// Within 1 ULP.
template <class T>
inline T logarithm(T x) {
  using F = Float<T>;
  constexpr T up = F::mantissa == 23 ? T(0x1p24) : T(0x1p54);
  constexpr T up_exponent = F::mantissa == 23 ? T(24) : T(54);
  constexpr Bits<T> one = F::bias << F::mantissa;
  constexpr Bits<T> fraction = (Bits<T>(1) << F::mantissa) - 1;
  const bool subnormal = x < F::min_normal;
  const Bits<T> b = bits(subnormal ? x * up : x) + (one - F::sqrt_half);
  // k: the exponent that leaves m = x / 2^k in [sqrt(1/2), sqrt(2))
  const T k =
      (from_bits<T>(bits(F::magic) + (b >> F::mantissa)) - F::magic) - T(F::bias) - (subnormal ? up_exponent : T(0));
  const T f = from_bits<T>((b & fraction) + F::sqrt_half) - T(1);
  const T s = f / (T(2) + f);
  const T z = s * s;
  const T half_f2 = T(0.5) * f * f;
  const T y = k * F::ln2_hi - ((half_f2 - (s * (half_f2 + z * polynomial(F::log_poly, z)) + k * F::ln2_lo)) - f);
  const T special = x == 0 ? -F::infinity : x == F::infinity ? x : F::nan;
  return x > 0 && x < F::infinity ? y : special;
}

// log(1 + x) for x >= 0, keeping the digits of a small x. Within 2 ULP.
template <class T>
inline T logarithm_1p(T x) {
  const T u = T(1) + x;
  const T lost = (x - (u - T(1))) / u;
  return u < Float<T>::infinity ? logarithm(u) + lost : u;
}

// 1 / (1 + e^-x), keeping the digits of small results. Within 3 ULP.
template <class T>
inline T logistic(T x) {
  const T e = exponential(-magnitude(x));
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
  const T r = (y - k * F::ln2_hi) - k * F::ln2_lo;
  const T p = r + r * r * polynomial(F::exp_poly, r);
  const T two_k = from_bits<T>((bits(shifted) - bits(F::magic) + F::bias) << F::mantissa);
  const T t = two_k * p + (two_k - T(1));
  const T result = -t / (t + T(2));
  return x < 0 ? -result : x == 0 ? x : result;
}

// Adds x to the sum. What rounding loses goes to lo (Knuth's two-sum); of a float it is next to nothing.
inline void add(double& hi, double& lo, double x) {
  const double s = hi + x;
  const double t = s - hi;
  lo += (hi - (s - t)) + (x - t);
  hi = s;
}
inline void add(double& hi, double&, float x) { hi += static_cast<double>(x); }

}  // namespace
}  // namespace steepest
