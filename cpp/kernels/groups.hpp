// Rules on float32 whose state takes fewer bytes, one group of elements after the other. Internal linkage: each ISA has
// its own copy.
#pragma once

#include "codes.hpp"
#include "rules.hpp"

namespace steepest {
namespace {

constexpr std::ptrdiff_t kAhead = 512;  // elements that memory is asked for ahead

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

template <class Rule>
constexpr bool is_in_two_parts = std::is_base_of_v<InTwoParts<Rule>, Rule>;

// A group of elements whose rule is under way: where it begins, its gradients as the rule sees them, what has become of
// its state, in float32, and of codes the new bases, if the group is not special: one with infinities or NaN.
struct Group {
  std::ptrdiff_t begin;
  const float* g;
  std::uint32_t base[3];
  bool is_special;
  alignas(64) float state[3][kCodeGroup], prepared[kCodeGroup];
};

// What of it a loop needs, in copies: what is behind a pointer is read again after every store of a byte.
template <class Rule>
struct Part {
  std::ptrdiff_t begin;
  const float* g;
  float* state[Rule::slots + 1];
  Halves base[Rule::slots + 1];

  explicit Part(Group& group) : begin(group.begin), g(group.g) {
    for (std::size_t k = 0; k < Rule::slots; ++k) state[k] = group.state[k];
  }
};

inline std::uint8_t* codes(const CodedArrays& a, std::size_t k) { return static_cast<std::uint8_t*>(a.state[k]); }
inline std::uint16_t* halves(const CodedArrays& a, std::size_t k) { return static_cast<std::uint16_t*>(a.state[k]); }

// Those of element i on, a whole byte, of codes that have them.
template <class Rule>
inline std::uint8_t* last_bits(const CodedArrays& a, std::size_t k, std::ptrdiff_t i) {
  return is_squares<Rule>(k) ? nullptr : a.last_bits[k] + i / 8;
}

// Asks for kEncoded elements that lie ahead.
template <class Rule, bool is_coded>
inline void prefetch_from(const CodedArrays& a, std::ptrdiff_t i) {
  constexpr std::ptrdiff_t in_line = 64 / sizeof(float);
  for (std::ptrdiff_t k = 0; k < kEncoded; k += in_line) {
    prefetch(a.g + i + k, kAhead * sizeof(float));
    prefetch(a.p + i + k, kAhead * sizeof(float));
  }
  constexpr std::ptrdiff_t bytes = is_coded ? 1 : 2;
  if (i * bytes % 64 != 0) return;
  for (std::size_t k = 0; k < Rule::slots; ++k) {
    for (std::ptrdiff_t at = 0; at < kEncoded * bytes; at += 64) {
      prefetch(static_cast<const char*>(a.state[k]) + i * bytes + at, kAhead * bytes);
    }
  }
}

// Decodes the state of half of kEncoded elements, i from their group's begin on, and applies the rule to it, or of a
// rule in two parts the first.
template <class Rule, bool is_coded, class Step>
inline void advance(const Step& h, const CodedArrays& a, const Part<Rule>& group, std::ptrdiff_t i,
                    Words (&largest)[Rule::slots + 1]) {
#pragma GCC unroll 2
  for (std::ptrdiff_t j = i; j < i + kEncoded / 2; j += 2 * kLanes) {
    const std::ptrdiff_t from = group.begin + j;
    Vector<float> decoded[Rule::slots + 1][2];
    for_slots<Rule>([&](auto k) {
      if constexpr (is_coded) {
        decode<!is_squares<Rule>(k)>(codes(a, k) + from, last_bits<Rule>(a, k, from), group.base[k], decoded[k]);
      } else {
        widen(halves(a, k) + from, decoded[k]);
      }
    });
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      const std::ptrdiff_t at = j + r * kLanes;
      const Vector<float> g = load_register(group.g + at);
      Vector<float> state[Rule::slots + 1];
      for_slots<Rule>([&](auto k) { state[k] = decoded[k][r]; });
      if constexpr (is_in_two_parts<Rule>) {
        Rule::advance(h, g, state);
      } else {
        Vector<float> p = load_register(a.p + group.begin + at);
        Rule::update(h, g, p, state);
        store_register(a.p + group.begin + at, p);
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

// The second part of a rule that has one, for a quarter of kEncoded elements.
template <class Rule, class Step>
inline void move(const Step& h, const CodedArrays& a, const Part<Rule>& group, std::ptrdiff_t i) {
  if constexpr (is_in_two_parts<Rule>) {
#pragma GCC unroll 2
    for (std::ptrdiff_t j = i; j < i + kEncoded / 4; j += kLanes) {
      Vector<float> p = load_register(a.p + group.begin + j), state[Rule::slots];
      for_slots<Rule>([&](auto k) { state[k] = load_register(group.state[k] + j); });
      Rule::move(h, load_register(group.g + j), p, state);
      store_register(a.p + group.begin + j, p);
    }
  }
}

template <bool is_coded>
constexpr int kRandomBitsOf = is_coded ? kRandomBits : 16;

// kEncoded new values of a state as codes or bfloat16: averages of squares are rounded at random, of bfloat16 the
// others to nearest.
template <class Rule, std::size_t k, bool is_coded, bool is_stochastic>
inline void put(const CodedArrays& a, const Part<Rule>& group, std::ptrdiff_t i, const Words* chance) {
  constexpr bool squares = is_squares<Rule>(k);
  const std::ptrdiff_t from = group.begin + i;
  const float* x = group.state[k] + i;
  if constexpr (is_coded) {
#pragma GCC unroll 2
    for (int r = 0; r < kRegisters; r += 4) {
      encode<!squares, is_stochastic>(x + r * kLanes, codes(a, k) + from + r * kLanes,
                                      last_bits<Rule>(a, k, from + r * kLanes), group.base[k], chance + r);
    }
  } else {
#pragma GCC unroll 4
    for (int r = 0; r < kRegisters; r += 2) {
      narrow<squares, is_stochastic && squares>(x + r * kLanes, halves(a, k) + from + r * kLanes, chance + r);
    }
  }
}

inline std::uint32_t counter_of(const CodedArrays& a, std::ptrdiff_t begin) {
  return a.counter + static_cast<std::uint32_t>(begin / 2);
}

// Finishes one group and advances the next, alternately, either of which may be missing: a core divides and takes roots
// for one while it decodes the other, and all arrays are read and written evenly.
template <class Rule, bool is_coded, bool is_stochastic, bool finishes, bool advances, class Step>
[[gnu::noinline]] void run(Step h, CodedArrays a, Group& now, Group& next) {
  Part<Rule> finished(now), advanced(next);
  if constexpr (is_coded) {
    for_slots<Rule>([&](auto k) {
      constexpr bool is_signed = !is_squares<Rule>(k);
      finished.base[k] = lifted<is_signed>(now.base[k]);
      advanced.base[k] = lifted<is_signed>(base_of<is_signed>(a.scales[k][next.begin / kCodeGroup]));
    });
  }
  Random<kRandomBitsOf<is_coded>> random(counter_of(a, now.begin));
  Words largest[Rule::slots + 1] = {};
  for (std::ptrdiff_t i = 0; i < kCodeGroup; i += kEncoded) {
    Words chance[kRegisters] = {};
    if constexpr (finishes && is_stochastic && (is_coded || Rule::squares != 0)) random.next(chance);
    if (advances && a.ahead != 0) prefetch_from<Rule, is_coded>(a, next.begin + i);
    // Divisions have other work between them, for they are not done at once, and what waits for one is kept for long.
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      const std::ptrdiff_t j = i + quarter * kEncoded / 4;
      if (finishes) move<Rule>(h, a, finished, j);
      if (advances && quarter % 2 == 0) advance<Rule, is_coded>(h, a, advanced, j, largest);
      for_slots<Rule>([&](auto k) {
        if (finishes && quarter == (k == 0 ? 1 : 3)) put<Rule, k, is_coded, is_stochastic>(a, finished, i, chance);
      });
    }
  }
  if (!advances || !is_coded) return;
  for_slots<Rule>([&](auto k) {
    constexpr bool is_signed = !is_squares<Rule>(k);
    const std::uint32_t top = top_of<is_signed>(largest_of(largest[k]));
    next.is_special |= top >= kInfiniteUpper<is_signed>;
    a.scales[k][next.begin / kCodeGroup] = from_bits<float>(top << kDropped<is_signed>);
    next.base[k] = top - kHighest;
  });
}

}  // namespace
}  // namespace steepest
