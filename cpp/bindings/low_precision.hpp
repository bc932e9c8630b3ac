// Tensors of which something is kept in fewer bytes than float32: the rule runs on float32 copies of a block at a time,
// which never leave the first-level cache.
#pragma once

#include <algorithm>

#include "../kernels/vector_math.hpp"
#include "optimizer.hpp"

namespace steepest {

// The key of the random bits of a state array: of its tensor's step, and of the 2^32 elements that `begin` lies in.
inline std::uint32_t rounding_key(std::uint32_t seed, std::int64_t step, std::size_t slot, std::ptrdiff_t begin) {
  const auto t = static_cast<std::uint64_t>(step), i = static_cast<std::uint64_t>(begin);
  std::uint32_t key = hash(seed);
  for (const std::uint64_t part : {t, t >> 32, static_cast<std::uint64_t>(slot), i >> 32}) {
    key = hash(key + static_cast<std::uint32_t>(part));
  }
  return key + static_cast<std::uint32_t>(i);
}

class LowPrecisionStep {
 public:
  LowPrecisionStep(const Tensor& tensor, const View& gradient, std::optional<std::uint32_t> seed) noexcept
      : tensor_(tensor), gradient_(gradient), mask_(tensor.mask.keep), seed_(seed), codec_(codecs()) {}

  // Calls rule(arrays, n) for blocks of begin..begin + n; begin is where a group of codes begins.
  template <class Rule>
  void run(std::ptrdiff_t begin, std::ptrdiff_t n, const Rule& rule) noexcept {
    for (const std::ptrdiff_t end = begin + n; begin < end; begin += kBlock) {
      n = std::min(kBlock, end - begin);
      const Arrays<float> a = load(begin, n);
      rule(a, n);
      if (mask_ != nullptr) rules<float>().keep(mask_ + begin, a.p, a.p, n);
      store(begin, n);
    }
  }

 private:
  static constexpr std::ptrdiff_t kBlock = 2 * kCodeGroup;

  Arrays<float> load(std::ptrdiff_t begin, std::ptrdiff_t n) noexcept {
    Arrays<float> a{};
    if (tensor_.p.is_bfloat16) {
      const auto* p = tensor_.p.as<const std::uint16_t>() + begin;
      codec_.widen(gradient_.as<const std::uint16_t>() + begin, g_, n);
      a.g = g_;
      if (tensor_.has_whole_master()) {
        a.p = tensor_.master().as<float>() + begin;
        codec_.reconcile(p, a.p, n);
      } else {
        a.p = p_;
        codec_.join(p, tensor_.master().as<const std::int16_t>() + begin, p_, n);
      }
    } else {
      a.g = gradient_.as<const float>() + begin;
      a.p = tensor_.p.as<float>() + begin;
    }
    if (mask_ != nullptr) {
      rules<float>().keep(mask_ + begin, a.g, g_, n);
      rules<float>().keep(mask_ + begin, a.p, a.p, n);
      a.g = g_;
    }
    for (std::size_t i = 0; i < tensor_.slots; ++i) a.state[i] = load_state(i, begin, n);
    return a;
  }

  float* load_state(std::size_t i, std::ptrdiff_t begin, std::ptrdiff_t n) noexcept {
    const View& state = tensor_.state[i];
    switch (tensor_.storage) {
      case Storage::full:
        return state.as<float>() + begin;
      case Storage::bfloat16:
        codec_.widen(state.as<const std::uint16_t>() + begin, state_[i], n);
        break;
      case Storage::eight_bit:
        (tensor_.is_squares[i] ? codec_.decode_unsigned : codec_.decode_signed)(
            state.as<const std::uint8_t>() + begin, tensor_.scales(i) + begin / kCodeGroup, state_[i], n);
    }
    return state_[i];
  }

  void store(std::ptrdiff_t begin, std::ptrdiff_t n) noexcept {
    for (std::size_t i = 0; i < tensor_.slots; ++i) store_state(i, begin, n);
    if (!tensor_.p.is_bfloat16) return;
    auto* p = tensor_.p.as<std::uint16_t>() + begin;
    if (tensor_.has_whole_master()) {
      codec_.round_to_bfloat16(tensor_.master().as<const float>() + begin, p, n);
    } else {
      codec_.split(p_, p, tensor_.master().as<std::int16_t>() + begin, n);
    }
  }

  void store_state(std::size_t i, std::ptrdiff_t begin, std::ptrdiff_t n) noexcept {
    const View& state = tensor_.state[i];
    Rounding rounding{seed_.has_value(), rounding_key(seed_.value_or(0), tensor_.progress.step, i, begin)};
    if (tensor_.storage == Storage::bfloat16) {
      rounding.is_stochastic &= tensor_.is_squares[i];
      codec_.narrow(state_[i], state.as<std::uint16_t>() + begin, rounding, n);
    } else if (tensor_.storage == Storage::eight_bit) {
      (tensor_.is_squares[i] ? codec_.encode_unsigned : codec_.encode_signed)(
          state_[i], state.as<std::uint8_t>() + begin, tensor_.scales(i) + begin / kCodeGroup, rounding, n);
    }
  }

  const Tensor& tensor_;
  const View& gradient_;
  const std::uint8_t* const mask_;
  const std::optional<std::uint32_t> seed_;
  const CodecKernels& codec_;
  alignas(64) float p_[kBlock], g_[kBlock], state_[3][kBlock];
};

}  // namespace steepest
