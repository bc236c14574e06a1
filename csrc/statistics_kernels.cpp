// Sums over a block of elements. Compiled once per instruction set, as cpu_kernels.cpp is, with the same bits from
// each: element i goes to lane i % 16, in double, and nothing is contracted but by name.
#include <math.h>
#include <string.h>

#include "statistics.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#ifndef FASTINIT_ISA
#define FASTINIT_ISA scalar
#endif

namespace fastinit {
namespace FASTINIT_ISA {
namespace {

constexpr int kSumLanes = 16;
// Bytes ahead, past the end of a page, where the hardware's own prefetching ends.
constexpr int kAhead = 4096;
#if defined(__AVX512F__)
constexpr int kWidth = 8;  // doubles in a register
#elif defined(__AVX2__)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif

// Vectors of the compiler's own (GCC and clang), whose operators work element by element.
template <class E>
struct Vector;
template <>
struct Vector<double> {
  typedef double V __attribute__((vector_size(8 * kWidth)));
  typedef int64_t Count __attribute__((vector_size(8 * kWidth)));
};
template <>
struct Vector<float> {
  typedef float V __attribute__((vector_size(8 * kWidth)));
  typedef int32_t Count __attribute__((vector_size(8 * kWidth)));
};
using D = Vector<double>::V;

template <class T>
inline __attribute__((always_inline)) T load(const void* from) {
  T v;
  memcpy(&v, from, sizeof v);
  return v;
}

inline __attribute__((always_inline)) D doubles(const double* from) { return load<D>(from); }
inline __attribute__((always_inline)) D doubles(const float* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<D>(_mm512_cvtps_pd(_mm256_loadu_ps(from)));
#elif defined(__AVX2__)
  return reinterpret_cast<D>(_mm256_cvtps_pd(_mm_loadu_ps(from)));
#else
  return D{from[0], from[1]};
#endif
}

// a * a + b, rounded once.
inline double plus_square(double b, double a) { return fma(a, a, b); }
inline __attribute__((always_inline)) D plus_square(D b, D a) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, a, b);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, a, b);
#else
  for (int i = 0; i < kWidth; ++i) b[i] = plus_square(b[i], a[i]);
  return b;
#endif
}

// What may end within a register, or have elements that are not finite.
template <class E>
void one_by_one(const E* x, int64_t count, double shift, Sums& sums) {
  for (int64_t i = 0; i < count; ++i) {
    const double value = x[i];
    if (!isfinite(value)) {
      ++sums.nonfinite;
      continue;
    }
    const double d = value - shift;
    sums.sum += d;
    sums.squares = plus_square(sums.squares, d);
    sums.zeros += value == 0;
    if (value < sums.min) sums.min = value;
    if (value > sums.max) sums.max = value;
  }
}

// `kShifted` is false where `shift` is 0, which to subtract takes as long as all else.
template <bool kShifted, class E>
void sums_of(const E* x, int64_t count, double shift, Sums& sums) {
  using V = typename Vector<E>::V;
  using Count = typename Vector<E>::Count;
  constexpr int kElements = sizeof(V) / sizeof(E), kVectors = kSumLanes / kElements, kSums = kSumLanes / kWidth;
  const V none = {};
  const D by = D{} + shift;
  D sum[kSums] = {}, squares[kSums] = {};
  V min[kVectors], max[kVectors];
  Count zeros[kVectors] = {};
  for (int v = 0; v < kVectors; ++v) {
    min[v] = none + static_cast<E>(INFINITY);
    max[v] = none - static_cast<E>(INFINITY);
  }
  const int64_t whole = count / kSumLanes * kSumLanes;
  for (int64_t i = 0; i < whole; i += kSumLanes) {
    __builtin_prefetch(x + i + kAhead / sizeof(E));
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const V value = load<V>(x + i + v * kElements);
      min[v] = value < min[v] ? value : min[v];
      max[v] = value > max[v] ? value : max[v];
      zeros[v] -= value == none;
    }
#pragma GCC unroll 8
    for (int v = 0; v < kSums; ++v) {
      const D value = doubles(x + i + v * kWidth), d = kShifted ? value - by : value;
      sum[v] += d;
      squares[v] = plus_square(squares[v], d);
    }
  }
  Sums all = sums;
  for (int i = 0; i < kSumLanes; ++i) {
    all.sum += sum[i / kWidth][i % kWidth];
    all.squares += squares[i / kWidth][i % kWidth];
    const int v = i / kElements, j = i % kElements;
    all.zeros += zeros[v][j];
    if (min[v][j] < all.min) all.min = min[v][j];
    if (max[v][j] > all.max) all.max = max[v][j];
  }
  // What is not finite makes the squares so, and with it all of these useless.
  const int64_t done = isfinite(all.squares) ? whole : 0;
  if (done > 0) sums = all;
  one_by_one(x + done, count - done, shift, sums);
}

// ---- narrow dtypes, as floats
// -------------------------------------------------------------------------------------------

float as_float(uint32_t bits) { return load<float>(&bits); }

// `magnitude` has exponent and mantissa where float has them: `power` makes up for the exponents' biases, subnormals
// included. From `special` on a value is not finite.
inline float widened(uint32_t magnitude, uint32_t sign, uint32_t special, float power) {
  const float scaled = as_float(magnitude) * power;
  return as_float(load<uint32_t>(&scaled) | sign | (magnitude >= special ? 0x7f800000u : 0u));
}

struct Bf16 {
  using Bits = uint16_t;
  static float value(uint32_t w) { return as_float(w << 16); }
};
struct F16 {
  using Bits = uint16_t;
  static float value(uint32_t w) { return widened((w & 0x7fffu) << 13, (w & 0x8000u) << 16, 0x7c00u << 13, 0x1p112f); }
};
struct E5m2 {
  using Bits = uint8_t;
  static float value(uint32_t w) { return widened((w & 0x7fu) << 21, (w & 0x80u) << 24, 0x7cu << 21, 0x1p112f); }
};
struct E4m3 {
  using Bits = uint8_t;
  static float value(uint32_t w) { return widened((w & 0x7fu) << 20, (w & 0x80u) << 24, 0x7fu << 20, 0x1p120f); }
};

template <class T>
void floats(const void* data, int64_t count, float* to) {
  const auto* from = static_cast<const typename T::Bits*>(data);
  for (int64_t i = 0; i < count; ++i) to[i] = T::value(from[i]);
}

// The elements as `use` takes them: where they lie, or as floats.
template <class Use>
void with_elements(const void* data, int64_t count, DType dtype, Use&& use) {
  alignas(64) float wide[kBlock];
  switch (dtype) {
    case DType::f32:
      return use(static_cast<const float*>(data));
    case DType::f64:
      return use(static_cast<const double*>(data));
    case DType::f16:
      floats<F16>(data, count, wide);
      break;
    case DType::bf16:
      floats<Bf16>(data, count, wide);
      break;
    case DType::e4m3:
      floats<E4m3>(data, count, wide);
      break;
    default:
      floats<E5m2>(data, count, wide);
  }
  use(static_cast<const float*>(wide));
}

void block(const void* data, int64_t count, DType dtype, double shift, Sums& sums) {
  with_elements(data, count, dtype, [&](const auto* x) {
    shift == 0 ? sums_of<false>(x, count, shift, sums) : sums_of<true>(x, count, shift, sums);
  });
}

void as_doubles(const void* data, int64_t count, DType dtype, double* to) {
  with_elements(data, count, dtype, [&](const auto* x) {
    for (int64_t i = 0; i < count; ++i) to[i] = x[i];
  });
}

void count(const void* data, int64_t count, DType dtype, const Parts& parts, int64_t* counters) {
  int32_t places[kBlock];
  const double none = parts.last + 1;
  with_elements(data, count, dtype, [&](const auto* x) {
    for (int64_t i = 0; i < count; ++i) {
      const double value = x[i], place = (value * parts.unit - parts.low) * parts.scale;
      const double low = place > 0 ? place : 0, inside = low < parts.last ? low : parts.last;
      places[i] = static_cast<int32_t>(value - value == 0 ? inside : none);
    }
  });
  for (int64_t i = count; i % kCounters != 0; ++i) places[i] = static_cast<int32_t>(none);
  const int64_t each = static_cast<int64_t>(none) + 1;
  for (int64_t i = 0; i < count; i += kCounters) {
#pragma GCC unroll 8
    for (int c = 0; c < kCounters; ++c) ++counters[c * each + places[i + c]];
  }
}

}  // namespace

extern const StatisticsKernels statistics_kernels;
const StatisticsKernels statistics_kernels = {block, as_doubles, count};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
