// What a tensor's values are like, in one pass over its memory: the CPU backend's other face.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "fill.h"

namespace fastinit {

// Elements that lie next to one another.
struct Span {
  const void* data;
  int64_t count;
  DType dtype;
};

// Of finite elements x, by their differences from `shift`. All else is counted.
struct Sums {
  double sum, squares;  // of x - shift
  double min, max;
  int64_t zeros, nonfinite;
};

// The compilation of statistics_kernels.cpp for one instruction set.
struct StatisticsKernels {
  // Both take at most kBlock elements, of a dtype that `statistics` takes. The first adds to `sums`.
  void (*block)(const void* data, int64_t count, DType dtype, double shift, Sums& sums);
  void (*as_doubles)(const void* data, int64_t count, DType dtype, double* to);
};
constexpr int64_t kBlock = 1 << 12;

struct Statistics {
  int64_t count, zeros, nonfinite;
  double mean, std, min, max;  // of the finite elements
};

// The same bits on any number of threads and any instruction set. Throws std::invalid_argument for a dtype that it
// cannot read.
std::vector<Statistics> statistics(const std::vector<Span>& spans, int threads);

// How many of at most about `most` elements, evenly spread, lie in each of `bins` equal parts of [low, high], a span's
// own bounds. What lies outside is counted in the part nearest to it, what is not finite in none.
struct Range {
  double low, high;
};
std::vector<std::vector<int64_t>> histograms(const std::vector<Span>& spans, const std::vector<Range>& ranges, int bins,
                                             int64_t most, int threads);

}  // namespace fastinit
