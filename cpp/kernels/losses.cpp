// Losses with their gradient, sums and norms. Compiled once per ISA.
#include "vector_math.hpp"

namespace steepest {
namespace {

// Terms are added in double and in a fixed order, whatever the width of the ISA: in eight lanes, element i going to
// lane i mod 8, and lane l then to lane l + 4, + 2, + 1; fewer than 32 of them one after the other.
constexpr int kLanes = 8;
constexpr std::ptrdiff_t kShort = 32;

inline double value(const Sum& s) {
  const double x = s.hi + s.lo;
  return x - x == 0 ? x : s.hi;  // an infinite hi leaves not-a-number in lo
}

// The sum of term(i), i = 0..n-1
template <class Term>
inline Sum sum_terms(std::ptrdiff_t n, Term term) {
  double hi[kLanes] = {}, lo[kLanes] = {};
  if (n < kShort) {
    for (std::ptrdiff_t i = 0; i < n; ++i) add(hi[0], lo[0], term(i));
    return {hi[0], lo[0]};
  }
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) add(hi[l], lo[l], term(i + l));
  }
  for (int l = 0; i + l < n; ++l) add(hi[l], lo[l], term(i + l));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      add(hi[l], lo[l], hi[l + half]);
      lo[l] += lo[l + half];
    }
  }
  return {hi[0], lo[0]};
}

template <class T>
Sum sum(const T* x, std::ptrdiff_t n) noexcept {
  return sum_terms(n, [=](std::ptrdiff_t i) { return x[i]; });
}

template <class T>
Sum sum_of_squares(const T* x, double scale, std::ptrdiff_t n) noexcept {
  return sum_terms(n, [=](std::ptrdiff_t i) {
    const double y = static_cast<double>(x[i]) * scale;
    return y * y;
  });
}

// The sum of weight[i] * loss(i); a weight of zero leaves the element out, whatever stands there. n <= kSumBlock. Two
// loops, because the compiler vectorises neither a long body nor a mixture of widths inside the lanes.
template <class T, class Loss>
inline Sum elementwise(const T* weight, T* gradient, double scale, std::ptrdiff_t n, Loss loss) {
  double terms[kSumBlock];
  if (weight == nullptr) {
#pragma omp simd
    for (std::ptrdiff_t i = 0; i < n; ++i) {
      const auto [term, derivative] = loss(i);
      terms[i] = term;
      gradient[i] = static_cast<T>(derivative * scale);
    }
  } else {
#pragma omp simd
    for (std::ptrdiff_t i = 0; i < n; ++i) {
      const auto [term, derivative] = loss(i);
      const double w = static_cast<double>(weight[i]);
      terms[i] = w == 0 ? 0 : term * w;
      gradient[i] = w == 0 ? T(0) : static_cast<T>(derivative * (w * scale));
    }
  }
  return sum(terms, n);
}

struct Point {
  double value, derivative;
};

template <class T>
Sum mse(const T* prediction, const T* target, const T* weight, T* gradient, double scale, double,
        std::ptrdiff_t n) noexcept {
  return elementwise(weight, gradient, scale, n, [=](std::ptrdiff_t i) -> Point {
    const double d = static_cast<double>(prediction[i]) - static_cast<double>(target[i]);
    return {d * d, 2 * d};
  });
}

template <class T>
Sum mae(const T* prediction, const T* target, const T* weight, T* gradient, double scale, double,
        std::ptrdiff_t n) noexcept {
  return elementwise(weight, gradient, scale, n, [=](std::ptrdiff_t i) -> Point {
    const double d = static_cast<double>(prediction[i]) - static_cast<double>(target[i]);
    return {magnitude(d), sgn(d)};
  });
}

template <class T>
Sum huber(const T* prediction, const T* target, const T* weight, T* gradient, double scale, double delta,
          std::ptrdiff_t n) noexcept {
  return elementwise(weight, gradient, scale, n, [=](std::ptrdiff_t i) -> Point {
    const double d = static_cast<double>(prediction[i]) - static_cast<double>(target[i]);
    const double a = magnitude(d);
    return {a <= delta ? 0.5 * d * d : delta * (a - 0.5 * delta), clip(d, -delta, delta)};
  });
}

// -y log(sigmoid(x)) - (1 - y) log(sigmoid(-x)) as a sum of terms that are not negative: nothing cancels.
template <class T>
Sum binary_cross_entropy(const T* logits, const T* target, const T* weight, T* gradient, double scale, double,
                         std::ptrdiff_t n) noexcept {
  return elementwise(weight, gradient, scale, n, [=](std::ptrdiff_t i) __attribute__((always_inline)) -> Point {
    const T x = logits[i], y = target[i];
    const T e = exponential(-magnitude(x));
    const T not_y = T(1) - y;
    const T wrong = x >= 0 ? not_y : y;  // the share of the target on the side that the sign of x denies
    const T right = x >= 0 ? y : not_y;
    const T slope = (wrong - e * right) / (T(1) + e);
    const T miss = wrong == 0 ? T(0) : magnitude(x) * wrong;
    return {static_cast<double>(miss + logarithm_1p(e)), static_cast<double>(x >= 0 ? slope : -slope)};
  });
}

// In lanes, for clang vectorises no maximum that it does not see as one.
template <class T>
inline T row_max(const T* x, std::ptrdiff_t n) {
  T m[kLanes];
  for (T& lane : m) lane = -Float<T>::infinity;
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) m[l] = x[i + l] > m[l] ? x[i + l] : m[l];
  }
  for (; i < n; ++i) m[0] = x[i] > m[0] ? x[i] : m[0];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) m[l] = m[l + half] > m[l] ? m[l + half] : m[l];
  }
  return m[0];
}

// The sum of a row of e = exp(x - max), less one. Elements equal to 1 (the maximum, and what rounds to it) are counted
// apart, so that a small rest keeps its digits.
template <class T>
inline double sum_less_one(const T* e, std::ptrdiff_t n) {
  const Sum below = sum_terms(n, [=](std::ptrdiff_t j) { return e[j] == 1 ? T(0) : e[j]; });
  Bits<T> ones = 0;
#pragma omp simd reduction(+ : ones)
  for (std::ptrdiff_t j = 0; j < n; ++j) ones += e[j] == 1;
  return value(below) + (static_cast<double>(ones) - 1);
}

template <class T>
inline bool is_masked(T e) {
  return bits(e) == bits(-T(0));
}

// Softmax cross-entropy of one row, x -> gradient, in three passes over it: what needs x - max, e = exp(x - max), and
// what needs the sum of e. With target t (t = one-hot or probabilities, smoothed), Q = sum t and S = sum e:
//   loss = Q log(S) + sum t (max - x);  gradient = (e Q - t S) / S
// Both are arranged so that nothing cancels where the answer is confident and right. A class with x = -infinity is
// masked: e is marked as -0, it takes no part in the smoothing, and its gradient is 0 unless it is the target.
template <class T>
inline void subtract_max(const T* x, T m, T* d, std::ptrdiff_t n) {
  using F = Float<T>;
#pragma omp simd
  for (std::ptrdiff_t j = 0; j < n; ++j) {
    d[j] = x[j] == -F::infinity ? x[j] : larger(x[j] - m, -F::largest);  // a finite difference may overflow
  }
}

// m - x summed over the classes that are not masked
template <class T>
inline double sum_of_distances(const T* x, T m, std::ptrdiff_t n) {
  const double top = static_cast<double>(m);
  return value(sum_terms(
      n, [=](std::ptrdiff_t j) { return x[j] == -Float<T>::infinity ? 0.0 : top - static_cast<double>(x[j]); }));
}

template <class T>
inline double count_unmasked(const T* e, std::ptrdiff_t n) {
  Bits<T> count = 0;
#pragma omp simd reduction(+ : count)
  for (std::ptrdiff_t j = 0; j < n; ++j) count += !is_masked(e[j]);
  return static_cast<double>(count);
}

template <class T>
void gradient_for_label(T* e, std::ptrdiff_t n, std::ptrdiff_t label, double rest, double smoothing, double uniform,
                        double scale) {
  const double whole = rest + 1;
  const double e_y = static_cast<double>(e[label]);
  const double smoothed = is_masked(e[label]) ? smoothing : smoothing - uniform;
  const T ratio = static_cast<T>(scale / whole), even = static_cast<T>(uniform * scale);
#pragma omp simd
  for (std::ptrdiff_t j = 0; j < n; ++j) e[j] = magnitude(e[j]) * ratio - (is_masked(e[j]) ? T(0) : even);
  e[label] = static_cast<T>((smoothed - (rest + (1 - e_y)) / whole) * scale);
}

template <class T>
void gradient_for_probabilities(T* e, std::ptrdiff_t n, const T* q, double mass, double rest, double smoothing,
                                double uniform, double scale) {
  const T keep = static_cast<T>(1 - smoothing), even = static_cast<T>(uniform), mass_t = static_cast<T>(mass);
  const T rest_t = static_cast<T>(rest), whole = static_cast<T>(rest + 1), ratio = static_cast<T>(scale / (rest + 1));
#pragma omp simd
  for (std::ptrdiff_t j = 0; j < n; ++j) {
    const T t = keep * q[j] + (is_masked(e[j]) ? T(0) : even);
    const T numerator = e[j] == 1 ? (mass_t - t) - t * rest_t : magnitude(e[j]) * mass_t - t * whole;
    e[j] = numerator * ratio;
  }
}

template <class T>
Sum softmax_cross_entropy(const SoftmaxRows<T>& a) noexcept {
  const std::ptrdiff_t n = a.classes;
  double to_label[kSumBlock];  // of each row: the sum of target * (max - x), before smoothing
  double to_all[kSumBlock];    // the sum of (max - x) over all classes, where it is smoothed
  for (std::ptrdiff_t i = 0; i < a.rows; ++i) {
    const T* x = a.logits + i * n;
    T* d = a.gradient + i * n;
    const std::int64_t label = a.labels != nullptr ? a.labels[i] : 0;
    const double x_y = label >= 0 ? static_cast<double>(x[label]) : 0;
    const T m = row_max(x, n);
    const double top = static_cast<double>(m);
    to_label[i] = top - x_y;
    if (a.probabilities != nullptr) {
      const T* q = a.probabilities + i * n;
      const bool divergence = a.divergence;
      to_label[i] = value(sum_terms(n, [=](std::ptrdiff_t j) __attribute__((always_inline)) {
        const double t = static_cast<double>(q[j]);
        const double distance = (divergence ? logarithm(t) : 0) + (top - static_cast<double>(x[j]));
        return t == 0 ? 0 : t * distance;
      }));
    }
    to_all[i] = a.smoothing == 0 ? 0 : sum_of_distances(x, m, n);
    subtract_max(x, m, d, n);  // d may be x: whatever needs x comes before
  }

  T* const e = a.gradient;
#pragma omp simd
  for (std::ptrdiff_t k = 0; k < a.rows * n; ++k) e[k] = e[k] == -Float<T>::infinity ? -T(0) : exponential(e[k]);

  Sum losses{0, 0};
  for (std::ptrdiff_t i = 0; i < a.rows; ++i) {
    T* row = e + i * n;
    const double weight = a.weight != nullptr ? static_cast<double>(a.weight[i]) : 1;
    if (weight == 0 || (a.labels != nullptr && a.labels[i] < 0)) {
      for (std::ptrdiff_t j = 0; j < n; ++j) row[j] = 0;
      continue;
    }
    const double rest = sum_less_one(row, n);
    const double uniform = a.smoothing == 0 ? 0 : a.smoothing / count_unmasked(row, n);
    double mass = 1;
    if (a.probabilities != nullptr) {
      const T* q = a.probabilities + i * n;
      mass = (1 - a.smoothing) * value(sum_terms(n, [=](std::ptrdiff_t j) { return q[j]; })) + a.smoothing;
      gradient_for_probabilities(row, n, q, mass, rest, a.smoothing, uniform, weight * a.scale);
    } else {
      gradient_for_label(row, n, a.labels[i], rest, a.smoothing, uniform, weight * a.scale);
    }
    const double loss = mass * logarithm_1p(rest) + ((1 - a.smoothing) * to_label[i] + uniform * to_all[i]);
    add(losses.hi, losses.lo, weight * loss);
  }
  return losses;
}

template <class T>
void exp(const T* x, T* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) y[i] = exponential(x[i]);
}

template <class T>
void log(const T* x, T* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) y[i] = logarithm(x[i]);
}

template <class T>
void log1p(const T* x, T* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) y[i] = logarithm_1p(x[i]);
}

template <class T>
constexpr LossKernels<T> kernels{
    mse<T>, mae<T>, huber<T>, binary_cross_entropy<T>, softmax_cross_entropy<T>, sum<T>, sum_of_squares<T>,
    exp<T>, log<T>, log1p<T>};

}  // namespace

extern const LossKernels<float> STEEPEST_NAME(losses_f32);
extern const LossKernels<double> STEEPEST_NAME(losses_f64);
const LossKernels<float> STEEPEST_NAME(losses_f32) = kernels<float>;
const LossKernels<double> STEEPEST_NAME(losses_f64) = kernels<double>;

}  // namespace steepest
