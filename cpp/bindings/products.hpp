// Matrix products shared among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "../dispatch.hpp"
#include "calls.hpp"

namespace steepest {

// Rows or columns of a block at most: what it needs of both operands stays in cache.
constexpr std::ptrdiff_t kStrip = 256;
// How many blocks there should be at least: two cores are seldom equally quick, and nobody should wait long for the
// last.
constexpr std::ptrdiff_t kBlocks = 16;

inline View matrix(const py::object& object, const char* name, Use use) {
  View v = view(object, name, use);
  if (v.array.ndim() != 2) {
    throw py::value_error(std::string(name) + ": expected shape (rows, columns), got " + describe(shape_of(v.array)));
  }
  return v;
}

template <class T>
Product<T> part(const Product<T>& p, std::ptrdiff_t row, std::ptrdiff_t rows, std::ptrdiff_t column,
                std::ptrdiff_t columns) {
  return {p.a + row * p.a_row,
          p.a_row,
          p.a_step,
          p.b + column * p.b_column,
          p.b_step,
          p.b_column,
          p.c + row * p.c_row + column,
          p.c_row,
          rows,
          columns,
          p.depth};
}

// Whether rows of c are shared rather than columns. Who takes all columns packs all of b; who takes all rows reads all
// of a, which where its steps are strided is more than it needs at a time.
template <class T>
bool by_rows(const Product<T>& p) {
  return p.a_step == 1 ? p.columns < 4 * products<T>().columns : p.rows >= p.columns;
}

// Whether at least three of ten pairs of neighbours in a row's step, (rows - 1, depth) of them, are both 0. By a
// sample.
template <class T>
bool is_mostly_zero(const T* a, std::ptrdiff_t a_row, std::ptrdiff_t a_step, std::ptrdiff_t rows,
                    std::ptrdiff_t depth) {
  constexpr std::ptrdiff_t samples = 128;
  if (rows < 2 || depth < 1) return false;
  std::ptrdiff_t nonzero = 0;
  for (std::ptrdiff_t i = 0; i < samples; ++i) {
    const std::ptrdiff_t row = i * (rows - 1) / samples, step = i * 97 % samples * depth / samples;
    const T* const x = a + row * a_row + step * a_step;
    nonzero += x[0] != 0 || x[a_row] != 0;
  }
  return nonzero <= samples * 7 / 10;
}

// Whether it pays to leave out where a is 0, which is done for two rows at a time: the bits are the same either way.
template <class T>
bool is_sparse(const Product<T>& p) {
  constexpr std::ptrdiff_t least_work = 1 << 16;
  const bool fits = p.b_column == 1 && (p.a_step == 1 || p.a_row == 1) && p.columns >= products<T>().columns / 2;
  if (!fits || p.rows * p.columns * p.depth < least_work) return false;
  if (!is_mostly_zero(p.a, p.a_row, p.a_step, p.rows, p.depth)) return false;
  std::atomic<bool> is_finite{true};  // b: 0 times what is not would be left out
  parallel::for_ranges(
      p.depth, p.columns * static_cast<std::ptrdiff_t>(sizeof(T)),
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        const T* x = p.b + begin * p.b_step;
        if (p.b_step == p.columns) {
          if (!products<T>().is_finite(x, (end - begin) * p.columns)) is_finite = false;
          return;
        }
        for (; begin < end; ++begin, x += p.b_step) {
          if (!products<T>().is_finite(x, p.columns)) is_finite = false;
        }
      },
      parallel::Pace::brisk);
  return is_finite;
}

// Products of at most so many elements in all blocks of steps are shared by these.
constexpr std::ptrdiff_t kDeepest = 1 << 16;

// A small product of many steps: each block of them is a product of its own, and those are then added one after the
// other, as they would have been. So whoever multiplies with some rows of the weights is who will compute their
// gradient and update them, and finds them in its own cache. Whether it was done.
template <class T, class F>
bool multiply_deep(const Product<T>& p, bool is_sparse, const F& finish) noexcept {
  const ProductKernels<T>& kernels = products<T>();
  const std::ptrdiff_t blocks = (p.depth + kProductSteps - 1) / kProductSteps, size = p.rows * p.columns;
  const bool is_shared = parallel::threads() > 1 && parallel::is_shareable(size * p.depth);
  if (!is_shared || blocks < 4 || blocks * size > kDeepest || p.a_step != 1 || p.b_column != 1) return false;
  const std::unique_ptr<T[]> parts(new (std::nothrow) T[static_cast<std::size_t>(blocks * size)]);
  if (parts == nullptr) return false;
  const std::ptrdiff_t share = is_sparse ? p.columns : kernels.columns, panels = (p.columns + share - 1) / share;
  parallel::for_ranges(
      blocks * panels, share * p.rows * std::min(p.depth, kProductSteps),
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (; begin < end; ++begin) {
          const std::ptrdiff_t step = begin / panels * kProductSteps, column = begin % panels * share;
          Product<T> block = part(p, 0, p.rows, column, std::min(share, p.columns - column));
          block.a += step;
          block.b += step * p.b_step;
          block.depth = std::min(kProductSteps, p.depth - step);
          block.c = parts.get() + begin / panels * size + column;
          block.c_row = p.columns;
          is_sparse ? kernels.matmul_sparse(block) : kernels.matmul(block);
        }
      },
      parallel::Pace::brisk);
  parallel::for_ranges(
      p.rows, p.columns * blocks * static_cast<std::ptrdiff_t>(sizeof(T)),
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          T* const c = p.c + i * p.c_row;
          const T* x = parts.get() + i * p.columns;
          std::copy(x, x + p.columns, c);
          for (std::ptrdiff_t b = 1; b < blocks; ++b) {
            x += size;
            for (std::ptrdiff_t j = 0; j < p.columns; ++j) c[j] += x[j];
          }
        }
        finish(p.c + begin * p.c_row, end - begin, 0, p.columns);
      },
      parallel::Pace::brisk);
  return true;
}

// One side of c is shared, the other one cut into strips. A multiplication costs as much as a byte of an optimizer's
// traffic. What is finished is handed to `finish(c, rows, column, columns)`, c beginning there.
template <class T, class F>
void multiply(const Product<T>& p, const F& finish) noexcept {
  const bool sparse = is_sparse(p), rows = sparse || by_rows(p);
  const std::ptrdiff_t length = rows ? p.rows : p.columns, across = rows ? p.columns : p.rows;
  const ProductKernels<T>& kernels = products<T>();
  const std::ptrdiff_t share = sparse ? kernels.sparse_rows : rows ? kernels.rows : kernels.columns;
  const std::ptrdiff_t shares = (length + share - 1) / share;
  if (length == 0 || across == 0 || multiply_deep(p, sparse, finish)) return;
  const std::ptrdiff_t wanted = sparse ? 1 : std::min((kBlocks + shares - 1) / shares, across / kernels.rows);
  const std::ptrdiff_t strips = std::max((across + kStrip - 1) / kStrip, wanted);
  const std::ptrdiff_t strip_size = (across + strips - 1) / strips;
  parallel::for_ranges(
      strips * shares, share * strip_size * p.depth,
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t next; begin < end; begin = next) {
          const std::ptrdiff_t strip = begin / shares, side = strip * strip_size, at = begin % shares;
          next = std::min(end, (strip + 1) * shares);
          const std::ptrdiff_t from = at * share;
          const std::ptrdiff_t n = std::min((at + next - begin) * share, length) - from;
          const std::ptrdiff_t m = std::min(strip_size, across - side);
          if (m <= 0) return;
          const Product<T> block = rows ? part(p, from, n, side, m) : part(p, side, m, from, n);
          sparse ? kernels.matmul_sparse(block) : kernels.matmul(block);
          finish(block.c, block.rows, rows ? side : from, block.columns);
        }
      },
      parallel::Pace::brisk);
}

template <class T>
void multiply(const Product<T>& p) noexcept {
  multiply(p, [](T*, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t) noexcept {});
}

// c[j] = sum over the rows of b, (rows, n): the product of ones with b.
template <class T>
void add_rows(const T* b, std::ptrdiff_t rows, std::ptrdiff_t n, T* c) noexcept {
  static constexpr T one = 1;
  multiply<T>({&one, 0, 0, b, n, 1, c, n, 1, n, rows});
}

// c = f(a b + bias), each part of it while it is in cache; bias may be null.
template <class T>
void dense(const Product<T>& p, Activation f, const T* bias, double alpha) noexcept {
  const auto kernel = layers<T>().activate;
  multiply(p, [=, &p](T* c, std::ptrdiff_t rows, std::ptrdiff_t column, std::ptrdiff_t columns) noexcept {
    const T* const part = bias != nullptr ? bias + column : nullptr;
    for (std::ptrdiff_t i = 0; i < rows; ++i, c += p.c_row) {
      kernel(f, c, part, static_cast<T>(alpha), c, 1, columns);
    }
  });
}

}  // namespace steepest
