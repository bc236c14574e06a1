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

}  // namespace

std::vector<Statistics> statistics(const std::vector<Span>& spans, int threads) {
  const StatisticsKernels& k = kernels();
  struct Piece {
    size_t span;
    int64_t begin;
    Sums sums;
  };
  std::vector<Piece> pieces;
  std::vector<double> shifts;
  for (size_t s = 0; s < spans.size(); ++s) {
    // A shift by about the mean keeps the digits of a deviation that is small beside it.
    double first = 0;
    if (size_of(spans[s].dtype) > 0 && spans[s].count > 0) k.as_doubles(spans[s].data, 1, spans[s].dtype, &first);
    shifts.push_back(isfinite(first) ? first : 0);
    for (int64_t at = 0; at < spans[s].count; at += kPiece)
      pieces.push_back({s, at, {0, 0, INFINITY, -INFINITY, 0, 0}});
  }
  constexpr size_t kTogether = 16;  // small tensors, a call for several
  const auto run = [&](size_t i) {
    for (size_t p = i * kTogether; p < std::min(pieces.size(), (i + 1) * kTogether); ++p) {
      const Span& span = spans[pieces[p].span];
      const int64_t end = std::min(span.count, pieces[p].begin + kPiece);
      for (int64_t b = pieces[p].begin; b < end; b += kBlock) {
        k.block(at(span, b), std::min(kBlock, end - b), span.dtype, shifts[pieces[p].span], pieces[p].sums);
      }
    }
  };
  in_parallel(threads, (pieces.size() + kTogether - 1) / kTogether, run);
  std::vector<Statistics> found;
  for (const Span& span : spans) found.push_back({span.count, 0, 0, NAN, NAN, INFINITY, -INFINITY});
  std::vector<Sums> totals(spans.size(), Sums{0, 0, INFINITY, -INFINITY, 0, 0});
  for (const Piece& piece : pieces) {
    Sums& total = totals[piece.span];
    total.sum += piece.sums.sum;
    total.squares += piece.sums.squares;
    total.min = std::min(total.min, piece.sums.min);
    total.max = std::max(total.max, piece.sums.max);
    total.zeros += piece.sums.zeros;
    total.nonfinite += piece.sums.nonfinite;
  }
  for (size_t s = 0; s < spans.size(); ++s) {
    const Sums& total = totals[s];
    Statistics& one = found[s];
    one.zeros = total.zeros;
    one.nonfinite = total.nonfinite;
    const double finite = static_cast<double>(one.count - one.nonfinite);
    if (finite == 0) continue;
    one.min = total.min;
    one.max = total.max;
    one.mean = shifts[s] + total.sum / finite;
    one.squares = std::max(0.0, total.squares - total.sum * (total.sum / finite));
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
    const Range range = ranges[s];
    const double scale = range.high > range.low ? bins / (range.high - range.low) : 0;
    const int64_t runs = (span.count + kRun - 1) / kRun, step = std::max<int64_t>(1, (runs * kRun + most - 1) / most);
    const double last = bins - 1;
    double x[kRun];
    int places[kRun];
    // Neighbours, which are often alike, have counters of their own; the last of each counts what is not finite.
    const size_t each = static_cast<size_t>(bins) + 1;
    std::vector<int64_t> counted(4 * each);
    for (int64_t r = 0; r < runs; r += step) {
      const int64_t size = std::min(kRun, span.count - r * kRun);
      if (r + step < runs) {  // the next run is far away, and nobody else asks for it in time
        const int64_t next = (r + step) * kRun, bytes = std::min(kRun, span.count - next) * size_of(span.dtype);
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at(span, next) + b);
      }
      k.as_doubles(at(span, r * kRun), size, span.dtype, x);
      for (int64_t i = 0; i < size; ++i) {
        const double place = (x[i] - range.low) * scale;
        const double inside = std::min(std::max(0.0, place), last);
        places[i] = x[i] - x[i] == 0 ? static_cast<int>(inside) : bins;
      }
      for (int64_t i = 0; i < size; ++i) {
        ++counted[static_cast<size_t>(i % 4) * each + static_cast<size_t>(places[i])];
      }
    }
    for (size_t b = 0; b < counted.size(); ++b) {
      if (b % each < counts[s].size()) counts[s][b % each] += counted[b];
    }
  });
  return counts;
}

}  // namespace fastinit
