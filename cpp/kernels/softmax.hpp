// Softmax cross-entropy with its gradient: rows of many classes, and blocks of rows. Internal linkage: each ISA has its
// own copy.
#pragma once

#include "softmax_tiles.hpp"

namespace steepest {
namespace {

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
