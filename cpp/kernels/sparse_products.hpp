// Products of an a of many zeros: c + 0 b is c where b is finite, so those steps are left out. Internal linkage: each
// ISA has its own copy.
#pragma once

#include "functions.hpp"

namespace steepest {
namespace {

constexpr std::ptrdiff_t kSparseRows = 16, kWordSteps = 32;
constexpr std::ptrdiff_t kWords = kProductSteps / kWordSteps;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr std::ptrdiff_t kMostVectors = 8;  // of the sums of two rows: 16 of 32 registers
#else
constexpr std::ptrdiff_t kMostVectors = 4;
#endif

// A bit for every lane
template <class T>
inline std::uint32_t nonzero(Vector<T> x) {
  const Vector<T> zero{};
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == sizeof(float))
    return _mm512_cmp_ps_mask(x, zero, _CMP_NEQ_UQ);
  else
    return _mm512_cmp_pd_mask(x, zero, _CMP_NEQ_UQ);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == sizeof(float))
    return _mm256_movemask_ps((__m256)(x != zero));
  else
    return _mm256_movemask_pd((__m256d)(x != zero));
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == sizeof(float))
    return _mm_movemask_ps((__m128)(x != zero));
  else
    return _mm_movemask_pd((__m128d)(x != zero));
#else
  const auto is = x != zero;
  std::uint32_t bits = 0;
  for (int l = 0; l < kLanesOf<T>; ++l) bits |= static_cast<std::uint32_t>(is[l] & 1) << l;
  return bits;
#endif
}

// Where a is not zero: a bit for each of 32 steps from `first` on, a word for each of up to 16 rows. One of a's axes
// has stride 1.
template <class T>
inline void find_nonzero(const Product<T>& p, std::ptrdiff_t first, std::uint32_t (&words)[kSparseRows]) {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  const T* a = p.a + first * p.a_step;
  const std::ptrdiff_t steps = p.depth - first < kWordSteps ? p.depth - first : kWordSteps;
  if (p.a_step == 1) {
    for (std::ptrdiff_t r = 0; r < p.rows; ++r, a += p.a_row) {
      words[r] = 0;
      std::ptrdiff_t k = 0;
      for (; k + lanes <= steps; k += lanes) words[r] |= nonzero<T>(load_register(a + k)) << k;
      if (k < steps) words[r] |= nonzero<T>(load_part(a + k, steps - k, T(0))) << k;
    }
    return;
  }
  for (std::ptrdiff_t r = 0; r < p.rows; r += lanes) {
    Bits<Vector<T>> bits{};
    for (std::ptrdiff_t k = 0; k < steps; ++k) {
      const T* const x = a + r + k * p.a_step;
      __builtin_prefetch(x + kSparseRows);  // of the next rows
      const Vector<T> of_rows = p.rows - r < lanes ? load_part(x, p.rows - r, T(0)) : load_register(x);
      bits |= (Bits<Vector<T>>)(of_rows != Vector<T>{}) & (Bits<T>(1) << k);
    }
    for (std::ptrdiff_t l = 0; l < lanes && r + l < p.rows; ++l) words[r + l] = static_cast<std::uint32_t>(bits[l]);
  }
}

// Adds to the sums of two rows, (2, V) registers, what the steps with a bit in the word give them.
template <std::ptrdiff_t V, class T>
inline void add_steps(std::uint32_t word, const T* const (&a)[2], std::ptrdiff_t a_step, const T* b,
                      std::ptrdiff_t b_step, std::ptrdiff_t last, T* const (&sums)[2]) {
  using Lanes = Vector<T>;
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  Lanes s[2][V];
#pragma GCC unroll 8
  for (std::ptrdiff_t v = 0; v < V; ++v) {
    s[0][v] = load_register(sums[0] + v * lanes);
    s[1][v] = load_register(sums[1] + v * lanes);
  }
  for (; word != 0; word &= word - 1) {
    const std::ptrdiff_t k = __builtin_ctz(word);
    const T* const row = b + k * b_step;
    Lanes right[V];  // all of them first, or g++ loads each twice
#pragma GCC unroll 8
    for (std::ptrdiff_t v = 0; v < V; ++v) right[v] = load_register(row + (v + 1 < V ? v * lanes : last));
#pragma GCC unroll 2
    for (std::ptrdiff_t r = 0; r < 2; ++r) {
      const Lanes left = all<Lanes>(a[r][k * a_step]);
#pragma GCC unroll 8
      for (std::ptrdiff_t v = 0; v < V; ++v) s[r][v] = fused(left, right[v], s[r][v]);
    }
  }
#pragma GCC unroll 8
  for (std::ptrdiff_t v = 0; v < V; ++v) {
    store_register(sums[0] + v * lanes, s[0][v]);
    store_register(sums[1] + v * lanes, s[1][v]);
  }
}

// Some rows and steps of a block, and V vectors of columns, of which the last may begin earlier, where columns would be
// left over.
template <std::ptrdiff_t V, class T>
void sparse_block(const Product<T>& p, const std::uint32_t (&words)[kWords][kSparseRows], std::ptrdiff_t column,
                  bool first) {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>, width = V * lanes;
  const std::ptrdiff_t over = p.columns - column < width ? width - (p.columns - column) : 0,
                       last = width - lanes - over;
  alignas(64) T sums[kSparseRows * width] = {};
  bool any[kSparseRows] = {};
  for (std::ptrdiff_t w = 0; w * kWordSteps < p.depth; ++w) {
    const T* const a = p.a + w * kWordSteps * p.a_step;
    const T* const b = p.b + w * kWordSteps * p.b_step + column;
    for (std::ptrdiff_t r = 0; r < p.rows; r += 2) {
      const std::ptrdiff_t other = r + 1 < p.rows ? r + 1 : r;  // then both are the same, and so is what is stored
      const std::uint32_t word = words[w][r] | words[w][other];
      if (word == 0) continue;
      any[r] = any[other] = true;
      add_steps<V>(word, {a + r * p.a_row, a + other * p.a_row}, p.a_step, b, p.b_step, last,
                   {sums + r * width, sums + other * width});
    }
  }
  for (std::ptrdiff_t r = 0; r < p.rows; ++r) {
    if (!any[r] && !first) continue;
    T* const c = p.c + r * p.c_row + column;
    for (std::ptrdiff_t v = 0; v < V; ++v) {
      T* const to = c + (v + 1 < V ? v * lanes : last);
      const T* const own = sums + r * width + v * lanes;
      const std::ptrdiff_t known = v + 1 < V ? 0 : over;
      if (known == 0) {
        store_register(to, (first ? Vector<T>{} : load_register(to)) + load_register(own));
      } else {
        for (std::ptrdiff_t l = known; l < lanes; ++l) to[l] = (first ? T(0) : to[l]) + own[l];
      }
    }
  }
}

template <class T>
using SparseBlock = void (*)(const Product<T>&, const std::uint32_t (&)[kWords][kSparseRows], std::ptrdiff_t, bool);

template <class T, std::ptrdiff_t... v>
constexpr SparseBlock<T> sparse_block_of(std::ptrdiff_t vectors, std::integer_sequence<std::ptrdiff_t, v...>) {
  constexpr SparseBlock<T> all_of_them[] = {sparse_block<v + 1, T>...};
  return all_of_them[vectors - 1];
}

// For at least a register of columns, and a step.
template <class T>
void sparse_product(const Product<T>& p) noexcept {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  const std::ptrdiff_t vectors = (p.columns + lanes - 1) / lanes, parts = (vectors + kMostVectors - 1) / kMostVectors;
  for (std::ptrdiff_t row = 0; row < p.rows; row += kSparseRows) {
    for (std::ptrdiff_t k = 0; k < p.depth; k += kProductSteps) {
      Product<T> block = p;
      block.a += row * p.a_row + k * p.a_step;
      block.b += k * p.b_step;
      block.c += row * p.c_row;
      block.rows = p.rows - row < kSparseRows ? p.rows - row : kSparseRows;
      block.depth = p.depth - k < kProductSteps ? p.depth - k : kProductSteps;
      std::uint32_t words[kWords][kSparseRows];
      for (std::ptrdiff_t w = 0; w * kWordSteps < block.depth; ++w) find_nonzero(block, w * kWordSteps, words[w]);
      for (std::ptrdiff_t i = 0, from = 0; i < parts; ++i) {
        const std::ptrdiff_t end = vectors * (i + 1) / parts;
        sparse_block_of<T>(end - from, std::make_integer_sequence<std::ptrdiff_t, kMostVectors>{})(
            block, words, from * lanes, k == 0);
        from = end;
      }
    }
  }
}

// V vectors, or one number, of a row that is given by its values; the last one begins at `last`.
template <std::ptrdiff_t V, class Lanes, class T>
void sparse_row_part(const std::int32_t* steps, const T* values, std::ptrdiff_t n, const T* b, std::ptrdiff_t columns,
                     std::ptrdiff_t last, T* c) {
  constexpr auto lanes = static_cast<std::ptrdiff_t>(sizeof(Lanes) / sizeof(T));
  Lanes total[V] = {}, sums[V] = {};
  std::ptrdiff_t block = 0;
  const auto finish = [&] {
#pragma GCC unroll 8
    for (std::ptrdiff_t v = 0; v < V; ++v) {
      total[v] += sums[v];
      sums[v] = Lanes{};
    }
  };
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    const T* const row = b + steps[i] * columns;
    if (steps[i] / kProductSteps != block) {
      finish();
      block = steps[i] / kProductSteps;
    }
    const Lanes left = all<Lanes>(values[i]);
#pragma GCC unroll 8
    for (std::ptrdiff_t v = 0; v < V; ++v) {
      Lanes right;
      __builtin_memcpy(&right, row + (v + 1 < V ? v * lanes : last), sizeof right);
      sums[v] = fused(left, right, sums[v]);
    }
  }
  finish();
#pragma GCC unroll 8
  for (std::ptrdiff_t v = 0; v < V; ++v) {
    __builtin_memcpy(c + (v + 1 < V ? v * lanes : last), &total[v], sizeof total[v]);
  }
}

template <class T>
using SparseRowPart = void (*)(const std::int32_t*, const T*, std::ptrdiff_t, const T*, std::ptrdiff_t, std::ptrdiff_t,
                               T*);

template <class T, std::ptrdiff_t... v>
constexpr SparseRowPart<T> sparse_row_part_of(std::ptrdiff_t vectors, std::integer_sequence<std::ptrdiff_t, v...>) {
  constexpr SparseRowPart<T> all_of_them[] = {sparse_row_part<v + 1, Vector<T>, T>...};
  return all_of_them[vectors - 1];
}

template <class T>
void sparse_row(const std::int32_t* steps, const T* values, std::ptrdiff_t n, const T* b, std::ptrdiff_t columns,
                T* c) noexcept {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  for (std::ptrdiff_t j = 0; columns < lanes && j < columns; ++j) {
    sparse_row_part<1, T>(steps, values, n, b + j, columns, 0, c + j);
  }
  if (columns < lanes) return;
  const std::ptrdiff_t vectors = (columns + lanes - 1) / lanes, parts = (vectors + kMostVectors - 1) / kMostVectors;
  for (std::ptrdiff_t i = 0, from = 0; i < parts; ++i) {
    const std::ptrdiff_t end = vectors * (i + 1) / parts, left = columns - from * lanes;
    const std::ptrdiff_t last = (end - from) * lanes < left ? (end - from - 1) * lanes : left - lanes;
    sparse_row_part_of<T>(end - from, std::make_integer_sequence<std::ptrdiff_t, kMostVectors>{})(
        steps, values, n, b + from * lanes, columns, last, c + from * lanes);
    from = end;
  }
}

}  // namespace
}  // namespace steepest
