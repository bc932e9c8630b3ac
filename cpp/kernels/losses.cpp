// Losses with their gradient, sums and norms. Compiled once per ISA.
#include "softmax.hpp"

namespace steepest {
namespace {

template <class T>
Sum sum(const T* x, std::ptrdiff_t n) noexcept {
  return sum_terms<T>(n, [=](auto at) { return at(x); });
}

template <class T>
Sum sum_of_squares(const T* x, double scale, std::ptrdiff_t n) noexcept {
  return sum_terms<double>(n, [=](auto at) {
    const auto y = at(x) * scale;
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
    const T e = exponential_of_negative(-magnitude(x));
    const T not_y = T(1) - y;
    const T wrong = x >= 0 ? not_y : y;  // the share of the target on the side that the sign of x denies
    const T right = x >= 0 ? y : not_y;
    const T slope = (wrong - e * right) / (T(1) + e);
    const T miss = wrong == 0 ? T(0) : magnitude(x) * wrong;
    return {static_cast<double>(miss + logarithm_1p(e)), static_cast<double>(x >= 0 ? slope : -slope)};
  });
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
