// Tensors of which something is kept in fewer bytes than float32.
#pragma once

#include <algorithm>

#include "../kernels/vector_math.hpp"
#include "optimizer.hpp"

namespace steepest {

// The counter of the hashes of random bits from `begin` on: of the tensor's step, and of the 2^32 elements that `begin`
// lies in.
inline std::uint32_t random_counter(std::uint32_t seed, std::int64_t step, std::ptrdiff_t begin) {
  const auto t = static_cast<std::uint64_t>(step), i = static_cast<std::uint64_t>(begin);
  std::uint32_t key = hash(seed);
  for (const std::uint64_t part : {t, t >> 32, i >> 32}) {
    key = hash(key + static_cast<std::uint32_t>(part));
  }
  return key + static_cast<std::uint32_t>(i) / 2;
}

class LowPrecisionStep {
 public:
  LowPrecisionStep(const Tensor& tensor, const View& gradient, std::optional<std::uint32_t> seed,
                   std::ptrdiff_t ahead) noexcept
      : tensor_(tensor), gradient_(gradient), mask_(tensor.mask.keep), seed_(seed), ahead_(ahead), codec_(codecs()) {}

  // Calls rule(Arrays, n), or coded_rule(CodedArrays, n) where state is kept in fewer bytes, for parts of begin..begin
  // + n; begin is where a group of codes begins. Parameters in bfloat16, and with a mask, go through float32 copies of
  // a block at a time, which never leave the first-level cache.
  template <class Rule, class CodedRule>
  void run(std::ptrdiff_t begin, std::ptrdiff_t n, const Rule& rule, const CodedRule& coded_rule) noexcept {
    const bool is_direct = !tensor_.p.is_bfloat16 && mask_ == nullptr;
    const std::ptrdiff_t most = is_direct ? kCounters : kBlock;
    for (const std::ptrdiff_t end = begin + n; begin < end; begin += n) {
      n = std::min(most - begin % most, end - begin);
      float* const p = load(begin, n);
      const float* const g = load_gradient(begin, n);
      if (tensor_.storage == Storage::full) {
        Arrays<float> a{p, g, {}, ahead_};
        for (std::size_t i = 0; i < tensor_.slots; ++i) a.state[i] = tensor_.state[i].as<float>() + begin;
        rule(a, n);
      } else {
        coded_rule(coded(p, g, begin), n);
      }
      if (mask_ != nullptr) rules<float>().keep(mask_ + begin, p, p, n);
      store(begin, n);
    }
  }

 private:
  static constexpr std::ptrdiff_t kBlock = 2 * kCodeGroup, kCounters = std::ptrdiff_t{1} << 32;

  float* load(std::ptrdiff_t begin, std::ptrdiff_t n) noexcept {
    float* x = p_;
    if (!tensor_.p.is_bfloat16) {
      x = tensor_.p.as<float>() + begin;
    } else if (tensor_.has_whole_master()) {
      x = tensor_.master().as<float>() + begin;
      codec_.reconcile(tensor_.p.as<const std::uint16_t>() + begin, x, n);
    } else {
      codec_.join(tensor_.p.as<const std::uint16_t>() + begin, tensor_.master().as<const std::int16_t>() + begin, x, n);
    }
    if (mask_ != nullptr) rules<float>().keep(mask_ + begin, x, x, n);
    return x;
  }

  const float* load_gradient(std::ptrdiff_t begin, std::ptrdiff_t n) noexcept {
    const float* g = g_;
    if (tensor_.p.is_bfloat16) {
      codec_.widen(gradient_.as<const std::uint16_t>() + begin, g_, n);
    } else {
      g = gradient_.as<const float>() + begin;
    }
    if (mask_ == nullptr) return g;
    rules<float>().keep(mask_ + begin, g, g_, n);
    return g_;
  }

  CodedArrays coded(float* p, const float* g, std::ptrdiff_t begin) const noexcept {
    CodedArrays a{p, g, {}, {}, {}, {}, seed_.has_value(), ahead_};
    for (std::size_t i = 0; i < tensor_.slots; ++i) {
      const View& state = tensor_.state[i];
      a.state[i] = state.as<char>() + begin * state.itemsize;
      if (tensor_.storage != Storage::eight_bit) continue;
      a.scales[i] = tensor_.scales(i) + begin / kCodeGroup;
      if (!tensor_.is_squares[i]) a.last_bits[i] = tensor_.last_bits(i) + begin / 8;
    }
    a.counter = random_counter(seed_.value_or(0), tensor_.progress.step, begin);
    return a;
  }

  void store(std::ptrdiff_t begin, std::ptrdiff_t n) noexcept {
    if (!tensor_.p.is_bfloat16) return;
    auto* p = tensor_.p.as<std::uint16_t>() + begin;
    if (tensor_.has_whole_master()) {
      codec_.round_to_bfloat16(tensor_.master().as<const float>() + begin, p, n);
    } else {
      codec_.split(p_, p, tensor_.master().as<std::int16_t>() + begin, n);
    }
  }

  const Tensor& tensor_;
  const View& gradient_;
  const std::uint8_t* const mask_;
  const std::optional<std::uint32_t> seed_;
  const std::ptrdiff_t ahead_;
  const CodecKernels& codec_;
  alignas(64) float p_[kBlock], g_[kBlock];
};

}  // namespace steepest
