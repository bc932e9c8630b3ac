// The loss of knowledge distillation with its gradient. Internal linkage: each ISA has its own copy.
#pragma once

#include "softmax.hpp"

namespace steepest {
namespace {

// With u = teacher - its max, d = logits - their max, q = softmax(u / T) and p = softmax(d / T), a row has
//   KL = sum q (u - d) / T - log(sum e^(u/T)) + log(sum e^(d/T));  T^2 KL has the gradient T (p - q)
// The teacher's exponentials wait in the gradient while that sum is made in double; the student's are made again for
// the gradient, as there is no place for them.

// Of each row of a block, filled up to whole registers.
struct DistilledRows {
  double weight[kMaxRows], rest[kMaxRows], rest_soft[kMaxRows], rest_teacher[kMaxRows];  // sums of e, less one
  double divergence[kMaxRows], to_label[kMaxRows], terms[kMaxRows];
  double hard[kMaxRows], soft[kMaxRows], teacher[kMaxRows];  // what e is multiplied with in the gradient
};

// The sum of the lanes that e(first, number, lanes) fills, less one, keeping the digits of a small one: see
// softmax.hpp.
template <class T, class Exponentials>
inline double sum_less_one(std::ptrdiff_t n, Exponentials e) {
  const double sum = sum_in_lanes<T>(n, [=](std::ptrdiff_t j, std::ptrdiff_t count, Lanes<T>& sums) {
    Lanes<T> y;
    e(j, count, y);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) sums[r] += y[r];
  });
  if (sum >= 2) return sum - 1;
  return sum_in_lanes<T>(n, [=](std::ptrdiff_t j, std::ptrdiff_t count, Lanes<T>& sums) {
    Lanes<T> y;
    e(j, count, y);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) sums[r] += below_one(y[r]);
  });
}

// e^((x - max) scale) of a row; past its end 0
template <class T>
struct Softened {
  const T* x;
  T top, scale;

  void operator()(std::ptrdiff_t j, std::ptrdiff_t count, Lanes<T>& y) const {
    load_lanes(x + j, count, -Float<T>::infinity, y);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) y[r] = (y[r] - top) * scale;
    exponentials<T>(y);
  }
  T at(std::ptrdiff_t j) const { return exponential_of_negative((x[j] - top) * scale); }
};

template <class T>
inline void sums_of_row(const DistillationRows<T>& a, std::ptrdiff_t i, T cooling, DistilledRows& v) {
  const std::ptrdiff_t n = a.classes;
  const T *x = a.logits + i * n, *t = a.teacher + i * n;
  T* e = a.gradient + i * n;
  const T top = row_max(x, n), teacher_top = row_max(t, n);
  const Softened<T> hard{x, top, 1}, soft{x, top, cooling}, teacher{t, teacher_top, cooling};
  v.rest_teacher[i] = sum_less_one<T>(n, [=](std::ptrdiff_t j, std::ptrdiff_t count, Lanes<T>& y) {
    teacher(j, count, y);
    store_lanes(e + j, count, y);
  });
  v.rest[i] = sum_less_one<T>(n, hard);
  v.rest_soft[i] = sum_less_one<T>(n, soft);
  const double x_top = static_cast<double>(top), t_top = static_cast<double>(teacher_top);
  v.divergence[i] = sum_of<double>(n, [=](auto at) {
    const auto q = at(e);
    const auto term = q * (distance(x_top, at(x)) - distance(t_top, at(t)));
    return q == 0.0 ? q : term;
  });
  v.to_label[i] = distance(x_top, static_cast<double>(x[a.labels[i]]));
}

template <class T>
inline void gradients_of_row(const DistillationRows<T>& a, std::ptrdiff_t i, T cooling, const DistilledRows& v) {
  const std::ptrdiff_t n = a.classes, label = a.labels[i];
  const T* x = a.logits + i * n;
  T* e = a.gradient + i * n;
  const T top = row_max(x, n);
  const Softened<T> hard{x, top, 1}, soft{x, top, cooling};
  const T by_hard = static_cast<T>(v.hard[i]), by_soft = static_cast<T>(v.soft[i]);
  const T by_teacher = static_cast<T>(v.teacher[i]);
  const double missing = v.rest[i] + (1 - static_cast<double>(hard.at(label)));
  const double of_teacher = static_cast<double>(e[label]) * v.teacher[i];
  const double of_label = static_cast<double>(soft.at(label)) * v.soft[i] - of_teacher - missing * v.hard[i];
  for (std::ptrdiff_t j = 0; j < n; j += kRowLanes) {
    const std::ptrdiff_t count = n - j < kRowLanes ? n - j : kRowLanes;
    Lanes<T> q, y, z;
    load_lanes(e + j, count, T(0), q);
    hard(j, count, y);
    soft(j, count, z);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) y[r] = y[r] * by_hard + (z[r] * by_soft - q[r] * by_teacher);
    store_lanes(e + j, count, y);
  }
  e[label] = static_cast<T>(of_label);
}

template <class T>
Sum distillation(const DistillationRows<T>& a) noexcept {
  using V = Vector<double>;
  const T cooling = static_cast<T>(1 / a.temperature);
  const double hard = 1 - a.alpha, soft = a.alpha * a.temperature;
  DistilledRows v;
  std::ptrdiff_t padded = 0;
  for (; padded < a.rows; ++padded) {
    v.weight[padded] = a.weight != nullptr ? static_cast<double>(a.weight[padded]) : 1;
    sums_of_row(a, padded, cooling, v);
  }
  for (; padded % kTile != 0; ++padded) {
    v.weight[padded] = v.rest[padded] = v.rest_soft[padded] = v.rest_teacher[padded] = 0;
    v.divergence[padded] = v.to_label[padded] = 0;
  }
  for (std::ptrdiff_t i = 0; i < padded; i += kLanesOf<double>) {
    const auto of_row = [&](const double* x) { return load_register(x + i); };
    const V weight = of_row(v.weight), rest = of_row(v.rest), rest_soft = of_row(v.rest_soft);
    const V rest_teacher = of_row(v.rest_teacher), scale = weight * a.scale;
    const V cross_entropy = logarithm_1p(rest) + of_row(v.to_label) * kUp;
    const V mean = of_row(v.divergence) / (rest_teacher + 1.0) * kUp / a.temperature;
    const V divergence = mean + (logarithm_1p(rest_soft) - logarithm_1p(rest_teacher));
    // What has no share in it may be infinite.
    const V of_soft = soft == 0 ? V{} : a.temperature * (soft * divergence);
    const V loss = of_soft + (hard == 0 ? V{} : hard * cross_entropy);
    store_register(v.terms + i, weight == 0.0 ? V{} : weight * (loss * kTermScale<T>));
    store_register(v.hard + i, hard * scale / (rest + 1.0));
    store_register(v.soft + i, soft * scale / (rest_soft + 1.0));
    store_register(v.teacher + i, soft * scale / (rest_teacher + 1.0));
  }
  for (std::ptrdiff_t i = 0; i < a.rows; ++i) {
    if (v.weight[i] != 0) {
      gradients_of_row(a, i, cooling, v);
    } else {
      for (std::ptrdiff_t j = 0; j < a.classes; ++j) a.gradient[i * a.classes + j] = 0;
    }
  }
  return sum_terms<double>(a.rows, [&](auto at) { return at(v.terms); });
}

}  // namespace
}  // namespace steepest
