// As many registers as they have lanes, as the rows of a matrix. Internal linkage: each ISA has its own copy.
#pragma once

#include "vector_math.hpp"

namespace steepest {
namespace {

// Lanes of two rows that change places across the diagonal, `distance` away from each other: what becomes of the first
// row, and of the second.
template <std::size_t distance, std::size_t... lane, class V>
inline void exchange(V& first, V& second, std::index_sequence<lane...>) {
  constexpr std::size_t n = sizeof...(lane);
#if defined(__clang__)
  const V upper = __builtin_shufflevector(first, second, ((lane & distance) != 0 ? n + lane - distance : lane)...);
  const V lower = __builtin_shufflevector(first, second, ((lane & distance) != 0 ? n + lane : lane + distance)...);
#else
  const V upper = __builtin_shuffle(first, second, Bits<V>{((lane & distance) != 0 ? n + lane - distance : lane)...});
  const V lower = __builtin_shuffle(first, second, Bits<V>{((lane & distance) != 0 ? n + lane : lane + distance)...});
#endif
  first = upper;
  second = lower;
}

template <std::size_t distance, std::size_t n, class V>
inline void transpose(V (&rows)[n]) {
#pragma GCC unroll 16
  for (std::size_t i = 0; i < n; ++i) {
    if ((i & distance) == 0) exchange<distance>(rows[i], rows[i + distance], std::make_index_sequence<n>{});
  }
  if constexpr (distance > 1) transpose<distance / 2>(rows);
}

}  // namespace
}  // namespace steepest
