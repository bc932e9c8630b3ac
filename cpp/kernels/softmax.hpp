// Softmax cross-entropy with its gradient. Internal linkage: each ISA has its own copy.
#pragma once

#include "sums.hpp"

namespace steepest {
namespace {

// With target t (t = one-hot or probabilities, smoothed), e = exp(x - max), Q = sum t and S = sum e, a row has
//   loss = Q log(S) + sum t (max - x);  gradient = (e Q - t S) / S
// Both are arranged so that nothing cancels where the answer is confident and right: elements of e equal to 1 (the
// maximum, and what rounds to it) are counted apart from the rest of S. A class with x = -infinity is masked: where
// that matters, in smoothing, e is marked as -0.
//
// A block goes through three phases: what needs x, over the elements; what needs the sum of e, over the rows; the
// gradient, over the elements. Rows of few classes lie side by side in tiles, so that a lane is a row; longer ones
// are summed in lanes of their own.

constexpr double kDown = 0x1p-64, kUp = 0x1p64;  // of distances: that of two float64 logits may overflow

// Of each row of a block. Tiles fill up with rows of weight zero.
template <class T>
struct RowValues {
  double weight[kMaxRows], rest[kMaxRows], to_label[kMaxRows], to_all[kMaxRows], unmasked[kMaxRows], mass[kMaxRows];
  double e_label[kMaxRows], of_label[kMaxRows], ratio_d[kMaxRows], even_d[kMaxRows], terms[kMaxRows];
  T ratio[kMaxRows], even[kMaxRows], mass_t[kMaxRows], rest_t[kMaxRows], whole_t[kMaxRows];
};

// Of row i; any one where there is none.
template <class T>
inline std::int64_t label_of(const SoftmaxRows<T>& a, std::ptrdiff_t i) {
  return a.labels == nullptr || i >= a.rows || a.labels[i] < 0 ? 0 : a.labels[i];
}

template <class V>
inline auto is_masked(V e) {
  return bits(e) == bits(-Element<V>(0));
}

template <class V>
inline V above(V x, V m) {  // the larger one; m if x is not a number
  return x > m ? x : m;
}

template <bool smoothed, class V>
inline V numerator(V x, V top) {
  const V e = exponential_of_negative(x - top);
  if constexpr (!smoothed) return e;
  return x == -Float<Element<V>>::infinity ? all<V>(-Element<V>(0)) : e;
}

// What e adds to S, the ones apart
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

// kTile rows of x, of which the first `rows` are there; the last one stands in for the others.
template <class T>
inline void load_tile(const T* x, std::ptrdiff_t rows, std::ptrdiff_t n, T* t) {
  for (std::ptrdiff_t l = 0; l < kTile; ++l) {
    const T* row = x + (l < rows ? l : rows - 1) * n;
    for (std::ptrdiff_t j = 0; j < n; ++j) t[j * kTile + l] = row[j];
  }
}

template <class T>
inline void store_tile(const T* t, std::ptrdiff_t rows, std::ptrdiff_t n, T* x) {
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
  const std::ptrdiff_t n = a.classes, rows = a.rows - first;
  load_tile(a.logits + first * n, rows, n, t);
  T top[kTile];
  for (int l = 0; l < kTile; l += kLanesOf<T>) {
    V m = all<V>(-Float<T>::infinity);
    for (std::ptrdiff_t j = 0; j < n; ++j) m = above(load_register(t + j * kTile + l), m);
    store_register(top + l, m);
  }
  if (a.probabilities != nullptr) {
    T q[kTile * kFewClasses];
    load_tile(a.probabilities + first * n, rows, n, q);
    sum_tile<double>(n, v.to_label + first,
                     [&](auto at, auto row) { return target_term(at(q), row(top), at(t), a.divergence); });
    sum_tile<T>(n, v.mass + first, [&](auto at, auto) { return at(q); });
  } else {
    for (int l = 0; l < kTile; ++l) {
      v.to_label[first + l] =
          distance(static_cast<double>(top[l]), static_cast<double>(t[label_of(a, first + l) * kTile + l]));
    }
  }
  if (smoothed) sum_tile<double>(n, v.to_all + first, [&](auto at, auto row) { return even_term(row(top), at(t)); });

  T sum[kTile], ones[kTile], masked[kTile];
  for (int l = 0; l < kTile; l += kLanesOf<T>) {
    V s{}, count{}, count_masked{};
    for (std::ptrdiff_t k = l; k < n * kTile; k += kTile) {
      const V e = numerator<smoothed>(load_register(t + k), load_register(top + l));
      store_register(t + k, e);
      s += below_one(e);
      count += e == T(1) ? all<V>(1) : V{};
      if (smoothed) count_masked += is_masked(e) ? all<V>(1) : V{};
    }
    store_register(sum + l, s);
    store_register(ones + l, count);
    store_register(masked + l, count_masked);
  }
  for (int l = 0; l < kTile; ++l) {
    v.e_label[first + l] = static_cast<double>(t[label_of(a, first + l) * kTile + l]);
    v.rest[first + l] = static_cast<double>(sum[l]) + (static_cast<double>(ones[l]) - 1);
    v.unmasked[first + l] = static_cast<double>(n) - static_cast<double>(masked[l]);
  }
}

template <bool smoothed, class T>
inline void gradients_of_tile(const SoftmaxRows<T>& a, std::ptrdiff_t first, T* t, const RowValues<T>& v) {
  const std::ptrdiff_t n = a.classes, rows = a.rows - first;
  T q[kTile * kFewClasses];
  if (a.probabilities != nullptr) load_tile(a.probabilities + first * n, rows, n, q);
  const auto keep = all<Vector<T>>(static_cast<T>(1 - a.smoothing));
  for (int l = 0; l < kTile; l += kLanesOf<T>) {
    const auto of_row = [&](const T* x) { return load_register(x + first + l); };
    const auto ratio = of_row(v.ratio), even = of_row(v.even);
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
  store_tile(t, rows, n, a.gradient + first * n);
}

// ---- Rows of many classes

template <class T>
inline T row_max(const T* x, std::ptrdiff_t n) {
  constexpr int width = kLanesOf<T>, registers = kRowLanes / width;
  Vector<T> m[registers];
  for (auto& lanes : m) lanes = all<Vector<T>>(-Float<T>::infinity);
  std::ptrdiff_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes) {
    for (int r = 0; r < registers; ++r) m[r] = above(load_register(x + i + r * width), m[r]);
  }
  for (; i + width <= n; i += width) m[0] = above(load_register(x + i), m[0]);
  for (int r = 1; r < registers; ++r) m[0] = above(m[r], m[0]);
  T top = -Float<T>::infinity;
  for (int l = 0; l < width; ++l) top = above(m[0][l], top);
  for (; i < n; ++i) top = above(x[i], top);
  return top;
}

// e of a row, and the sum of it less one: in lanes of at most kSumBlock / kRowLanes elements, then in double.
template <bool smoothed, class T>
inline double exponentials_of_row(const T* x, T top, T* e, std::ptrdiff_t n) {
  using V = Vector<T>;
  constexpr int width = kLanesOf<T>, registers = kRowLanes / width;
  double hi = 0, lo = 0, ones = 0;
  for (std::ptrdiff_t begin = 0; begin < n; begin += kSumBlock) {
    V sums[registers] = {}, counts[registers] = {};
    const auto add_lanes = [&](const T* from, T* to) __attribute__((always_inline)) {
      for (int r = 0; r < registers; ++r) {
        const V y = numerator<smoothed>(load_register(from + r * width), all<V>(top));
        store_register(to + r * width, y);
        sums[r] += below_one(y);
        counts[r] += y == T(1) ? all<V>(1) : V{};
      }
    };
    const std::ptrdiff_t end = n - begin < kSumBlock ? n : begin + kSumBlock;
    std::ptrdiff_t i = begin;
    for (; i + kRowLanes <= end; i += kRowLanes) add_lanes(x + i, e + i);
    if (i < end) {
      T tail[kRowLanes];
      for (int l = 0; l < kRowLanes; ++l) tail[l] = i + l < end ? x[i + l] : -Float<T>::infinity;
      add_lanes(tail, tail);
      for (int l = 0; i + l < end; ++l) e[i + l] = tail[l];
    }
    add(hi, lo, fold<T>(sums));
    ones += fold<T>(counts);
  }
  return value(hi, lo) + (ones - 1);
}

template <bool smoothed, class T>
inline void exponentials_of_row(const SoftmaxRows<T>& a, std::ptrdiff_t i, RowValues<T>& v) {
  const std::ptrdiff_t n = a.classes;
  const T* x = a.logits + i * n;
  T* e = a.gradient + i * n;  // may be x: whatever needs x comes before
  const T top = row_max(x, n);
  const double top_d = static_cast<double>(top);
  if (a.probabilities != nullptr) {
    const T* q = a.probabilities + i * n;
    const Sum s = sum_terms<double>(n, [=](auto at) { return target_term(at(q), top_d, at(x), a.divergence); });
    v.to_label[i] = value(s.hi, s.lo);
    const Sum mass = sum_terms<T>(n, [=](auto at) { return at(q); });
    v.mass[i] = value(mass.hi, mass.lo);
  } else {
    v.to_label[i] = distance(top_d, static_cast<double>(x[label_of(a, i)]));
  }
  if (smoothed) {
    const Sum s = sum_terms<double>(n, [=](auto at) { return even_term(top_d, at(x)); });
    v.to_all[i] = value(s.hi, s.lo);
  }
  v.rest[i] = exponentials_of_row<smoothed>(x, top, e, n);
  v.e_label[i] = static_cast<double>(e[label_of(a, i)]);
  if (smoothed) {
    Bits<T> count = 0;
#pragma omp simd reduction(+ : count)
    for (std::ptrdiff_t j = 0; j < n; ++j) count += !is_masked(e[j]);
    v.unmasked[i] = static_cast<double>(count);
  }
}

// e = f(e, q) over a row
template <class T, class F>
inline void replace(T* e, const T* q, std::ptrdiff_t n, F f) {
  constexpr int width = kLanesOf<T>;
  std::ptrdiff_t j = 0;
  for (; j + width <= n; j += width) store_register(e + j, f(load_register(e + j), load_register(q + j)));
  for (; j < n; ++j) {
    e[j] = f(all<Vector<T>>(e[j]), all<Vector<T>>(q[j]))[0];
  }
}

template <bool smoothed, class T>
inline void gradients_of_row(const SoftmaxRows<T>& a, std::ptrdiff_t i, const RowValues<T>& v) {
  using V = Vector<T>;
  T* e = a.gradient + i * a.classes;
  const V ratio = all<V>(v.ratio[i]), even = all<V>(v.even[i]);
  if (a.probabilities == nullptr) {
    replace(e, e, a.classes, [=](V y, V) { return gradient_by_label<smoothed>(y, ratio, even); });
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
    const V weight = load_register(v.weight + i), rest = load_register(v.rest + i),
            e_label = load_register(v.e_label + i);
    const V whole = rest + 1.0, scale = weight * a.scale;
    const V uniform = smoothed ? smoothing / load_register(v.unmasked + i) : V{};
    const V mass = by_label ? all<V>(1) : keep * load_register(v.mass + i) + smoothing;
    const V to_label = load_register(v.to_label + i);
    const V far = smoothed ? keep * to_label + uniform * load_register(v.to_all + i) : to_label;
    const V loss = mass * logarithm_1p(rest) + far * kUp;
    store_register(v.terms + i, weight == 0.0 ? V{} : weight * loss);
    store_register(v.ratio_d + i, scale / whole);
    store_register(v.even_d + i, by_label ? uniform * scale : uniform);
    const V smoothed_label = is_masked(e_label) ? all<V>(smoothing) : smoothing - uniform;
    store_register(v.of_label + i, (smoothed_label - (rest + (1.0 - e_label)) / whole) * scale);
    store_register(v.mass + i, mass);
  }
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    v.ratio[i] = static_cast<T>(v.ratio_d[i]);
    v.even[i] = static_cast<T>(v.even_d[i]);
    v.mass_t[i] = static_cast<T>(v.mass[i]);
    v.rest_t[i] = static_cast<T>(v.rest[i]);
    v.whole_t[i] = static_cast<T>(v.rest[i] + 1);
  }
}

template <bool smoothed, class T>
inline Sum softmax_block(const SoftmaxRows<T>& a) {
  const std::ptrdiff_t n = a.classes;
  const std::ptrdiff_t padded = (a.rows + kTile - 1) / kTile * kTile;
  RowValues<T> v;
  for (std::ptrdiff_t i = 0; i < padded; ++i) {
    const bool counts = i < a.rows && (a.labels == nullptr || a.labels[i] >= 0);
    v.weight[i] = !counts ? 0 : a.weight != nullptr ? static_cast<double>(a.weight[i]) : 1;
  }
  if (n < kFewClasses) {
    T tiles[kSumBlock];
    for (std::ptrdiff_t i = 0; i < padded; i += kTile) exponentials_of_tile<smoothed>(a, i, tiles + i * n, v);
    row_results<smoothed>(a, padded, v);
    for (std::ptrdiff_t i = 0; i < padded; i += kTile) gradients_of_tile<smoothed>(a, i, tiles + i * n, v);
  } else {
    for (std::ptrdiff_t i = a.rows; i < padded; ++i) {
      v.rest[i] = v.to_label[i] = v.to_all[i] = v.mass[i] = v.e_label[i] = 0;
      v.unmasked[i] = 1;
    }
    for (std::ptrdiff_t i = 0; i < a.rows; ++i) exponentials_of_row<smoothed>(a, i, v);
    row_results<smoothed>(a, padded, v);
    for (std::ptrdiff_t i = 0; i < a.rows; ++i) gradients_of_row<smoothed>(a, i, v);
  }
  for (std::ptrdiff_t i = 0; i < a.rows; ++i) {
    T* row = a.gradient + i * n;
    if (v.weight[i] == 0) {
      for (std::ptrdiff_t j = 0; j < n; ++j) row[j] = 0;
    } else if (a.probabilities == nullptr) {
      row[a.labels[i]] = static_cast<T>(v.of_label[i]);
    }
  }
  return sum_terms<double>(a.rows, [&](auto at) { return at(v.terms); });
}

template <class T>
Sum softmax_cross_entropy(const SoftmaxRows<T>& a) noexcept {
  return a.smoothing == 0 ? softmax_block<false>(a) : softmax_block<true>(a);
}

}  // namespace
}  // namespace steepest
