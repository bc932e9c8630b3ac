#include "norm.hpp"

#include <algorithm>
#include <cmath>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "sums.hpp"

namespace steepest {
namespace {

template <class T>
Sum block_sum(const Span& x, std::ptrdiff_t begin, double scale) noexcept {
  const T* from = static_cast<const T*>(x.data) + begin;
  const std::ptrdiff_t n = std::min(kSumBlock, x.size - begin);
  T kept[kSumBlock];
  if (x.mask != nullptr) {
    rules<T>().keep(x.mask + begin, from, kept, n);
    from = kept;
  }
  return losses<T>().sum_of_squares(from, scale, n);
}

Sum bfloat16_block_sum(const Span& x, std::ptrdiff_t begin, double scale) noexcept {
  alignas(64) float wide[kSumBlock];
  const std::ptrdiff_t n = std::min(kSumBlock, x.size - begin);
  codecs().widen(static_cast<const std::uint16_t*>(x.data) + begin, wide, n);
  if (x.mask != nullptr) rules<float>().keep(x.mask + begin, wide, wide, n);
  return losses<float>().sum_of_squares(wide, scale, n);
}

double sum_of_squares(const std::vector<Span>& arrays, double scale) {
  std::vector<std::ptrdiff_t> first_block{0};
  for (const Span& x : arrays) first_block.push_back(first_block.back() + (x.size + kSumBlock - 1) / kSumBlock);
  return sum_blocks(first_block.back(), kSumBlock * 8, false, [&](std::ptrdiff_t block) noexcept {
    const auto after = std::upper_bound(first_block.begin(), first_block.end(), block);
    const auto i = static_cast<std::size_t>(after - first_block.begin()) - 1;
    const std::ptrdiff_t begin = (block - first_block[i]) * kSumBlock;
    if (arrays[i].is_bfloat16) return bfloat16_block_sum(arrays[i], begin, scale);
    return arrays[i].is_double ? block_sum<double>(arrays[i], begin, scale) : block_sum<float>(arrays[i], begin, scale);
  });
}

}  // namespace

double global_norm(const std::vector<Span>& arrays) {
  double scale = 1;
  double sum = sum_of_squares(arrays, scale);
  // The squares of large or small float64 elements leave the range of double: take them again, scaled.
  const bool has_double = std::any_of(arrays.begin(), arrays.end(), [](const Span& x) { return x.is_double; });
  if (has_double && (!std::isfinite(sum) || sum < 0x1p-900)) {
    scale = std::isfinite(sum) ? 0x1p600 : 0x1p-600;
    sum = sum_of_squares(arrays, scale);
  }
  return std::sqrt(sum) / scale;
}

}  // namespace steepest
