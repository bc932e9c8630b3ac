// What the kernels take and which there are: data only. Every ISA has one `Kernels` of its own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace steepest {

// The arrays of one tensor, or of a part of it, n elements each: what a rule reads and writes.
template <class T>
struct Arrays {
  T* p;
  const T* g;
  T* state[3];
};

// What is fused before every rule, in this order: g * scale (one product in double, rounded once),
// the clip to [lower, upper], + l1 sgn(p), + l2 p.
template <class T>
struct Gradient {
  double scale;
  T lower, upper, l1, l2;
};

// The scalars of one step, one struct per rule: prepared in double, rounded once.
template <class T>
struct SgdStep {
  T lr, momentum, one_minus_dampening;
  bool has_momentum, nesterov, lr_in_velocity;
};

template <class T>
struct MomentumStep {
  T lr, beta, one_minus_beta;
};

template <class T>
struct RmspropStep {
  T lr, alpha, one_minus_alpha, momentum, eps_inside, eps;
  bool centered, has_momentum;
};

template <class T>
struct AdagradStep {
  T lr, eps_inside, eps;
};

template <class T>
struct AdamStep {
  T step_size, beta1, one_minus_beta1, beta2, one_minus_beta2, sqrt_v_scale, eps, decay;
  bool amsgrad;
};

template <class T>
struct NadamStep {
  T step_size_g, step_size_m, beta1, one_minus_beta1, beta2, one_minus_beta2, sqrt_v_scale, eps, decay;
};

template <class T>
struct LionStep {
  T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, decay;
};

// A sum and the rounding errors made in it; hi + lo is the value.
struct Sum {
  double hi, lo;
};

// Losses and norms are summed over blocks of this many elements, whatever the ISA and the threads.
constexpr std::ptrdiff_t kSumBlock = 2048;

// One block of rows of softmax cross-entropy. `gradient` may be `logits`; both are (rows, classes).
template <class T>
struct SoftmaxRows {
  const T* logits;
  T* gradient;
  std::ptrdiff_t rows, classes;
  const std::int64_t* labels;  // (rows); negative: the row is ignored. Null where there are probabilities.
  const T* probabilities;      // (rows, classes) or null
  const T* weight;             // (rows) or null
  double scale;                // of the gradient: 1 or 1 / (the sum of the weights)
  double smoothing;
};

template <class T>
struct RuleKernels {
  template <class Step>
  using Rule = void (*)(Gradient<T>, Step, Arrays<T>, std::ptrdiff_t n) noexcept;

  Rule<SgdStep<T>> sgd;
  Rule<MomentumStep<T>> momentum;
  Rule<RmspropStep<T>> rmsprop;
  Rule<AdagradStep<T>> adagrad;
  Rule<AdamStep<T>> adam;
  Rule<NadamStep<T>> nadam;
  Rule<LionStep<T>> lion;
};

// Each value-and-gradient kernel returns the sum of its block's terms; `weight` (n) may be null.
template <class T>
struct LossKernels {
  using Elementwise = Sum (*)(const T* prediction, const T* target, const T* weight, T* gradient, double scale,
                              std::ptrdiff_t n) noexcept;

  Elementwise mse;
  Elementwise binary_cross_entropy;
  Sum (*softmax_cross_entropy)(const SoftmaxRows<T>&) noexcept;
  Sum (*sum)(const T* x, std::ptrdiff_t n) noexcept;
  Sum (*sum_of_squares)(const T* x, double scale, std::ptrdiff_t n) noexcept;  // of scale * x
  void (*exp)(const T* x, T* y, std::ptrdiff_t n) noexcept;
  void (*log)(const T* x, T* y, std::ptrdiff_t n) noexcept;
  void (*log1p)(const T* x, T* y, std::ptrdiff_t n) noexcept;
};

struct Kernels {
  RuleKernels<float> rules_f32;
  RuleKernels<double> rules_f64;
  LossKernels<float> losses_f32;
  LossKernels<double> losses_f64;
};

}  // namespace steepest
