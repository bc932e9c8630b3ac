// Sums in one order of additions, whatever the width of the ISA. Internal linkage: each ISA has its own copy.
#pragma once

#include "functions.hpp"

namespace steepest {
namespace {

// Terms are added in double and in a fixed order, whatever the width of the ISA: in 16 lanes, element i going to
// lane i mod 16, and lane l then to lane l + 8, + 4, + 2, + 1; fewer than 32 of them one after the other.
constexpr int kLanes = 16;
constexpr std::ptrdiff_t kShort = 32;

template <class V>
inline V value(V hi, V lo) {
  const V x = hi + lo;
  return x - x == 0.0 ? x : hi;  // an infinite hi leaves not-a-number in lo
}

// Where a term reads and writes its arrays: at one element, or at as many as there are doubles in a register.
struct At {
  std::ptrdiff_t i;
  template <class T>
  double operator()(const T* x) const {
    return static_cast<double>(x[i]);
  }
  template <class T>
  void set(Output<T> y, double value) const {
    y.x[i] = static_cast<T>(value);
  }
};
struct AtRegister {
  std::ptrdiff_t i;
  template <class T>
  Vector<double> operator()(const T* x) const {
    return load_double(x + i);
  }
  template <class T>
  void set(Output<T> y, Vector<double> value) const {
    if (y.past_caches) {
      store_past_caches(y.x + i, value);
    } else {
      store_as(y.x + i, value);
    }
  }
};

// What rounding loses is kept (Knuth's two-sum), except of float32's terms, where it is next to nothing.
template <class T, class V>
inline void add_as(V& hi, V& lo, V x) {
  if constexpr (sizeof(T) == sizeof(double)) {
    add(hi, lo, x);
  } else {
    hi += x;
  }
}

// The sum of term(at), at = At{0} .. At{n - 1}, made of arrays of T
template <class T, class Term>
inline Sum sum_terms(std::ptrdiff_t n, Term term) {
  constexpr int width = kLanesOf<double>;
  double hi[kLanes] = {}, lo[kLanes] = {};
  if (n < kShort) {
    for (std::ptrdiff_t i = 0; i < n; ++i) add_as<T>(hi[0], lo[0], term(At{i}));
    return {hi[0], lo[0]};
  }
  Vector<double> his[kLanes / width] = {}, los[kLanes / width] = {};
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC unroll 16
    for (int r = 0; r < kLanes / width; ++r) add_as<T>(his[r], los[r], term(AtRegister{i + r * width}));
  }
  __builtin_memcpy(hi, his, sizeof hi);
  __builtin_memcpy(lo, los, sizeof lo);
  for (int l = 0; i + l < n; ++l) add_as<T>(hi[l], lo[l], term(At{i + l}));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      add(hi[l], lo[l], hi[l + half]);
      lo[l] += lo[l + half];
    }
  }
  return {hi[0], lo[0]};
}

template <class T, class Term>
inline double sum_of(std::ptrdiff_t n, Term term) {
  const Sum s = sum_terms<T>(n, term);
  return value(s.hi, s.lo);
}

// The lanes of a row's sum in the element type; of a block of kSumBlock elements each gets 64.
constexpr int kRowLanes = 32;
template <class T>
constexpr int kRowRegisters = kRowLanes / kLanesOf<T>;
template <class T>
using Lanes = Vector<T>[kRowRegisters<T>];

// n <= kRowLanes elements; the other lanes get `rest`.
template <class T>
__attribute__((always_inline)) inline void load_lanes(const T* x, std::ptrdiff_t n, T rest, Lanes<T>& y) {
  constexpr int width = kLanesOf<T>;
#pragma GCC unroll 16
  for (int r = 0; r < kRowRegisters<T>; ++r) {
    const std::ptrdiff_t left = n - r * width;
    if (left >= width) {
      y[r] = load_register(x + r * width);
    } else {
      y[r] = left > 0 ? load_part(x + r * width, left, rest) : all<Vector<T>>(rest);
    }
  }
}

template <class T>
__attribute__((always_inline)) inline void store_lanes(T* x, std::ptrdiff_t n, const Lanes<T>& y) {
  constexpr int width = kLanesOf<T>;
#pragma GCC unroll 16
  for (int r = 0; r < kRowRegisters<T>; ++r) {
    const std::ptrdiff_t left = n - r * width;
    if (left >= width) {
      store_register(x + r * width, y[r]);
    } else if (left > 0) {
      store_part(x + r * width, left, y[r]);
    }
  }
}

// e^x for x <= 0
template <class T>
__attribute__((always_inline)) inline void exponentials(Lanes<T>& x) {
  constexpr int in_step = kRowRegisters<T> < 4 ? kRowRegisters<T> : sizeof(T) == 4 ? 4 : 2;
#pragma GCC unroll 16
  for (int r = 0; r < kRowRegisters<T>; r += in_step) exponentials_of_negatives<in_step>(x + r);
}

template <class T>
inline double fold(const Lanes<T>& registers) {
  T lanes[kRowLanes];
  __builtin_memcpy(lanes, registers, sizeof lanes);
  constexpr int width = kLanesOf<double>;
  Vector<double> s[kRowLanes / width];
#pragma GCC unroll 16
  for (int r = 0; r < kRowLanes / width; ++r) s[r] = load_double(lanes + r * width);
  for (int half = kRowLanes / width / 2; half > 0; half /= 2) {
    for (int r = 0; r < half; ++r) s[r] += s[r + half];
  }
  double d[width];
  store_register(d, s[0]);
  for (int half = width / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) d[l] += d[l + half];
  }
  return d[0];
}

// The sum of what step(first, number, sums) adds to the lanes for every kRowLanes elements.
template <class T, class Step>
inline double sum_in_lanes(std::ptrdiff_t n, Step step) {
  double hi = 0, lo = 0;
  for (std::ptrdiff_t i = 0; i < n;) {
    const std::ptrdiff_t end = n - i < kSumBlock ? n : i + kSumBlock;
    Lanes<T> sums = {};
    for (; i + kRowLanes <= end; i += kRowLanes) step(i, std::ptrdiff_t{kRowLanes}, sums);
    if (i < end) step(i, end - i, sums);
    i = end;
    add(hi, lo, fold<T>(sums));
  }
  return value(hi, lo);
}

}  // namespace
}  // namespace steepest
