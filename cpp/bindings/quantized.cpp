// What the layers of steepest.compress call: checks the arrays, drops the GIL, runs block by block or image by image.
#include <atomic>

#include "../dispatch.hpp"
#include "module.hpp"
#include "windows.hpp"

namespace steepest {
namespace {

using Sizes = std::vector<py::ssize_t>;

bool is_aligned(const void* data, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(data) % alignment == 0;
}

// A C-contiguous, aligned array of T of that shape, which nothing is converted to.
template <class T>
py::array typed(const py::object& object, const std::string& name, const Sizes& shape, Use use) {
  if (!py::isinstance<py::array_t<T, py::array::c_style>>(object)) {
    throw py::type_error(name + ": expected a C-contiguous array of " + text(py::dtype::of<T>()) + ", got another");
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (shape_of(array) != shape) {
    throw py::value_error(name + ": expected shape " + describe(shape) + ", got " + describe(shape_of(array)));
  }
  if (!is_aligned(array.data(), alignof(T)) || (use == Use::write && !array.writeable())) {
    throw py::value_error(name + ": expected an aligned, writeable array, got another");
  }
  return array;
}

template <class T>
T* data(const py::array& array) {
  return static_cast<T*>(const_cast<void*>(array.data()));
}

void check_apart(const py::array& a, const py::array& b) {
  const auto *x = data<char>(a), *y = data<char>(b);
  if (x < y + b.nbytes() && y < x + a.nbytes()) {
    throw py::value_error("out: expected memory of its own, got memory that overlaps the input");
  }
}

View floats(const py::object& object) {
  View x = view(object, "x", Use::read);
  check_dtype(x, "x", false);
  return x;
}

[[noreturn]] void refuse_odd() { throw py::value_error("x: expected finite values, got NaN or infinite ones"); }

template <class Better>
void update(std::atomic<float>& best, float value, Better better) {
  float known = best.load();
  while (better(value, known) && !best.compare_exchange_weak(known, value)) {
  }
}

py::tuple call_value_range(const py::object& input) {
  const View x = floats(input);
  const auto kernel = kernels().quantized.value_range;
  std::atomic<float> low{0}, high{0};
  std::atomic<bool> finite{true};
  run(x.size, 4, {x.array}, [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    const ValueRange range = kernel(x.as<const float>() + begin, end - begin);
    update(low, range.low, [](float a, float b) { return a < b; });
    update(high, range.high, [](float a, float b) { return a > b; });
    if (!range.finite) finite = false;
  });
  if (!finite) refuse_odd();
  return py::make_tuple(low.load(), high.load());
}

void call_quantize(const py::object& input, float scale, std::uint8_t zero_point, const py::object& out) {
  const View x = floats(input);
  check_c_order(x, "x");
  const py::array q = typed<std::uint8_t>(out, "out", shape_of(x.array), Use::write);
  check_apart(q, x.array);
  const auto kernel = kernels().quantized.quantize;
  std::atomic<bool> finite{true};
  run(x.size, 5, {x.array, q}, [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    const bool all = kernel(x.as<const float>() + begin, scale, zero_point, data<std::uint8_t>(q) + begin, end - begin);
    if (!all) finite = false;
  });
  if (!finite) refuse_odd();
}

void call_product(const py::object& images, const Pair& window, const Pair& stride, const Pair& pad, const Pair& out,
                  std::uint8_t zero_point, const py::object& packed, const py::object& offsets,
                  const py::object& scales, const py::object& biases, float lowest, const py::object& output,
                  float out_scale, std::uint8_t out_zero_point) {
  const Sizes shape = py::isinstance<py::array>(images) ? shape_of(py::array(images)) : Sizes{};
  const Sliding s = sliding(shape, window, stride, pad, out);
  const py::array x = typed<std::uint8_t>(images, "x", shape, Use::read);
  const auto units = static_cast<std::ptrdiff_t>(py::len(scales));
  const std::ptrdiff_t inputs = s.patches_shape()[1], panels = (units + kPanel - 1) / kPanel;
  const py::array weights = typed<std::int16_t>(packed, "weights", {panels, (inputs + 1) / 2, kPanel, 2}, Use::read);
  const py::array start = typed<std::int32_t>(offsets, "start", {panels * kPanel}, Use::read);
  const py::array scale = typed<float>(scales, "scale", {units}, Use::read);
  const py::array bias = typed<float>(biases, "bias", {units}, Use::read);
  const bool quantised = py::isinstance<py::array_t<std::uint8_t>>(output);
  const Sizes rows_and_units{s.batch * s.outputs(), units};
  const py::array y = quantised ? typed<std::uint8_t>(output, "out", rows_and_units, Use::write)
                                : typed<float>(output, "out", rows_and_units, Use::write);
  check_apart(y, x);
  const QuantizedProduct p{s.window,
                           data<std::uint8_t>(x),
                           data<std::uint8_t>(x) + x.size(),
                           zero_point,
                           data<std::int16_t>(weights),
                           data<std::int32_t>(start),
                           data<float>(scale),
                           data<float>(bias),
                           units,
                           lowest,
                           quantised ? nullptr : data<float>(y),
                           quantised ? data<std::uint8_t>(y) : nullptr,
                           out_scale,
                           static_cast<float>(out_zero_point)};
  const std::ptrdiff_t rows = rows_and_units[0], blocks = (rows + kBlockRows - 1) / kBlockRows;
  const auto kernel = kernels().quantized.quantized_product;
  // Two multiplications take about as long as a byte of an update.
  run(blocks, kBlockRows * (inputs * units / 2 + 4 * units), {x, weights, start, scale, bias, y},
      [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
        kernel(p, begin * kBlockRows, std::min(end * kBlockRows, rows));
      });
}

void call_byte_max_pool(const py::object& images, const Pair& window, const Pair& stride, const Pair& pad,
                        const Pair& out, const py::object& pooled) {
  const Sizes shape = py::isinstance<py::array>(images) ? shape_of(py::array(images)) : Sizes{};
  const Sliding s = sliding(shape, window, stride, pad, out);
  const py::array x = typed<std::uint8_t>(images, "x", shape, Use::read);
  const py::array y = typed<std::uint8_t>(pooled, "pooled", s.pooled_shape(), Use::write);
  check_apart(y, x);
  const std::ptrdiff_t from = s.image(), to = s.outputs() * s.window.channels;
  const auto kernel = kernels().quantized.quantized_max_pool;
  run(s.batch, from + to, {x, y}, [&](std::ptrdiff_t begin, std::ptrdiff_t end) noexcept {
    for (std::ptrdiff_t i = begin; i < end; ++i) {
      kernel(s.window, data<std::uint8_t>(x) + i * from, data<std::uint8_t>(y) + i * to);
    }
  });
}

}  // namespace

void register_quantized(py::module_& m) {
  m.def("value_range", call_value_range, py::arg("x"));
  m.def("quantize", call_quantize, py::arg("x"), py::arg("scale"), py::arg("zero_point"), py::arg("out"));
  m.def("quantized_product", call_product, py::arg("x"), py::arg("window"), py::arg("stride"), py::arg("pad"),
        py::arg("positions"), py::arg("zero_point"), py::arg("weights"), py::arg("start"), py::arg("scale"),
        py::arg("bias"), py::arg("lowest"), py::arg("out"), py::arg("out_scale") = 1.0f,
        py::arg("out_zero_point") = std::uint8_t{0});
  m.def("quantized_max_pool", call_byte_max_pool, py::arg("x"), py::arg("window"), py::arg("stride"), py::arg("pad"),
        py::arg("positions"), py::arg("pooled"));
}

}  // namespace steepest
