// Pieces for the worker pool, and what they come to together.
#include "statistics.h"

#include <math.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu.h"
#include "formats.h"

namespace fastinit {

#define FASTINIT_DECLARE(isa)                        \
  namespace isa {                                    \
  extern const StatisticsKernels statistics_kernels; \
  }
FASTINIT_INSTRUCTION_SETS(FASTINIT_DECLARE)
#undef FASTINIT_DECLARE

namespace {

const StatisticsKernels& kernels() {
  const std::string name = instruction_set();
#define FASTINIT_CHOOSE(isa) \
  if (name == #isa) return isa::statistics_kernels;
  FASTINIT_INSTRUCTION_SETS(FASTINIT_CHOOSE)
#undef FASTINIT_CHOOSE
  throw std::logic_error("no statistics for " + name);
}

int64_t size_of(DType dtype) {
  if (is_float(dtype)) return size_of(format_of(dtype));
  throw std::invalid_argument("statistics: no floating-point dtype has the code " +
                              std::to_string(static_cast<int>(dtype)));
}

const char* at(const Span& span, int64_t element) {
  return static_cast<const char*>(span.data) + element * size_of(span.dtype);
}

constexpr int64_t kPiece = 1 << 16;  // whatever the threads: the sums are made in one order
constexpr int64_t kRun = 256;        // elements side by side of a sample

// A power of two, in which numbers of at most `top` have squares and differences that double holds.
double unit_of(double top) {
  if (!(top > 0x1p450) && !(top > 0 && top < 0x1p-450)) return 1;
  int exponent;
  frexp(top, &exponent);
  return ldexp(1, std::clamp(-exponent, -1000, 1000));
}

// A span, whose elements are taken as `unit * x - unit * shift`.
struct Shifted {
  Span span;
  double shift, unit;
};

// A shift by about the mean keeps the digits of a deviation that is small beside it. Others do without, in less time.
double shift_of(const Span& span) {
  const int64_t size = size_of(span.dtype) > 0 ? std::min(kRun, span.count) : 0;
  if (size == 0) return 0;
  double x[kRun], apart = 0;
  kernels().as_doubles(span.data, size, span.dtype, x);
  for (int64_t i = 0; i < size; ++i) apart += fabs(x[i] - x[0]) / static_cast<double>(size);
  return isfinite(x[0]) && !(fabs(x[0]) <= 8 * apart) ? x[0] : 0;
}

std::vector<Sums> sums_of(const std::vector<Shifted>& all, int threads) {
  const StatisticsKernels& k = kernels();
  const Sums none{0, 0, INFINITY, -INFINITY, 0, 0};
  struct Piece {
    size_t of;
    int64_t begin;
    Sums sums;
  };
  std::vector<Piece> pieces;
  for (size_t s = 0; s < all.size(); ++s) {
    for (int64_t begin = 0; begin < all[s].span.count; begin += kPiece) pieces.push_back({s, begin, none});
  }
  const auto add = [&](const Shifted& one, int64_t begin, int64_t count, Sums& sums) {
    const void* data = at(one.span, begin);
    if (one.unit == 1) return k.block(data, count, one.span.dtype, one.shift, sums);
    double x[kBlock];
    k.as_doubles(data, count, one.span.dtype, x);
    for (int64_t i = 0; i < count; ++i) x[i] *= one.unit;
    k.block(x, count, DType::f64, one.shift * one.unit, sums);
  };
  constexpr size_t kTogether = 16;  // small tensors, a call for several
  const auto run = [&](size_t i) {
    for (size_t p = i * kTogether; p < std::min(pieces.size(), (i + 1) * kTogether); ++p) {
      const Shifted& one = all[pieces[p].of];
      const int64_t end = std::min(one.span.count, pieces[p].begin + kPiece);
      for (int64_t b = pieces[p].begin; b < end; b += kBlock) add(one, b, std::min(kBlock, end - b), pieces[p].sums);
    }
  };
  in_parallel(threads, (pieces.size() + kTogether - 1) / kTogether, run);
  std::vector<Sums> totals(all.size(), none);
  for (const Piece& piece : pieces) {
    Sums& total = totals[piece.of];
    total.sum += piece.sums.sum;
    total.squares += piece.sums.squares;
    total.min = std::min(total.min, piece.sums.min);
    total.max = std::max(total.max, piece.sums.max);
    total.zeros += piece.sums.zeros;
    total.nonfinite += piece.sums.nonfinite;
  }
  return totals;
}

}  // namespace

std::vector<Statistics> statistics(const std::vector<Span>& spans, int threads) {
  std::vector<Shifted> all;
  for (const Span& span : spans) {
    all.push_back({span, shift_of(span), 1});
  }
  std::vector<Sums> totals = sums_of(all, threads);
  std::vector<size_t> far;  // where double ends: once more, in units of their own
  std::vector<Shifted> again;
  for (size_t s = 0; s < all.size(); ++s) {
    all[s].unit = unit_of(std::max(-totals[s].min, totals[s].max));
    if (all[s].unit == 1) continue;
    far.push_back(s);
    again.push_back(all[s]);
  }
  const std::vector<Sums> in_units = sums_of(again, threads);
  for (size_t i = 0; i < far.size(); ++i) {
    totals[far[i]].sum = in_units[i].sum;
    totals[far[i]].squares = in_units[i].squares;
  }
  std::vector<Statistics> found;
  for (size_t s = 0; s < all.size(); ++s) {
    const auto& [sum, squares, min, max, zeros, nonfinite] = totals[s];
    found.push_back({all[s].span.count, zeros, nonfinite, NAN, NAN, min, max});
    const double finite = static_cast<double>(all[s].span.count - nonfinite), unit = all[s].unit;
    if (finite == 0) continue;
    found[s].mean = (all[s].shift * unit + sum / finite) / unit;
    found[s].std = sqrt(std::max(0.0, squares - sum * (sum / finite)) / finite) / unit;
  }
  return found;
}

std::vector<std::vector<int64_t>> histograms(const std::vector<Span>& spans, const std::vector<Range>& ranges, int bins,
                                             int64_t most, int threads) {
  const StatisticsKernels& k = kernels();
  if (ranges.size() != spans.size()) throw std::invalid_argument("histograms: a range for each span");
  if (bins < 1) throw std::invalid_argument("histograms: at least one part");
  for (const Span& span : spans) size_of(span.dtype);
  std::vector<std::vector<int64_t>> counts(spans.size(), std::vector<int64_t>(static_cast<size_t>(bins)));
  in_parallel(threads, spans.size(), [&](size_t s) {
    const Span& span = spans[s];
    const double unit = unit_of(std::max(fabs(ranges[s].low), fabs(ranges[s].high)));
    const double low = ranges[s].low * unit, high = ranges[s].high * unit;
    const Parts parts{unit, low, high > low ? bins / (high - low) : 0, static_cast<double>(bins - 1)};
    const int64_t runs = (span.count + kRun - 1) / kRun, step = std::max<int64_t>(1, (runs * kRun + most - 1) / most);
    const size_t places = static_cast<size_t>(bins) + 1;
    std::vector<int64_t> counters(kCounters * places);
    for (int64_t r = 0; r < runs; r += step) {
      if (r + step < runs) {  // the next run is far away, and nobody else asks for it in time
        const int64_t next = (r + step) * kRun, bytes = std::min(kRun, span.count - next) * size_of(span.dtype);
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at(span, next) + b);
      }
      k.count(at(span, r * kRun), std::min(kRun, span.count - r * kRun), span.dtype, parts, counters.data());
    }
    for (size_t c = 0; c < counters.size(); ++c) {
      if (c % places < counts[s].size()) counts[s][c % places] += counters[c];
    }
  });
  return counts;
}

}  // namespace fastinit
