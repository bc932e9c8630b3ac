// Sums over blocks, in parallel, combined in one order.
#pragma once

#include <vector>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "../kernels/kernels.hpp"
#include "../parallel.hpp"

namespace steepest {

inline double value(const Sum& s) {
  const double x = s.hi + s.lo;
  return x - x == 0 ? x : s.hi;  // an infinite hi leaves not-a-number in lo
}

// The sum of block_sum(b), b = 0..blocks-1; every block's sum is added in the order of the blocks. Whether what they
// store goes past the caches has to be known.
template <class BlockSum>
double sum_blocks(std::ptrdiff_t blocks, std::ptrdiff_t bytes_per_block, [[maybe_unused]] bool past_caches,
                  const BlockSum& block_sum) {
  std::vector<Sum> sums(static_cast<std::size_t>(blocks));
  parallel::for_ranges(blocks, bytes_per_block, [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    for (std::ptrdiff_t b = begin; b < end; ++b) sums[static_cast<std::size_t>(b)] = block_sum(b);
#if defined(__x86_64__)
    if (past_caches) _mm_sfence();  // once, for it waits for all of them: other threads see them in order
#endif
  });
  Sum total{0, 0};
  for (const Sum& s : sums) {
    const double hi = total.hi + s.hi;
    const double t = hi - total.hi;
    total.lo += ((total.hi - (hi - t)) + (s.hi - t)) + s.lo;
    total.hi = hi;
  }
  return value(total);
}

}  // namespace steepest
