// The update rules over arrays. Compiled once per ISA.
#include "rules.hpp"

namespace steepest {
namespace {

// A cache line of every array is updated at a time.
template <class T>
constexpr std::ptrdiff_t kLine = 64 / sizeof(T);

// Copies n elements, at most a line, in parts of half as many each.
template <class T, std::ptrdiff_t part = kLine<T>>
[[gnu::always_inline]] inline void copy_line(const T* x, T* y, std::ptrdiff_t n) {
  const std::ptrdiff_t copied = n & part;
  if (copied != 0) __builtin_memcpy(y, x, part * sizeof(T));
  if constexpr (part > 1) copy_line<T, part / 2>(x + copied, y + copied, n);
}

template <class T>
inline void clear_line(T* y) {
#pragma GCC unroll 4
  for (std::ptrdiff_t i = 0; i < kLine<T>; i += kLanesOf<T>) store_register(y + i, Vector<T>{});
}

// n is a multiple of kLine. Copies stay in registers: what is behind a reference is read again after every store.
template <class Rule, bool plain, bool penalty, bool wide, class T, class Step>
[[gnu::noinline]] void update_lines(const Gradient<T>& gradient, const Step& step, const Arrays<T>& arrays,
                                    std::ptrdiff_t n) {
  constexpr std::size_t slots = Rule::slots;
  const Gradient<T> f = gradient;
  const Step h = step;
  const Arrays<T> a = arrays;
  for (std::ptrdiff_t i = 0; i < n; i += kLine<T>) {
    if (a.ahead != 0) {
      prefetch(a.g + i, a.ahead);
      prefetch(a.p + i, a.ahead);
#pragma GCC unroll 4
      for (std::size_t k = 0; k < slots; ++k) prefetch(a.state[k] + i, a.ahead);
    }
#pragma GCC unroll 4
    for (std::ptrdiff_t j = i; j < i + kLine<T>; j += kLanesOf<T>) {
      Vector<T> p = load_register(a.p + j), state[slots + 1];
#pragma GCC unroll 4
      for (std::size_t k = 0; k < slots; ++k) state[k] = load_register(a.state[k] + j);
      Vector<T> g = load_register(a.g + j);
      if constexpr (!plain) g = fused<penalty, wide>(f, a.g + j, p);
      Rule::update(h, g, p, state);
      store_register(a.p + j, p);
#pragma GCC unroll 4
      for (std::size_t k = 0; k < slots; ++k) store_register(a.state[k] + j, state[k]);
    }
  }
}

// A rule over whole lines.
template <class T, class Step>
using Lines = void (*)(const Gradient<T>&, const Step&, const Arrays<T>&, std::ptrdiff_t);

template <std::size_t slots, class T, class Step>
void update_all(Lines<T, Step> lines, const Gradient<T>& f, const Step& h, const Arrays<T>& a, std::ptrdiff_t n) {
  // The last line, where it is not a whole one, and the first of a large array, where it doesn't begin with a cache
  // line, are computed apart from what there was at first: they overlap what lies between.
  constexpr std::ptrdiff_t line = kLine<T>, aligned_from = 64 * line;
  const auto past_line = static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(a.p) % 64 / sizeof(T));
  const std::ptrdiff_t head = n >= aligned_from && past_line != 0 ? line - past_line : 0, rest = (n - head) % line;
  const std::ptrdiff_t count = n < line ? n : line;
  const auto compute = [&](T(&part)[5][line], std::ptrdiff_t at) {
    if (count < line) {
#pragma GCC unroll 5
      for (std::size_t k = 0; k < 2 + slots; ++k) clear_line(part[k]);
    }
    copy_line(a.g + at, part[0], count);
    copy_line(a.p + at, part[1], count);
    for (std::size_t k = 0; k < slots; ++k) copy_line(a.state[k] + at, part[2 + k], count);
    lines(f, h, {part[1], part[0], {part[2], part[3], part[4]}, 0}, line);
  };
  const auto store = [&](const T(&part)[5][line], std::ptrdiff_t at) {
    copy_line(part[1], a.p + at, count);
    for (std::size_t k = 0; k < slots; ++k) copy_line(part[2 + k], a.state[k] + at, count);
  };
  alignas(64) T first[5][line], last[5][line];
  if (head > 0) compute(first, 0);
  if (rest > 0) compute(last, n - count);
  if (n >= line) {
    Arrays<T> between{a.p + head, a.g + head, {}, a.ahead};
    for (std::size_t k = 0; k < slots; ++k) between.state[k] = a.state[k] + head;
    lines(f, h, between, n - head - rest);
  }
  if (head > 0) store(first, 0);
  if (rest > 0) store(last, n - count);
}

template <class T, class Step>
void update(const Gradient<T>& f, const Step& h, const Arrays<T>& a, std::ptrdiff_t n) noexcept {
  with_rule(h, [&](auto rule) {
    using Rule = decltype(rule);
    Lines<T, Step> lines;
    const auto choose = [&](auto penalty, auto wide) {
      lines = update_lines<Rule, false, decltype(penalty)::value, decltype(wide)::value, T, Step>;
    };
    if (is_plain(f)) {
      lines = update_lines<Rule, true, false, false, T, Step>;
    } else if constexpr (sizeof(T) == sizeof(float)) {
      specialise(choose, has_penalty(f), is_wide(f));
    } else {
      specialise([&](auto penalty) { choose(penalty, Flag<false>{}); }, has_penalty(f));
    }
    update_all<Rule::slots>(lines, f, h, a, n);
  });
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
constexpr RuleKernels<T> kernels{
    update<T, SgdStep<T>>,  update<T, MomentumStep<T>>, update<T, RmspropStep<T>>, update<T, AdagradStep<T>>,
    update<T, AdamStep<T>>, update<T, NadamStep<T>>,    update<T, LionStep<T>>,    keep<T>};

}  // namespace

extern const RuleKernels<float> STEEPEST_NAME(rules_f32);
extern const RuleKernels<double> STEEPEST_NAME(rules_f64);
const RuleKernels<float> STEEPEST_NAME(rules_f32) = kernels<float>;
const RuleKernels<double> STEEPEST_NAME(rules_f64) = kernels<double>;

}  // namespace steepest
