// The values of a dtype: which there are between two numbers, and which is nearest to one. For the host.
#pragma once
#include <stdint.h>

#include <cmath>
#include <limits>

#include "fill.h"

namespace fastinit {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Format {
  int exponent, mantissa;
  bool infinite;  // has infinities; else the pattern above the largest value is NaN
};

inline bool is_float(DType dtype) { return dtype >= DType::f32 && dtype <= DType::e5m2; }

// Of a floating-point dtype.
inline Format format_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return {8, 23, true};
    case DType::f16:
      return {5, 10, true};
    case DType::bf16:
      return {8, 7, true};
    case DType::e4m3:
      return {4, 3, false};
    case DType::e5m2:
      return {5, 2, true};
    default:
      return {11, 52, true};
  }
}

// Bytes of a value: a sign, an exponent and a mantissa.
inline int size_of(const Format& f) { return (1 + f.exponent + f.mantissa) / 8; }

// The largest magnitude's pattern: infinity where there is one.
inline int64_t top_of(const Format& f) {
  return f.infinite ? ((int64_t{1} << f.exponent) - 1) << f.mantissa : (int64_t{1} << (f.exponent + f.mantissa)) - 2;
}

// A value by its rank: the magnitude's pattern with a sign, so that ranks are in the values' order. -0 is 0. Infinity's
// place is that of the power of two after the largest value, which is where rounding looks for it.
inline double place_of(const Format& f, int64_t rank) {
  const int64_t pattern = rank < 0 ? -rank : rank;
  const int64_t e = pattern >> f.mantissa, m = pattern & ((int64_t{1} << f.mantissa) - 1);
  const int bias = (1 << (f.exponent - 1)) - 1;
  const double v =
      e == 0 ? std::ldexp(static_cast<double>(m), 1 - bias - f.mantissa)
             : std::ldexp(static_cast<double>(m + (int64_t{1} << f.mantissa)), static_cast<int>(e) - bias - f.mantissa);
  return rank < 0 ? -v : v;
}

inline double value_of(const Format& f, int64_t rank) {
  if (f.infinite && rank >= top_of(f)) return kInf;
  if (f.infinite && rank <= -top_of(f)) return -kInf;
  return place_of(f, rank);
}

// The rank of the largest value <= x: of the exponent's multiples of the last place, the one below.
inline int64_t rank_below(const Format& f, double x) {
  const int64_t top = top_of(f);
  const double size = std::fabs(x);
  if (!(size <= std::numeric_limits<double>::max())) return x > 0.0 ? top : f.infinite ? -top : -top - 1;
  int exponent;
  std::frexp(size, &exponent);
  const int bias = (1 << (f.exponent - 1)) - 1;
  int64_t biased = exponent - 1 + bias;
  if (biased < 1 || size == 0.0) biased = 1;  // subnormal
  const double places = std::ldexp(size, static_cast<int>(bias + f.mantissa - biased));
  const int64_t pattern =
      ((biased - 1) << f.mantissa) + static_cast<int64_t>(x < 0.0 ? std::ceil(places) : std::floor(places));
  if (x < 0.0) return pattern <= top ? -pattern : f.infinite ? -top : -top - 1;
  return pattern < top ? pattern : f.infinite ? top - 1 : top;
}

inline int64_t rank_above(const Format& f, double x) { return -rank_below(f, -x); }

// x in the dtype, to nearest even (through float32 if the dtype is narrow, as torch converts).
inline int64_t rank_nearest(const Format& f, double x) {
  if (f.mantissa < 23) x = static_cast<float>(x);
  const int64_t below = rank_below(f, x), above = rank_above(f, x);
  if (below >= above) return below;
  if (below < -top_of(f)) return above;
  if (above > top_of(f)) return below;
  const double down = x - place_of(f, below), up = place_of(f, above) - x;
  if (down != up) return down < up ? below : above;
  return (below & 1) ? above : below;
}

struct Bounds {
  bool empty;
  double lo, hi;
};

// [smallest value >= a, largest value <= b], or < b.
inline Bounds bounds_in(DType dtype, double a, double b, bool below_b) {
  const Format f = format_of(dtype);
  const int64_t lo = rank_above(f, a);
  int64_t hi = rank_below(f, b);
  if (below_b && hi >= -top_of(f) && value_of(f, hi) == b) --hi;
  if (lo > hi || lo > top_of(f) || hi < -top_of(f)) return {true, 0.0, 0.0};
  // Zeros: see clamp in lane.h.
  return {false, value_of(f, lo) + 0.0, hi == 0 ? -0.0 : value_of(f, hi)};
}

}  // namespace fastinit
