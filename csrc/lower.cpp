#include "lower.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "coefficients.h"
#include "components.h"
#include "distributions.h"
#include "floating_point.h"
#include "formats.h"
#include "normal.h"

namespace fastinit {
namespace {

void make_constant(Fill& fill, double x) {
  const Format f = format_of(fill.dtype);
  const int64_t rank = rank_nearest(f, x);
  fill.kind = Kind::constant;
  fill.pattern[0] = static_cast<uint64_t>(rank < 0 ? -rank : rank) | static_cast<uint64_t>(std::signbit(x))
                                                                         << (f.exponent + f.mantissa);
  fill.pattern[1] = 0;
}

// ---- derived constants, rounded once to T --------------------------------------------------------------------------

template <class T>
Uniform<T> uniform(double a, double b, const Bounds& bounds, double unit) {
  return {static_cast<T>((b - a) * unit), static_cast<T>(a), static_cast<T>(bounds.lo), static_cast<T>(bounds.hi)};
}

double psi_of(double kappa) {
  const double c[] = {FASTINIT_MILLS_F64};
  double sum = 0.0;
  for (int n = sizeof(c) / sizeof(c[0]) - 1; n >= 0; --n) sum = c[n] + kappa * sum;
  return kappa * sum;
}

// The power of two at or below |x|, if T has it.
template <class T>
double unit_of(double x) {
  constexpr int lowest = sizeof(T) == 4 ? -149 : -1074, highest = sizeof(T) == 4 ? 127 : 1023;
  int exponent = highest + 1;
  if (std::isfinite(x)) std::frexp(x, &exponent);
  exponent = exponent - 1 < lowest ? lowest : exponent - 1 > highest ? highest : exponent - 1;
  return std::ldexp(1.0, exponent);
}

// [a, b] from its middle: the density falls as exp(-tilt x) for x from -1 to 1, which its inverse is a series for.
template <class T>
void narrow(TruncatedNormal<T>& c, double a, double b, double tilt) {
  const double half = 0.5 * (b - a), square = tilt * tilt;
  const double unit = unit_of<T>(half);
  c.form = Form::narrow;
  c.unit = static_cast<T>(unit);
  c.anchor = static_cast<T>(0.5 * a + 0.5 * b);
  const double tanh = tilt * (15.0 + square) / (15.0 + 6.0 * square);
  const double c1 = half / unit * ((15.0 + square) / (15.0 + 6.0 * square));
  const double c2 = c1 * tanh / 2.0, c4 = c1 * tanh * tanh * tanh / 4.0;
  const double anchor = c.anchor;
  c.c0 = static_cast<T>(0.5 * ((a - anchor) + (b - anchor)) / unit - (c2 + c4));
  c.c1 = static_cast<T>(c1);
  c.c2 = static_cast<T>(c2);
  c.c3 = static_cast<T>(c1 * tanh * tanh / 3.0);
  c.c4 = static_cast<T>(c4);
  c.c5 = static_cast<T>(c1 * tanh * tanh * tanh * tanh / 5.0);
}

// `step` is the smallest step of the integer t: 2^-31 or 2^-62 of the mass.
template <class T>
TruncatedNormal<T> truncated_normal(double mean, double std, double a, double b, const Bounds& bounds, double step) {
  TruncatedNormal<T> c{};
  const double alpha = (a - mean) / std, beta = (b - mean) / std, width = (b - a) / std;
  c.lo = static_cast<T>(bounds.lo);
  c.hi = static_cast<T>(bounds.hi);

  // Narrow: fewer than some 2^14 last places of the distance from the mean, or so far below the deviation that the
  // constants of the other forms could underflow; and the logarithm of the density hardly changes.
  constexpr double kNarrow = sizeof(T) == 4 ? 0x1p-9 : 0x1p-38;
  const double distance = std::fmax(std::fabs(alpha), std::fabs(beta));
  if (width * distance <= 64.0 * kNarrow && width <= std::fmax(kNarrow * distance, 0x1p-64)) {
    narrow(c, a, b, 0.25 * (alpha + beta) * width);
    return c;
  }

  const bool upper = alpha >= 6.0, far = upper || beta <= -6.0;
  double point = far ? (upper ? a : b) : mean;
  double spread = far ? point - mean : std;
  const double scale = std::fmin(b - a, std / std::fmax(1.0, std::fmax(alpha, -beta)));
  double unit = 1.0, anchor = -0.0;  // y * 1 + -0 is y, zeros included
  const double moved = std::fabs(static_cast<double>(static_cast<T>(point)) - point);
  const double stretched = std::fabs(static_cast<double>(static_cast<T>(spread)) - spread);
  if (!(moved <= 0x1p-13 * scale && stretched <= 0x1p-13 * std::fabs(spread))) {
    // Rounding them once would move the law: what rounding leaves of the point is added first.
    unit = unit_of<T>(spread);
    anchor = std::isfinite(static_cast<T>(point)) ? static_cast<T>(point) : 0.0;
    point -= anchor;
  }
  c.unit = static_cast<T>(unit);
  c.anchor = static_cast<T>(anchor);
  const T origin = static_cast<T>(point / unit), stretch = static_cast<T>(spread / unit);
  if (far) {
    const double near = upper ? alpha : -beta, other = upper ? beta : -alpha;
    const double ratio =
        other == kInf ? 0.0
                      : exp_negative(-0.5 * (other - near) * (other + near)) * mills_ratio(other) / mills_ratio(near);
    c.form = Form::far;
    c.threshold = upper ? -1 : 0x7fffffff;
    c.step = static_cast<T>((1.0 - ratio) * step);
    c.base_lower = c.base_upper = static_cast<T>(ratio + (1.0 - ratio) * (0.5 * step));
    const double kappa = 1.0 / (near * near);
    c.kappa = static_cast<T>(kappa);
    c.psi = static_cast<T>(2.0 * psi_of(kappa));
    c.near = origin;
    c.reach = stretch;
    return c;
  }
  const double m = mass(alpha, beta);
  const double below = upper_tail(-alpha);  // Phi(alpha)
  double share = std::floor((0.5 - below) / m * 0x1p31);
  if (!(share > 0.0)) share = 0.0;
  if (share > 0x1p31) share = 0x1p31;
  c.form = Form::near;
  c.threshold = static_cast<int32_t>(share - 1.0);
  c.step = static_cast<T>(m * step);
  c.base_lower = static_cast<T>(below + m * (0.5 * step));
  c.base_upper = static_cast<T>(upper_tail(beta) + m * (0.5 * step));
  c.x_step = static_cast<T>(-2.0 * (m * step));
  c.x_lower = static_cast<T>(-2.0 * signed_central(alpha) - m * step);
  c.x_upper = static_cast<T>(2.0 * signed_central(beta) - m * step);
  c.mean = origin;
  c.std = stretch;
  return c;
}

// ---- layouts --------------------------------------------------------------------------------------------------------

// Drops dimensions of one element and merges neighbours that are one run both in memory and in the logical tensor.
void merge(std::vector<int64_t>& sizes, std::vector<int64_t>& strides, std::vector<int64_t>& logical_strides) {
  size_t kept = 0;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    if (kept > 0 && strides[kept - 1] == strides[d] * sizes[d] &&
        logical_strides[kept - 1] == logical_strides[d] * sizes[d]) {
      sizes[kept - 1] *= sizes[d];
    } else {
      sizes[kept++] = sizes[d];
    }
    strides[kept - 1] = strides[d];
    logical_strides[kept - 1] = logical_strides[d];
  }
  if (kept == 0) {
    sizes.assign(1, sizes.empty() || sizes[0] == 1 ? 1 : sizes[0]);
    strides.assign(1, 1);
    logical_strides.assign(1, 1);
    return;
  }
  sizes.resize(kept);
  strides.resize(kept);
  logical_strides.resize(kept);
}

// Appends `fill` over this layout; more than kMaxDims dimensions become several fills.
void append(std::vector<Fill>& out, const Fill& fill, const std::vector<int64_t>& sizes,
            const std::vector<int64_t>& strides, const std::vector<int64_t>& logical_strides) {
  if (sizes.size() > kMaxDims) {
    const std::vector<int64_t> inner(sizes.begin() + 1, sizes.end()), inner_strides(strides.begin() + 1, strides.end()),
        inner_logical(logical_strides.begin() + 1, logical_strides.end());
    Fill part = fill;
    for (int64_t i = 0; i < sizes[0]; ++i) {
      append(out, part, inner, inner_strides, inner_logical);
      part.data += strides[0] * fill.item_size;
      part.first += static_cast<uint64_t>(logical_strides[0]);
    }
    return;
  }
  out.push_back(fill);
  Fill& made = out.back();
  made.dims = static_cast<int32_t>(sizes.size());
  for (size_t d = 0; d < sizes.size(); ++d) {
    made.sizes[d] = sizes[d];
    made.strides[d] = strides[d];
    made.logical_strides[d] = logical_strides[d];
  }
}

[[noreturn]] void malformed(const char* what) { throw std::invalid_argument(std::string("malformed fill: ") + what); }

DType dtype_of(int64_t code) {
  if (code < 0 || code > static_cast<int64_t>(DType::opaque) + 16) malformed("an unknown dtype");
  return static_cast<DType>(code);
}

int item_size_of(DType dtype) {
  if (is_float(dtype)) return size_of(format_of(dtype));
  if (dtype == DType::i32) return 4;
  const int size = static_cast<int>(dtype) - static_cast<int>(DType::opaque);
  if (size != 1 && size != 2 && size != 4 && size != 8 && size != 16) malformed("an unknown dtype");
  return size;
}

// What is done after the draw of a dtype: its rounding, and the steps.
void add_program(Fill& fill, DType drawn, const std::vector<Description::Step>& steps) {
  const auto add = [&](Step step) {
    if (fill.steps == kMaxSteps) malformed("too many steps");
    if (!is_float(step.dtype) || (step.dtype == DType::f64) != (fill.dtype == DType::f64)) {
      malformed("a step in a dtype that a program for this one cannot have");
    }
    fill.program[fill.steps++] = step;
  };
  Step step{};
  step.dtype = drawn;
  if (drawn == DType::f16 || drawn == DType::bf16 || drawn == DType::e4m3 || drawn == DType::e5m2) add(step);
  for (const Description::Step& asked : steps) {
    if (asked.op < static_cast<int64_t>(Op::cast) || asked.op > static_cast<int64_t>(Op::div)) {
      malformed("an unknown operation");
    }
    step.op = static_cast<Op>(asked.op);
    step.dtype = dtype_of(asked.dtype);
    if (step.dtype == DType::f64) {
      step.f64 = asked.operand;
    } else {
      step.f32 = static_cast<float>(asked.operand);
    }
    add(step);
  }
  if ((drawn == DType::f64) != (fill.dtype == DType::f64) || step.dtype != fill.dtype) {
    malformed("a program that ends in another dtype than its tensor's");
  }
  // Storing rounds to the tensor's dtype, so what ends with that cast alone needs no step.
  while (fill.steps > 0 && fill.program[fill.steps - 1].op == Op::cast &&
         fill.program[fill.steps - 1].dtype == fill.dtype) {
    --fill.steps;
  }
}

// A constant, run through the fill's program.
void run_on_constant(Fill& fill, DType drawn) {
  if (drawn == DType::f64) {
    double x[1];
    std::memcpy(x, fill.pattern, 8);
    scalar::run_steps64(fill.program, fill.steps, x);
    std::memcpy(fill.pattern, x, 8);
  } else {
    const auto stored = static_cast<uint32_t>(fill.pattern[0]);
    uint32_t x[1] = {scalar::with_format(drawn, [&](auto format) { return format.value(stored); })};
    scalar::run_steps(fill.program, fill.steps, x);
    fill.pattern[0] = scalar::with_format(fill.dtype, [&](auto format) { return format.round(x[0]); });
  }
  fill.steps = 0;
}

void lower_eye_or_dirac(Fill& fill, const std::vector<int64_t>& shape, double groups_wanted) {
  Diagonals c{};
  if (fill.kind == Kind::eye) {
    if (shape.size() != 2) malformed("eye takes a matrix");
    c = {0, 1, shape[0] * shape[1], shape[0] < shape[1] ? shape[0] : shape[1], shape[1] + 1};
  } else {
    if (shape.size() < 3 || !(groups_wanted >= 1.0 && groups_wanted <= 0x1p53)) {
      malformed("dirac takes 3 dimensions or more and groups");
    }
    int64_t kernel = 1, centre = 0;
    for (size_t d = 2; d < shape.size(); ++d) {
      kernel *= shape[d];
      centre = centre * shape[d] + shape[d] / 2;
    }
    const int64_t groups = static_cast<int64_t>(groups_wanted), out = shape[0] / groups;
    c = {centre, groups, out * shape[1] * kernel, out < shape[1] ? out : shape[1], (shape[1] + 1) * kernel};
  }
  // A tensor without elements: any positive steps do.
  if (c.group_step < 1) c.group_step = 1;
  if (c.step < 1) c.step = 1;
  fill.kind = Kind::diagonals;
  fill.constants.diagonals = c;
  fill.pattern[0] = fill.pattern[1] = 0;
  if (is_float(fill.dtype)) {
    Fill one = fill;
    make_constant(one, 1.0);
    fill.pattern[0] = one.pattern[0];
  } else {
    fill.pattern[0] = 1;
  }
}

// The stream's most distant normal: the radius of words of 0, where the cosine is 1 or -1.
constexpr float kRadius32 = 0x1.aa449ap+2f;
constexpr double kRadius64 = 0x1.2b0d8931175afp+3;

// A normal number as a fill of the dtype writes it.
double as_written(DType dtype, double z, double mean, double std) {
  if (dtype == DType::f64) return z * std + mean;
  const float x = scalar::fma(static_cast<float>(z), static_cast<float>(std), static_cast<float>(mean));
  return scalar::with_format(dtype, [&](auto format) {
    return static_cast<double>(scalar::from_bits(format.value(format.round(scalar::bits(x)))));
  });
}

// Whether every value of a normal fill lies in the bounds: its arithmetic and its rounding keep the order of values.
bool cuts_nothing(DType dtype, double mean, double std, const Bounds& bounds) {
  const double radius = dtype == DType::f64 ? kRadius64 : kRadius32;
  return as_written(dtype, -radius, mean, std) >= bounds.lo && as_written(dtype, radius, mean, std) <= bounds.hi;
}

void lower_normal(Fill& fill, double mean, double std) {
  fill.kind = Kind::normal;
  if (fill.dtype == DType::f64) {
    fill.constants.normal_f64 = {mean, std};
  } else {
    fill.constants.normal_f32 = {static_cast<float>(mean), static_cast<float>(std)};
  }
}

void lower_random(Fill& fill, const double (&p)[4]) {
  const bool f64 = fill.dtype == DType::f64;
  if (!is_float(fill.dtype)) malformed("a random fill of a dtype that is not floating");
  if (fill.kind == Kind::uniform) {
    const Bounds bounds = bounds_in(fill.dtype, p[0], p[1], p[0] != p[1]);
    if (bounds.empty) return make_constant(fill, p[0]);
    if (f64) {
      fill.constants.uniform_f64 = uniform<double>(p[0], p[1], bounds, 0x1p-53);
    } else {
      fill.constants.uniform_f32 = uniform<float>(p[0], p[1], bounds, 0x1p-24);
    }
  } else if (fill.kind == Kind::normal) {
    lower_normal(fill, p[0], p[1]);
  } else {
    const Bounds bounds = bounds_in(fill.dtype, p[2], p[3], false);
    if (bounds.empty) return make_constant(fill, p[2]);
    if (!(p[1] > 0.0)) {  // all the mass in one point
      return make_constant(fill, scalar::clamp64(p[0], bounds.lo, bounds.hi));
    }
    if (cuts_nothing(fill.dtype, p[0], p[1], bounds)) return lower_normal(fill, p[0], p[1]);
    if (f64) {
      fill.constants.truncated_f64 = truncated_normal<double>(p[0], p[1], p[2], p[3], bounds, 0x1p-62);
    } else {
      fill.constants.truncated_f32 = truncated_normal<float>(p[0], p[1], p[2], p[3], bounds, 0x1p-31);
    }
  }
}

void lower_sparse(Fill& fill, const Description& from, const std::vector<int64_t>& shape) {
  if (shape.size() != 2) malformed("sparse takes a matrix");
  if (!is_float(fill.dtype)) malformed("a random fill of a dtype that is not floating");
  if (shape[0] >= int64_t{1} << 31) malformed("sparse takes less than 2^31 rows");
  const double rows = static_cast<double>(shape[0]), std = from.params[1];
  double zeros = std::ceil(from.params[0] * rows);
  if (!(zeros > 0.0)) zeros = 0.0;
  if (zeros > rows) zeros = rows;
  Sparse& c = fill.constants.sparse;
  c = {shape[0], shape[1], static_cast<int64_t>(zeros), 0, 0, from.second, {}};
  if (fill.dtype == DType::f64) {
    c.normal_f64 = {0.0, std};
  } else {
    c.normal_f32 = {0.0f, static_cast<float>(std)};
  }
  if (from.has_region) {
    c.row0 = from.offsets[0];
    c.col0 = from.offsets[1];
  }
  fill.first = 0;
}

// Strides of the logical tensor, and the index there of the region's first element. False if it has no elements.
bool place(Fill& fill, Description& from) {
  const size_t dims = from.sizes.size();
  if (from.strides.size() != dims) malformed("strides of other dimensions than the sizes");
  if (from.has_region && (from.shape.size() != dims || from.offsets.size() != dims)) {
    malformed("a region has other dimensions than its tensor");
  }
  from.logical_strides.resize(dims);
  int64_t stride = 1;
  bool empty = false;
  for (size_t d = dims; d-- > 0;) {
    const int64_t size = from.sizes[d], shape = from.has_region ? from.shape[d] : size;
    const int64_t offset = from.has_region ? from.offsets[d] : 0;
    if (size < 0) malformed("a negative size");
    if (offset < 0 || offset > shape - size) malformed("a region leaves its logical tensor");
    from.logical_strides[d] = stride;
    fill.first += static_cast<uint64_t>(offset * stride);
    if (__builtin_mul_overflow(stride, shape > 0 ? shape : 1, &stride)) malformed("a logical shape is too large");
    empty = empty || size == 0;
  }
  return !empty;
}

}  // namespace

void lower(Description& from, std::vector<Fill>& to, Owned& owned) {
  const DefaultFloatingPoint guard;  // constants, too, have subnormals
  Fill fill{};
  fill.tensor = from.tensor;
  fill.data = reinterpret_cast<unsigned char*>(from.address);
  fill.dtype = dtype_of(from.dtype);
  fill.item_size = item_size_of(fill.dtype);
  if (from.kind < 0 || from.kind > static_cast<int64_t>(Kind::mixture)) malformed("an unknown kind");
  fill.kind = static_cast<Kind>(from.kind);
  fill.seed = from.seed;
  fill.stream = from.stream;
  DType drawn = fill.dtype;
  if (!from.steps.empty()) {
    if (fill.kind != Kind::uniform && fill.kind != Kind::normal && fill.kind != Kind::truncated_normal) {
      malformed("steps after a fill that takes none");
    }
    if (!is_float(drawn)) malformed("a random fill of a dtype that is not floating");
    drawn = dtype_of(from.drawn);
    add_program(fill, drawn, from.steps);
  }
  if (!place(fill, from)) return;
  const std::vector<int64_t>& shape = from.has_region ? from.shape : from.sizes;
  switch (fill.kind) {
    case Kind::constant:
      fill.pattern[0] = from.words[0];
      fill.pattern[1] = from.words[1];
      break;
    case Kind::bits:
      if (fill.dtype != DType::i32) malformed("raw bits take int32");
      if (from.offset_high > 3) malformed("an offset has 66 bits");
      // Whole groups of 32 blocks, 128 words, go into first_block.
      fill.first_block = (from.offset_high << 62 | from.offset_low >> 2) & ~uint64_t{31};
      fill.first += from.offset_low & 127;
      break;
    case Kind::sparse:
      lower_sparse(fill, from, shape);
      return append(to, fill, from.sizes, from.strides, from.logical_strides);
    case Kind::mixture:
      if (!is_float(fill.dtype)) malformed("a random fill of a dtype that is not floating");
      fill.constants.mixture = fill.dtype == DType::f64 ? make_mixture<double>(fill.dtype, from.components, owned)
                                                        : make_mixture<float>(fill.dtype, from.components, owned);
      if (fill.constants.mixture == nullptr) malformed("no mixture has such components");
      break;
    case Kind::eye:
    case Kind::dirac:
      lower_eye_or_dirac(fill, shape, from.params[0]);
      break;
    default:
      std::swap(fill.dtype, drawn);
      lower_random(fill, from.params);
      std::swap(fill.dtype, drawn);
      if (fill.steps > 0 && fill.kind == Kind::constant) run_on_constant(fill, drawn);
  }
  merge(from.sizes, from.strides, from.logical_strides);
  append(to, fill, from.sizes, from.strides, from.logical_strides);
}

}  // namespace fastinit
