// Pieces for the worker pool, and what they come to together.
#include "statistics.h"

#include <math.h>

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

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

// The runs that a histogram is of: every so many-th of a span.
class Sample {
 public:
  Sample(const Span& span, const Histogram& wanted) : span_(span), bins_(wanted.bins) {
    if (bins_ < 0) throw std::invalid_argument("histograms: no number of parts is negative");
    if (bins_ == 0) return;
    const double unit = unit_of(std::max(fabs(wanted.low), fabs(wanted.high)));
    const double low = wanted.low * unit, high = wanted.high * unit;
    parts_ = {unit, low, high > low ? bins_ / (high - low) : 0, static_cast<double>(bins_ - 1)};
    const int64_t runs = (span.count + kRun - 1) / kRun;
    step_ = kRun * std::max<int64_t>(1, (runs * kRun + wanted.most - 1) / wanted.most);
  }

  // For `count` and `add`.
  std::vector<int64_t> counters() const { return std::vector<int64_t>(bins_ > 0 ? kCounters * places() : 0); }

  // The runs that begin in [begin, end).
  void count(const StatisticsKernels& k, int64_t begin, int64_t end, std::vector<int64_t>& counters) const {
    if (bins_ == 0) return;
    for (int64_t r = (begin + step_ - 1) / step_ * step_; r < end; r += step_) {
      if (r + step_ < end) {  // the next run may be far away, and nobody else asks for it in time
        const int64_t bytes = std::min(kRun, span_.count - r - step_) * size_of(span_.dtype);
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at(span_, r + step_) + b);
      }
      k.count(at(span_, r), std::min(kRun, span_.count - r), span_.dtype, parts_, counters.data());
    }
  }

  void add(const std::vector<int64_t>& counters, std::vector<int64_t>& to) const {
    to.resize(static_cast<size_t>(bins_));
    for (size_t c = 0; c < counters.size(); c += places()) {
      for (size_t b = 0; b < to.size(); ++b) to[b] += counters[c + b];
    }
  }

 private:
  size_t places() const { return static_cast<size_t>(bins_) + 1; }

  const Span span_;
  const int bins_;
  Parts parts_{};
  int64_t step_ = kRun;
};

std::vector<Sample> samples_of(const std::vector<Span>& spans, const std::vector<Histogram>& wanted) {
  if (wanted.size() != spans.size()) throw std::invalid_argument("histograms: one for each span");
  std::vector<Sample> all;
  for (size_t s = 0; s < spans.size(); ++s) {
    size_of(spans[s].dtype);
    all.emplace_back(spans[s], wanted[s]);
  }
  return all;
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

// `also(s, begin, end)` is called for the same elements while they are in a cache.
template <class Also>
std::vector<Sums> sums_of(const std::vector<Shifted>& all, int threads, const Also& also) {
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
      also(pieces[p].of, pieces[p].begin, end);
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

std::vector<Statistics> statistics(const std::vector<Span>& spans, const std::vector<Histogram>& wanted, int threads) {
  const StatisticsKernels& k = kernels();
  const std::vector<Sample> samples = samples_of(spans, wanted);
  std::vector<Shifted> all;
  for (const Span& span : spans) {
    all.push_back({span, shift_of(span), 1});
  }
  std::vector<std::vector<int64_t>> counts(spans.size());
  std::mutex mutex;
  std::vector<Sums> totals = sums_of(all, threads, [&](size_t s, int64_t begin, int64_t end) {
    std::vector<int64_t> counters = samples[s].counters();
    samples[s].count(k, begin, end, counters);
    const std::lock_guard<std::mutex> lock(mutex);
    samples[s].add(counters, counts[s]);
  });
  std::vector<size_t> far;  // where double ends: once more, in units of their own
  std::vector<Shifted> again;
  for (size_t s = 0; s < all.size(); ++s) {
    all[s].unit = unit_of(std::max(-totals[s].min, totals[s].max));
    if (all[s].unit == 1) continue;
    far.push_back(s);
    again.push_back(all[s]);
  }
  const std::vector<Sums> in_units = sums_of(again, threads, [](size_t, int64_t, int64_t) {});
  for (size_t i = 0; i < far.size(); ++i) {
    totals[far[i]].sum = in_units[i].sum;
    totals[far[i]].squares = in_units[i].squares;
  }
  std::vector<Statistics> found;
  for (size_t s = 0; s < all.size(); ++s) {
    const auto& [sum, squares, min, max, zeros, nonfinite] = totals[s];
    found.push_back({all[s].span.count, zeros, nonfinite, NAN, NAN, min, max, std::move(counts[s])});
    const double finite = static_cast<double>(all[s].span.count - nonfinite), unit = all[s].unit;
    if (finite == 0) continue;
    found[s].mean = (all[s].shift * unit + sum / finite) / unit;
    found[s].std = sqrt(std::max(0.0, squares - sum * (sum / finite)) / finite) / unit;
  }
  return found;
}

std::vector<std::vector<int64_t>> histograms(const std::vector<Span>& spans, const std::vector<Histogram>& wanted,
                                             int threads) {
  const StatisticsKernels& k = kernels();
  const std::vector<Sample> samples = samples_of(spans, wanted);
  std::vector<std::vector<int64_t>> counts(spans.size());
  in_parallel(threads, spans.size(), [&](size_t s) {
    std::vector<int64_t> counters = samples[s].counters();
    samples[s].count(k, 0, spans[s].count, counters);
    samples[s].add(counters, counts[s]);
  });
  return counts;
}

}  // namespace fastinit
