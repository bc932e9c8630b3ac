// Checked views of NumPy arrays: nothing is ever converted or copied, what does not fit is refused by name.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace steepest {

namespace py = pybind11;

enum class Use { read, write };

enum Layout : int { c_order = 1, f_order = 2 };

// What an array may hold beside float32 and float64.
enum class Also { nothing, bfloat16 };

// A float32, float64 or, where asked for, bfloat16 array that is contiguous, aligned and in native byte order; or an
// array that the library made.
struct View {
  py::array array;
  void* data;
  std::ptrdiff_t size;
  bool is_double;
  int layout;  // c_order, f_order or both
  bool is_bfloat16 = false;
  std::ptrdiff_t itemsize = is_double ? 8 : 4;

  bool still_holds() const {  // whether the array has the memory that it had
    return py::detail::array_proxy(array.ptr())->data == data && array.size() == size;
  }
  const char* begin() const { return static_cast<const char*>(data); }
  const char* end() const { return begin() + size * itemsize; }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// What is wrong with an object, what was expected and the remedy.
struct Flaw {
  std::string why;
  bool is_type_error = false;

  [[noreturn]] void raise(const std::string& name) const;  // py::type_error or py::value_error
};

View view(py::handle object, const std::string& name, Use use, Also also = Also::nothing);  // or raises the flaw

View view_of_own(const py::array& array);  // one that the library made, of any dtype
// Zeros, memory that is untouched until it is written, in one dimension; they begin at this place of a cache line.
py::array zeros_at(std::ptrdiff_t n, const py::dtype& dtype, std::uintptr_t place);
// The object as an array of the dtype of such a one.
View view_like(const View& own, py::handle object, const std::string& name, Use use);

// A dtype of uint16 arrays that are to be taken as bfloat16: for arrays that come from elsewhere, without ml_dtypes.
py::dtype bfloat16_bits();

void check_dtype(const View& x, const std::string& name, bool is_double);
void check_shape(const View& x, const std::string& name, const std::vector<py::ssize_t>& shape);
void check_c_order(const View& x, const std::string& name);
void check_apart(const View& x, const std::string& x_name, const View& y, const std::string& y_name);

std::vector<py::ssize_t> shape_of(const py::array& a);
std::string describe(const std::vector<py::ssize_t>& shape);
const char* dtype_name(bool is_double);
const char* dtype_name(const View& x);
std::string text(py::handle object);       // str(object)
std::string type_name(py::handle object);  // of its type

// The object as a number, or a TypeError or ValueError that names it.
double number_from(py::handle object, const std::string& name);
std::int64_t count_from(py::handle object, const std::string& name);  // an integer >= 0

bool is_native(char byte_order);

bool is_masked(py::handle array);  // a masked array: its mask would be ignored

// While it lives, the arrays' memory cannot go: a reference keeps each alive, and a weak reference makes NumPy refuse
// to resize it and what it is a view of.
class Pins {
 public:
  void pin(const py::array& array);
  void clear() { held_.clear(); }

 private:
  std::vector<py::object> held_;
};

}  // namespace steepest
