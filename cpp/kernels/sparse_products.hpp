// Products of an a of many zeros: c + 0 b is c where b is finite, so those steps are left out. Internal linkage: each
// ISA has its own copy.
#pragma once

#include "functions.hpp"

namespace steepest {
namespace {

constexpr std::ptrdiff_t kSparseRows = 16, kWordSteps = 64;
constexpr std::ptrdiff_t kWords = kProductSteps / kWordSteps;
// Vectors of the sums of two rows.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr std::ptrdiff_t kMostVectors = 8;  // 16 of 32 registers
#else
constexpr std::ptrdiff_t kMostVectors = 4;
#endif

// For how many words of steps those sums stay in registers, with so many bytes of b for each: as many as there is room
// for in the first cache. Where long vectors leave none for one, all: from the second cache they are quick enough.
inline std::ptrdiff_t words_at_once([[maybe_unused]] std::ptrdiff_t bytes, [[maybe_unused]] std::ptrdiff_t room) {
#if defined(__AVX512F__)
  return kWords * bytes <= room || bytes > room ? kWords : 1;
#else
  return 1;
#endif
}

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

// A bit for every step in which a row of a is not 0.
struct Steps {
  std::uint64_t words[kWords];
};

// For up to 16 rows and a block of steps. One of a's axes has stride 1.
template <class T>
inline void find_nonzero(const Product<T>& p, Steps (&steps)[kSparseRows]) {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>, bits_of_lane = 8 * sizeof(T);
  __builtin_memset(steps, 0, sizeof steps);
  const auto add = [&](std::ptrdiff_t row, std::ptrdiff_t k, std::uint64_t bits) {
    steps[row].words[k / kWordSteps] |= bits << k % kWordSteps;
  };
  if (p.a_step == 1) {
    const T* a = p.a;
    for (std::ptrdiff_t r = 0; r < p.rows; ++r, a += p.a_row) {
      std::ptrdiff_t k = 0;
      for (; k + lanes <= p.depth; k += lanes) add(r, k, nonzero<T>(load_register(a + k)));
      if (k < p.depth) add(r, k, nonzero<T>(load_part(a + k, p.depth - k, T(0))));
    }
    return;
  }
  for (std::ptrdiff_t r = 0; r < p.rows; r += lanes) {
    const std::ptrdiff_t rows = p.rows - r < lanes ? p.rows - r : lanes;
    for (std::ptrdiff_t k = 0; k < p.depth; k += bits_of_lane) {
      const std::ptrdiff_t n = p.depth - k < bits_of_lane ? p.depth - k : bits_of_lane;
      const T* x = p.a + r + k * p.a_step;
      Bits<Vector<T>> bits{};
      for (std::ptrdiff_t i = 0; i < n; ++i, x += p.a_step) {
        __builtin_prefetch(x + kSparseRows);  // of the next rows
        const Vector<T> of_rows = rows < lanes ? load_part(x, rows, T(0)) : load_register(x);
        bits |= (Bits<Vector<T>>)(of_rows != Vector<T>{}) & (Bits<T>(1) << i);
      }
      for (std::ptrdiff_t l = 0; l < rows; ++l) add(r + l, k, static_cast<Bits<T>>(bits[l]));
    }
  }
}

// Rows are multiplied two at a time, in the steps of both: each goes with that of those left which is most like it.
inline void pair_up(const Steps (&steps)[kSparseRows], std::ptrdiff_t rows, std::ptrdiff_t (&order)[kSparseRows]) {
  for (std::ptrdiff_t i = 0; i + 2 < rows; i += 2) {
    std::ptrdiff_t best = i + 1;
    int least = kProductSteps + 1;
    for (std::ptrdiff_t j = i + 1; j < rows; ++j) {
      int n = 0;
      for (std::ptrdiff_t w = 0; w < kWords; ++w) {
        n += __builtin_popcountll(steps[order[i]].words[w] ^ steps[order[j]].words[w]);
      }
      best = n < least ? j : best;
      least = n < least ? n : least;
    }
    const std::ptrdiff_t partner = order[best];
    order[best] = order[i + 1];
    order[i + 1] = partner;
  }
}

// The sums of a row and a block of steps become part of c; the first `over` lanes of the last vector already are.
template <std::ptrdiff_t V, class T>
inline void finish(const Vector<T> (&sums)[V], T* c, std::ptrdiff_t last, std::ptrdiff_t over, bool first) {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
#pragma GCC unroll 8
  for (std::ptrdiff_t v = 0; v < V; ++v) {
    T* const to = c + (v + 1 < V ? v * lanes : last);
    if (v + 1 < V || over == 0) {
      store_register(to, (first ? Vector<T>{} : load_register(to)) + sums[v]);
    } else {
      T own[lanes];
      __builtin_memcpy(own, &sums[v], sizeof own);
      for (std::ptrdiff_t l = over; l < lanes; ++l) to[l] = (first ? T(0) : to[l]) + own[l];
    }
  }
}

// Some rows and steps of a block, and V vectors of columns, of which the last may begin earlier, where columns would be
// left over.
template <std::ptrdiff_t V, class T>
void sparse_block(const Product<T>& p, const Steps (&steps)[kSparseRows], const std::ptrdiff_t (&order)[kSparseRows],
                  std::ptrdiff_t column, bool first, std::ptrdiff_t room) {
  using Lanes = Vector<T>;
  constexpr std::ptrdiff_t lanes = kLanesOf<T>, width = V * lanes;
  const std::ptrdiff_t over = p.columns - column < width ? width - (p.columns - column) : 0,
                       last = width - lanes - over;
  const std::ptrdiff_t pass = words_at_once(kWordSteps * width * static_cast<std::ptrdiff_t>(sizeof(T)), room);
  Lanes sums[kSparseRows][V];
  for (std::ptrdiff_t from = 0; from * kWordSteps < p.depth; from += pass) {
    for (std::ptrdiff_t i = 0; i < p.rows; i += 2) {
      const std::ptrdiff_t rows[] = {order[i], order[i + 1 < p.rows ? i + 1 : i]};  // one left over is its own other
      Lanes s[2][V] = {};
      if (from > 0) {
#pragma GCC unroll 8
        for (std::ptrdiff_t v = 0; v < V; ++v) {
          s[0][v] = sums[rows[0]][v];
          s[1][v] = sums[rows[1]][v];
        }
      }
      for (std::ptrdiff_t w = from; w < from + pass; ++w) {
        const T* const a = p.a + w * kWordSteps * p.a_step;
        const T* const b = p.b + w * kWordSteps * p.b_step + column;
        const T* const left[] = {a + rows[0] * p.a_row, a + rows[1] * p.a_row};
        for (std::uint64_t word = steps[rows[0]].words[w] | steps[rows[1]].words[w]; word != 0; word &= word - 1) {
          const std::ptrdiff_t k = __builtin_ctzll(word);
          const T* const row = b + k * p.b_step;
          Lanes right[V];  // all of them first, or g++ loads each twice
#pragma GCC unroll 8
          for (std::ptrdiff_t v = 0; v < V; ++v) right[v] = load_register(row + (v + 1 < V ? v * lanes : last));
#pragma GCC unroll 2
          for (std::ptrdiff_t r = 0; r < 2; ++r) {
            const Lanes x = all<Lanes>(left[r][k * p.a_step]);
#pragma GCC unroll 8
            for (std::ptrdiff_t v = 0; v < V; ++v) s[r][v] = fused(x, right[v], s[r][v]);
          }
        }
      }
      if ((from + pass) * kWordSteps < p.depth) {
#pragma GCC unroll 8
        for (std::ptrdiff_t v = 0; v < V; ++v) {
          sums[rows[0]][v] = s[0][v];
          sums[rows[1]][v] = s[1][v];
        }
      } else {
        finish<V, T>(s[0], p.c + rows[0] * p.c_row + column, last, over, first);
        if (rows[0] != rows[1]) finish<V, T>(s[1], p.c + rows[1] * p.c_row + column, last, over, first);
      }
    }
  }
}

template <class T>
using SparseBlock = void (*)(const Product<T>&, const Steps (&)[kSparseRows], const std::ptrdiff_t (&)[kSparseRows],
                             std::ptrdiff_t, bool, std::ptrdiff_t);

template <class T, std::ptrdiff_t... v>
constexpr SparseBlock<T> sparse_block_of(std::ptrdiff_t vectors, std::integer_sequence<std::ptrdiff_t, v...>) {
  constexpr SparseBlock<T> all_of_them[] = {sparse_block<v + 1, T>...};
  return all_of_them[vectors - 1];
}

// For at least a register of columns, and a step.
template <class T>
void sparse_product(const Product<T>& p, std::ptrdiff_t room) noexcept {
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
      Steps steps[kSparseRows];
      find_nonzero(block, steps);
      std::ptrdiff_t order[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      if (p.a_step == 1) pair_up(steps, block.rows, order);  // else neighbours are columns of a, and alike
      for (std::ptrdiff_t i = 0, from = 0; i < parts; ++i) {
        const std::ptrdiff_t end = vectors * (i + 1) / parts;
        sparse_block_of<T>(end - from, std::make_integer_sequence<std::ptrdiff_t, kMostVectors>{})(
            block, steps, order, from * lanes, k == 0 && !p.adds, room);
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
