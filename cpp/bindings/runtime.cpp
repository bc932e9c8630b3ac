// Threads, ISA and build facts.
#include <pybind11/stl.h>

#include "../dispatch.hpp"
#include "../parallel.hpp"
#include "arrays.hpp"
#include "module.hpp"

namespace steepest {
namespace {

void set_num_threads(const py::object& wanted) {
  if (PyIndex_Check(wanted.ptr()) == 0) throw py::type_error("n: expected an integer, got " + type_name(wanted));
  const py::ssize_t n = PyNumber_AsSsize_t(wanted.ptr(), nullptr);  // the nearest one to larger numbers
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  if (n < 1 || n > parallel::kMaxThreads) {
    throw py::value_error("n: expected 1 to " + std::to_string(parallel::kMaxThreads) + " threads, got " +
                          text(wanted));
  }
  parallel::set_threads(static_cast<int>(n));
}

void set_threading(const py::object& name) {
  if (!py::isinstance<py::str>(name)) throw py::type_error("engine: expected a string, got " + type_name(name));
  const auto engine = name.cast<std::string>();
  if (engine != "pool" && engine != "openmp") {
    throw py::value_error("engine: expected \"pool\" or \"openmp\", got \"" + engine + "\"");
  }
  parallel::set_engine(engine == "pool" ? parallel::Engine::pool : parallel::Engine::openmp);
}

const char* get_threading() { return parallel::engine() == parallel::Engine::pool ? "pool" : "openmp"; }

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

py::dict build_info() {
  py::dict info;
  info["compiler"] = kCompiler;
  info["openmp"] = parallel::has_openmp();
  info["isas"] = isas();
  info["isa"] = isa();
  return info;
}

}  // namespace

void register_runtime(py::module_& m) {
  kernels();  // what is wrong with STEEPEST_ISA is reported by the import
  m.def("set_num_threads", set_num_threads, py::arg("n"));
  m.def("get_num_threads", parallel::threads);
  m.def("set_threading", set_threading, py::arg("engine"));
  m.def("get_threading", get_threading);
  m.def("build_info", build_info);
  // For tests.
  m.def("_set_isa", set_isa, py::arg("name"));
  m.def("_share_blocks_of", parallel::share_blocks_of, py::arg("units"));
  m.def("_blocks_run", parallel::blocks_run);
}

}  // namespace steepest
