// Matrix products shared among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <new>

#include "../dispatch.hpp"
#include "calls.hpp"

namespace steepest {

// Rows or columns of a block at most: what it needs of both operands stays in cache.
constexpr std::ptrdiff_t kStrip = 256;
// How many blocks there should be at least, of so many multiplications: two cores are seldom equally quick, and nobody
// should wait long for the last.
constexpr std::ptrdiff_t kBlocks = 16, kBlockWork = 128 << 10;

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
          p.depth,
          p.adds};
}

// Whether rows of c are shared rather than columns. Who takes all columns packs all of b, which does not matter where
// that is little; who takes all rows reads all of a, which where its steps are strided is more than it needs at a time.
template <class T>
bool by_rows(const Product<T>& p) {
  constexpr std::ptrdiff_t little = 4096;
  if (p.a_step != 1) return p.rows >= p.columns;
  return p.columns < 4 * products<T>().columns || p.columns * p.depth <= little;
}

// What part of the elements of a, (rows, depth), is not 0. By a sample, which ends where its first part is nearly full.
template <class T>
double nonzero_part(const T* a, std::ptrdiff_t a_row, std::ptrdiff_t a_step, std::ptrdiff_t rows,
                    std::ptrdiff_t depth) {
  constexpr std::ptrdiff_t samples = 128;
  if (rows < 2 || depth < 1) return 1;
  std::ptrdiff_t nonzero = 0;
  for (std::ptrdiff_t k = 0; k < samples; ++k) {
    if (k == 16 && nonzero > 28) return 1;
    const std::ptrdiff_t i = k * 37 % samples;  // from everywhere
    const std::ptrdiff_t row = i * (rows - 1) / samples, step = i * 97 % samples * depth / samples;
    const T* const x = a + row * a_row + step * a_step;
    nonzero += (x[0] != 0) + (x[a_row] != 0);
  }
  return static_cast<double>(nonzero) / (2 * samples);
}

template <class T>
double nonzero_part_of_a(const Product<T>& p) {
  return nonzero_part(p.a, p.a_row, p.a_step, p.rows, p.depth);
}

constexpr double kMostlyZero = 0.6;  // is not 0, at most
// Of fewer multiplications it is not worth asking.
constexpr std::ptrdiff_t kLeastSparse = 1 << 16;

bool is_mostly_zero(const View& matrix);

// Whether there is a kernel that leaves out zeros of such a product, and enough to do for asking.
template <class T>
bool may_leave_out(const Product<T>& p) {
  const bool fits = p.b_column == 1 && (p.a_step == 1 || p.a_row == 1) && p.columns >= products<T>().columns / 2;
  return fits && p.rows * p.columns * p.depth >= kLeastSparse;
}

// Whether it pays to leave out where a is 0, which is done where it is in two rows: the bits are the same either way.
template <class T>
bool is_sparse(const Product<T>& p) {
  if (!may_leave_out(p) || nonzero_part_of_a(p) > kMostlyZero) return false;
  if (products<T>().is_finite == nullptr) return true;
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

// On this thread; zeros of a are left out if it is sparse.
template <class T>
void multiply_block(const Product<T>& p, bool is_sparse) noexcept {
  const ProductKernels<T>& kernels = products<T>();
  is_sparse ? kernels.matmul_sparse(p, room_in_first_cache()) : kernels.matmul(p);
}

// Products of at most so many rows, and elements in all blocks of steps, are shared by these.
constexpr std::ptrdiff_t kDeepRows = 256, kDeepest = 1 << 18;

// A product of few rows and many steps: each block of them is a product of its own, added to what the blocks before
// gave if that is there already, else kept until it is. So whoever multiplies with some rows of the weights is who will
// compute their gradient and update them, and finds them in its own cache. Whether it was done.
template <class T, class F>
bool multiply_deep(const Product<T>& p, bool is_sparse, const F& finish) noexcept {
  const ProductKernels<T>& kernels = products<T>();
  const std::ptrdiff_t blocks = (p.depth + kProductSteps - 1) / kProductSteps, size = p.rows * p.columns;
  const bool is_shared = parallel::threads() > 1 && parallel::is_shareable(size * p.depth);
  const bool is_deep = blocks >= 4 && p.rows <= kDeepRows && blocks * size <= kDeepest;
  if (!is_shared || !is_deep || p.a_step != 1 || p.b_column != 1) return false;
  // What a unit takes of c, in a block of steps: some rows, or some columns.
  const std::ptrdiff_t share = is_sparse ? kernels.sparse_rows : kernels.columns;
  const std::ptrdiff_t length = is_sparse ? p.rows : p.columns, panels = (length + share - 1) / share;
  const std::unique_ptr<T[]> kept(new (std::nothrow) T[static_cast<std::size_t>(blocks * size)]);
  const std::unique_ptr<std::atomic<std::ptrdiff_t>[]> added(
      new (std::nothrow) std::atomic<std::ptrdiff_t>[static_cast<std::size_t>(panels)] {});  // how many blocks
  if (kept == nullptr || added == nullptr) return false;
  parallel::for_ranges(
      blocks * panels, size / panels * std::min(p.depth, kProductSteps),
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t next; begin < end; begin = next) {
          const std::ptrdiff_t i = begin / panels, panel = begin % panels, at = panel * share;
          const bool is_next = added[panel] == i;
          const auto joins = [&](std::ptrdiff_t unit) {  // those that are alike in one call
            return unit < end && unit % panels != 0 && (added[unit % panels] == i) == is_next;
          };
          for (next = begin + 1; joins(next);) ++next;
          const std::ptrdiff_t size_of_all = std::min((panel + next - begin) * share, length) - at;
          Product<T> block = is_sparse ? part(p, at, size_of_all, 0, p.columns) : part(p, 0, p.rows, at, size_of_all);
          block.a += i * kProductSteps;
          block.b += i * kProductSteps * p.b_step;
          block.depth = std::min(kProductSteps, p.depth - i * kProductSteps);
          block.adds = is_next && i > 0;
          if (!is_next) {
            block.c = kept.get() + i * size + at * (is_sparse ? p.columns : 1);
            block.c_row = p.columns;
          }
          multiply_block(block, is_sparse);
          for (std::ptrdiff_t unit = begin; is_next && unit < next; ++unit) added[unit % panels] = i + 1;
        }
      },
      parallel::Pace::brisk);
  const auto add_kept = [&](std::ptrdiff_t row, std::ptrdiff_t from, std::ptrdiff_t to, std::ptrdiff_t block) {
    T* const c = p.c + row * p.c_row;
    for (; block < blocks; ++block) {
      const T* const x = kept.get() + block * size + row * p.columns;
      for (std::ptrdiff_t j = from; j < to; ++j) c[j] += x[j];
    }
  };
  parallel::for_ranges(
      p.rows, p.columns * blocks * static_cast<std::ptrdiff_t>(sizeof(T)),
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          if (is_sparse) {
            add_kept(i, 0, p.columns, added[i / share]);
            continue;
          }
          for (std::ptrdiff_t panel = 0, next; panel < panels; panel = next) {
            const std::ptrdiff_t block = added[panel];
            for (next = panel + 1; next < panels && added[next] == block;) ++next;
            add_kept(i, panel * share, std::min(next * share, p.columns), block);
          }
        }
        finish(p.c + begin * p.c_row, end - begin, 0, p.columns);
      },
      parallel::Pace::brisk);
  return true;
}

// 1 where it would not pay to leave out what is 0.
template <class T>
double nonzero_part_of_b(const Product<T>& p) {
  if (!may_leave_out(p) || p.rows < products<T>().columns / 2) return 1;
  return nonzero_part(p.b, p.b_step, 1, p.depth, p.columns);
}

template <class T>
void multiply(const Product<T>& p) noexcept;

// Columns of b that are all 0, as silent units have them in a hidden layer's gradient, make such columns of c: only the
// others are multiplied. Whether it was done.
template <class T, class F>
bool multiply_active(const Product<T>& p, const F& finish) noexcept {
  const ProductKernels<T>& kernels = products<T>();
  const auto size = [](std::ptrdiff_t n) { return static_cast<std::size_t>(n); };
  const std::unique_ptr<std::uint8_t[]> bits(new (std::nothrow) std::uint8_t[size(p.columns / 8 + 3)]{});
  if (bits == nullptr) return false;
  kernels.nonzero_columns(p, bits.get());
  bits[0] |= 1;
  const auto is_active = [&](std::ptrdiff_t j) { return (bits[j / 8] >> j % 8 & 1) != 0; };
  std::ptrdiff_t active = 0;
  for (std::ptrdiff_t j = 0; j < p.columns; ++j) active += is_active(j);
  if (active > p.columns / 2) return false;
  const std::unique_ptr<T[]> b(new (std::nothrow) T[size(p.depth * active)]);
  const std::unique_ptr<T[]> c(new (std::nothrow) T[size(p.rows * active + kernels.columns)]);
  if (b == nullptr || c == nullptr) return false;
  for (std::ptrdiff_t j = 0, i = 0; j < p.columns; ++j) {
    if (!is_active(j)) continue;
    for (std::ptrdiff_t k = 0; k < p.depth; ++k) b[k * active + i] = p.b[k * p.b_step + j];
    ++i;
  }
  multiply<T>({p.a, p.a_row, p.a_step, b.get(), active, 1, c.get(), active, p.rows, active, p.depth});
  parallel::for_ranges(
      p.rows, p.columns * static_cast<std::ptrdiff_t>(sizeof(T)),
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        T* const to = p.c + begin * p.c_row;
        kernels.spread_columns(c.get() + begin * active, active, bits.get(), to, p.c_row, end - begin, p.columns);
        for (std::ptrdiff_t i = begin; i < end; ++i) {
          if (std::isfinite(c[i * active])) continue;  // else a may not be, and 0 times that is not 0
          T rest = 0;
          for (std::ptrdiff_t k = 0; k < p.depth; ++k) rest += p.a[i * p.a_row + k * p.a_step] * T(0);
          for (std::ptrdiff_t j = 0; j < p.columns; ++j) {
            if (!is_active(j)) p.c[i * p.c_row + j] = rest;
          }
        }
        finish(to, end - begin, 0, p.columns);
      },
      parallel::Pace::brisk);
  return true;
}

// What is not 0 of b is listed by columns. Whether it was done.
template <class T, class F>
bool multiply_listed(const Product<T>& p, const F& finish) noexcept {
  const ProductKernels<T>& kernels = products<T>();
  const std::ptrdiff_t lanes = kernels.columns / 2, blocks = (p.depth + kListSteps - 1) / kListSteps;
  const auto n = static_cast<std::size_t>(blocks * p.columns);
  const std::unique_ptr<T[]> values(new (std::nothrow) T[n * kListSteps]);
  const std::unique_ptr<std::uint8_t[]> steps(new (std::nothrow) std::uint8_t[n * kListSteps]),
      counts(new (std::nothrow) std::uint8_t[n]);
  if (values == nullptr || steps == nullptr || counts == nullptr) return false;
  const Lists<T> lists{values.get(), steps.get(), counts.get(), p.columns};
  const std::ptrdiff_t panels = (p.columns + lanes - 1) / lanes;
  parallel::for_ranges(
      panels, lanes * p.depth * 4,
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        kernels.list_columns(p, begin * lanes, std::min(end * lanes, p.columns), lists);
      },
      parallel::Pace::brisk);
  // Rows outside, so that who computes some gradients is who updates those weights.
  const std::ptrdiff_t vectors = (p.rows + lanes - 1) / lanes;
  const std::ptrdiff_t shares = (p.rows + kernels.listed_rows - 1) / kernels.listed_rows;
  const std::ptrdiff_t wanted = std::min(panels, (kBlocks + shares - 1) / shares);
  const std::ptrdiff_t strips = std::max(wanted, (p.columns + kListedColumns - 1) / kListedColumns);
  parallel::for_ranges(
      shares * strips, kernels.listed_rows * p.depth * p.columns / strips / 2,
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        for (; begin < end; ++begin) {
          const std::ptrdiff_t share = begin / strips, strip = begin % strips;
          const std::ptrdiff_t row = vectors * share / shares * lanes, column = panels * strip / strips * lanes;
          const std::ptrdiff_t rows = std::min(vectors * (share + 1) / shares * lanes, p.rows) - row;
          const std::ptrdiff_t columns = std::min(panels * (strip + 1) / strips * lanes, p.columns) - column;
          const Product<T> block = part(p, row, rows, column, columns);
          const Lists<T> own{lists.values + column * kListSteps, lists.steps + column * kListSteps,
                             lists.counts + column, p.columns};
          if (!kernels.matmul_listed(block, own)) kernels.matmul(block);
          finish(block.c, rows, column, columns);
        }
      },
      parallel::Pace::brisk);
  return true;
}

// One side of c is shared, the other one cut into strips. A multiplication costs as much as a byte of an optimizer's
// traffic. What is finished is handed to `finish(c, rows, column, columns)`, c beginning there.
template <class T, class F>
void multiply(const Product<T>& p, const F& finish) noexcept {
  constexpr std::ptrdiff_t many_rows = 128;  // which looking through b takes no more than a few hundredths of
  const double part_of_b = nonzero_part_of_b(p);
  if (part_of_b <= 0.5 && p.rows >= many_rows && multiply_active(p, finish)) return;
  // As measured, in parts of the whole product's time: all of c and of a by lists, their steps, and making them.
  const double base = p.depth < kListSteps ? 0.45 : 0.3, rows_of_c = static_cast<double>(p.rows);
  const double by_lists = base + 1.35 * part_of_b + (30 + 130 * part_of_b) / rows_of_c;
  if (by_lists < 0.9 && by_lists < 0.1 + nonzero_part_of_a(p) && multiply_listed(p, finish)) return;
  const bool sparse = is_sparse(p), rows = sparse || by_rows(p);
  const std::ptrdiff_t length = rows ? p.rows : p.columns, across = rows ? p.columns : p.rows;
  const ProductKernels<T>& kernels = products<T>();
  const std::ptrdiff_t pairs = p.a_step == 1 ? 2 : kernels.sparse_rows;  // else rows are columns of a, in whole lines
  const std::ptrdiff_t share = sparse ? pairs : rows ? kernels.rows : kernels.columns;
  const std::ptrdiff_t shares = (length + share - 1) / share;
  if (length == 0 || across == 0 || multiply_deep(p, sparse, finish)) return;
  const std::ptrdiff_t blocks = sparse ? 1 : std::min(kBlocks, p.rows * p.columns * p.depth / kBlockWork);
  const std::ptrdiff_t wanted = std::min((blocks + shares - 1) / shares, across / kernels.rows);
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
          multiply_block(block, sparse);
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
    const std::ptrdiff_t at_once = columns == p.c_row ? rows : 1;
    for (std::ptrdiff_t i = 0; i < rows; i += at_once, c += p.c_row) {
      kernel(f, c, part, static_cast<T>(alpha), c, at_once, columns);
    }
  });
}

}  // namespace steepest
