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
#elif defined(__AVX2__)
constexpr std::ptrdiff_t kMostVectors = 6;  // 12 of 16, beside one of b and one of each row
#else
constexpr std::ptrdiff_t kMostVectors = 4;
#endif
// Whether those columns of b are copied, to lie aligned and next to each other, and for how many rows: parts of b's
// rows would fall into few sets of the first cache. Long vectors take 128 columns of float32 at once, and leave nothing
// out.
#if defined(__AVX512F__)
constexpr bool kCopies = false;
#else
constexpr bool kCopies = true;
#endif
constexpr std::ptrdiff_t kGroupRows = kCopies ? 8 * kSparseRows : kSparseRows;

// For how many words of steps those sums stay in registers, with so many bytes of b for each: as many as there is room
// for in the first cache. Where long vectors leave none for one, all: from the second cache they are quick enough.
inline std::ptrdiff_t words_at_once(std::ptrdiff_t bytes, std::ptrdiff_t room) {
  return kCopies || kWords * bytes <= room || bytes > room ? kWords : 1;
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
inline void find_nonzero(const Product<T>& p, Steps* steps) {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>, bits_of_lane = 8 * sizeof(T);
  __builtin_memset(steps, 0, static_cast<std::size_t>(p.rows) * sizeof *steps);
  if (p.a_step == 1) {
    for (std::ptrdiff_t r = 0; r < p.rows; ++r) {
      for (std::ptrdiff_t k = 0; k < p.depth; k += kWordSteps) {
        const T* const a = p.a + r * p.a_row + k;
        const std::ptrdiff_t n = p.depth - k;
        std::uint64_t& word = steps[r].words[k / kWordSteps];
        if (n >= kWordSteps) {
#pragma GCC unroll 32
          for (std::ptrdiff_t i = 0; i < kWordSteps; i += lanes) {
            word |= std::uint64_t{nonzero<T>(load_register(a + i))} << i;
          }
        } else {
          for (std::ptrdiff_t i = 0; i < n; i += lanes) {
            word |= std::uint64_t{nonzero<T>(load_part(a + i, n - i, T(0)))} << i;
          }
        }
      }
    }
    return;
  }
  for (std::ptrdiff_t r = 0; r < p.rows; r += lanes) {
    const std::ptrdiff_t rows = p.rows - r < lanes ? p.rows - r : lanes;
    for (std::ptrdiff_t k = 0; k < p.depth; k += bits_of_lane) {
      const std::ptrdiff_t n = p.depth - k < bits_of_lane ? p.depth - k : bits_of_lane;
      const T* x = p.a + r + (k + n) * p.a_step;
      Bits<Vector<T>> bits{};
      for (std::ptrdiff_t i = 0; i < n; ++i) {  // from the last one
        x -= p.a_step;
        __builtin_prefetch(x + kSparseRows);  // of the next rows
        const Vector<T> of_rows = rows < lanes ? load_part(x, rows, T(0)) : load_register(x);
        bits += bits - (Bits<Vector<T>>)(of_rows != Vector<T>{});
      }
      for (std::ptrdiff_t l = 0; l < rows; ++l) {
        steps[r + l].words[k / kWordSteps] |= std::uint64_t{static_cast<Bits<T>>(bits[l])} << k % kWordSteps;
      }
    }
  }
}

// Rows are multiplied two at a time, in the steps of both: each goes with that of those left which is most like it.
inline void pair_up(const Steps* steps, std::ptrdiff_t rows, std::ptrdiff_t* order) {
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

template <class T>
void matmul(const Product<T>& p) noexcept;  // products.cpp

// Some rows and steps of a block, and V vectors of columns, of which the last may begin earlier, where columns would be
// left over. False, and nothing is done, where b is copied and not finite.
template <std::ptrdiff_t V, class T>
bool sparse_block(const Product<T>& p, const Steps* steps, const std::ptrdiff_t* order, std::ptrdiff_t column,
                  bool first, std::ptrdiff_t room) {
  using Lanes = Vector<T>;
  constexpr std::ptrdiff_t lanes = kLanesOf<T>, width = V * lanes;
  const std::ptrdiff_t over = p.columns - column < width ? width - (p.columns - column) : 0,
                       last = width - lanes - over;
  const std::ptrdiff_t pass = words_at_once(kWordSteps * width * static_cast<std::ptrdiff_t>(sizeof(T)), room);
  alignas(64) T copy[kCopies ? kProductSteps * width : 1];
  Lanes zeros{};  // or not numbers
  for (std::ptrdiff_t k = 0; kCopies && k < p.depth; ++k) {
    const T* const row = p.b + k * p.b_step + column;
#pragma GCC unroll 8
    for (std::ptrdiff_t v = 0; v < V; ++v) {
      const Lanes y = load_register(row + (v + 1 < V ? v * lanes : last));
      store_register(copy + k * width + v * lanes, y);
      zeros += y * T(0);
    }
  }
  if (kCopies && nonzero<T>(zeros) != 0) return false;
  const T* const right = kCopies ? copy : p.b + column;
  const std::ptrdiff_t b_step = kCopies ? width : p.b_step, last_of_b = kCopies ? width - lanes : last;
  Lanes sums[kCopies ? 1 : kGroupRows][V];
  for (std::ptrdiff_t from = 0; from < kWords && from * kWordSteps < p.depth; from += pass) {
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
        const T* const b = right + w * kWordSteps * b_step;
        const T* const left[] = {a + rows[0] * p.a_row, a + rows[1] * p.a_row};
        for (std::uint64_t word = steps[rows[0]].words[w] | steps[rows[1]].words[w]; word != 0; word &= word - 1) {
          const std::ptrdiff_t k = __builtin_ctzll(word);
          const T* const row = b + k * b_step;
          const Lanes x[] = {all<Lanes>(left[0][k * p.a_step]), all<Lanes>(left[1][k * p.a_step])};
#pragma GCC unroll 8
          for (std::ptrdiff_t v = 0; v < V; ++v) {
            const Lanes y = loaded_once(load_register(row + (v + 1 < V ? v * lanes : last_of_b)));
            s[0][v] = fused(x[0], y, s[0][v]);
            s[1][v] = fused(x[1], y, s[1][v]);
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
  return true;
}

template <class T>
using SparseBlock = bool (*)(const Product<T>&, const Steps*, const std::ptrdiff_t*, std::ptrdiff_t, bool,
                             std::ptrdiff_t);

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
  for (std::ptrdiff_t row = 0; row < p.rows; row += kGroupRows) {
    for (std::ptrdiff_t k = 0; k < p.depth; k += kProductSteps) {
      Product<T> block = p;
      block.a += row * p.a_row + k * p.a_step;
      block.b += k * p.b_step;
      block.c += row * p.c_row;
      block.rows = p.rows - row < kGroupRows ? p.rows - row : kGroupRows;
      block.depth = p.depth - k < kProductSteps ? p.depth - k : kProductSteps;
      Steps steps[kGroupRows];
      std::ptrdiff_t order[kGroupRows];
      for (std::ptrdiff_t r = 0; r < block.rows; r += kSparseRows) {
        Product<T> some = block;
        some.a += r * p.a_row;
        some.rows = block.rows - r < kSparseRows ? block.rows - r : kSparseRows;
        find_nonzero(some, steps + r);
        for (std::ptrdiff_t i = r; i < r + some.rows; ++i) order[i] = i;
        if (p.a_step == 1) pair_up(steps, some.rows, order + r);  // else neighbours are columns of a, and alike
      }
      for (std::ptrdiff_t i = 0, from = 0; i < parts; ++i) {
        const std::ptrdiff_t end = vectors * (i + 1) / parts, column = from * lanes;
        const auto multiply =
            sparse_block_of<T>(end - from, std::make_integer_sequence<std::ptrdiff_t, kMostVectors>{});
        if (!multiply(block, steps, order, column, k == 0 && !p.adds, room)) {
          Product<T> some = block;
          some.b += column;
          some.c += column;
          some.columns = (i + 1 < parts ? end * lanes : p.columns) - column;
          some.adds = k > 0 || p.adds;
          matmul(some);
        }
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
