// Matrix products that are too small for BLAS, which copies its operands first. Compiled once per ISA.
#include "listed_products.hpp"

namespace steepest {
namespace {

// The sums of a tile, of 6 rows and 2 vectors of columns, fill 12 of 16 registers.
constexpr std::ptrdiff_t kRows = 6, kVectors = 2;

// Steps at a time: what they have to do beside multiplying costs a busy front end a tenth.
#if defined(__AVX2__) || defined(__aarch64__)
constexpr int kUnroll = 4;
#else
constexpr int kUnroll = 1;
#endif

// c[i][j] = or += sum over k of a[i][k] b[k][j], for R rows and `columns` of V vectors of columns; b is (steps, width).
// With `packs`, b is also copied, to where the next tiles find it next to each other: that hides behind the arithmetic.
template <bool packs, std::ptrdiff_t R, std::ptrdiff_t V, class T>
void tile(const Product<T>& p, const T* a, const T* b, std::ptrdiff_t width, T* packed, std::ptrdiff_t steps, T* c,
          std::ptrdiff_t columns, bool first) {
  using Lanes = Vector<T>;
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  Lanes sums[R][V] = {};
  if (!packs) width = V * lanes;
#pragma GCC unroll kUnroll
  for (std::ptrdiff_t k = 0; k < steps; ++k) {
    Lanes right[V];
    if (packs) __builtin_prefetch(b + k * width + V * lanes);  // the next columns
#pragma GCC unroll 2
    for (std::ptrdiff_t v = 0; v < V; ++v) {
      __builtin_memcpy(&right[v], b + k * width + v * lanes, sizeof(Lanes));
      if (packs) __builtin_memcpy(packed + (k * V + v) * lanes, &right[v], sizeof(Lanes));
    }
#pragma GCC unroll 6  // or the sums would live in memory
    for (std::ptrdiff_t r = 0; r < R; ++r) {
      const T left = a[r * p.a_row + k * p.a_step];
#pragma GCC unroll 2
      for (std::ptrdiff_t v = 0; v < V; ++v) sums[r][v] = fused(all<Lanes>(left), right[v], sums[r][v]);
    }
  }
#pragma GCC unroll 6
  for (std::ptrdiff_t r = 0; r < R; ++r) {
    T* const row = c + r * p.c_row;
    if (packs || columns == V * lanes) {
#pragma GCC unroll 2
      for (std::ptrdiff_t v = 0; v < V; ++v) {
        Lanes before = {};
        if (!first) __builtin_memcpy(&before, row + v * lanes, sizeof(Lanes));
        const Lanes after = before + sums[r][v];
        __builtin_memcpy(row + v * lanes, &after, sizeof(Lanes));
      }
    } else {
      T block[V * lanes];
      __builtin_memcpy(block, sums[r], sizeof block);
      for (std::ptrdiff_t j = 0; j < columns; ++j) row[j] = (first ? T(0) : row[j]) + block[j];
    }
  }
}

template <class T>
using Tile = void (*)(const Product<T>&, const T*, const T*, std::ptrdiff_t, T*, std::ptrdiff_t, T*, std::ptrdiff_t,
                      bool);

// By their vectors and their rows; the last ones pack.
template <class T>
constexpr Tile<T> tiles[kVectors + 1][kRows] = {
    {tile<0, 1, 1, T>, tile<0, 2, 1, T>, tile<0, 3, 1, T>, tile<0, 4, 1, T>, tile<0, 5, 1, T>, tile<0, 6, 1, T>},
    {tile<0, 1, 2, T>, tile<0, 2, 2, T>, tile<0, 3, 2, T>, tile<0, 4, 2, T>, tile<0, 5, 2, T>, tile<0, 6, 2, T>},
    {tile<1, 1, 2, T>, tile<1, 2, 2, T>, tile<1, 3, 2, T>, tile<1, 4, 2, T>, tile<1, 5, 2, T>, tile<1, 6, 2, T>}};

// All rows of some columns of one block of steps: c and the operands begin there.
template <class T>
void panel(const Product<T>& p, const T* a, const T* b, std::ptrdiff_t steps, T* c, std::ptrdiff_t columns,
           bool first) {
  constexpr std::ptrdiff_t lanes = kLanesOf<T>;
  const std::ptrdiff_t vectors = columns > lanes ? 2 : 1, width = vectors * lanes;
  alignas(64) T packed[kProductSteps * kVectors * lanes];
  bool packs = p.b_column == 1 && columns == kVectors * lanes;
  if (!packs) pack(b, p.b_step, p.b_column, steps, columns, packed, width);
  // As even as can be: a tile of few rows waits for its own sums.
  const std::ptrdiff_t parts = (p.rows + kRows - 1) / kRows;
  for (std::ptrdiff_t i = 0, row = 0; i < parts; ++i) {
    const std::ptrdiff_t end = p.rows * (i + 1) / parts;
    tiles<T>[packs ? kVectors : vectors - 1][end - row - 1](p, a + row * p.a_row, packs ? b : packed, p.b_step, packed,
                                                            steps, c + row * p.c_row, columns, first);
    row = end;
    packs = false;
  }
}

template <class T>
void matmul(const Product<T>& p) noexcept {
  constexpr std::ptrdiff_t most = kVectors * kLanesOf<T>;
  std::ptrdiff_t k = 0;
  do {
    const std::ptrdiff_t steps = p.depth - k < kProductSteps ? p.depth - k : kProductSteps;
    for (std::ptrdiff_t j = 0; j < p.columns; j += most) {
      const std::ptrdiff_t columns = p.columns - j < most ? p.columns - j : most;
      panel(p, p.a + k * p.a_step, p.b + k * p.b_step + j * p.b_column, steps, p.c + j, columns, k == 0 && !p.adds);
    }
    k += kProductSteps;
  } while (k < p.depth);
}

template <class T>
void matmul_sparse(const Product<T>& p, std::ptrdiff_t room) noexcept {
  if (p.columns < kLanesOf<T> || p.depth == 0) return matmul(p);
  sparse_product(p, room);
}

template <class T>
bool is_finite(const T* x, std::ptrdiff_t n) noexcept {
  T sum = 0;  // of zeros, or not a number
#pragma omp simd reduction(+ : sum)
  for (std::ptrdiff_t i = 0; i < n; ++i) sum += x[i] * T(0);
  return sum == 0;
}

}  // namespace

extern const ProductKernels<float> STEEPEST_NAME(products_f32);
extern const ProductKernels<double> STEEPEST_NAME(products_f64);
const ProductKernels<float> STEEPEST_NAME(products_f32) = {matmul<float>,
                                                           matmul_sparse<float>,
                                                           kCopies ? nullptr : is_finite<float>,
                                                           sparse_row<float>,
                                                           list_columns<float>,
                                                           matmul_listed<float>,
                                                           nonzero_columns<float>,
                                                           spread_columns<float>,
                                                           kTallVectors* kLanesOf<float>,
                                                           4 * kRows,
                                                           kVectors* kLanesOf<float>,
                                                           kSparseRows};
const ProductKernels<double> STEEPEST_NAME(products_f64) = {matmul<double>,
                                                            matmul_sparse<double>,
                                                            kCopies ? nullptr : is_finite<double>,
                                                            sparse_row<double>,
                                                            list_columns<double>,
                                                            matmul_listed<double>,
                                                            nonzero_columns<double>,
                                                            spread_columns<double>,
                                                            kTallVectors* kLanesOf<double>,
                                                            4 * kRows,
                                                            kVectors* kLanesOf<double>,
                                                            kSparseRows};

}  // namespace steepest
