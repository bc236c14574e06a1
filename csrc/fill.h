// What one fill is: where the elements lie, which logical elements they are, and how their values come from words.
// Plain data, made by lower.cpp, read by every backend.
#pragma once
#include <stdint.h>

namespace fastinit {

// The codes of torch_fastinit/codes.py.
enum class Kind : int32_t { bits, constant, uniform, normal, truncated_normal, sparse, eye, dirac, mixture, diagonals };
enum class DType : int32_t { f32, f64, f16, bf16, e4m3, e5m2, i32, opaque = 64 };

template <class T>
struct Uniform {
  T scale, start, lo, hi;  // start + scale * integer, in [lo, hi]
};

template <class T>
struct Normal {
  T mean, std;
};

// How a truncated normal is inverted: from the mean; from a bound, where both lie 6 deviations or more on one side of
// it; or from the middle of an interval so narrow that the density is an exponential there, nearly constant.
enum class Form : int32_t { near, far, narrow };

// Near and far invert on the survival side. A word picks the integer t and a side; the tail probability there is
// base + t * step. The result y, of any form, becomes y * unit + anchor, in [lo, hi].
template <class T>
struct TruncatedNormal {
  int32_t threshold;  // words above it (as 31-bit integers) lie on the upper side
  Form form;
  T lo, hi, unit, anchor;
  // Near: 1 - 2 * probability = x + t * x_step, without its cancellation. Far: 1 / alpha^2, 2 psi(kappa), the bound
  // near the mean and its distance from the mean. Narrow: coefficients. Values are in units, from the anchor.
  union {
    T step, c0;
  };
  union {
    T base_lower, c1;
  };
  union {
    T base_upper, c2;
  };
  union {
    T mean, near, c3;
  };
  union {
    T std, reach, c4;
  };
  union {
    T x_step, kappa, c5;
  };
  union {
    T x_lower, psi;
  };
  T x_upper;
};

struct Sparse {
  int64_t rows, cols, zeros;  // of the logical matrix; zeros in every column
  int64_t row0, col0;         // of the region
  uint64_t stream;            // of the draw that picks the zeros
  union {                     // of the values
    Normal<float> normal_f32;
    Normal<double> normal_f64;
  };
};

// A component of a mixture: the words (as 31-bit integers) from `first` on, the places 0 to `last`. Its value is
// start + scale * y, at most hi, with y the place, or a standard normal number where places have a probability, `unit`.
template <class T>
struct Component {
  uint32_t first, last;
  T unit, scale, start, hi;
};

// Its components follow it in memory, which the batch owns.
struct Mixture {
  int32_t count, normals;  // `normals`: whether there are any
};

// Ones at start + g * group_step + d * step for g < groups, d < count; zeros elsewhere.
struct Diagonals {
  int64_t start, groups, group_step, count, step;
};

// What is done to each value after it was drawn, in registers: `value op operand`, rounded to `dtype`. All steps of a
// fill are in float64, or none is.
enum class Op : int32_t { cast, mul, add, div };

struct Step {
  Op op;
  DType dtype;
  union {
    float f32;
    double f64;
  };
};

constexpr int kMaxDims = 8, kMaxSteps = 6, kMaxComponents = 256;

// What a distribution computes with, rounded to the type that it computes in.
union Constants {
  Uniform<float> uniform_f32;
  Uniform<double> uniform_f64;
  Normal<float> normal_f32;
  Normal<double> normal_f64;
  TruncatedNormal<float> truncated_f32;
  TruncatedNormal<double> truncated_f64;
  Sparse sparse;
  const Mixture* mixture;
  Diagonals diagonals;
};

struct Fill {
  unsigned char* data;
  Kind kind;
  DType dtype;
  int32_t item_size;
  int32_t dims;
  int32_t tensor;                     // its place in the batch
  bool non_temporal;                  // stores bypass the caches (CPU)
  int64_t sizes[kMaxDims];            // of the region, outermost first
  int64_t strides[kMaxDims];          // in memory, in elements
  int64_t logical_strides[kMaxDims];  // in the logical index
  uint64_t first;                     // logical index of the region's first element
  uint64_t first_block;               // of raw bits: the block where index 0 lies (a multiple of 32)
  uint64_t seed, stream;              // of a random fill
  uint64_t pattern[2];                // of a constant (or of diagonals' ones): the bytes of an element
  Constants constants;
  int32_t steps;  // of a uniform, a normal or a truncated normal
  Step program[kMaxSteps];

  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < dims; ++d) n *= sizes[d];
    return n;
  }
};

}  // namespace fastinit
