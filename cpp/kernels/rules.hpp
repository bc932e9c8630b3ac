// The update rules, each written for a number and for a register of them alike: of the gradient, the parameter and what
// the rule keeps, the latter two by reference. Bit k of `squares` says that state k is a sum or an average of squares.
#pragma once

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

// Asks for the line that lies so many bytes ahead, in the second cache: the first would have to remember it until it
// comes, which takes its places for such lines from the loads.
template <class T>
inline void prefetch(const T* x, std::ptrdiff_t ahead) {
  __builtin_prefetch(reinterpret_cast<const char*>(x) + ahead, 0, 2);
}

template <class T>
inline bool has_penalty(const Gradient<T>& f) {
  return f.l1 != 0 || f.l2 != 0;
}

// Whether the rule sees the gradient as it is given.
template <class T>
inline bool is_plain(const Gradient<T>& f) {
  constexpr T infinity = Float<T>::infinity;
  return f.scale == 1 && f.lower == -infinity && f.upper == infinity && !has_penalty(f);
}

// Whether g * scale needs double: not where scale has T's precision, for the product is then rounded once either way.
inline bool is_wide(const Gradient<float>& f) { return static_cast<double>(static_cast<float>(f.scale)) != f.scale; }

// A register of g * scale, rounded once.
inline Vector<float> wide_product(const float* g, double scale) {
  constexpr int half = kLanesOf<double>;
  return joined(load_double(g) * scale, load_double(g + half) * scale);
}

// The gradient that the rule sees.
template <bool penalty, bool wide, class T>
inline Vector<T> fused(const Gradient<T>& f, const T* g, Vector<T> p) {
  Vector<T> x;
  if constexpr (wide) {
    x = wide_product(g, f.scale);
  } else {
    x = load_register(g) * static_cast<T>(f.scale);
  }
  x = clip(x, f.lower, f.upper);
  if constexpr (penalty) x = x + f.l1 * sgn(p) + f.l2 * p;
  return x;
}

// Rules in two parts: what becomes of the state, and of p, by g and the new state. Where state is coded, other work is
// done between the second one's divisions.
template <class Rule>
struct InTwoParts {
  template <class V, class Step>
  static void update(const Step& h, V g, V& p, V* state) {
    Rule::advance(h, g, state);
    Rule::move(h, g, p, state);
  }
};

struct PlainSgd {
  static constexpr std::size_t slots = 0;
  static constexpr unsigned squares = 0;
  template <class V, class Step>
  static void update(const Step& h, V g, V& p, V*) {
    p = p - h.lr * g;
  }
};

template <bool nesterov, bool lr_in_velocity>
struct SgdWithMomentum {
  static constexpr std::size_t slots = 1;
  static constexpr unsigned squares = 0;
  template <class V, class Step>
  static void update(const Step& h, V g, V& p, V* state) {
    V& b = state[0];
    if constexpr (lr_in_velocity) {
      b = flush(h.momentum * b - h.lr * g);
      p = nesterov ? p + (h.momentum * b - h.lr * g) : p + b;
    } else {
      b = flush(h.momentum * b + h.one_minus_dampening * g);
      p = p - h.lr * (nesterov ? g + h.momentum * b : b);
    }
  }
};

struct Momentum {
  static constexpr std::size_t slots = 1;
  static constexpr unsigned squares = 0;
  template <class V, class Step>
  static void update(const Step& h, V g, V& p, V* state) {
    V& v = state[0];
    v = flush(h.beta * v + h.one_minus_beta * g);
    p = p - h.lr * v;
  }
};

template <bool centered, bool has_momentum>
struct Rmsprop {
  static constexpr std::size_t slots = 1 + centered + has_momentum;
  static constexpr unsigned squares = 1;
  template <class V, class Step>
  static void update(const Step& h, V g, V& p, V* state) {
    V& s = state[0];
    s = flush(h.alpha * s + h.one_minus_alpha * g * g);
    V variance = s;
    if constexpr (centered) {
      V& mean = state[1];
      mean = flush(h.alpha * mean + h.one_minus_alpha * g);
      variance = larger(s - mean * mean, V{});
    }
    V d = g / (square_root(variance + h.eps_inside) + h.eps);
    if constexpr (has_momentum) {
      V& buf = state[slots - 1];
      d = buf = flush(h.momentum * buf + d);
    }
    p = p - h.lr * d;
  }
};

struct Adagrad : InTwoParts<Adagrad> {
  static constexpr std::size_t slots = 1;
  static constexpr unsigned squares = 1;
  template <class V, class Step>
  static void advance(const Step&, V g, V* state) {
    state[0] = flush(state[0] + g * g);
  }
  template <class V, class Step>
  static void move(const Step& h, V g, V& p, const V* state) {
    p = p - h.lr * g / (square_root(state[0] + h.eps_inside) + h.eps);
  }
};

template <bool amsgrad>
struct Adam : InTwoParts<Adam<amsgrad>> {
  static constexpr std::size_t slots = 2 + amsgrad;
  static constexpr unsigned squares = 6;
  template <class V, class Step>
  static void advance(const Step& h, V g, V* state) {
    V &m = state[0], &v = state[1], &v_hat = state[slots - 1];
    m = flush(h.beta1 * m + h.one_minus_beta1 * g);
    v = flush(h.beta2 * v + h.one_minus_beta2 * g * g);
    if constexpr (amsgrad) v_hat = larger(v_hat, v);
  }
  template <class V, class Step>
  static void move(const Step& h, V, V& p, const V* state) {
    const V &m = state[0], &v_hat = state[slots - 1];
    p = p * h.decay - h.step_size * m / (square_root(v_hat) * h.sqrt_v_scale + h.eps);
  }
};

struct Nadam : InTwoParts<Nadam> {
  static constexpr std::size_t slots = 2;
  static constexpr unsigned squares = 2;
  template <class V, class Step>
  static void advance(const Step& h, V g, V* state) {
    V &m = state[0], &v = state[1];
    m = flush(h.beta1 * m + h.one_minus_beta1 * g);
    v = flush(h.beta2 * v + h.one_minus_beta2 * g * g);
  }
  template <class V, class Step>
  static void move(const Step& h, V g, V& p, const V* state) {
    const V &m = state[0], &v = state[1];
    p = p * h.decay - (h.step_size_g * g + h.step_size_m * m) / (square_root(v) * h.sqrt_v_scale + h.eps);
  }
};

struct Lion {
  static constexpr std::size_t slots = 1;
  static constexpr unsigned squares = 0;
  template <class V, class Step>
  static void update(const Step& h, V g, V& p, V* state) {
    V& m = state[0];
    p = p * h.decay - h.lr * sgn(h.beta1 * m + h.one_minus_beta1 * g);
    m = flush(h.beta2 * m + h.one_minus_beta2 * g);
  }
};

// Calls f with the rule of a step.
template <class T, class F>
void with_rule(const SgdStep<T>& h, F f) {
  if (!h.has_momentum) return f(PlainSgd{});
  specialise([=](auto nesterov, auto in_velocity) { f(SgdWithMomentum<nesterov.value, in_velocity.value>{}); },
             h.nesterov, h.lr_in_velocity);
}
template <class T, class F>
void with_rule(const MomentumStep<T>&, F f) {
  f(Momentum{});
}
template <class T, class F>
void with_rule(const RmspropStep<T>& h, F f) {
  specialise([=](auto centered, auto has_momentum) { f(Rmsprop<centered.value, has_momentum.value>{}); }, h.centered,
             h.has_momentum);
}
template <class T, class F>
void with_rule(const AdagradStep<T>&, F f) {
  f(Adagrad{});
}
template <class T, class F>
void with_rule(const AdamStep<T>& h, F f) {
  specialise([=](auto amsgrad) { f(Adam<amsgrad.value>{}); }, h.amsgrad);
}
template <class T, class F>
void with_rule(const NadamStep<T>&, F f) {
  f(Nadam{});
}
template <class T, class F>
void with_rule(const LionStep<T>&, F f) {
  f(Lion{});
}

}  // namespace
}  // namespace steepest
