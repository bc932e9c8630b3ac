// What softmax cross-entropy computes of a class: terms of the loss and the gradient. Internal linkage: each ISA has
// its own copy.
#pragma once

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

}  // namespace
}  // namespace steepest
