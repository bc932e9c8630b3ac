// What the kernels take and which there are: data only. Every ISA has one `Kernels` of its own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace steepest {

// The arrays of one tensor, or of a part of it, n elements each: what a rule reads and writes. What lies `ahead` bytes
// further is asked for in time; 0 where all is in cache already.
template <class T>
struct Arrays {
  T* p;
  const T* g;
  T* state[3];
  std::ptrdiff_t ahead;
};

// What is fused before every rule, in this order: g * scale (one product in double, rounded once),
// the clip to [lower, upper], + l1 sgn(p), + l2 p.
template <class T>
struct Gradient {
  double scale;
  T lower, upper, l1, l2;
};

// The scalars of one step, one struct per rule: prepared in double, rounded once.
template <class T>
struct SgdStep {
  T lr, momentum, one_minus_dampening;
  bool has_momentum, nesterov, lr_in_velocity;
};

template <class T>
struct MomentumStep {
  T lr, beta, one_minus_beta;
};

template <class T>
struct RmspropStep {
  T lr, alpha, one_minus_alpha, momentum, eps_inside, eps;
  bool centered, has_momentum;
};

template <class T>
struct AdagradStep {
  T lr, eps_inside, eps;
};

template <class T>
struct AdamStep {
  T step_size, beta1, one_minus_beta1, beta2, one_minus_beta2, sqrt_v_scale, eps, decay;
  bool amsgrad;
};

template <class T>
struct NadamStep {
  T step_size_g, step_size_m, beta1, one_minus_beta1, beta2, one_minus_beta2, sqrt_v_scale, eps, decay;
};

template <class T>
struct LionStep {
  T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, decay;
};

// A sum and the rounding errors made in it; hi + lo is the value.
struct Sum {
  double hi, lo;
};

// A tensor with a mask is updated in parts of this many elements, which stay in the first cache.
constexpr std::ptrdiff_t kMaskBlock = 1024;

// Losses and norms are summed over blocks of this many elements, whatever the ISA and the threads.
constexpr std::ptrdiff_t kSumBlock = 2048;

// The terms of a loss are added times this: sums of float64's may pass the largest number where their mean does not.
template <class T>
constexpr double kTermScale = sizeof(T) == sizeof(double) ? 0x1p-64 : 1;

// Softmax takes at most so many rows as a block; rows of fewer than kFewClasses lie in tiles of kTile side by side, in
// blocks of kSumBlock elements. Longer ones come in blocks of kRowBlock, which the second cache holds.
constexpr std::ptrdiff_t kMaxRows = 256, kTile = 16, kFewClasses = 32, kRowBlock = 8192;

// One block of rows of softmax cross-entropy. `gradient` may be `logits`; both are (rows, classes).
template <class T>
struct SoftmaxRows {
  const T* logits;
  T* gradient;
  std::ptrdiff_t rows, classes;
  const std::int64_t* labels;  // (rows); negative: the row is ignored. Null where there are probabilities.
  const T* probabilities;      // (rows, classes) or null
  const T* weight;             // (rows) or null
  double scale;                // of the gradient: 1 or 1 / (the sum of the weights)
  double smoothing;
  bool divergence;  // add sum t log(t), which makes it the Kullback-Leibler divergence
};

// One block of rows of the distillation loss. All arrays are (rows, classes), `gradient` is one of its own.
template <class T>
struct DistillationRows {
  const T* logits;
  const T* teacher;
  T* gradient;
  std::ptrdiff_t rows, classes;
  const std::int64_t* labels;
  const T* weight;  // (rows) or null
  double scale;     // of the gradient: 1 or 1 / (the sum of the weights)
  double alpha, temperature;
};

template <class T>
struct RuleKernels {
  template <class Step>
  using Rule = void (*)(const Gradient<T>&, const Step&, const Arrays<T>&, std::ptrdiff_t n) noexcept;

  Rule<SgdStep<T>> sgd;
  Rule<MomentumStep<T>> momentum;
  Rule<RmspropStep<T>> rmsprop;
  Rule<AdagradStep<T>> adagrad;
  Rule<AdamStep<T>> adam;
  Rule<NadamStep<T>> nadam;
  Rule<LionStep<T>> lion;
  void (*keep)(const std::uint8_t* mask, const T* x, T* y, std::ptrdiff_t n) noexcept;  // y may be x
};

// An array that is written only. Past the caches its lines need not be read first; x then is a multiple of 16 bytes.
template <class T>
struct Output {
  T* x;
  bool past_caches;
};

// Each value-and-gradient kernel returns the sum of its block's terms; `weight` (n) may be null, delta is Huber's.
template <class T>
struct LossKernels {
  using Elementwise = Sum (*)(const T* prediction, const T* target, const T* weight, Output<T> gradient, double scale,
                              double delta, std::ptrdiff_t n) noexcept;

  Elementwise mse;
  Elementwise mae;
  Elementwise huber;
  Elementwise binary_cross_entropy;
  Sum (*softmax_cross_entropy)(const SoftmaxRows<T>&) noexcept;
  Sum (*distillation)(const DistillationRows<T>&) noexcept;
  Sum (*sum)(const T* x, std::ptrdiff_t n) noexcept;
  Sum (*sum_of_squares)(const T* x, double scale, std::ptrdiff_t n) noexcept;  // of scale * x
  void (*exp)(const T* x, T* y, std::ptrdiff_t n) noexcept;
  void (*log)(const T* x, T* y, std::ptrdiff_t n) noexcept;
  void (*log1p)(const T* x, T* y, std::ptrdiff_t n) noexcept;
};

// So many elements have half as many hashes of 32 random bits; each array takes the same ones.
constexpr int kSharing = 32;

// 8-bit codes share a scale among so many elements, in memory order.
constexpr std::ptrdiff_t kCodeGroup = 256;

// As Arrays, of float32 whose state is kept in fewer bytes: bfloat16, or 8-bit codes where there are scales.
struct CodedArrays {
  float* p;
  const float* g;
  void* state[3];
  float* scales[3];            // of groups, the first of which begins here
  std::uint8_t* last_bits[3];  // of codes with a sign
  std::uint32_t counter;       // of the first hash
  bool is_stochastic;          // else numbers are rounded to nearest
  std::ptrdiff_t ahead;
};

struct CodedRuleKernels {
  // The last argument, the rule on float32, is for groups of codes with infinities or NaN.
  template <class Step>
  using Rule = void (*)(const Gradient<float>&, const Step&, const CodedArrays&, std::ptrdiff_t n,
                        RuleKernels<float>::Rule<Step>) noexcept;

  Rule<SgdStep<float>> sgd;
  Rule<MomentumStep<float>> momentum;
  Rule<RmspropStep<float>> rmsprop;
  Rule<AdagradStep<float>> adagrad;
  Rule<AdamStep<float>> adam;
  Rule<NadamStep<float>> nadam;
  Rule<LionStep<float>> lion;
  std::uint8_t (*encode)(float x, float* scale) noexcept;  // of squares, all of them x, which is no NaN
};

// float32 to and from bfloat16, and a bfloat16 with the 16 bits that it lacks.
struct CodecKernels {
  void (*widen)(const std::uint16_t* x, float* y, std::ptrdiff_t n) noexcept;
  void (*narrow)(const float* x, std::uint16_t* y, std::ptrdiff_t n) noexcept;  // to nearest
  void (*split)(const float* x, std::uint16_t* p, std::int16_t* correction, std::ptrdiff_t n) noexcept;
  void (*join)(const std::uint16_t* p, const std::int16_t* correction, float* x, std::ptrdiff_t n) noexcept;
  void (*round_to_bfloat16)(const float* x, std::uint16_t* p, std::ptrdiff_t n) noexcept;
  void (*reconcile)(const std::uint16_t* p, float* master, std::ptrdiff_t n) noexcept;
};

enum class Activation { identity, relu, leaky_relu, tanh, sigmoid };

// A window that slides over an image of (height, width, channels), and where it lands.
struct Window {
  std::ptrdiff_t height, width, channels;
  std::ptrdiff_t window_height, window_width, stride_height, stride_width;
  std::ptrdiff_t pad_top, pad_left, out_height, out_width;
};

// y may be x, and a gradient is masked in place. Windows: one image per call.
template <class T>
struct LayerKernels {
  void (*activate)(Activation, const T* x, const T* bias, T alpha, T* y, std::ptrdiff_t rows,
                   std::ptrdiff_t columns) noexcept;
  void (*mask)(Activation, T* gradient, const T* y, T alpha, std::ptrdiff_t n) noexcept;
  void (*dropout)(const T* x, const T* uniform, T keep, T scale, T* y, std::ptrdiff_t n) noexcept;
  void (*im2col)(const Window&, const T* image, T* patches) noexcept;
  void (*col2im)(const Window&, const T* patches, T* image) noexcept;
  void (*max_pool)(const Window&, const T* image, T* y, std::int32_t* from) noexcept;
  void (*max_pool_backward)(const Window&, const T* gradient, const std::int32_t* from, T* image) noexcept;
  void (*avg_pool)(const Window&, const T* image, T* y) noexcept;
  void (*avg_pool_backward)(const Window&, const T* gradient, T* image) noexcept;
};

// Weights are packed in panels of this many columns, each (pairs of rows, columns, 2) in int16; a block of rows is
// gathered and summed on the stack, as deep and as wide as this.
constexpr std::ptrdiff_t kPanel = 16, kBlockRows = 24, kDepth = 512, kColumns = 256;

// One layer in integers: for each output pixel of each image a row, its patch times the weights.
struct QuantizedProduct {
  Window window;
  const std::uint8_t *x, *x_end;  // images
  std::uint8_t zero_point;
  const std::int16_t* weights;  // packed, the last panel and pair filled up with zeros
  const std::int32_t* start;    // (panels kPanel): -zero_point times the sum of the column's weights
  const float *scale, *bias;    // (units)
  std::ptrdiff_t units;
  float lowest;     // of an output: 0 for a ReLU, else -infinity
  float* y;         // (rows, units), or
  std::uint8_t* q;  // the same, quantised, or null
  float out_scale, out_zero;
};

// The least and the largest of some values and 0, and whether all are finite.
struct ValueRange {
  float low, high;
  bool finite;
};

struct QuantizedKernels {
  ValueRange (*value_range)(const float* x, std::ptrdiff_t n) noexcept;
  // q = round(x / scale) + zero_point within 0..255; returns whether all are finite
  bool (*quantize)(const float* x, float scale, std::uint8_t zero_point, std::uint8_t* q, std::ptrdiff_t n) noexcept;
  void (*quantized_product)(const QuantizedProduct&, std::ptrdiff_t begin, std::ptrdiff_t end) noexcept;  // of rows
  void (*quantized_max_pool)(const Window&, const std::uint8_t* image, std::uint8_t* y) noexcept;
};

// A product is summed in blocks of this many steps, each from 0, and the blocks one after the other.
constexpr std::ptrdiff_t kProductSteps = 128;

// c[i][j] = sum over k of a[i][k] b[k][j]; neighbours of c's rows are neighbours in memory, and so are those of b's
// rows or of b's columns.
template <class T>
struct Product {
  const T* a;
  std::ptrdiff_t a_row, a_step;  // from row to row, from k to k
  const T* b;
  std::ptrdiff_t b_step, b_column;  // from k to k, from column to column
  T* c;
  std::ptrdiff_t c_row;
  std::ptrdiff_t rows, columns, depth;
  bool adds = false;  // to what c holds, as if that were the sum of the blocks before
};

// What is not 0 in each column of b, by blocks of so many steps: how many values, these, and their steps in the block.
constexpr std::ptrdiff_t kListSteps = 64, kListedColumns = 64;

template <class T>
struct Lists {
  T* values;             // (blocks, columns, kListSteps)
  std::uint8_t* steps;   // the same
  std::uint8_t* counts;  // (blocks, columns)
  std::ptrdiff_t columns;
};

template <class T>
struct ProductKernels {
  void (*matmul)(const Product<T>&) noexcept;
  // The same bits, sooner where much of a is 0; one of a's axes and b's columns have stride 1. All of b must be finite,
  // unless `is_finite` is null. `room`: bytes of b that the first cache can hold.
  void (*matmul_sparse)(const Product<T>&, std::ptrdiff_t room) noexcept;
  bool (*is_finite)(const T*, std::ptrdiff_t n) noexcept;
  // c = a b for one row of a, given as the n values that may not be 0 and their steps, in ascending order; b is
  // (depth, columns). The same bits.
  void (*sparse_row)(const std::int32_t* steps, const T* values, std::ptrdiff_t n, const T* b, std::ptrdiff_t columns,
                     T* c) noexcept;
  // The same bits, sooner where much of b is 0; of up to `listed_rows` rows and kListedColumns columns. One of a's axes
  // and b's columns have stride 1. Lists are made of some columns at a time. False where a is not finite.
  void (*list_columns)(const Product<T>&, std::ptrdiff_t from, std::ptrdiff_t to, const Lists<T>&) noexcept;
  bool (*matmul_listed)(const Product<T>&, const Lists<T>&) noexcept;
  // Sets the bits of b's columns that are not all 0.
  void (*nonzero_columns)(const Product<T>&, std::uint8_t* bits) noexcept;
  // Rows of n values become rows of c: each value in a column whose bit is set, 0 in the others. A register after the
  // last value may be read.
  void (*spread_columns)(const T*, std::ptrdiff_t n, const std::uint8_t* bits, T* c, std::ptrdiff_t c_row,
                         std::ptrdiff_t rows, std::ptrdiff_t columns) noexcept;
  std::ptrdiff_t listed_rows;
  std::ptrdiff_t rows, columns, sparse_rows;  // of which a part should have a multiple
};

// Adds the arrays read to those updated, or into those written; the arrays come in the order updated, written, read.
// What lies `ahead` bytes further is asked for in time, as in Arrays.
template <class T>
struct Stream {
  std::size_t updated, written, read;
  void (*run)(T* const* arrays, std::ptrdiff_t begin, std::ptrdiff_t end, std::ptrdiff_t ahead) noexcept;
};

template <class T>
struct StreamKernels {
  Stream<T> shapes[7];
};

struct Kernels {
  RuleKernels<float> rules_f32;
  RuleKernels<double> rules_f64;
  LossKernels<float> losses_f32;
  LossKernels<double> losses_f64;
  LayerKernels<float> layers_f32;
  LayerKernels<double> layers_f64;
  QuantizedKernels quantized;
  CodedRuleKernels coded_f32;
  CodecKernels codecs_f32;
  ProductKernels<float> products_f32;
  ProductKernels<double> products_f64;
  StreamKernels<float> streams_f32;
  StreamKernels<double> streams_f64;
};

}  // namespace steepest
