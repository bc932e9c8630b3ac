// The update rules on float32 whose state takes fewer bytes. Compiled once per ISA.
#include "codes.hpp"
#include "rules.hpp"

namespace steepest {
namespace {

constexpr std::ptrdiff_t kChunk = 64;  // elements between requests for what lies ahead

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

inline std::uint32_t largest_of(Words x) {
  std::uint32_t y = 0;
  for (int i = 0; i < kLanes; ++i) y = x[i] > y ? x[i] : y;
  return y;
}

// What the state of a group of elements has become, in float32, and for codes their bases, if they are not special.
struct Group {
  alignas(64) float state[3][kCodeGroup];
  std::uint32_t base[3];
  bool is_special;
};

// Asks for a chunk of the next group: while one is finished, memory has little else to do.
template <class Rule>
inline void prefetch_next_group(const CodedArrays& a, std::ptrdiff_t i, std::ptrdiff_t bytes) {
  constexpr std::ptrdiff_t ahead = kCodeGroup, whole = sizeof(float);
  for (std::ptrdiff_t k = 0; k < kChunk; k += 16) {
    prefetch(a.g + i + k, ahead * whole);
    prefetch(a.p + i + k, ahead * whole);
  }
  for (std::size_t k = 0; k < Rule::slots; ++k) {
    for (std::ptrdiff_t at = 0; at < kChunk * bytes; at += 64) {
      prefetch(static_cast<const char*>(a.state[k]) + i * bytes + at, ahead * bytes);
    }
  }
}

template <class Rule, bool is_coded>
inline void to_next_group(CodedArrays& a) {
  a.p += kCodeGroup;
  a.g += kCodeGroup;
  for (std::size_t k = 0; k < Rule::slots; ++k) {
    a.state[k] = static_cast<char*>(a.state[k]) + kCodeGroup * (is_coded ? 1 : 2);
    if (is_coded) ++a.scales[k];
  }
  a.counter += kCodeGroup / 2;
}

template <class Rule>
constexpr bool is_in_two_parts = std::is_base_of_v<InTwoParts<Rule>, Rule>;

// Decodes the state and applies the rule to it, or of a rule in two parts the first.
template <class Rule, bool is_coded, class Step>
inline void advance(const Step& h, const CodedArrays& a, Group& group) {
  std::uint32_t base[Rule::slots + 1];
  Words largest[Rule::slots + 1] = {};
  if constexpr (is_coded) {
    for_slots<Rule>([&](auto k) { base[k] = base_of(*a.scales[k], highest_code<!is_squares<Rule>(k)>); });
  }
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kChunk) {
#pragma GCC unroll 2
    for (std::ptrdiff_t j = i; j < i + kChunk; j += 2 * kLanes) {
      Vector<float> decoded[Rule::slots + 1][2];
      for_slots<Rule>([&](auto k) {
        if constexpr (is_coded) {
          decode<!is_squares<Rule>(k)>(static_cast<const std::uint8_t*>(a.state[k]) + j, base[k], decoded[k]);
        } else {
          for (int r = 0; r < 2; ++r) {
            decoded[k][r] = widened(static_cast<const std::uint16_t*>(a.state[k]) + j + r * kLanes);
          }
        }
      });
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        const std::ptrdiff_t at = j + r * kLanes;
        const Vector<float> g = load_register(a.g + at);
        Vector<float> state[Rule::slots + 1];
        for_slots<Rule>([&](auto k) { state[k] = decoded[k][r]; });
        if constexpr (is_in_two_parts<Rule>) {
          Rule::advance(h, g, state);
        } else {
          Vector<float> p = load_register(a.p + at);
          Rule::update(h, g, p, state);
          store_register(a.p + at, p);
        }
        for_slots<Rule>([&](auto k) {
          store_register(group.state[k] + at, state[k]);
          if constexpr (is_coded) {
            // Of squares only a NaN has a sign.
            const Words size = is_squares<Rule>(k) ? bits(state[k]) : bits_of_magnitude(bits(state[k]));
            largest[k] = size > largest[k] ? size : largest[k];
          }
        });
      }
    }
  }
  group.is_special = false;
  if constexpr (is_coded) {
    for_slots<Rule>([&](auto k) {
      constexpr bool is_signed = !is_squares<Rule>(k);
      const std::uint32_t top = top_of<is_signed>(largest_of(largest[k]));
      group.is_special |= top >= kInfiniteUpper;
      *a.scales[k] = from_bits<float>(top << kDropped);
      group.base[k] = top - highest_code<is_signed>;
    });
  }
}

// The second part of a rule that has one, for some registers.
template <class Rule, class Step>
inline void move(const Step& h, const CodedArrays& a, const Group& group, std::ptrdiff_t i) {
  if constexpr (is_in_two_parts<Rule>) {
#pragma GCC unroll 8
    for (std::ptrdiff_t j = i; j < i + kEncoded; j += kLanes) {
      Vector<float> p = load_register(a.p + j), state[Rule::slots];
      for_slots<Rule>([&](auto k) { state[k] = load_register(group.state[k] + j); });
      Rule::move(h, load_register(a.g + j), p, state);
      store_register(a.p + j, p);
    }
  }
}

// The rest of the rule, and the new state's codes or bfloat16: averages of squares are rounded at random, of bfloat16
// the others to nearest.
template <class Rule, bool is_coded, bool is_stochastic, class Step>
inline void finish(const Step& h, const CodedArrays& a, const Group& group) {
  Random<is_coded ? kDropped : 16> random(a.counter);
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kEncoded) {
    Words chance[kRegisters] = {};
    if constexpr (is_stochastic && (is_coded || Rule::squares != 0)) random.next(chance);
    if (a.ahead != 0 && i % kChunk == 0) prefetch_next_group<Rule>(a, i, is_coded ? 1 : 2);
    move<Rule>(h, a, group, i);
    for_slots<Rule>([&](auto k) {
      constexpr bool squares = is_squares<Rule>(k);
      const float* x = group.state[k] + i;
      if constexpr (is_coded) {
        auto* codes = static_cast<std::uint8_t*>(a.state[k]) + i;
#pragma GCC unroll 2
        for (int r = 0; r < kRegisters; r += 4) {
          encode<!squares, is_stochastic>(x + r * kLanes, codes + r * kLanes, group.base[k], chance + r);
        }
      } else {
        auto* halves = static_cast<std::uint16_t*>(a.state[k]) + i;
#pragma GCC unroll 4
        for (int r = 0; r < kRegisters; r += 2) {
          narrow<squares, is_stochastic && squares>(x + r * kLanes, halves + r * kLanes, chance + r);
        }
      }
    });
  }
}

template <class Rule>
inline bool is_any_special(const CodedArrays& a) {
  bool is_special = false;
  for (std::size_t k = 0; k < Rule::slots; ++k) is_special |= *a.scales[k] < 0;
  return is_special;
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
  group.is_special = true;
  rule({1, -Float<float>::infinity, Float<float>::infinity, 0, 0}, h,
       {a.p, a.g, {group.state[0], group.state[1], group.state[2]}, 0}, kCodeGroup);
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

// Both parts are functions of their own, and take copies: as one, or by reference, they take a tenth longer.
template <class Rule, bool is_coded, class Step>
[[gnu::noinline]] void advance_group(Step h, CodedArrays a, Group& group, RuleKernels<float>::Rule<Step> rule) {
  if (is_coded && is_any_special<Rule>(a)) {
    update_special<Rule>(h, a, group, rule);
  } else {
    advance<Rule, is_coded>(h, a, group);
    for (std::ptrdiff_t i = 0; group.is_special && i < kCodeGroup; i += kEncoded) move<Rule>(h, a, group, i);
  }
}

template <class Rule, bool is_coded, bool is_stochastic, class Step>
[[gnu::noinline]] void finish_group(Step h, CodedArrays a, const Group& group) {
  if (group.is_special) {
    for_slots<Rule>([&](auto k) { encode_special<!is_squares<Rule>(k), is_stochastic>(group, a, k); });
  } else {
    finish<Rule, is_coded, is_stochastic>(h, a, group);
  }
}

// The gradient that the rule sees, where it is not g itself.
template <bool penalty, bool wide>
void prepare(const Gradient<float>& f, const float* g, const float* p, float* y, std::ptrdiff_t n) {
  for (std::ptrdiff_t i = 0; i < n; i += kLanes) {
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

// A whole number of groups, and what is left.
template <class Rule, bool is_coded, bool is_stochastic, class Step>
void update_all(const Gradient<float>& f, const Step& h, CodedArrays a, std::ptrdiff_t n,
                RuleKernels<float>::Rule<Step> rule) {
  const auto run = [&](CodedArrays group) {
    alignas(64) float g[kCodeGroup];
    if (!is_plain(f)) {
      specialise(
          [&](auto penalty, auto wide) { prepare<penalty.value, wide.value>(f, group.g, group.p, g, kCodeGroup); },
          has_penalty(f), is_wide(f));
      group.g = g;
    }
    Group state;
    advance_group<Rule, is_coded>(h, group, state, rule);
    finish_group<Rule, is_coded, is_stochastic>(h, group, state);
  };
  for (; n >= kCodeGroup; n -= kCodeGroup, to_next_group<Rule, is_coded>(a)) run(a);
  if (n == 0) return;
  constexpr std::size_t bytes = is_coded ? 1 : 2;
  const auto size = static_cast<std::size_t>(n);
  alignas(64) float p[kCodeGroup], g[kCodeGroup], state[3][kCodeGroup];
  CodedArrays whole = a;
  fill(a.p, whole.p = p, sizeof(float), size);
  fill(a.g, g, sizeof(float), size);
  whole.g = g;
  for (std::size_t k = 0; k < Rule::slots; ++k) fill(a.state[k], whole.state[k] = state[k], bytes, size);
  run(whole);
  __builtin_memcpy(a.p, p, size * sizeof(float));
  for (std::size_t k = 0; k < Rule::slots; ++k) __builtin_memcpy(a.state[k], state[k], size * bytes);
}

template <class Step>
void update(const Gradient<float>& f, const Step& h, const CodedArrays& a, std::ptrdiff_t n,
            RuleKernels<float>::Rule<Step> rule) noexcept {
  with_rule(h, [&](auto of_rule) {
    specialise([&](auto coded,
                   auto stochastic) { update_all<decltype(of_rule), coded.value, stochastic.value>(f, h, a, n, rule); },
               a.scales[0] != nullptr, a.is_stochastic);
  });
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
