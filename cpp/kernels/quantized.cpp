// Integer arithmetic: int8 weights times uint8 activations, summed exactly in int32. Compiled once per ISA.
#include "vector_math.hpp"

namespace steepest {
namespace {

// Weights come in panels of kPanel columns whatever the ISA, so that one packing serves all. A tile of rows times a
// panel has its sums in registers: of these there are 32 on AVX-512 and NEON, else 16.
constexpr int kLanes = kLanesOf<std::int32_t>, kVectors = kPanel / kLanes;
#if defined(__AVX512BW__)
constexpr int kTile = 12;
#elif defined(__AVX2__)
constexpr int kTile = 6;
#else
constexpr int kTile = 2;
#endif
using Ints = Vector<std::int32_t>;
using Sums = Vector<std::uint32_t>;  // of their low 32 bits: they may pass 2^31 midway
using Shorts = Vector<std::int16_t>;
using Bytes = VectorOf<std::uint8_t, kPanel>::type;
using WideBytes = VectorOf<std::int16_t, 2 * kPanel>::type;

// Adds a0 b0 + a1 b1 of every lane's two int16 to its sum. The bytes are widened first, as products of bytes in one
// instruction (pmaddubsw) saturate at 2^15.
inline Sums add_products(Sums sums, Shorts a, Shorts b) {
#if defined(__AVX512VNNI__) && defined(__clang__)
  return reinterpret_cast<Sums>(
      __builtin_ia32_vpdpwssd512(reinterpret_cast<Ints>(sums), reinterpret_cast<Ints>(a), reinterpret_cast<Ints>(b)));
#elif defined(__AVX512VNNI__)
  return reinterpret_cast<Sums>(__builtin_ia32_vpdpwssd_v16si(reinterpret_cast<Ints>(sums), reinterpret_cast<Ints>(a),
                                                              reinterpret_cast<Ints>(b)));
#elif defined(__AVX512BW__) && defined(__clang__)
  return sums + reinterpret_cast<Sums>(__builtin_ia32_pmaddwd512(a, b));
#elif defined(__AVX512BW__)
  return sums + reinterpret_cast<Sums>(__builtin_ia32_pmaddwd512_mask(a, b, Ints{}, 0xffff));
#elif defined(__AVX2__)
  return sums + reinterpret_cast<Sums>(__builtin_ia32_pmaddwd256(a, b));
#elif defined(__SSE2__)
  return sums + reinterpret_cast<Sums>(__builtin_ia32_pmaddwd128(a, b));
#else
  const auto low = [](Shorts x) { return reinterpret_cast<Ints>(reinterpret_cast<Sums>(x) << 16) >> 16; };
  const auto high = [](Shorts x) { return reinterpret_cast<Ints>(x) >> 16; };
  return sums + reinterpret_cast<Sums>(low(a) * low(b)) + reinterpret_cast<Sums>(high(a) * high(b));
#endif
}

// Rows x (R rows of `pairs` pairs, kDepth apart) times a panel, added to `before` (R rows, `step` apart), become c (R
// rows, kColumns apart).
template <int R>
inline void add_tile(const std::int16_t* x, const std::int16_t* panel, std::ptrdiff_t pairs, const std::int32_t* before,
                     std::ptrdiff_t step, std::int32_t* c) {
  Sums sums[R][kVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = reinterpret_cast<Sums>(load_register(before + r * step + v * kLanes));
  }
  for (std::ptrdiff_t k = 0; k < pairs; ++k, panel += 2 * kPanel) {
    Shorts w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = load_register(panel + 2 * v * kLanes);
    for (int r = 0; r < R; ++r) {
      std::int32_t pair;
      __builtin_memcpy(&pair, x + r * kDepth + 2 * k, sizeof pair);
      const Shorts both = reinterpret_cast<Shorts>(pair - Ints{});
      for (int v = 0; v < kVectors; ++v) sums[r][v] = add_products(sums[r][v], both, w[v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v)
      store_register(c + r * kColumns + v * kLanes, reinterpret_cast<Ints>(sums[r][v]));
  }
}

// Copies n bytes as int16, 16 at a time while that many are there to read; so up to 15 more are written.
inline void widen(const std::uint8_t* from, const std::uint8_t* readable, std::ptrdiff_t n, std::int16_t* to) {
  std::ptrdiff_t k = 0;
  for (; k < n && readable - from >= k + kPanel; k += kPanel) {
    Bytes bytes;
    __builtin_memcpy(&bytes, from + k, sizeof bytes);
    const WideBytes wide = __builtin_convertvector(bytes, WideBytes);
    __builtin_memcpy(to + k, &wide, sizeof wide);
  }
  for (; k < n; ++k) to[k] = from[k];
}

// The part [begin, end) of the patch that starts at (top, left), as int16; outside the image there is the zero point.
inline void gather(const QuantizedProduct& p, const std::uint8_t* image, std::ptrdiff_t top, std::ptrdiff_t left,
                   std::ptrdiff_t begin, std::ptrdiff_t end, std::int16_t* to) {
  const Window& w = p.window;
  const std::ptrdiff_t length = w.window_width * w.channels, step = w.width * w.channels;
  const bool inside = left >= 0 && left + w.window_width <= w.width;
  const std::ptrdiff_t low = inside || left > 0 ? 0 : -left * w.channels;  // [low, high) of a row lies inside
  const std::ptrdiff_t high = inside ? length : (w.width - left) * w.channels;
  std::ptrdiff_t i = begin / length, k = begin - i * length;  // k: in a row of the patch
  const std::uint8_t* row = image + (top + i) * step + left * w.channels;
  for (; begin < end; ++i, k = 0, row += step) {
    const std::ptrdiff_t till = length - k < end - begin ? length : k + end - begin;
    begin += till - k;
    std::int16_t* const start = to - k;
    to += till - k;
    const bool exists = top + i >= 0 && top + i < w.height;
    const std::ptrdiff_t last = exists ? (high < till ? high : till) : k;
    for (; k < low && k < till; ++k) start[k] = p.zero_point;
    if (k < last) widen(row + k, p.x_end, last - k, start + k), k = last;
    for (; k < till; ++k) start[k] = p.zero_point;
  }
}

// Goes from output pixel to output pixel: where each patch starts.
struct Place {
  const Window& w;
  const std::uint8_t* image;
  std::ptrdiff_t row, column;

  Place(const QuantizedProduct& p, std::ptrdiff_t out) : w(p.window) {
    const std::ptrdiff_t pixels = w.out_height * w.out_width;
    image = p.x + out / pixels * w.height * w.width * w.channels;
    row = out % pixels / w.out_width;
    column = out % w.out_width;
  }
  void next() {
    if (++column < w.out_width) return;
    column = 0;
    if (++row < w.out_height) return;
    row = 0;
    image += w.height * w.width * w.channels;
  }
  std::ptrdiff_t top() const { return row * w.stride_height - w.pad_top; }
  std::ptrdiff_t left() const { return column * w.stride_width - w.pad_left; }
};

// round(x / scale) + zero, to nearest even, within 0..255; NaN gives 0.
inline std::uint8_t to_byte(float x, float scale, float zero) {
  float t = x / scale;
  t = t > -zero ? t : -zero;
  t = t < 255.0f - zero ? t : 255.0f - zero;
  const float rounded = t + Float<float>::magic;
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(rounded - Float<float>::magic + zero));
}

bool quantize(const float* x, float scale, std::uint8_t zero_point, std::uint8_t* q, std::ptrdiff_t n) noexcept {
  const float zero = zero_point;
  std::uint32_t odd = 0;
#pragma omp simd reduction(| : odd)
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    odd |= x[i] - x[i] == 0.0f ? 0u : 1u;
    q[i] = to_byte(x[i], scale, zero);
  }
  return odd == 0;
}

ValueRange value_range(const float* x, std::ptrdiff_t n) noexcept {
  constexpr int lanes = 16;
  float low[lanes] = {}, high[lanes] = {}, odd[lanes] = {};  // odd: 0, or NaN where one is not finite
  const auto add = [&](int k, float value) {
    low[k] = value < low[k] ? value : low[k];
    high[k] = value > high[k] ? value : high[k];
    odd[k] += value - value;
  };
  std::ptrdiff_t i = 0;
  for (; i + lanes <= n; i += lanes) {
#pragma omp simd
    for (int k = 0; k < lanes; ++k) add(k, x[i + k]);
  }
  for (; i < n; ++i) add(0, x[i]);
  ValueRange range{0, 0, true};
  for (int k = 0; k < lanes; ++k) {
    range.low = low[k] < range.low ? low[k] : range.low;
    range.high = high[k] > range.high ? high[k] : range.high;
    range.finite &= odd[k] == 0;
  }
  return range;
}

// One row's sums become its outputs: float(sum) * scale + bias, not below `lowest`; quantised again if there is a q.
inline void finish(const QuantizedProduct& p, const std::int32_t* c, std::ptrdiff_t row, std::ptrdiff_t column,
                   std::ptrdiff_t n) {
  const float *scale = p.scale + column, *bias = p.bias + column;
  const float lowest = p.lowest, out_scale = p.out_scale, out_zero = p.out_zero;
  const std::ptrdiff_t at = row * p.units + column;
  const auto value = [=](std::ptrdiff_t j) {
    const float y = static_cast<float>(c[j]) * scale[j] + bias[j];
    return y > lowest ? y : lowest;
  };
  if (p.q != nullptr) {
    std::uint8_t* const q = p.q + at;
#pragma omp simd
    for (std::ptrdiff_t j = 0; j < n; ++j) q[j] = to_byte(value(j), out_scale, out_zero);
  } else {
    float* const y = p.y + at;
#pragma omp simd
    for (std::ptrdiff_t j = 0; j < n; ++j) y[j] = value(j);
  }
}

inline std::ptrdiff_t rounded_up(std::ptrdiff_t n, std::ptrdiff_t unit) { return (n + unit - 1) / unit * unit; }

void quantized_product(const QuantizedProduct& p, std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
  alignas(64) std::int16_t x[kBlockRows * kDepth + kPanel];
  alignas(64) std::int32_t c[kBlockRows * kColumns];
  const std::ptrdiff_t inputs = p.window.window_height * p.window.window_width * p.window.channels;
  const std::ptrdiff_t padded = rounded_up(inputs, 2);
  for (std::ptrdiff_t first = begin; first < end; first += kBlockRows) {
    const std::ptrdiff_t rows = end - first < kBlockRows ? end - first : kBlockRows;
    const Place corner(p, first);
    for (std::ptrdiff_t column = 0; column < p.units; column += kColumns) {
      const std::ptrdiff_t columns = p.units - column < kColumns ? p.units - column : kColumns;
      for (std::ptrdiff_t k = 0; k < padded; k += kDepth) {
        const std::ptrdiff_t depth = padded - k < kDepth ? padded - k : kDepth;
        const std::ptrdiff_t till = k + depth < inputs ? k + depth : inputs;
        Place place = corner;
        for (std::ptrdiff_t r = 0; r < rows; ++r, place.next()) {
          gather(p, place.image, place.top(), place.left(), k, till, x + r * kDepth);
        }
        if (till - k < depth) {  // the last pair has but one
          for (std::ptrdiff_t r = 0; r < rows; ++r) x[r * kDepth + depth - 1] = 0;
        }
        for (std::ptrdiff_t j = 0; j < columns; j += kPanel) {
          const std::int16_t* const panel = p.weights + (column + j) * padded + k * kPanel;
          const auto add = [&](auto tile, std::ptrdiff_t r) {
            std::int32_t* const to = c + r * kColumns + j;
            k == 0 ? tile(x + r * kDepth, panel, depth / 2, p.start + column + j, 0, to)
                   : tile(x + r * kDepth, panel, depth / 2, to, kColumns, to);
          };
          std::ptrdiff_t r = 0;
          for (; r + kTile <= rows; r += kTile) add(add_tile<kTile>, r);
          for (; r < rows; ++r) add(add_tile<1>, r);
        }
      }
      for (std::ptrdiff_t r = 0; r < rows; ++r) finish(p, c + r * kColumns, first + r, column, columns);
    }
  }
}

void quantized_max_pool(const Window& w, const std::uint8_t* image, std::uint8_t* y) noexcept {
  for (std::ptrdiff_t row = 0; row < w.out_height; ++row) {
    for (std::ptrdiff_t column = 0; column < w.out_width; ++column, y += w.channels) {
      for (std::ptrdiff_t k = 0; k < w.channels; ++k) y[k] = 0;
      const std::ptrdiff_t top = row * w.stride_height - w.pad_top, left = column * w.stride_width - w.pad_left;
      for (std::ptrdiff_t i = top < 0 ? 0 : top; i < top + w.window_height && i < w.height; ++i) {
        for (std::ptrdiff_t j = left < 0 ? 0 : left; j < left + w.window_width && j < w.width; ++j) {
          const std::uint8_t* const pixel = image + (i * w.width + j) * w.channels;
#pragma omp simd
          for (std::ptrdiff_t k = 0; k < w.channels; ++k) y[k] = pixel[k] > y[k] ? pixel[k] : y[k];
        }
      }
    }
  }
}

constexpr QuantizedKernels kernels{value_range, quantize, quantized_product, quantized_max_pool};

}  // namespace

extern const QuantizedKernels STEEPEST_NAME(quantized_f32);
const QuantizedKernels STEEPEST_NAME(quantized_f32) = kernels;

}  // namespace steepest
