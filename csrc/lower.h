// From what Python says of a fill to plain data: layouts merged, derived constants computed once, in double.
#pragma once
#include <stdint.h>

#include <vector>

#include "fill.h"

namespace fastinit {

// `tensors` holds address, dtype, dims, sizes, strides of each tensor; `recipe` and `params` are described in
// torch_fastinit/ops.py. Throws std::invalid_argument if the lists do not fit together.
std::vector<Fill> lower(const std::vector<int64_t>& tensors, const std::vector<int64_t>& recipe,
                        const std::vector<double>& params);

}  // namespace fastinit
