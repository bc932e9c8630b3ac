// Softmax cross-entropy of rows of few classes, side by side: t[class][row]. Internal linkage: each ISA has its own
// copy.
#pragma once

#include <type_traits>

#include "softmax_terms.hpp"

namespace steepest {
namespace {

// Elements of a tile of rows: one class more where their number is odd, for lanes of two classes.
template <class T>
using Tile = T[kTile * kFewClasses];
static_assert(kRowLanes == 2 * kTile && kFewClasses % 2 == 0);

inline std::ptrdiff_t even_number(std::ptrdiff_t n) { return (n + 1) / 2 * 2; }

template <class T>
struct Short {
  typedef T type __attribute__((vector_size(16)));
};

// Elements of a and b one after the other, by their numbers
template <int... i, class V>
inline V shuffle(V a, V b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, i...);
#else
  using Index = std::conditional_t<sizeof...(i) == 4, Short<std::int32_t>, Short<std::int64_t>>;
  return __builtin_shuffle(a, b, typename Index::type{i...});
#endif
}

// Squares of 16 bytes a side, turned in registers: to[column][row] = from[row][column]
template <class T>
inline void turn(const T* from, std::ptrdiff_t from_stride, T* to, std::ptrdiff_t to_stride) {
  constexpr int side = 16 / static_cast<int>(sizeof(T));
  using V = typename Short<T>::type;
  V x[side];
#pragma GCC unroll 4
  for (int r = 0; r < side; ++r) __builtin_memcpy(&x[r], from + r * from_stride, 16);
  if constexpr (side == 4) {
    const V a = shuffle<0, 4, 1, 5>(x[0], x[2]), b = shuffle<0, 4, 1, 5>(x[1], x[3]);
    const V c = shuffle<2, 6, 3, 7>(x[0], x[2]), d = shuffle<2, 6, 3, 7>(x[1], x[3]);
    x[0] = shuffle<0, 4, 1, 5>(a, b);
    x[1] = shuffle<2, 6, 3, 7>(a, b);
    x[2] = shuffle<0, 4, 1, 5>(c, d);
    x[3] = shuffle<2, 6, 3, 7>(c, d);
  } else {
    const V a = x[0];
    x[0] = shuffle<0, 2>(a, x[1]);
    x[1] = shuffle<1, 3>(a, x[1]);
  }
#pragma GCC unroll 4
  for (int r = 0; r < side; ++r) __builtin_memcpy(to + r * to_stride, &x[r], 16);
}

// kTile rows of x, of which the first `rows` are there; the last one stands in for the others.
template <class T>
inline void load_tile(const T* x, std::ptrdiff_t rows, std::ptrdiff_t n, T* t) {
  constexpr std::ptrdiff_t side = 16 / sizeof(T);
  if (rows >= kTile && n >= side) {
    for (std::ptrdiff_t j = 0; j < n; j = j + 2 * side <= n || j + side == n ? j + side : n - side) {
      for (std::ptrdiff_t l = 0; l < kTile; l += side) turn(x + l * n + j, n, t + j * kTile + l, kTile);
    }
    return;
  }
  for (std::ptrdiff_t l = 0; l < kTile; ++l) {
    const T* row = x + (l < rows ? l : rows - 1) * n;
    for (std::ptrdiff_t j = 0; j < n; ++j) t[j * kTile + l] = row[j];
  }
}

template <class T>
inline void store_tile(const T* t, std::ptrdiff_t rows, std::ptrdiff_t n, T* x) {
  constexpr std::ptrdiff_t side = 16 / sizeof(T);
  if (rows >= kTile && n >= side) {
    for (std::ptrdiff_t j = 0; j < n; j = j + 2 * side <= n || j + side == n ? j + side : n - side) {
      for (std::ptrdiff_t l = 0; l < kTile; l += side) turn(t + j * kTile + l, kTile, x + l * n + j, n);
    }
    return;
  }
  for (std::ptrdiff_t l = 0; l < kTile && l < rows; ++l) {
    for (std::ptrdiff_t j = 0; j < n; ++j) x[l * n + j] = t[j * kTile + l];
  }
}

// sum[row] = the sum of term(where the class and row are, where the row is), one class after the other
template <class T, class Term>
inline void sum_tile(std::ptrdiff_t n, double* sum, Term term) {
  for (int l = 0; l < kTile; l += kLanesOf<double>) {
    Vector<double> hi{}, lo{};
    for (std::ptrdiff_t j = 0; j < n; ++j) add_as<T>(hi, lo, term(AtRegister{j * kTile + l}, AtRegister{l}));
    store_register(sum + l, value(hi, lo));
  }
}

template <bool smoothed, class T>
inline void exponentials_of_tile(const SoftmaxRows<T>& a, std::ptrdiff_t first, T* t, RowValues<T>& v) {
  using V = Vector<T>;
  constexpr int width = kLanesOf<T>, in_row = kTile / width;
  const std::ptrdiff_t n = a.classes, rows = a.rows - first;
  load_tile(a.logits + first * n, rows, n, t);
  for (int l = 0; n % 2 == 1 && l < kTile; ++l) t[n * kTile + l] = -Float<T>::infinity;
  V tops[in_row];
#pragma GCC unroll 16
  for (int r = 0; r < in_row; ++r) {
    tops[r] = all<V>(-Float<T>::infinity);
    for (std::ptrdiff_t k = 0; k < n * kTile; k += kTile) tops[r] = above(load_register(t + k + r * width), tops[r]);
  }
  T top[kTile];
  __builtin_memcpy(top, tops, sizeof top);
  if (a.probabilities != nullptr) {
    Tile<T> q;
    load_tile(a.probabilities + first * n, rows, n, q);
    sum_tile<double>(n, v.to_label + first,
                     [&](auto at, auto row) { return target_term(at(q), row(top), at(t), a.divergence); });
    sum_tile<T>(n, v.mass + first, [&](auto at, auto) { return at(q); });
  } else {
    for (int l = 0; l < kTile; ++l) {
      const double x_y = static_cast<double>(t[v.label[first + l] * kTile + l]);
      v.to_label[first + l] = distance(static_cast<double>(top[l]), x_y);
    }
  }
  if (smoothed) {
    sum_tile<double>(n, v.to_all + first, [&](auto at, auto row) { return even_term(row(top), at(t)); });
    sum_tile<T>(n, v.unmasked + first, [&](auto at, auto) { return unmasked(at(t)); });
  }

  V sums[in_row] = {}, below[in_row] = {};
  for (std::ptrdiff_t k = 0; k < n * kTile; k += kRowLanes) {
    Lanes<T> x, e;
    load_lanes(t + k, kRowLanes, T(0), x);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) e[r] = x[r] - tops[r % in_row];
    numerators<smoothed, T>(e, x);
    store_lanes(t + k, kRowLanes, e);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) {
      sums[r % in_row] += e[r];
      below[r % in_row] += below_one(e[r]);
    }
  }
  T sum[kTile], rest[kTile];
  __builtin_memcpy(sum, sums, sizeof sum);
  __builtin_memcpy(rest, below, sizeof rest);
  for (int l = 0; l < kTile; ++l) {
    v.sum[first + l] = static_cast<double>(sum[l]);
    v.below[first + l] = static_cast<double>(rest[l]);
    v.e_label[first + l] = static_cast<double>(t[v.label[first + l] * kTile + l]);
  }
}

template <bool smoothed, class T>
inline void gradients_of_tile(const SoftmaxRows<T>& a, std::ptrdiff_t first, T* t, const RowValues<T>& v) {
  const std::ptrdiff_t n = a.classes, rows = a.rows - first;
  Tile<T> q;
  if (a.probabilities != nullptr) load_tile(a.probabilities + first * n, rows, n, q);
  const auto keep = all<Vector<T>>(static_cast<T>(1 - a.smoothing));
  for (int l = 0; l < kTile; l += kLanesOf<T>) {
    const auto of_row = [&](const T* x) { return load_register(x + first + l); };
    const auto ratio = of_row(v.ratio), even = smoothed ? of_row(v.even) : Vector<T>{};
    if (a.probabilities == nullptr) {
      for (std::ptrdiff_t k = l; k < n * kTile; k += kTile) {
        store_register(t + k, gradient_by_label<smoothed>(load_register(t + k), ratio, even));
      }
    } else {
      const auto mass = of_row(v.mass_t), rest = of_row(v.rest_t), whole = of_row(v.whole_t);
      for (std::ptrdiff_t k = l; k < n * kTile; k += kTile) {
        store_register(t + k, gradient_by_probability<smoothed>(load_register(t + k), load_register(q + k), keep, even,
                                                                mass, rest, whole, ratio));
      }
    }
  }
  if (a.probabilities == nullptr) {
    for (int l = 0; l < kTile; ++l) t[v.label[first + l] * kTile + l] = v.of_label[first + l];
  }
  store_tile(t, rows, n, a.gradient + first * n);
}

}  // namespace
}  // namespace steepest
