// Softmax cross-entropy with its gradient. Internal linkage: each ISA has its own copy.
#pragma once

#include <type_traits>

#include "sums.hpp"

namespace steepest {
namespace {

// With target t (t = one-hot or probabilities, smoothed), e = exp(x - max), Q = sum t and S = sum e, a row has
//   loss = Q log(S) + sum t (max - x);  gradient = (e Q - t S) / S
// Both are arranged so that nothing cancels where the answer is confident and right: S - 1 is S less 1 where S >= 2,
// and else the sum without the maximum, whose e is 1. A class with x = -infinity is masked: where that matters, in
// smoothing, e is marked as -0.
//
// A block goes through three phases: what needs x, over the elements; what needs the sum of e, over the rows; the
// gradient, over the elements. Rows of few classes lie side by side in tiles, so that a lane is a row; longer ones
// are summed in lanes of their own.

constexpr double kDown = 0x1p-64, kUp = 0x1p64;  // of distances: that of two float64 logits may overflow

// Of each row of a block, filled up to whole tiles with rows of weight zero.
template <class T>
struct RowValues {
  std::int64_t label[kMaxRows];
  double weight[kMaxRows], to_label[kMaxRows], to_all[kMaxRows], unmasked[kMaxRows], mass[kMaxRows];
  double sum[kMaxRows], below[kMaxRows];  // of e; without the maximum, if the sum is less than 2
  double rest[kMaxRows], e_label[kMaxRows], terms[kMaxRows];
  T ratio[kMaxRows], even[kMaxRows], of_label[kMaxRows], mass_t[kMaxRows], rest_t[kMaxRows], whole_t[kMaxRows];
};

template <class V>
inline auto is_masked(V e) {
  return bits(e) == bits(-Element<V>(0));
}

// e, from d = x - max
template <bool smoothed, class T>
__attribute__((always_inline)) inline void numerators(Lanes<T>& d, const Lanes<T>& x) {
  exponentials<T>(d);
  if constexpr (smoothed) {
    const auto masked = all<Vector<T>>(-T(0));
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) d[r] = x[r] == -Float<T>::infinity ? masked : d[r];
  }
}

template <class V>
inline V below_one(V e) {
  return e == Element<V>(1) ? V{} : e;
}

template <class U, class V>
inline V distance(U top, V x) {  // U: V or double
  return top * kDown - x * kDown;
}

// What a class adds to sum t (max - x), and to the sum of (max - x) over the classes that are not masked
template <class U, class V>
inline V target_term(V t, U top, V x, bool divergence) {
  const V d = divergence ? logarithm(t) * kDown + distance(top, x) : distance(top, x);
  return t == 0.0 ? V{} : t * d;
}
template <class U, class V>
inline V even_term(U top, V x) {
  return x == -Float<double>::infinity ? V{} : distance(top, x);
}
template <class V>
inline V unmasked(V x) {
  return x == -Float<double>::infinity ? V{} : all<V>(1);
}

template <bool smoothed, class V>
inline V gradient_by_label(V e, V ratio, V even) {
  if constexpr (!smoothed) return e * ratio;
  return e * ratio - (is_masked(e) ? e : even);  // -0 - -0 is 0
}
template <bool smoothed, class V>
inline V gradient_by_probability(V e, V q, V keep, V even, V mass, V rest, V whole, V ratio) {
  V t = keep * q;
  if constexpr (smoothed) {
    t += is_masked(e) ? V{} : even;
    e += V{};  // -0 + 0 is 0
  }
  return (e == Element<V>(1) ? (mass - t) - t * rest : e * mass - t * whole) * ratio;
}

// ---- Rows of few classes: t[class][row]

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

// ---- Rows of many classes

// Rows shorter than this, and what is made of them, are asked for two rows ahead, in the second cache; the next row's
// logits then in the first one.
constexpr std::ptrdiff_t kFetched = 8192;

// By halves: one lane after the other takes as long as a hundred elements.
template <class T, int width>
inline T largest(typename VectorOf<T, width>::type x) {
  if constexpr (width == sizeof(T)) {
    return x[0];
  } else {
    typename VectorOf<T, width / 2>::type half[2];
    __builtin_memcpy(half, &x, sizeof x);
    return largest<T, width / 2>(half[0] > half[1] ? half[0] : half[1]);
  }
}

// Elements of x before a register's width divides the address; 0 for a row that is not worth it.
template <class T>
inline std::ptrdiff_t before_aligned(const T* x, std::ptrdiff_t n) {
  return n < 768 ? 0 : static_cast<std::ptrdiff_t>(-reinterpret_cast<std::uintptr_t>(x) % kWidth / sizeof(T));
}

template <class T>
inline T row_max(const T* x, std::ptrdiff_t n) {
  Lanes<T> m;
  for (auto& lanes : m) lanes = all<Vector<T>>(-Float<T>::infinity);
  const auto take = [&](std::ptrdiff_t i, std::ptrdiff_t count) __attribute__((always_inline)) {
    Lanes<T> y;
    load_lanes(x + i, count, -Float<T>::infinity, y);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) m[r] = above(y[r], m[r]);
  };
  std::ptrdiff_t i = before_aligned(x, n);
  if (i > 0) take(0, kRowLanes);
  for (; i + kRowLanes <= n; i += kRowLanes) take(i, kRowLanes);
  if (i < n) take(i, n - i);
#pragma GCC unroll 16
  for (int r = 1; r < kRowRegisters<T>; ++r) m[0] = above(m[r], m[0]);
  return largest<T, kWidth>(m[0]);
}

template <bool smoothed, class T>
inline void exponentials_of_row(const SoftmaxRows<T>& a, std::ptrdiff_t i, RowValues<T>& v) {
  const std::ptrdiff_t n = a.classes;
  const T* x = a.logits + i * n;
  T* e = a.gradient + i * n;  // may be x: whatever needs x comes before
  const T top_t = row_max(x, n);
  const double top = static_cast<double>(top_t);
  if (a.probabilities != nullptr) {
    const T* q = a.probabilities + i * n;
    v.to_label[i] = sum_of<double>(n, [=](auto at) { return target_term(at(q), top, at(x), a.divergence); });
    v.mass[i] = sum_of<T>(n, [=](auto at) { return at(q); });
  } else {
    v.to_label[i] = distance(top, static_cast<double>(x[v.label[i]]));
  }
  if (smoothed) {
    v.to_all[i] = sum_of<double>(n, [=](auto at) { return even_term(top, at(x)); });
    v.unmasked[i] = sum_of<T>(n, [=](auto at) { return unmasked(at(x)); });
  }
  const std::ptrdiff_t ahead = n < kFetched ? 2 * n : 0;
  v.sum[i] =
      sum_in_lanes<T>(n, [=](std::ptrdiff_t j, std::ptrdiff_t count, Lanes<T>& sums) __attribute__((always_inline)) {
        Lanes<T> z, y;
        for (std::ptrdiff_t at = 0; at < kRowLanes; at += 64 / std::ptrdiff_t{sizeof(T)}) {
          __builtin_prefetch(x + j + ahead / 2 + at, 0, 3);
          __builtin_prefetch(x + j + ahead + at, 0, 2);
          __builtin_prefetch(e + j + ahead + at, 0, 2);
        }
        load_lanes(x + j, count, -Float<T>::infinity, z);
#pragma GCC unroll 16
        for (int r = 0; r < kRowRegisters<T>; ++r) y[r] = z[r] - top_t;
        numerators<smoothed, T>(y, z);
        store_lanes(e + j, count, y);
#pragma GCC unroll 16
        for (int r = 0; r < kRowRegisters<T>; ++r) sums[r] += y[r];
      });
  v.e_label[i] = static_cast<double>(e[v.label[i]]);
  v.below[i] = 0;
  if (v.sum[i] >= 2) return;
  v.below[i] = sum_in_lanes<T>(n, [=](std::ptrdiff_t j, std::ptrdiff_t count, Lanes<T>& sums) {
    Lanes<T> y;
    load_lanes(e + j, count, T(0), y);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) sums[r] += below_one(y[r]);
  });
}

// e = f(e, q) over a row
template <class T, class F>
inline void replace(T* e, const T* q, std::ptrdiff_t n, F f) {
  constexpr int width = kLanesOf<T>;
  std::ptrdiff_t j = before_aligned(e, n);
  if (j > 0) store_part(e, j, f(load_part(e, j, T(0)), load_part(q, j, T(0))));
#pragma GCC unroll 4
  for (; j + width <= n; j += width) store_register(e + j, f(load_register(e + j), load_register(q + j)));
  if (j < n) store_part(e + j, n - j, f(load_part(e + j, n - j, T(0)), load_part(q + j, n - j, T(0))));
}

template <bool smoothed, class T>
inline void gradients_of_row(const SoftmaxRows<T>& a, std::ptrdiff_t i, const RowValues<T>& v) {
  using V = Vector<T>;
  T* e = a.gradient + i * a.classes;
  const V ratio = all<V>(v.ratio[i]), even = all<V>(smoothed ? v.even[i] : T(0));
  if (a.probabilities == nullptr) {
    replace(e, e, a.classes, [=](V y, V) { return gradient_by_label<smoothed>(y, ratio, even); });
    e[v.label[i]] = v.of_label[i];
  } else {
    const V keep = all<V>(static_cast<T>(1 - a.smoothing)), mass = all<V>(v.mass_t[i]);
    const V rest = all<V>(v.rest_t[i]), whole = all<V>(v.whole_t[i]);
    replace(e, a.probabilities + i * a.classes, a.classes,
            [=](V y, V q) { return gradient_by_probability<smoothed>(y, q, keep, even, mass, rest, whole, ratio); });
  }
}

// ---- A block

// The terms of the loss, and what the gradients need.
template <bool smoothed, class T>
inline void row_results(const SoftmaxRows<T>& a, std::ptrdiff_t rows, RowValues<T>& v) {
  using V = Vector<double>;
  const double smoothing = a.smoothing, keep = 1 - a.smoothing;
  const bool by_label = a.probabilities == nullptr;
  for (std::ptrdiff_t i = 0; i < rows; i += kLanesOf<double>) {
    const auto of_row = [&](const double* x) { return load_register(x + i); };
    const V weight = of_row(v.weight), sum = of_row(v.sum), e_label = of_row(v.e_label), to_label = of_row(v.to_label);
    const V rest = sum >= 2.0 ? sum - 1.0 : of_row(v.below);
    const V whole = rest + 1.0, scale = weight * a.scale;
    const V uniform = smoothed ? smoothing / of_row(v.unmasked) : V{};
    const V mass = by_label ? all<V>(1) : keep * of_row(v.mass) + smoothing;
    const V far = smoothed ? keep * to_label + uniform * of_row(v.to_all) : to_label;
    const V loss = mass * logarithm_1p(rest) + far * kUp;
    store_register(v.terms + i, weight == 0.0 ? V{} : weight * (loss * kTermScale<T>));
    store_as(v.ratio + i, scale / whole);
    if (smoothed) store_as(v.even + i, by_label ? uniform * scale : uniform);
    if (by_label) {
      const V smoothed_label = is_masked(e_label) ? all<V>(smoothing) : smoothing - uniform;
      store_as(v.of_label + i, (smoothed_label - (rest + (1.0 - e_label)) / whole) * scale);
    } else {
      store_as(v.mass_t + i, mass);
      store_as(v.rest_t + i, rest);
      store_as(v.whole_t + i, whole);
    }
  }
}

template <bool smoothed, class T>
inline Sum softmax_block(const SoftmaxRows<T>& a) {
  const std::ptrdiff_t n = a.classes, per_tile = n < kFewClasses ? kTile : kLanesOf<double>,
                       padded = (a.rows + per_tile - 1) / per_tile * per_tile;
  RowValues<T> v;
  bool all_count = true;
  for (std::ptrdiff_t i = 0; i < padded; ++i) {
    const std::int64_t label = a.labels == nullptr || i >= a.rows ? 0 : a.labels[i];
    const bool counts = i < a.rows && label >= 0;
    v.label[i] = label < 0 ? 0 : label;
    v.weight[i] = !counts ? 0 : a.weight != nullptr ? static_cast<double>(a.weight[i]) : 1;
    all_count = all_count && (i >= a.rows || v.weight[i] != 0);
  }
  if (n < kFewClasses) {
    T tiles[kSumBlock + kMaxRows];
    const std::ptrdiff_t per_row = even_number(n);
    for (std::ptrdiff_t i = 0; i < padded; i += kTile) exponentials_of_tile<smoothed>(a, i, tiles + i * per_row, v);
    row_results<smoothed>(a, padded, v);
    for (std::ptrdiff_t i = 0; i < padded; i += kTile) gradients_of_tile<smoothed>(a, i, tiles + i * per_row, v);
  } else {
    for (std::ptrdiff_t i = a.rows; i < padded; ++i) {
      v.sum[i] = v.unmasked[i] = 1;
      v.to_label[i] = v.to_all[i] = v.mass[i] = v.below[i] = v.e_label[i] = 0;
    }
    for (std::ptrdiff_t i = 0; i < a.rows; ++i) exponentials_of_row<smoothed>(a, i, v);
    row_results<smoothed>(a, padded, v);
    for (std::ptrdiff_t i = 0; i < a.rows; ++i) gradients_of_row<smoothed>(a, i, v);
  }
  for (std::ptrdiff_t i = 0; i < a.rows && !all_count; ++i) {
    for (std::ptrdiff_t j = 0; j < n && v.weight[i] == 0; ++j) a.gradient[i * n + j] = 0;
  }
  return sum_terms<double>(a.rows, [&](auto at) { return at(v.terms); });
}

template <class T>
Sum softmax_cross_entropy(const SoftmaxRows<T>& a) noexcept {
  return a.smoothing == 0 ? softmax_block<false>(a) : softmax_block<true>(a);
}

}  // namespace
}  // namespace steepest
