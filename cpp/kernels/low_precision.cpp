// The update rules on float32 whose state takes fewer bytes. Compiled once per ISA.
#include "codes.hpp"
#include "rules.hpp"

namespace steepest {
namespace {

constexpr std::ptrdiff_t kChunk = 64;  // elements between requests for what lies ahead

// What of a rule matters to codes.
template <std::size_t n, unsigned of_squares>
struct States {
  static constexpr std::size_t slots = n;
  static constexpr unsigned squares = of_squares;
};

template <class Rule>
constexpr bool is_squares(std::size_t slot) {
  return (Rule::squares >> slot & 1) != 0;
}

// Calls f(Index<0>), f(Index<1>) and so on.
template <std::size_t i>
struct Index {
  constexpr operator std::size_t() const { return i; }
};
template <std::size_t... i, class F>
inline void for_each(std::index_sequence<i...>, [[maybe_unused]] F f) {
  (f(Index<i>{}), ...);
}
template <class Rule, class F>
inline void for_slots(F f) {
  for_each(std::make_index_sequence<Rule::slots>{}, f);
}

template <class Rule>
inline void prefetch_chunk(const CodedArrays& a, std::ptrdiff_t i, std::ptrdiff_t bytes) {
  for (std::ptrdiff_t k = 0; k < kChunk; k += 16) {
    prefetch(a.g + i + k, a.ahead);
    prefetch(a.p + i + k, a.ahead);
  }
  for (std::size_t k = 0; k < Rule::slots; ++k) {
    for (std::ptrdiff_t at = 0; at < kChunk * bytes; at += 64) {
      prefetch(static_cast<const char*>(a.state[k]) + i * bytes + at, a.ahead * bytes / 4);
    }
  }
}

// A group of elements whose state is bfloat16: averages of squares are rounded at random, the others to nearest.
template <class Rule, bool is_stochastic, class Step>
void update_halves(Step h, CodedArrays a, RuleKernels<float>::Rule<Step>) {
  Random<16> random(a.counter);
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kEncoded) {
    if (a.ahead != 0 && i % kChunk == 0) prefetch_chunk<Rule>(a, i, sizeof(std::uint16_t));
    Words chance[kRegisters] = {}, rounded[Rule::slots + 1][2];
    if constexpr (is_stochastic && Rule::squares != 0) random.next(chance);
#pragma GCC unroll 8
    for (int r = 0; r < kRegisters; ++r) {
      const std::ptrdiff_t j = i + r * kLanes;
      Vector<float> p = load_register(a.p + j), state[Rule::slots + 1];
      for_slots<Rule>([&](auto k) { state[k] = widened(static_cast<const std::uint16_t*>(a.state[k]) + j); });
      Rule::update(h, load_register(a.g + j), p, state);
      store_register(a.p + j, p);
      for_slots<Rule>([&](auto k) {
        constexpr bool squares = is_squares<Rule>(k), is_random = is_stochastic && squares;
        rounded[k][r % 2] = narrowed<squares, is_random>(state[k], chance[r]);
        if (r % 2 == 0) return;
        store_halves(static_cast<std::uint16_t*>(a.state[k]) + j - kLanes,
                     in_order(upper_halves(rounded[k][0], rounded[k][1])));
      });
    }
  }
}

inline std::uint32_t largest_of(Words x) {
  std::uint32_t y = 0;
  for (int i = 0; i < kLanes; ++i) y = x[i] > y ? x[i] : y;
  return y;
}

// What a group of 8-bit codes was, and will be.
struct Group {
  alignas(64) float state[3][kCodeGroup];
  std::uint32_t largest[3];  // bits of magnitudes
};

// Leaves the new state in `group`.
template <class Rule, class Step>
void update_decoded(Step h, CodedArrays a, Group& group) {
  std::uint32_t base[Rule::slots + 1];
  Words largest[Rule::slots + 1] = {};
  for_slots<Rule>([&](auto k) { base[k] = base_of(*a.scales[k], highest_code<!is_squares<Rule>(k)>); });
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kChunk) {
    if (a.ahead != 0) prefetch_chunk<Rule>(a, i, 1);
#pragma GCC unroll 2
    for (std::ptrdiff_t j = i; j < i + kChunk; j += 2 * kLanes) {
      Vector<float> decoded[Rule::slots + 1][2];
      for_slots<Rule>([&](auto k) {
        decode<!is_squares<Rule>(k)>(static_cast<const std::uint8_t*>(a.state[k]) + j, base[k], decoded[k]);
      });
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const std::ptrdiff_t at = j + r * kLanes;
        Vector<float> p = load_register(a.p + at), state[Rule::slots + 1];
        for_slots<Rule>([&](auto k) { state[k] = decoded[k][r]; });
        Rule::update(h, load_register(a.g + at), p, state);
        store_register(a.p + at, p);
        for_slots<Rule>([&](auto k) {
          store_register(group.state[k] + at, state[k]);
          // Of squares only a NaN has a sign.
          const Words size = is_squares<Rule>(k) ? bits(state[k]) : bits_of_magnitude(bits(state[k]));
          largest[k] = size > largest[k] ? size : largest[k];
        });
      }
    }
  }
  for_slots<Rule>([&](auto k) { group.largest[k] = largest_of(largest[k]); });
}

// The same of a group with codes of infinity or NaN.
template <class Rule, class Step>
void update_special(const Step& h, const CodedArrays& a, Group& group, RuleKernels<float>::Rule<Step> rule) {
  for_slots<Rule>([&](auto k) {
    constexpr bool is_signed = !is_squares<Rule>(k);
    const std::uint32_t base = base_of(*a.scales[k], highest_code<is_signed>);
    const auto* codes = static_cast<const std::uint8_t*>(a.state[k]);
    for (std::ptrdiff_t i = 0; i < kCodeGroup; ++i) group.state[k][i] = decoded_special<is_signed>(codes[i], base);
  });
  rule({1, -Float<float>::infinity, Float<float>::infinity, 0, 0}, h,
       {a.p, a.g, {group.state[0], group.state[1], group.state[2]}, 0}, kCodeGroup);
  for_slots<Rule>([&](auto k) {
    group.largest[k] = 0;
    for (const float x : group.state[k]) {
      const std::uint32_t size = bits_of_magnitude(bits(x));
      group.largest[k] = size > group.largest[k] ? size : group.largest[k];
    }
  });
}

// State k of a group of which some state has infinities or NaN.
template <bool is_signed, bool is_random>
void encode_special(const Group& group, const CodedArrays& a, std::size_t k) {
  std::uint32_t largest = 0;  // of the finite numbers
  bool is_finite = true;
  for (const float x : group.state[k]) {
    const std::uint32_t size = bits_of_magnitude(bits(x));
    if (size >= kInfinite) {
      is_finite = false;
    } else if (size > largest) {
      largest = size;
    }
  }
  std::uint32_t top = top_of<is_signed>(largest);
  if (top >= kInfiniteUpper) {  // rounding would make infinity of it
    top = kInfiniteUpper - 1;
    is_finite = false;
  }
  auto* codes = static_cast<std::uint8_t*>(a.state[k]);
  for (std::ptrdiff_t i = 0; i < kCodeGroup; ++i) {
    const std::uint32_t random = random_bits<kDropped>(a.counter, static_cast<std::uint32_t>(i));
    codes[i] = encoded_special<is_signed, is_random>(group.state[k][i], top - highest_code<is_signed>, random);
  }
  *a.scales[k] = from_bits<float>(top << kDropped | (is_finite ? 0 : kSign));
}

template <class Rule, bool is_stochastic>
void encode_group(const Group& group, const CodedArrays& a) {
  bool is_finite = true;
  std::uint32_t base[Rule::slots + 1];
  for_slots<Rule>([&](auto k) {
    constexpr bool is_signed = !is_squares<Rule>(k);
    const std::uint32_t top = top_of<is_signed>(group.largest[k]);
    is_finite &= top < kInfiniteUpper;
    *a.scales[k] = from_bits<float>(top << kDropped);
    base[k] = top - highest_code<is_signed>;
  });
  if (!is_finite) {
    for_slots<Rule>([&](auto k) { encode_special<!is_squares<Rule>(k), is_stochastic>(group, a, k); });
    return;
  }
  Random<kDropped> random(a.counter);
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kEncoded) {
    Words chance[kRegisters] = {};
    if constexpr (is_stochastic) random.next(chance);
    for_slots<Rule>([&](auto k) {
#pragma GCC unroll 2
      for (int r = 0; r < kRegisters; r += 4) {
        const std::ptrdiff_t j = i + r * kLanes;
        encode<!is_squares<Rule>(k), is_stochastic>(group.state[k] + j, static_cast<std::uint8_t*>(a.state[k]) + j,
                                                    base[k], chance + r);
      }
    });
  }
}

// A group of elements whose state is 8-bit codes.
template <class Rule, class Step>
void update_codes(Step h, CodedArrays a, RuleKernels<float>::Rule<Step> rule) {
  Group group;
  bool is_special = false;
  for (std::size_t k = 0; k < Rule::slots; ++k) is_special |= *a.scales[k] < 0;
  if (is_special) {
    update_special<Rule>(h, a, group, rule);
  } else {
    update_decoded<Rule>(h, a, group);
  }
  using Kept = States<Rule::slots, Rule::squares>;
  (a.is_stochastic ? encode_group<Kept, true> : encode_group<Kept, false>)(group, a);
}

// The gradient that the rule sees, where it is not g itself.
template <bool penalty, bool wide>
void prepare(const Gradient<float>& f, const float* g, const float* p, float* y) {
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kLanes) {
    store_register(y + i, fused<penalty, wide>(f, g + i, load_register(p + i)));
  }
}

inline bool is_plain(const Gradient<float>& f) {
  constexpr float infinity = Float<float>::infinity;
  return f.scale == 1 && f.lower == -infinity && f.upper == infinity && !has_penalty(f);
}

// n elements of so many bytes, and the first as often as it takes to make a group of them.
inline void fill(const void* x, void* y, std::size_t bytes, std::size_t n) {
  const auto* from = static_cast<const char*>(x);
  for (std::size_t i = 0; i < kCodeGroup; ++i) {
    __builtin_memcpy(static_cast<char*>(y) + i * bytes, from + (i < n ? i : 0) * bytes, bytes);
  }
}

template <class Step>
void update(const Gradient<float>& f, const Step& h, const CodedArrays& a, std::ptrdiff_t n,
            RuleKernels<float>::Rule<Step> rule) noexcept {
  using Run = void (*)(Step, CodedArrays, RuleKernels<float>::Rule<Step>);
  const bool is_coded = a.scales[0] != nullptr;
  Run run;
  std::size_t slots;
  with_rule(h, [&](auto of_rule) {
    using Rule = decltype(of_rule);
    slots = Rule::slots;
    run = is_coded          ? Run(update_codes<Rule, Step>)
          : a.is_stochastic ? Run(update_halves<Rule, true, Step>)
                            : Run(update_halves<Rule, false, Step>);
  });
  void (*prepare_gradient)(const Gradient<float>&, const float*, const float*, float*);
  specialise([&](auto penalty, auto wide) { prepare_gradient = prepare<penalty.value, wide.value>; }, has_penalty(f),
             is_wide(f));
  const auto run_group = [&](CodedArrays group) {
    alignas(64) float g[kCodeGroup];
    if (!is_plain(f)) {
      prepare_gradient(f, group.g, group.p, g);
      group.g = g;
    }
    run(h, group, rule);
  };
  const std::size_t bytes = is_coded ? 1 : 2;
  CodedArrays group = a;
  for (; n >= kCodeGroup; n -= kCodeGroup) {
    run_group(group);
    group.p += kCodeGroup;
    group.g += kCodeGroup;
    for (std::size_t k = 0; k < slots; ++k) {
      group.state[k] = static_cast<char*>(group.state[k]) + kCodeGroup * bytes;
      if (is_coded) ++group.scales[k];
    }
    group.counter += kCodeGroup / 2;
  }
  if (n == 0) return;
  const auto size = static_cast<std::size_t>(n);
  alignas(64) float p[kCodeGroup], g[kCodeGroup], state[3][kCodeGroup];
  CodedArrays whole = group;
  fill(group.p, whole.p = p, sizeof(float), size);
  fill(group.g, g, sizeof(float), size);
  whole.g = g;
  for (std::size_t k = 0; k < slots; ++k) fill(group.state[k], whole.state[k] = state[k], bytes, size);
  run_group(whole);
  __builtin_memcpy(group.p, p, size * sizeof(float));
  for (std::size_t k = 0; k < slots; ++k) __builtin_memcpy(group.state[k], state[k], size * bytes);
}

std::uint8_t encode_one(float x, float* scale) noexcept {
  const std::uint32_t top = top_of<false>(bits(x));
  *scale = from_bits<float>(top << kDropped);
  return encoded_special<false, false>(x, top - highest_code<false>, 0);
}

}  // namespace

extern const CodedRuleKernels STEEPEST_NAME(coded_f32);
const CodedRuleKernels STEEPEST_NAME(coded_f32){
    update<SgdStep<float>>,  update<MomentumStep<float>>, update<RmspropStep<float>>, update<AdagradStep<float>>,
    update<AdamStep<float>>, update<NadamStep<float>>,    update<LionStep<float>>,    encode_one};

}  // namespace steepest
