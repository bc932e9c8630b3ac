// Products of a b of many zeros: c + a 0 is c where a is finite, so those steps are left out. Registers lie along the
// rows of a, and each column of b has steps of its own. Internal linkage: each ISA has its own copy.
#pragma once

#include "sparse_products.hpp"
#include "transpose.hpp"

namespace steepest {
namespace {

// Vectors of rows whose sums stay in registers; for as many steps as a list has, they fit into the first cache.
#if defined(__AVX512F__)
constexpr std::ptrdiff_t kTallVectors = 5;
#else
constexpr std::ptrdiff_t kTallVectors = 10;
#endif

// What is not 0 in the columns from..to of b.
template <class T>
void list_columns(const Product<T>& p, std::ptrdiff_t from, std::ptrdiff_t to, const Lists<T>& lists) noexcept {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  for (std::ptrdiff_t k = 0; k < p.depth; ++k) {
    const std::ptrdiff_t first = k / kListSteps * p.columns;
    for (std::ptrdiff_t j = from; k % kListSteps == 0 && j < to; ++j) lists.counts[first + j] = 0;
    const T* const row = p.b + k * p.b_step;
    for (std::ptrdiff_t j = from; j < to; j += lanes) {
      for (std::uint32_t bits = nonzero<T>(load_part(row + j, to - j, T(0))); bits != 0; bits &= bits - 1) {
        const std::ptrdiff_t column = j + __builtin_ctz(bits), n = lists.counts[first + column]++;
        lists.values[(first + column) * kListSteps + n] = row[column];
        lists.steps[(first + column) * kListSteps + n] = static_cast<std::uint8_t>(k % kListSteps);
      }
    }
  }
}

// packed[k][j] = x[k][j] for `width` columns, whole vectors of them, those from `columns` on being 0; from step to step
// or from column to column it is one element. Whether all are finite.
template <class T>
bool pack(const T* x, std::ptrdiff_t x_step, std::ptrdiff_t x_column, std::ptrdiff_t steps, std::ptrdiff_t columns,
          T* packed, std::ptrdiff_t width) {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  Vector<T> zeros{};  // or not numbers
  for (std::ptrdiff_t j = 0; j < width; j += lanes) {
    for (std::ptrdiff_t k = 0; x_column == 1 && k < steps; ++k) {
      const Vector<T> row = load_part(x + k * x_step + j, columns - j, T(0));
      store_register(packed + k * width + j, row);
      zeros += row * T(0);
    }
    for (std::ptrdiff_t k = 0; x_column != 1 && k < steps; k += lanes) {
      Vector<T> rows[lanes];
#pragma GCC unroll 16
      for (std::ptrdiff_t i = 0; i < lanes; ++i) {
        rows[i] = j + i < columns ? load_part(x + (j + i) * x_column + k, steps - k, T(0)) : Vector<T>{};
        zeros += rows[i] * T(0);
      }
      transpose<lanes / 2>(rows);
      for (std::ptrdiff_t i = 0; i < lanes && k + i < steps; ++i) {
        store_register(packed + (k + i) * width + j, rows[i]);
      }
    }
  }
  return nonzero<T>(zeros) == 0;
}

template <std::ptrdiff_t V, class T>
bool listed_product(const Product<T>& p, const Lists<T>& lists) {
  using Lanes = Vector<T>;
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  alignas(64) T packed[kListSteps][V * lanes], sums[kListedColumns][V * lanes];
  for (std::ptrdiff_t j = p.columns; j % lanes != 0; ++j) __builtin_memset(sums[j], 0, sizeof sums[j]);
  for (std::ptrdiff_t k = 0; k < p.depth; k += kListSteps) {
    const std::ptrdiff_t n = p.depth - k < kListSteps ? p.depth - k : kListSteps;
    if (!pack(p.a + k * p.a_step, p.a_step, p.a_row, n, p.rows, packed[0], V * lanes)) return false;
    for (std::ptrdiff_t j = 0; j < p.columns; ++j) {
      const std::ptrdiff_t list = k / kListSteps * lists.columns + j;
      const T* const values = lists.values + list * kListSteps;
      const std::uint8_t* const steps = lists.steps + list * kListSteps;
      Lanes s[V] = {};
      if (k % kProductSteps != 0) __builtin_memcpy(s, sums[j], sizeof s);
      for (std::ptrdiff_t i = 0; i < lists.counts[list]; ++i) {
        const T* const left = packed[steps[i]];
        const Lanes right = all<Lanes>(values[i]);
#pragma GCC unroll 16
        for (std::ptrdiff_t v = 0; v < V; ++v) s[v] = fused(load_register(left + v * lanes), right, s[v]);
      }
#pragma GCC unroll 16
      for (std::ptrdiff_t v = 0; v < V; ++v) store_register(&sums[j][v * lanes], s[v]);
    }
    if ((k + kListSteps) % kProductSteps != 0 && k + kListSteps < p.depth) continue;
    for (std::ptrdiff_t column = 0; column < p.columns; column += lanes) {
      for (std::ptrdiff_t row = 0; row < p.rows; row += lanes) {
        Lanes columns[lanes];
#pragma GCC unroll 16
        for (std::ptrdiff_t j = 0; j < lanes; ++j) columns[j] = load_register(&sums[column + j][row]);
        transpose<lanes / 2>(columns);
        T* c = p.c + row * p.c_row + column;
        for (std::ptrdiff_t i = 0; i < lanes && row + i < p.rows; ++i, c += p.c_row) {
          const Lanes before = k < kProductSteps ? Lanes{} : load_part(c, p.columns - column, T(0));
          store_part(c, p.columns - column, before + columns[i]);
        }
      }
    }
  }
  return true;
}

template <class T>
void nonzero_columns(const Product<T>& p, std::uint8_t* bits) noexcept {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  for (std::ptrdiff_t j = 0; j < p.columns; j += lanes) {
    std::uint32_t set = 0;
    for (std::ptrdiff_t k = 0; k < p.depth; ++k) {
      set |= nonzero<T>(load_part(p.b + k * p.b_step + j, p.columns - j, T(0)));
    }
    set <<= j % 8;
    bits[j / 8] |= static_cast<std::uint8_t>(set);
    bits[j / 8 + 1] |= static_cast<std::uint8_t>(set >> 8);
  }
}

// Lanes whose bit is set take what begins at x, one after the other; 0 in the others.
#if defined(__AVX512F__)
inline Vector<float> spread(const float* x, std::uint32_t set) {
  return _mm512_maskz_expandloadu_ps(static_cast<__mmask16>(set), x);
}
inline Vector<double> spread(const double* x, std::uint32_t set) {
  return _mm512_maskz_expandloadu_pd(static_cast<__mmask8>(set), x);
}
#elif defined(__AVX2__)
// How many bits are set below each, a byte for a bit, by the eight bits.
struct BitsBelow {
  std::uint64_t of[256] = {};
  constexpr BitsBelow() {
    for (std::uint64_t set = 0; set < 256; ++set) {
      for (std::uint64_t bit = 0, below = 0; bit < 8; below += set >> bit++ & 1) of[set] |= below << 8 * bit;
    }
  }
};
constexpr BitsBelow kBitsBelow;
inline Vector<float> spread(const float* x, std::uint32_t set) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i is_set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(set)), bit), bit);
  const __m256i from = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(kBitsBelow.of + set)));
  return _mm256_and_ps(_mm256_permutevar8x32_ps(_mm256_loadu_ps(x), from), _mm256_castsi256_ps(is_set));
}
inline Vector<double> spread(const double* x, std::uint32_t set) {
  const std::uint32_t halves = (set & 1) * 3 + (set & 2) * 6 + (set & 4) * 12 + (set & 8) * 24;
  return (Vector<double>)spread((const float*)x, halves);
}
#else
template <class T>
inline Vector<T> spread(const T* x, std::uint32_t set) {
  T y[kLanesOf<T>];
  for (int l = 0; l < kLanesOf<T>; x += set >> l++ & 1) y[l] = (set >> l & 1) != 0 ? *x : T(0);
  return load_register(y);
}
#endif

template <class T>
void spread_columns(const T* x, std::ptrdiff_t n, const std::uint8_t* bits, T* c, std::ptrdiff_t c_row,
                    std::ptrdiff_t rows, std::ptrdiff_t columns) noexcept {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  for (; rows-- > 0; x += n, c += c_row) {
    const T* next = x;
    for (std::ptrdiff_t j = 0; j < columns; j += lanes) {
      const std::uint32_t set = (bits[j / 8] | bits[j / 8 + 1] << 8) >> j % 8 & ((1u << lanes) - 1);
      store_part(c + j, columns - j, spread(next, set));
      next += __builtin_popcount(set);
    }
  }
}

template <class T>
using ListedProduct = bool (*)(const Product<T>&, const Lists<T>&);

template <class T, std::ptrdiff_t... v>
constexpr ListedProduct<T> listed_product_of(std::ptrdiff_t vectors, std::integer_sequence<std::ptrdiff_t, v...>) {
  constexpr ListedProduct<T> all_of_them[] = {listed_product<v + 1, T>...};
  return all_of_them[vectors - 1];
}

template <class T>
bool matmul_listed(const Product<T>& p, const Lists<T>& lists) noexcept {
  const std::ptrdiff_t vectors = (p.rows + kLanesOf<T> - 1) / kLanesOf<T>;
  return listed_product_of<T>(vectors, std::make_integer_sequence<std::ptrdiff_t, kTallVectors>{})(p, lists);
}

}  // namespace
}  // namespace steepest
