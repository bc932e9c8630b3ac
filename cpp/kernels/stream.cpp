// The limit that benchmarks measure the other kernels against: loops that only add, over as many arrays.
#include "vector_math.hpp"

namespace steepest {
namespace {

template <class T, std::size_t updated, std::size_t written, std::size_t read>
void stream(T* const* arrays, std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
  T* x[updated + written + read];
  for (std::size_t k = 0; k < updated + written + read; ++k) x[k] = arrays[k];
  if constexpr (updated + written == 0) {
    Bits<T> any = 0;
#pragma omp simd reduction(| : any)
    for (std::ptrdiff_t i = begin; i < end; ++i) any |= bits(x[0][i]);
    __asm__ volatile("" : : "r"(any));  // so that it is read
  } else {
#pragma omp simd
    for (std::ptrdiff_t i = begin; i < end; ++i) {
      T sum = 0;
      for (std::size_t k = updated + written; k < updated + written + read; ++k) sum += x[k][i];
      for (std::size_t k = 0; k < updated; ++k) x[k][i] += sum;
      for (std::size_t k = updated; k < updated + written; ++k) x[k][i] = sum;
    }
  }
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
