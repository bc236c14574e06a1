// From what Python says of a fill to plain data: layouts merged, derived constants computed once, in double.
#pragma once
#include <stdint.h>

#include <memory>
#include <vector>

#include "fill.h"

namespace fastinit {

// A fill as it was asked for: torch_fastinit/ops.py's Fill in plain numbers, which nobody has checked yet.
struct Description {
  struct Step {
    int64_t op, dtype;
    double operand;
  };

  int32_t tensor = 0;  // its place in the batch
  int64_t address = 0, dtype = 0;
  std::vector<int64_t> sizes, strides;  // in elements
  bool has_region = false;              // else it is the whole of its logical tensor
  std::vector<int64_t> shape, offsets;

  int64_t kind = 0;
  uint64_t seed = 0, stream = 0, second = 0;
  double params[4] = {};                     // as many as the kind has
  std::vector<double> components;            // of a mixture: kind, probability and two parameters of each
  uint64_t offset_low = 0, offset_high = 0;  // of raw bits
  uint64_t words[2] = {};                    // a constant's bit pattern
  int64_t drawn = 0;                         // the dtype of the draw, if there are steps
  std::vector<Step> steps;

  std::vector<int64_t> logical_strides;  // found by lower(): strides of the logical tensor
};

// What fills point to: it is to live as long as they.
using Owned = std::vector<std::unique_ptr<uint64_t[]>>;

// Appends the fill, or several where one cannot describe it, or none if it has no elements. Throws
// std::invalid_argument for what makes no sense. `from` is worn out afterwards.
void lower(Description& from, std::vector<Fill>& to, Owned& owned);

}  // namespace fastinit
