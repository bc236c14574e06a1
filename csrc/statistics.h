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

// Where an element x of a histogram goes: to the part (unit * x - low) * scale, the nearest of 0 to `last`, or, if it
// is not finite, to one more.
struct Parts {
  double unit, low, scale, last;
};
// Neighbours, which are often alike, are counted apart.
constexpr int kCounters = 4;

// The compilation of statistics_kernels.cpp for one instruction set.
struct StatisticsKernels {
  // All take at most kBlock elements, of a dtype that `statistics` takes. The first adds to `sums`, the last to
  // kCounters times as many counters as there are places.
  void (*block)(const void* data, int64_t count, DType dtype, double shift, Sums& sums);
  void (*as_doubles)(const void* data, int64_t count, DType dtype, double* to);
  void (*count)(const void* data, int64_t count, DType dtype, const Parts& parts, int64_t* counters);
};
constexpr int64_t kBlock = 1 << 12;

struct Statistics {
  int64_t count, zeros, nonfinite;
  double mean, std, min, max;  // of the finite elements
  std::vector<int64_t> parts;  // of a histogram, if one was asked for
};

// A histogram: how many of at most about `most` elements, evenly spread, lie in each of `bins` equal parts of
// [low, high]. What lies outside is counted in the part nearest to it, what is not finite in none. None if `bins` is 0.
struct Histogram {
  double low, high;
  int bins;
  int64_t most;
};

// The same bits on any number of threads and any instruction set. Throws std::invalid_argument for a dtype that it
// cannot read.
std::vector<Statistics> statistics(const std::vector<Span>& spans, const std::vector<Histogram>& wanted, int threads);
std::vector<std::vector<int64_t>> histograms(const std::vector<Span>& spans, const std::vector<Histogram>& wanted,
                                             int threads);

}  // namespace fastinit
