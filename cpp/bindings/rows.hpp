// Batches: some rows of an array, next to each other.
#pragma once

#include "arrays.hpp"

namespace steepest {

using Rows = py::array_t<std::int64_t, py::array::c_style>;

// out = array[rows]
void take_rows(const py::array& array, const Rows& rows, const py::array& out);

}  // namespace steepest
