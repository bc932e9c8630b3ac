// The update rules. Compiled once per ISA.
#include "vector_math.hpp"

namespace steepest {
namespace {

// Calls f with the flags as types, so that a loop has no branch on them.
template <class F>
inline void specialise(F f) {
  f();
}
template <class F, class... Rest>
inline void specialise(F f, bool flag, Rest... rest) {
  if (flag) {
    specialise([=](auto... others) { f(Flag<true>{}, others...); }, rest...);
  } else {
    specialise([=](auto... others) { f(Flag<false>{}, others...); }, rest...);
  }
}

template <class T>
inline bool has_penalty(const Gradient<T>& f) {
  return f.l1 != 0 || f.l2 != 0;
}

// Whether g * scale needs double: not where scale has T's precision, for the product is then rounded once either way.
template <class T>
inline bool is_wide(const Gradient<T>& f) {
  return static_cast<double>(static_cast<T>(f.scale)) != f.scale;
}

// The gradient that the rule sees.
template <bool penalty, bool wide, class T>
inline T fused(Flag<penalty>, Flag<wide>, const Gradient<T>& f, T g, T p) {
  const T scaled = wide ? static_cast<T>(static_cast<double>(g) * f.scale) : g * static_cast<T>(f.scale);
  const T x = clip(scaled, f.lower, f.upper);
  return penalty ? x + f.l1 * sgn(p) + f.l2 * p : x;
}

template <class T>
void sgd(Gradient<T> f, SgdStep<T> h, Arrays<T> a, std::ptrdiff_t n) noexcept {
  T *const p = a.p, *const buf = a.state[0];
  if (!h.has_momentum) {
    specialise(
        [=](auto penalty, auto wide) {
#pragma omp simd
          for (std::ptrdiff_t i = 0; i < n; ++i) p[i] = p[i] - h.lr * fused(penalty, wide, f, a.g[i], p[i]);
        },
        has_penalty(f), is_wide(f));
    return;
  }
  specialise(
      [=](auto penalty, auto wide, auto nesterov, auto lr_in_velocity) {
#pragma omp simd
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          const T g = fused(penalty, wide, f, a.g[i], p[i]);
          if constexpr (decltype(lr_in_velocity)::value) {
            const T v = flush(h.momentum * buf[i] - h.lr * g);
            p[i] = decltype(nesterov)::value ? p[i] + (h.momentum * v - h.lr * g) : p[i] + v;
            buf[i] = v;
          } else {
            const T b = flush(h.momentum * buf[i] + h.one_minus_dampening * g);
            p[i] = p[i] - h.lr * (decltype(nesterov)::value ? g + h.momentum * b : b);
            buf[i] = b;
          }
        }
      },
      has_penalty(f), is_wide(f), h.nesterov, h.lr_in_velocity);
}

template <class T>
void momentum(Gradient<T> f, MomentumStep<T> h, Arrays<T> a, std::ptrdiff_t n) noexcept {
  T *const p = a.p, *const v = a.state[0];
  specialise(
      [=](auto penalty, auto wide) {
#pragma omp simd
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          const T g = fused(penalty, wide, f, a.g[i], p[i]);
          const T v_t = flush(h.beta * v[i] + h.one_minus_beta * g);
          p[i] = p[i] - h.lr * v_t;
          v[i] = v_t;
        }
      },
      has_penalty(f), is_wide(f));
}

template <class T>
void rmsprop(Gradient<T> f, RmspropStep<T> h, Arrays<T> a, std::ptrdiff_t n) noexcept {
  T *const p = a.p, *const s = a.state[0], *const mean = a.state[1], *const buf = a.state[h.centered ? 2 : 1];
  specialise(
      [=](auto penalty, auto wide, auto centered, auto has_momentum) {
#pragma omp simd
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          const T g = fused(penalty, wide, f, a.g[i], p[i]);
          const T s_t = flush(h.alpha * s[i] + h.one_minus_alpha * g * g);
          T variance = s_t;
          if constexpr (decltype(centered)::value) {
            const T mean_t = flush(h.alpha * mean[i] + h.one_minus_alpha * g);
            variance = larger(s_t - mean_t * mean_t, T(0));
            mean[i] = mean_t;
          }
          T d = g / (square_root(variance + h.eps_inside) + h.eps);
          if constexpr (decltype(has_momentum)::value) {
            d = flush(h.momentum * buf[i] + d);
            buf[i] = d;
          }
          p[i] = p[i] - h.lr * d;
          s[i] = s_t;
        }
      },
      has_penalty(f), is_wide(f), h.centered, h.has_momentum);
}

template <class T>
void adagrad(Gradient<T> f, AdagradStep<T> h, Arrays<T> a, std::ptrdiff_t n) noexcept {
  T *const p = a.p, *const s = a.state[0];
  specialise(
      [=](auto penalty, auto wide) {
#pragma omp simd
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          const T g = fused(penalty, wide, f, a.g[i], p[i]);
          const T s_t = flush(s[i] + g * g);
          p[i] = p[i] - h.lr * g / (square_root(s_t + h.eps_inside) + h.eps);
          s[i] = s_t;
        }
      },
      has_penalty(f), is_wide(f));
}

template <class T>
void adam(Gradient<T> f, AdamStep<T> h, Arrays<T> a, std::ptrdiff_t n) noexcept {
  T *const p = a.p, *const m = a.state[0], *const v = a.state[1], *const v_max = a.state[2];
  specialise(
      [=](auto penalty, auto wide, auto amsgrad) {
#pragma omp simd
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          const T g = fused(penalty, wide, f, a.g[i], p[i]);
          const T m_t = flush(h.beta1 * m[i] + h.one_minus_beta1 * g);
          const T v_t = flush(h.beta2 * v[i] + h.one_minus_beta2 * g * g);
          T v_hat = v_t;
          if constexpr (decltype(amsgrad)::value) {
            v_hat = larger(v_max[i], v_t);
            v_max[i] = v_hat;
          }
          p[i] = p[i] * h.decay - h.step_size * m_t / (square_root(v_hat) * h.sqrt_v_scale + h.eps);
          m[i] = m_t;
          v[i] = v_t;
        }
      },
      has_penalty(f), is_wide(f), h.amsgrad);
}

template <class T>
void nadam(Gradient<T> f, NadamStep<T> h, Arrays<T> a, std::ptrdiff_t n) noexcept {
  T *const p = a.p, *const m = a.state[0], *const v = a.state[1];
  specialise(
      [=](auto penalty, auto wide) {
#pragma omp simd
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          const T g = fused(penalty, wide, f, a.g[i], p[i]);
          const T m_t = flush(h.beta1 * m[i] + h.one_minus_beta1 * g);
          const T v_t = flush(h.beta2 * v[i] + h.one_minus_beta2 * g * g);
          p[i] =
              p[i] * h.decay - (h.step_size_g * g + h.step_size_m * m_t) / (square_root(v_t) * h.sqrt_v_scale + h.eps);
          m[i] = m_t;
          v[i] = v_t;
        }
      },
      has_penalty(f), is_wide(f));
}

template <class T>
void lion(Gradient<T> f, LionStep<T> h, Arrays<T> a, std::ptrdiff_t n) noexcept {
  T *const p = a.p, *const m = a.state[0];
  specialise(
      [=](auto penalty, auto wide) {
#pragma omp simd
        for (std::ptrdiff_t i = 0; i < n; ++i) {
          const T g = fused(penalty, wide, f, a.g[i], p[i]);
          p[i] = p[i] * h.decay - h.lr * sgn(h.beta1 * m[i] + h.one_minus_beta1 * g);
          m[i] = flush(h.beta2 * m[i] + h.one_minus_beta2 * g);
        }
      },
      has_penalty(f), is_wide(f));
}

// y = x where the mask says so, else +0.
template <class T>
void keep(const std::uint8_t* mask, const T* x, T* y, std::ptrdiff_t n) noexcept {
#pragma omp simd
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const T kept = x[i];
    y[i] = mask[i] != 0 ? kept : T(0);
  }
}

template <class T>
constexpr RuleKernels<T> kernels{sgd<T>, momentum<T>, rmsprop<T>, adagrad<T>, adam<T>, nadam<T>, lion<T>, keep<T>};

}  // namespace

extern const RuleKernels<float> STEEPEST_NAME(rules_f32);
extern const RuleKernels<double> STEEPEST_NAME(rules_f64);
const RuleKernels<float> STEEPEST_NAME(rules_f32) = kernels<float>;
const RuleKernels<double> STEEPEST_NAME(rules_f64) = kernels<double>;

}  // namespace steepest
