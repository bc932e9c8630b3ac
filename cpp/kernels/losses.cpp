// Losses with their gradient, sums and norms. Compiled once per ISA.
#include "distillation.hpp"

namespace steepest {
namespace {

template <class T>
Sum sum(const T* x, std::ptrdiff_t n) noexcept {
  return sum_terms<T>(n, [=](auto at) { return at(x); });
}

template <class T>
Sum sum_of_squares(const T* x, double scale, std::ptrdiff_t n) noexcept {
  return sum_terms<T>(n, [=](auto at) {
    const auto y = at(x) * scale;
    return y * y;
  });
}

template <class V>
struct Point {
  V value, derivative;
};

// The sum of weight * loss(at), times kTermScale; a weight of zero leaves the element out, whatever stands there. n <=
// kSumBlock.
template <class T, class Loss>
inline Sum elementwise(const T* weight, Output<T> gradient, double scale, std::ptrdiff_t n, Loss loss) {
  if (weight == nullptr) {
    return sum_terms<T>(n, [=](auto at) {
      const auto point = loss(at);
      at.set(gradient, point.derivative * scale);
      return point.value * kTermScale<T>;
    });
  }
  return sum_terms<T>(n, [=](auto at) {
    const auto point = loss(at);
    const auto w = at(weight);
    const auto none = w - w;
    at.set(gradient, w == 0.0 ? none : point.derivative * (w * scale));
    return w == 0.0 ? none : point.value * kTermScale<T> * w;
  });
}

template <class V>
inline V absolute(V x) {
  return from_bits<V>(bits(x) & (~Bits<Element<V>>(0) >> 1));
}

template <class T>
Sum mse(const T* prediction, const T* target, const T* weight, Output<T> gradient, double scale, double,
        std::ptrdiff_t n) noexcept {
  return elementwise(weight, gradient, scale, n, [=](auto at) {
    const auto d = at(prediction) - at(target);
    return Point<decltype(at(target))>{d * d, 2.0 * d};
  });
}

template <class T>
Sum mae(const T* prediction, const T* target, const T* weight, Output<T> gradient, double scale, double,
        std::ptrdiff_t n) noexcept {
  return elementwise(weight, gradient, scale, n, [=](auto at) {
    using V = decltype(at(target));
    const V d = at(prediction) - at(target);
    return Point<V>{absolute(d), d > 0.0 ? all<V>(1) : d < 0.0 ? all<V>(-1) : d - d};
  });
}

template <class T>
Sum huber(const T* prediction, const T* target, const T* weight, Output<T> gradient, double scale, double delta,
          std::ptrdiff_t n) noexcept {
  return elementwise(weight, gradient, scale, n, [=](auto at) {
    using V = decltype(at(target));
    const V d = at(prediction) - at(target), a = absolute(d);
    return Point<V>{a <= delta ? 0.5 * d * d : delta * (a - 0.5 * delta), d < -delta  ? all<V>(-delta)
                                                                          : d > delta ? all<V>(delta)
                                                                                      : d};
  });
}

// -y log(sigmoid(x)) - (1 - y) log(sigmoid(-x)) as a sum of terms that are not negative: nothing cancels.
template <class V>
inline void cross_entropies(const V& x, const V& y, const V& e, V& term, V& slope) {
  using T = Element<V>;
  const V not_y = T(1) - y;
  const V wrong = x >= T(0) ? not_y : y;  // the share of the target on the side that the sign of x denies
  const V right = x >= T(0) ? y : not_y;
  const V s = (wrong - e * right) / (T(1) + e);
  slope = x >= T(0) ? s : -s;
  term = (wrong == T(0) ? V{} : absolute(x) * wrong) + logarithm_1p(e);
}

template <class T>
Sum binary_cross_entropy(const T* logits, const T* target, const T* weight, Output<T> gradient, double scale, double,
                         std::ptrdiff_t n) noexcept {
  T terms[kSumBlock], slopes[kSumBlock];
  for (std::ptrdiff_t i = 0; i < n; i += kRowLanes) {
    const std::ptrdiff_t count = n - i < kRowLanes ? n - i : kRowLanes;
    Lanes<T> x, y, e, term, slope;
    load_lanes(logits + i, count, T(0), x);
    load_lanes(target + i, count, T(0), y);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) e[r] = -absolute(x[r]);
    exponentials<T>(e);
#pragma GCC unroll 16
    for (int r = 0; r < kRowRegisters<T>; ++r) cross_entropies(x[r], y[r], e[r], term[r], slope[r]);
    store_lanes(terms + i, kRowLanes, term);
    store_lanes(slopes + i, kRowLanes, slope);
  }
  const T *term = terms, *slope = slopes;
  return elementwise(weight, gradient, scale, n,
                     [=](auto at) { return Point<decltype(at(term))>{at(term), at(slope)}; });
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
constexpr LossKernels<T> kernels{mse<T>,
                                 mae<T>,
                                 huber<T>,
                                 binary_cross_entropy<T>,
                                 softmax_cross_entropy<T>,
                                 distillation<T>,
                                 sum<T>,
                                 sum_of_squares<T>,
                                 exp<T>,
                                 log<T>,
                                 log1p<T>};

}  // namespace

extern const LossKernels<float> STEEPEST_NAME(losses_f32);
extern const LossKernels<double> STEEPEST_NAME(losses_f64);
const LossKernels<float> STEEPEST_NAME(losses_f32) = kernels<float>;
const LossKernels<double> STEEPEST_NAME(losses_f64) = kernels<double>;

}  // namespace steepest
