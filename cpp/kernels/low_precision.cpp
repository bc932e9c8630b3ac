// The update rules on float32 whose state takes fewer bytes. Compiled once per ISA.
#include "groups.hpp"

namespace steepest {
namespace {

template <class Rule>
inline bool is_any_special(const CodedArrays& a, const Group& group) {
  bool is_special = false;
  for (std::size_t k = 0; k < Rule::slots; ++k) is_special |= a.scales[k][group.begin / kCodeGroup] < 0;
  return is_special;
}

// The whole rule for a group with codes of infinity or NaN.
template <class Rule, class Step>
void update_special(const Step& h, const CodedArrays& a, Group& group, RuleKernels<float>::Rule<Step> rule) {
  for_slots<Rule>([&](auto k) {
    constexpr bool is_signed = !is_squares<Rule>(k);
    const std::uint32_t base = base_of<is_signed>(a.scales[k][group.begin / kCodeGroup]);
    for (std::ptrdiff_t i = 0; i < kCodeGroup; ++i) {
      const std::uint32_t code = code_at<is_signed>(codes(a, k), a.last_bits[k], group.begin + i);
      group.state[k][i] = decoded_special<is_signed>(code, base);
    }
  });
  rule({1, -Float<float>::infinity, Float<float>::infinity, 0, 0}, h,
       {a.p + group.begin, group.g, {group.state[0], group.state[1], group.state[2]}, 0}, kCodeGroup);
}

// State k of a special group.
template <bool is_signed, bool is_random>
void encode_special(const CodedArrays& a, const Group& group, std::size_t k) {
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
  if (top >= kInfiniteUpper<is_signed>) {  // rounding would make infinity of it
    top = kInfiniteUpper<is_signed> - 1;
    is_finite = false;
  }
  for (std::ptrdiff_t i = 0; i < kCodeGroup; ++i) {
    const std::uint32_t random = random_bits<kRandomBits>(counter_of(a, group.begin), static_cast<std::uint32_t>(i));
    const std::uint32_t code = encoded_special<is_signed, is_random>(group.state[k][i], top - kHighest, random);
    put_code<is_signed>(code, codes(a, k), a.last_bits[k], group.begin + i);
  }
  a.scales[k][group.begin / kCodeGroup] = from_bits<float>(top << kDropped<is_signed> | (is_finite ? 0 : kSign));
}

template <class Rule, bool is_stochastic, class Step>
[[gnu::noinline]] void finish_special(const Step& h, const CodedArrays& a, Group& group, bool has_moved) {
  for (std::ptrdiff_t i = 0; !has_moved && i < kCodeGroup; i += kEncoded / 4) move<Rule>(h, a, Part<Rule>(group), i);
  for_slots<Rule>([&](auto k) { encode_special<!is_squares<Rule>(k), is_stochastic>(a, group, k); });
}

// The gradient that the rule sees, where it is not g itself.
template <bool penalty, bool wide>
void prepare(const Gradient<float>& f, const float* g, const float* p, float* y) {
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kLanes) {
    store_register(y + i, fused<penalty, wide>(f, g + i, load_register(p + i)));
  }
}

inline void open(const Gradient<float>& f, const CodedArrays& a, std::ptrdiff_t begin, Group& group) {
  group.begin = begin;
  group.g = a.g + begin;
  group.is_special = false;
  if (is_plain(f)) return;
  specialise(
      [&](auto penalty, auto wide) { prepare<penalty.value, wide.value>(f, a.g + begin, a.p + begin, group.prepared); },
      has_penalty(f), is_wide(f));
  group.g = group.prepared;
}

// Whole groups, n elements.
template <class Rule, bool is_coded, bool is_stochastic, class Step>
void update_groups(const Gradient<float>& f, const Step& h, const CodedArrays& a, std::ptrdiff_t n,
                   RuleKernels<float>::Rule<Step> rule) {
  constexpr auto first = run<Rule, is_coded, is_stochastic, false, true, Step>;
  constexpr auto both = run<Rule, is_coded, is_stochastic, true, true, Step>;
  constexpr auto last = run<Rule, is_coded, is_stochastic, true, false, Step>;
  Group groups[2], *now = nullptr;
  for (std::ptrdiff_t begin = 0; begin < n; begin += kCodeGroup) {
    Group* const next = &groups[now == groups];
    open(f, a, begin, *next);
    if (is_coded && is_any_special<Rule>(a, *next)) {
      if (now != nullptr) last(h, a, *now, *now);
      now = nullptr;
      update_special<Rule>(h, a, *next, rule);
      finish_special<Rule, is_stochastic>(h, a, *next, true);
      continue;
    }
    (now == nullptr ? first : both)(h, a, now == nullptr ? *next : *now, *next);
    now = next;
    if (!is_coded || !next->is_special) continue;
    finish_special<Rule, is_stochastic>(h, a, *next, false);
    now = nullptr;
  }
  if (now != nullptr) last(h, a, *now, *now);
}

// The arrays from the beginning of a group on.
template <class Rule, bool is_coded>
CodedArrays from(CodedArrays a, std::ptrdiff_t begin) {
  a.p += begin;
  a.g += begin;
  for (std::size_t k = 0; k < Rule::slots; ++k) {
    a.state[k] = static_cast<char*>(a.state[k]) + begin * (is_coded ? 1 : 2);
    if (!is_coded) continue;
    a.scales[k] += begin / kCodeGroup;
    if (!is_squares<Rule>(k)) a.last_bits[k] += begin / 8;
  }
  a.counter += static_cast<std::uint32_t>(begin / 2);
  return a;
}

// n elements of so many bytes, and the first as often as it takes to make a group of them.
inline void fill(const void* x, void* y, std::size_t bytes, std::size_t n) {
  const auto* from = static_cast<const char*>(x);
  for (std::size_t i = 0; i < kCodeGroup; ++i) {
    __builtin_memcpy(static_cast<char*>(y) + i * bytes, from + (i < n ? i : 0) * bytes, bytes);
  }
}

// The same of single bits.
inline void fill_bits(const std::uint8_t* x, std::uint8_t* y, std::ptrdiff_t n) {
  for (std::ptrdiff_t i = 0; i < kCodeGroup; ++i) put_bit(bit_at(x, i < n ? i : 0), y, i);
}

// n bits, and zeros in what is left of the last byte.
inline void copy_bits(const std::uint8_t* x, std::uint8_t* y, std::ptrdiff_t n) {
  for (std::ptrdiff_t i = 0; i < (n + 7) / 8 * 8; ++i) put_bit(i < n && bit_at(x, i), y, i);
}

// Whole groups, and what is left.
template <class Rule, bool is_coded, bool is_stochastic, class Step>
void update_all(const Gradient<float>& f, const Step& h, const CodedArrays& arrays, std::ptrdiff_t total,
                RuleKernels<float>::Rule<Step> rule) {
  constexpr auto update = update_groups<Rule, is_coded, is_stochastic, Step>;
  const std::ptrdiff_t n = total % kCodeGroup, begin = total - n;
  update(f, h, arrays, begin, rule);
  if (n == 0) return;
  constexpr std::size_t bytes = is_coded ? 1 : 2;
  const auto size = static_cast<std::size_t>(n);
  alignas(64) float p[kCodeGroup], g[kCodeGroup], state[3][kCodeGroup];
  std::uint8_t last_bits[3][kCodeGroup / 8];
  const CodedArrays a = from<Rule, is_coded>(arrays, begin);
  CodedArrays whole = a;
  whole.ahead = 0;
  fill(a.p, whole.p = p, sizeof(float), size);
  fill(a.g, g, sizeof(float), size);
  whole.g = g;
  for (std::size_t k = 0; k < Rule::slots; ++k) {
    fill(a.state[k], whole.state[k] = state[k], bytes, size);
    if (is_coded && !is_squares<Rule>(k)) fill_bits(a.last_bits[k], whole.last_bits[k] = last_bits[k], n);
  }
  update(f, h, whole, kCodeGroup, rule);
  __builtin_memcpy(a.p, p, size * sizeof(float));
  for (std::size_t k = 0; k < Rule::slots; ++k) {
    __builtin_memcpy(a.state[k], state[k], size * bytes);
    if (is_coded && !is_squares<Rule>(k)) copy_bits(last_bits[k], a.last_bits[k], n);
  }
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
  *scale = from_bits<float>(top << kDropped<false>);
  return static_cast<std::uint8_t>(encoded_special<false, false>(x, top - kHighest, 0));
}

}  // namespace

extern const CodedRuleKernels STEEPEST_NAME(coded_f32);
const CodedRuleKernels STEEPEST_NAME(coded_f32){
    update<SgdStep<float>>,  update<MomentumStep<float>>, update<RmspropStep<float>>, update<AdagradStep<float>>,
    update<AdamStep<float>>, update<NadamStep<float>>,    update<LionStep<float>>,    encode_one};

}  // namespace steepest
