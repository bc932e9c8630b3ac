// Lets other Python threads run.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace steepest {

// Without the GIL while it lives. Before Python 3.14, a daemon thread that wants the GIL back when the interpreter is
// gone is unwound, which a destructor takes for a crash of the whole process: here it waits for the end instead.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace steepest
