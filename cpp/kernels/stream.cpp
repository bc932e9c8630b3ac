// The limit that benchmarks measure the other kernels against: loops that only add, over as many arrays.
#include "rules.hpp"

namespace steepest {
namespace {

template <class T, std::size_t updated, std::size_t written, std::size_t read>
void stream(T* const* arrays, std::ptrdiff_t begin, std::ptrdiff_t end, std::ptrdiff_t ahead) noexcept {
  T* x[updated + written + read];
  for (std::size_t k = 0; k < updated + written + read; ++k) x[k] = arrays[k];
  Bits<T> any = 0;
  constexpr auto line = static_cast<std::ptrdiff_t>(64 / sizeof(T));
  const auto run = [&](std::ptrdiff_t from, std::ptrdiff_t to) __attribute__((always_inline)) {
    if constexpr (updated + written == 0) {
#pragma omp simd reduction(| : any)
      for (std::ptrdiff_t i = from; i < to; ++i) any |= bits(x[0][i]);
    } else {
#pragma omp simd
      for (std::ptrdiff_t i = from; i < to; ++i) {
        T sum = 0;
        for (std::size_t k = updated + written; k < updated + written + read; ++k) sum += x[k][i];
        for (std::size_t k = 0; k < updated; ++k) x[k][i] += sum;
        for (std::size_t k = updated; k < updated + written; ++k) x[k][i] = sum;
      }
    }
  };
  for (; ahead != 0 && begin + line <= end; begin += line) {
    for (const T* array : x) prefetch(array + begin, ahead);
    run(begin, begin + line);
  }
  run(begin, end);
  __asm__ volatile("" : : "r"(any));  // so that it is read
}

template <class T, std::size_t updated, std::size_t written, std::size_t read>
constexpr Stream<T> shape = {updated, written, read, stream<T, updated, written, read>};

template <class T>
constexpr StreamKernels<T> kernels = {{shape<T, 1, 0, 1>, shape<T, 2, 0, 1>, shape<T, 3, 0, 1>, shape<T, 4, 0, 1>,
                                       shape<T, 0, 1, 1>, shape<T, 0, 1, 2>, shape<T, 0, 0, 1>}};

}  // namespace

extern const StreamKernels<float> STEEPEST_NAME(streams_f32);
extern const StreamKernels<double> STEEPEST_NAME(streams_f64);
const StreamKernels<float> STEEPEST_NAME(streams_f32) = kernels<float>;
const StreamKernels<double> STEEPEST_NAME(streams_f64) = kernels<double>;

}  // namespace steepest
