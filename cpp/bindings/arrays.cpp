#include "arrays.hpp"

#include <atomic>

namespace steepest {
namespace {

constexpr int kAligned = 0x100, kWriteable = 0x400;  // NumPy's flags

[[noreturn]] void refuse(const std::string& name, const std::string& why) { Flaw{why, false}.raise(name); }

// Whether it is ml_dtypes' dtype, or bfloat16_bits() or a copy of it. Without importing either.
bool is_bfloat16(const py::dtype& dtype) {
  constexpr int first_user_defined = 256;
  static std::atomic<int> known{-1};  // ml_dtypes' number, once seen
  if (dtype.num() == known.load()) return true;
  if (dtype.num() == py::detail::npy_api::NPY_USHORT_) {
    if (dtype.is(bfloat16_bits())) return true;
    const py::object metadata = dtype.attr("metadata");
    return !metadata.is_none() && metadata.contains("steepest");
  }
  if (dtype.num() < first_user_defined || dtype.itemsize() != 2 || text(dtype) != "bfloat16") return false;
  known.store(dtype.num());
  return true;
}

Flaw find_flaw(py::handle object, Use use, Also also, bool is_half) {
  if (!py::isinstance<py::array>(object)) {
    return {"expected a numpy.ndarray of float32 or float64, got " + type_name(object) +
                "; numpy.asarray(x, dtype=numpy.float32) makes one",
            true};
  }
  const auto a = py::reinterpret_borrow<py::array>(object);
  const auto dtype = a.dtype();
  if (is_masked(a)) {
    return {"expected a plain array, got a masked array, whose mask would be ignored; pass x.filled(...)", true};
  }
  if (!is_half && dtype.num() != py::detail::npy_api::NPY_FLOAT_ && dtype.num() != py::detail::npy_api::NPY_DOUBLE_) {
    return {std::string("expected dtype ") +
                (also == Also::bfloat16 ? "float32, float64 or bfloat16" : "float32 or float64") + ", got " +
                text(dtype) + "; convert it with .astype(numpy.float32)",
            true};
  }
  if (!is_native(dtype.byteorder())) {
    return {
        "expected native byte order, got dtype " + text(dtype) + "; convert it with .astype(x.dtype.newbyteorder('='))",
        true};
  }
  if ((a.flags() & (c_order | f_order)) == 0) {
    return {"expected a contiguous array, got strides " + text(a.attr("strides")) + " for shape " +
            describe(shape_of(a)) + "; numpy.ascontiguousarray(x) makes a copy that is"};
  }
  if ((a.flags() & kAligned) == 0) {
    return {"expected an aligned array, got data that is not aligned to its dtype; x.copy() is"};
  }
  if (use == Use::write && (a.flags() & kWriteable) == 0) {
    return {"expected a writeable array, got a read-only one; x.copy() is writeable"};
  }
  return {};
}

}  // namespace

bool is_native(char byte_order) {
  const std::uint16_t probe = 1;
  const bool is_little = *reinterpret_cast<const unsigned char*>(&probe) == 1;
  return byte_order != (is_little ? '>' : '<');
}

py::dtype bfloat16_bits() {
  static const py::handle dtype =
      py::module_::import("numpy")  // never let go: the interpreter may end first
          .attr("dtype")("u2", py::arg("metadata") = py::dict(py::arg("steepest") = "bfloat16"))
          .release();
  return py::reinterpret_borrow<py::dtype>(dtype);
}

void Flaw::raise(const std::string& name) const {
  if (is_type_error) throw py::type_error(name + ": " + why);
  throw py::value_error(name + ": " + why);
}

View view(py::handle object, const std::string& name, Use use, Also also) {
  const bool is_half = also == Also::bfloat16 && py::isinstance<py::array>(object) &&
                       is_bfloat16(py::reinterpret_borrow<py::array>(object).dtype());
  const Flaw flaw = find_flaw(object, use, also, is_half);
  if (!flaw.why.empty()) flaw.raise(name);
  const auto a = py::reinterpret_borrow<py::array>(object);
  return View{a,
              const_cast<void*>(a.data()),
              a.size(),
              a.dtype().num() == py::detail::npy_api::NPY_DOUBLE_,
              a.flags() & (c_order | f_order),
              is_half,
              a.itemsize()};
}

View view_of_own(const py::array& a) {
  const bool is_double = a.dtype().num() == py::detail::npy_api::NPY_DOUBLE_;
  return {a, const_cast<void*>(a.data()), a.size(), is_double, a.flags() & (c_order | f_order), false, a.itemsize()};
}

py::array zeros_at(std::ptrdiff_t n, const py::dtype& dtype, std::uintptr_t place) {
  constexpr std::uintptr_t line = 64;
  const std::ptrdiff_t bytes = n * dtype.itemsize();
  const auto np = py::module_::import("numpy");
  const py::array raw = np.attr("zeros")(bytes + static_cast<std::ptrdiff_t>(line), "uint8");
  const auto shift = static_cast<std::ptrdiff_t>((place - reinterpret_cast<std::uintptr_t>(raw.data())) % line);
  return raw[py::slice(shift, shift + bytes, 1)].attr("view")(dtype);
}

View view_like(const View& own, py::handle object, const std::string& name, Use use) {
  const auto dtype = own.array.dtype();
  if (dtype.kind() == 'f') {
    const View v = view(object, name, use);
    check_dtype(v, name, own.is_double);
    return v;
  }
  const bool is_array = py::isinstance<py::array>(object);
  const auto a = is_array ? py::reinterpret_borrow<py::array>(object) : own.array;
  if (!is_array || !dtype.equal(a.dtype())) {
    throw py::type_error(name + ": expected a numpy.ndarray of " + text(dtype) + ", got " +
                         (is_array ? "dtype " + text(a.dtype()) : type_name(object)));
  }
  if ((a.flags() & (c_order | f_order)) == 0 || (a.flags() & kAligned) == 0) {
    refuse(name, "expected a contiguous and aligned array, got strides " + text(a.attr("strides")) + "; pass a copy");
  }
  if (use == Use::write && !a.writeable()) refuse(name, "expected a writeable array, got a read-only one");
  return view_of_own(a);
}

void check_dtype(const View& x, const std::string& name, bool is_double) {
  if (x.is_double == is_double) return;
  throw py::type_error(name + ": expected dtype " + dtype_name(is_double) + ", got " + dtype_name(x.is_double) +
                       "; convert it with .astype(numpy." + dtype_name(is_double) + ")");
}

void check_shape(const View& x, const std::string& name, const std::vector<py::ssize_t>& shape) {
  const auto got = shape_of(x.array);
  if (got != shape) refuse(name, "expected shape " + describe(shape) + ", got " + describe(got));
}

void check_c_order(const View& x, const std::string& name) {
  if ((x.layout & c_order) == 0) {
    refuse(name, "expected a C-contiguous array, got a Fortran-contiguous one; numpy.ascontiguousarray(x) is");
  }
}

void check_apart(const View& x, const std::string& x_name, const View& y, const std::string& y_name) {
  if (x.begin() < y.end() && y.begin() < x.end()) {
    refuse(x_name, "expected memory of its own, got memory that overlaps " + y_name + "; pass a copy");
  }
}

std::vector<py::ssize_t> shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

std::string describe(const std::vector<py::ssize_t>& shape) {
  py::tuple t(shape.size());
  for (std::size_t i = 0; i < shape.size(); ++i) t[i] = shape[i];
  return py::str(t);
}

const char* dtype_name(bool is_double) { return is_double ? "float64" : "float32"; }

const char* dtype_name(const View& x) { return x.is_bfloat16 ? "bfloat16" : dtype_name(x.is_double); }

std::string text(py::handle object) { return py::str(object); }

std::string type_name(py::handle object) { return text(py::type::handle_of(object).attr("__name__")); }

double number_from(py::handle object, const std::string& name) {
  if (PyFloat_CheckExact(object.ptr())) return PyFloat_AS_DOUBLE(object.ptr());
  const double x = PyFloat_AsDouble(object.ptr());
  if (PyErr_Occurred() == nullptr) return x;
  if (PyErr_ExceptionMatches(PyExc_TypeError) != 0) {
    PyErr_Clear();
    throw py::type_error(name + ": expected a number, got " + type_name(object));
  }
  if (PyErr_ExceptionMatches(PyExc_OverflowError) == 0) throw py::error_already_set();
  PyErr_Clear();
  throw py::value_error(name + ": expected a number in the range of float64, got a larger one");
}

std::int64_t count_from(py::handle object, const std::string& name) {
  constexpr std::int64_t highest = std::int64_t{1} << 53;
  const std::int64_t n = PyLong_AsLongLong(object.ptr());
  if (PyErr_Occurred() != nullptr) {
    const bool is_integer = PyErr_ExceptionMatches(PyExc_OverflowError) != 0;
    PyErr_Clear();
    if (!is_integer) throw py::type_error(name + ": expected an integer >= 0, got " + type_name(object));
  } else if (n >= 0 && n <= highest) {
    return n;
  }
  throw py::value_error(name + ": expected an integer from 0 to 2**53, got " + text(object));
}

bool is_masked(py::handle array) {
  const py::handle plain(reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_));
  return !py::type::handle_of(array).is(plain) && py::hasattr(array, "mask");
}

void Pins::pin(const py::array& array) {
  for (py::object object = array; py::isinstance<py::array>(object); object = object.attr("base")) {
    held_.push_back(py::weakref(object));
    held_.push_back(object);
  }
}

}  // namespace steepest
