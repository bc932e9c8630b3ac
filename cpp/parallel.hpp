// Threads: splits work into blocks and decides who runs them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace steepest::parallel {

enum class Engine { pool, openmp };

constexpr int kMaxThreads = 256;

bool has_openmp();
Engine engine();
void set_engine(Engine);  // throws std::runtime_error without OpenMP
int threads();
void set_threads(int);  // 1 .. kMaxThreads

// How many forks lie between this process and the one that loaded the library.
std::uint64_t forks();

// Whether work of so many bytes is worth letting go of the GIL.
bool is_large(std::ptrdiff_t bytes);
// Whether work of so many bytes is ever shared among threads.
bool is_shareable(std::ptrdiff_t bytes);

// Work of so many bytes is being prepared: workers that are awake stay so, and what counts is how long ago they had to
// do now.
void announce(std::ptrdiff_t bytes);

// For tests: blocks of `units` however small the work, and no thread runs a second one before each has run one; 0
// restores. `blocks_run` tells how many each thread has run since.
void share_blocks_of(std::ptrdiff_t units);
std::vector<std::ptrdiff_t> blocks_run();

// Default rounding and no flushing of subnormals while it lives; then what was found.
class DefaultFloatMode {
 public:
  DefaultFloatMode() noexcept;
  ~DefaultFloatMode();
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
  std::uint64_t found_;
};

// What follows a region: single ones come when they come. After brisk ones, such as the products of a training step,
// more are sure to come soon: workers stay awake for them, and whoever finds them awake shares smaller work.
enum class Pace { single, brisk };

struct Job {
  void (*run)(const void* context, std::ptrdiff_t begin, std::ptrdiff_t end) noexcept;
  const void* context;
  std::ptrdiff_t units, blocks;
  Pace pace;
};

void run(const Job&, std::ptrdiff_t bytes_per_unit) noexcept;

// Calls f(begin, end) over parts of 0..units, on several threads if it is worth it. f must be noexcept.
template <class F>
void for_ranges(std::ptrdiff_t units, std::ptrdiff_t bytes_per_unit, const F& f, Pace pace = Pace::single) noexcept {
  static_assert(noexcept(f(std::ptrdiff_t{}, std::ptrdiff_t{})), "an exception must not leave a block");
  run({[](const void* context, std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
         (*static_cast<const F*>(context))(begin, end);
       },
       &f, units, 1, pace},
      bytes_per_unit);
}

}  // namespace steepest::parallel
