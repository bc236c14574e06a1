// Words -> values, over lanes: one function a distribution, and the rounding to narrow dtypes. docs/stream.md states
// every operation; the order of operations here is part of the stream.
#pragma once
#include "coefficients.h"
#include "fill.h"
#include "lane.h"

namespace fastinit {
namespace FASTINIT_ISA {

// ---- float32 ----------------------------------------------------------------------------------------------------

// -2 log(x 2^-scale), for x positive and normal.
template <int scale>
FASTINIT_FN F neg2log(F x) {
  // x = 2^(e + scale) m with m in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
  const U i = sub(bits(x), splat(0x3f3504f3u + (static_cast<uint32_t>(scale) << 23)));
  const U e = bit_and(i, splat(0xff800000u));  // the exponent, 2^23 times: the same product as of the exponent itself
  const F f = add(from_bits(add(sub(i, e), splat(0x3f3504f3u))), splat(-1.0f));
  return fma(to_float(e), splat(-0x1.62e430p-23f), mul(f, horner(f, FASTINIT_NEG2LOG_F32)));
}

// Box and Muller (1958): words to the radius and the angle of a normal pair.
FASTINIT_FN void normal_pair(U w0, U w1, F& even, F& odd) {
  const F radius = sqrt(neg2log<31>(add(to_float(shr<1>(w0)), splat(0.5f))));
  // The angle in quarter turns is q + y / 2, with y in [-1, 1].
  const U q = add(w1, splat(0x20000000u));  // in its upper two bits
  const F y = mul(to_float(shl<2>(w1)), splat(0x1p-31f));
  const F y2 = mul(y, y);
  const F s = mul(y, horner(y2, FASTINIT_SINE_F32));
  const F c = horner(y2, FASTINIT_COSINE_F32);
  const Mask swap = has_bit<30>(q);
  // Half a turn changes both signs, a quarter turn from there on the cosine's.
  const F turned = from_bits(bit_xor(bits(radius), bit_and(q, splat(0x80000000u))));
  even = mul(turned, select(swap, neg(s), c));
  odd = mul(turned, select(swap, c, s));
}

// 1 / y for y in [1, 4]: four Newton steps from an estimate good to 12%.
FASTINIT_FN F reciprocal(F y) {
  F r = from_bits(sub(splat(0x7ef311c7u), bits(y)));
#pragma GCC unroll 4
  for (int step = 0; step < 4; ++step) r = fma(r, fma(neg(y), r, splat(1.0f)), r);
  return r;
}

// The far tail: Q(z) = ratio Q(alpha), alpha >= 6. With z = alpha sqrt(1 + delta) and kappa = 1 / alpha^2,
//   delta + kappa (log(1 + delta) + 2 psi(kappa / (1 + delta)) - 2 psi(kappa)) = -2 kappa log(ratio),
// where psi(w) = -log(z m(z)) at w = 1 / z^2 and m is Mills' ratio. Newton, with psi' = 1 in the slope.
FASTINIT_FN F far_tail(F ratio, const TruncatedNormal<float>& c) {
  const F kappa = splat(c.kappa);
  const F e = mul(neg2log<0>(ratio), kappa);
  F delta = fma(neg2log<0>(add(e, splat(1.0f))), splat(0.5f * c.kappa), e);
#pragma GCC unroll 2
  for (int step = 0; step < 2; ++step) {
    const F y = add(delta, splat(1.0f));
    const F w = mul(kappa, reciprocal(y));
    const F psi = mul(w, horner(w, FASTINIT_MILLS_F32));
    const F change = fma(neg2log<0>(y), splat(-0.5f), fma(psi, splat(2.0f), splat(-c.psi)));
    const F miss = fma(kappa, change, add(delta, neg(e)));
    const F slope = fma(fma(w, splat(-2.0f), splat(1.0f)), w, splat(1.0f));
    delta = fma(neg(miss), reciprocal(slope), delta);
  }
  const F stretch = mul(delta, reciprocal(add(sqrt(add(delta, splat(1.0f))), splat(1.0f))));
  return fma(stretch, splat(c.reach), splat(c.near));
}

// The narrow form: a cubic in v beside v itself, whose steps stay larger than any rounding of the rest.
FASTINIT_FN F narrow_form(U word, const TruncatedNormal<float>& c) {
  const F v = mul(to_float(bit_xor(word, splat(0x80000000u))), splat(0x1p-31f));
  const F rest = fma(fma(fma(splat(c.c5), v, splat(c.c4)), v, splat(c.c3)), v, splat(c.c2));
  return fma(v, splat(c.c1), fma(mul(v, v), rest, splat(c.c0)));
}

// The near form, where the central polynomial serves: a normal number, and what tells whether it does.
FASTINIT_FN F near_centre(U word, const TruncatedNormal<float>& c, Mask& upper, F& length) {
  const U k = shr<1>(word);
  upper = greater(k, splat(static_cast<uint32_t>(c.threshold)));
  const F t = to_float(select(upper, bit_xor(k, splat(0x7fffffffu)), k));
  const F p = fma(t, splat(c.step), select(upper, splat(c.base_upper), splat(c.base_lower)));
  // From here on with the sign of the side.
  const F x = select(upper, fma(t, splat(c.x_step), splat(c.x_upper)), fma(t, splat(-c.x_step), splat(-c.x_lower)));
  length = neg2log<-2>(fma(neg(p), p, p));  // -2 log(1 - x^2)
  return mul(x, horner(length, FASTINIT_QUANTILE_CENTRAL_F32));
}

// `z`, but where the length says so the polynomial for the tail.
FASTINIT_FN F near_tail(F z, Mask upper, F length) {
  const F y = horner(add(sqrt(length), splat(-6.0f)), FASTINIT_QUANTILE_TAIL_F32);
  return select(greater(length, splat(10.0f)), select(upper, y, neg(y)), z);
}

// What every form ends with.
FASTINIT_FN F placed(F y, const TruncatedNormal<float>& c) {
  return clamp(fma(y, splat(c.unit), splat(c.anchor)), c.lo, c.hi);
}

FASTINIT_FN F near_value(F z, const TruncatedNormal<float>& c) {
  return placed(fma(z, splat(c.std), splat(c.mean)), c);
}

FASTINIT_FN F truncated_normal(U word, const TruncatedNormal<float>& c) {
  if (c.form == Form::narrow) return placed(narrow_form(word, c), c);
  if (c.form == Form::far) {
    const U k = shr<1>(word);
    const U t = select(greater(k, splat(static_cast<uint32_t>(c.threshold))), bit_xor(k, splat(0x7fffffffu)), k);
    return placed(far_tail(fma(to_float(t), splat(c.step), splat(c.base_lower)), c), c);
  }
  Mask upper;
  F length;
  F z = near_centre(word, c, upper, length);
  if (any(greater(length, splat(10.0f)))) z = near_tail(z, upper, length);
  return near_value(z, c);
}

// A distribution: the values of a block from its words and its constants, as bit patterns of float32.
struct BitsDist {
  struct Constants {};
  FASTINIT_FN void values(const U w[4], const Constants&, U e[4]) {
    for (int j = 0; j < 4; ++j) e[j] = w[j];
  }
};

struct UniformDist {
  using Constants = Uniform<float>;
  FASTINIT_FN void values(const U w[4], const Constants& c, U e[4]) {
    for (int j = 0; j < 4; ++j) {
      e[j] = bits(clamp(fma(to_float(shr<8>(w[j])), splat(c.scale), splat(c.start)), c.lo, c.hi));
    }
  }
};

struct NormalDist {
  using Constants = Normal<float>;
  FASTINIT_FN void values(const U w[4], const Constants& c, U e[4]) {
    for (int j = 0; j < 4; j += 2) {
      F even, odd;
      normal_pair(w[j], w[j + 1], even, odd);
      e[j] = bits(fma(even, splat(c.std), splat(c.mean)));
      e[j + 1] = bits(fma(odd, splat(c.std), splat(c.mean)));
    }
  }
};

struct TruncatedNormalDist {
  using Constants = TruncatedNormal<float>;
  FASTINIT_FN void values(const U w[4], const Constants& c, U e[4]) {
    if (kLanes > 1 || c.form != Form::near) {
      for (int j = 0; j < 4; ++j) e[j] = bits(truncated_normal(w[j], c));
      return;
    }
    // On a GPU one branch for the block, so that its words share registers of coefficients and instructions.
    Mask upper[4];
    F length[4], z[4];
    for (int j = 0; j < 4; ++j) z[j] = near_centre(w[j], c, upper[j], length[j]);
    const F longest = max(max(length[0], length[1]), max(length[2], length[3]));
    if (any(greater(longest, splat(10.0f)))) {
      for (int j = 0; j < 4; ++j) {
        if (any(greater(length[j], splat(10.0f)))) z[j] = near_tail(z[j], upper[j], length[j]);
      }
    }
    for (int j = 0; j < 4; ++j) e[j] = bits(near_value(z[j], c));
  }
};

// A near truncated normal of which no word takes the tail, with the unit 1 and the anchor -0 (csrc/tables.cpp).
struct PlainTruncatedNormalDist {
  using Constants = TruncatedNormal<float>;
  FASTINIT_FN void values(const U w[4], const Constants& c, U e[4]) {
    for (int j = 0; j < 4; ++j) {
      Mask upper;
      F length;
      const F z = near_centre(w[j], c, upper, length);
      e[j] = bits(clamp(fma(z, splat(c.std), splat(c.mean)), c.lo, c.hi));
    }
  }
};

// ---- float32 to narrow dtypes, to nearest even ------------------------------------------------------------------

// A binary format with `exponent` and `mantissa` bits. Results lie in the low bits of each lane.
// The overflow is torch's: what lies past the largest value becomes `top`, infinity or, in float8_e4m3fn, 448.
template <int exponent, int mantissa, uint32_t top, uint32_t nan>
FASTINIT_FN U narrow(U x) {
  constexpr int drop = 23 - mantissa;
  constexpr uint32_t bias = (1u << (exponent - 1)) - 1;
  const U magnitude = bit_and(x, splat(0x7fffffffu));
  // Normal results: add half of the last place (less one, plus its parity), rebias, drop.
  const U parity = bit_and(shr<drop>(magnitude), splat(1u));
  U n = shr<drop>(add(add(magnitude, parity), splat((1u << (drop - 1)) - 1u - ((127u - bias) << 23))));
  // Subnormal results: an addition whose last place is the format's smallest subnormal does the rounding.
  constexpr uint32_t magic = (127u - bias + 1u + drop) << 23;
  const U tiny = sub(bits(add(from_bits(magnitude), from_bits(splat(magic)))), splat(magic));
  n = select(greater(splat((128u - bias) << 23), magnitude), tiny, n);
  n = select(greater(n, splat(top)), splat(top), n);
  n = select(greater(magnitude, splat(0x7f800000u)), splat(nan), n);
  return bit_or(n, shl<exponent + mantissa>(shr<31>(x)));
}

// The float32 that a value of such a format is; magnitudes above `top` are infinite (`top` itself, if there are any) or
// not numbers.
template <int exponent, int mantissa, uint32_t top, bool infinite>
FASTINIT_FN U widen(U n) {
  constexpr int drop = 23 - mantissa;
  constexpr uint32_t bias = (1u << (exponent - 1)) - 1;
  const U magnitude = bit_and(n, splat((1u << (exponent + mantissa)) - 1u));
  // The exponent's bits read as float32's make it 2^(127 - bias) times too small; so they do of subnormals.
  U x = bits(mul(from_bits(shl<drop>(magnitude)), from_bits(splat((254u - bias) << 23))));
  x = select(greater(magnitude, splat(infinite ? top - 1u : top)), splat(0x7f800000u), x);
  x = select(greater(magnitude, splat(top)), splat(0x7fc00000u), x);
  return bit_or(x, shl<31>(shr<exponent + mantissa>(n)));
}

struct F16 {
  static constexpr int kBytes = 2;
  FASTINIT_FN U round(U x) { return narrow<5, 10, 0x7c00u, 0x7e00u>(x); }
  FASTINIT_FN U value(U n) { return widen<5, 10, 0x7c00u, true>(n); }
};
struct E5M2 {
  static constexpr int kBytes = 1;
  FASTINIT_FN U round(U x) { return narrow<5, 2, 0x7cu, 0x7fu>(x); }
  FASTINIT_FN U value(U n) { return widen<5, 2, 0x7cu, true>(n); }
};
struct E4M3 {  // no infinity
  static constexpr int kBytes = 1;
  FASTINIT_FN U round(U x) { return narrow<4, 3, 0x7eu, 0x7fu>(x); }
  FASTINIT_FN U value(U n) { return widen<4, 3, 0x7eu, false>(n); }
};
struct BF16 {  // float32's exponent: no other range, so no subnormals of its own
  static constexpr int kBytes = 2;
  FASTINIT_FN U round(U x) {
    const U n = shr<16>(add(add(x, bit_and(shr<16>(x), splat(1u))), splat(0x7fffu)));
    return select(is_nan(from_bits(x)), splat(0x7fc0u), n);
  }
  FASTINIT_FN U value(U n) { return shl<16>(n); }
};
struct F32 {
  static constexpr int kBytes = 4;
  FASTINIT_FN U round(U x) { return x; }
  FASTINIT_FN U value(U n) { return n; }
};

// Calls `use` with the format of a dtype that is computed in float32.
template <class Use>
FASTINIT_FN auto with_format(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::f16:
      return use(F16());
    case DType::bf16:
      return use(BF16());
    case DType::e4m3:
      return use(E4M3());
    case DType::e5m2:
      return use(E5M2());
    default:
      return use(F32());
  }
}

// ---- what is done to values after they were drawn: each operation with its own rounding --------------------------

FASTINIT_FN F rounded(F x, DType dtype) {
  return with_format(dtype, [&](auto format) { return from_bits(format.value(format.round(bits(x)))); });
}

FASTINIT_FN F operate(F x, const Step& step) {
  switch (step.op) {
    case Op::mul:
      return mul(x, splat(step.f32));
    case Op::add:
      return add(x, splat(step.f32));
    case Op::div:
      return div(x, splat(step.f32));
    default:
      return x;
  }
}

template <int n>
FASTINIT_FN void run_steps(const Step* program, int steps, U (&e)[n]) {
#pragma GCC unroll 1
  for (int s = 0; s < steps; ++s) {
    for (int j = 0; j < n; ++j) e[j] = bits(rounded(operate(from_bits(e[j]), program[s]), program[s].dtype));
  }
}

// A distribution that is named at run time, and the steps after it.
struct Program {
  Kind kind;
  const Constants* constants;
  const Step* steps;
  int32_t count;
};

struct ProgramDist {
  using Constants = Program;
  FASTINIT_FN void values(const U w[4], const Program& c, U e[4]) {
    U drawn[4];
    if (c.kind == Kind::uniform) {
      UniformDist::values(w, c.constants->uniform_f32, drawn);
    } else if (c.kind == Kind::normal) {
      NormalDist::values(w, c.constants->normal_f32, drawn);
    } else {
      TruncatedNormalDist::values(w, c.constants->truncated_f32, drawn);
    }
    run_steps(c.steps, c.count, drawn);
    for (int j = 0; j < 4; ++j) e[j] = drawn[j];
  }
};

// ---- float64: the same formulas over doubles, without fma -------------------------------------------------------

#ifdef __CUDACC__
FASTINIT_FN double mul64(double a, double b) { return __dmul_rn(a, b); }
FASTINIT_FN double add64(double a, double b) { return __dadd_rn(a, b); }
FASTINIT_FN double div64(double a, double b) { return __ddiv_rn(a, b); }
FASTINIT_FN double sqrt64(double a) { return __dsqrt_rn(a); }
FASTINIT_FN uint64_t bits64(double a) { return static_cast<uint64_t>(__double_as_longlong(a)); }
FASTINIT_FN double from_bits64(uint64_t a) { return __longlong_as_double(static_cast<long long>(a)); }
#else
FASTINIT_FN double mul64(double a, double b) { return a * b; }
FASTINIT_FN double add64(double a, double b) { return a + b; }
FASTINIT_FN double div64(double a, double b) { return a / b; }
FASTINIT_FN double sqrt64(double a) { return __builtin_sqrt(a); }
FASTINIT_FN uint64_t bits64(double a) {
  uint64_t u;
  memcpy(&u, &a, 8);
  return u;
}
FASTINIT_FN double from_bits64(uint64_t a) {
  double d;
  memcpy(&d, &a, 8);
  return d;
}
#endif

FASTINIT_FN double clamp64(double x, double lo, double hi) {
  x = x < hi ? x : hi;
  return x > lo ? x : lo;
}

// The 62-bit integer of the upper 31 bits of two words, as a double.
FASTINIT_FN double to_double(uint32_t hi, uint32_t lo) {
  return static_cast<double>(static_cast<int32_t>(hi)) * 0x1p31 + static_cast<double>(static_cast<int32_t>(lo));
}

template <int scale>
FASTINIT_FN double neg2log64(double x) {
  constexpr uint64_t root = 0x3fe6a09e667f3bcdull;
  const uint64_t i = bits64(x) - (root + (static_cast<uint64_t>(scale) << 52));
  const double e = static_cast<double>(static_cast<int32_t>(static_cast<int64_t>(i) >> 52));
  const double f = from_bits64((i & 0x000fffffffffffffull) + root) - 1.0;
  // -2 log 2 in two parts: the first is exact in every product with e.
  return e * -0x1.62e42fefa0000p+0 + (e * -0x1.cf79abc9e3b39p-39 + f * horner(f, FASTINIT_NEG2LOG_F64));
}

FASTINIT_FN double uniform64(const uint32_t w[2], const Uniform<double>& c) {
  const double u = static_cast<double>(static_cast<int32_t>(w[0] >> 5)) * 0x1p26 +
                   static_cast<double>(static_cast<int32_t>(w[1] >> 6));
  return clamp64(u * c.scale + c.start, c.lo, c.hi);
}

FASTINIT_FN void normal_pair64(const uint32_t w[4], const Normal<double>& c, double e[2]) {
  const double radius = sqrt64(neg2log64<62>(to_double(w[0] >> 1, w[1] >> 1) + 0.5));
  const uint32_t q = (w[2] + 0x20000000u) >> 30;
  const double y = (static_cast<double>(static_cast<int32_t>(w[2] << 2)) +
                    static_cast<double>(static_cast<int32_t>(w[3] >> 1)) * 0x1p-29) *
                   0x1p-31;
  const double y2 = y * y;
  const double s = y * horner(y2, FASTINIT_SINE_F64), c0 = horner(y2, FASTINIT_COSINE_F64);
  const double cosine = (q & 1) ? s : c0, sine = (q & 1) ? c0 : s;
  e[0] = radius * (((q + 1) & 2) ? -cosine : cosine) * c.std + c.mean;
  e[1] = radius * ((q & 2) ? -sine : sine) * c.std + c.mean;
}

FASTINIT_FN double reciprocal64(double y) {
  double r = from_bits64(0x7fde623822fc16e6ull - bits64(y));
  for (int step = 0; step < 5; ++step) r = r + r * (1.0 - y * r);
  return r;
}

FASTINIT_FN double far_tail64(double ratio, const TruncatedNormal<double>& c) {
  const double e = neg2log64<0>(ratio) * c.kappa;
  double delta = e + neg2log64<0>(1.0 + e) * (0.5 * c.kappa);
  for (int step = 0; step < 4; ++step) {
    const double y = 1.0 + delta;
    const double w = c.kappa * reciprocal64(y);
    const double psi = w * horner(w, FASTINIT_MILLS_F64);
    const double change = neg2log64<0>(y) * -0.5 + (psi * 2.0 - c.psi);
    const double miss = c.kappa * change + (delta - e);
    const double slope = 1.0 + w * (1.0 - 2.0 * w);
    delta = delta - miss * reciprocal64(slope);
  }
  const double stretch = delta * reciprocal64(1.0 + sqrt64(1.0 + delta));
  return stretch * c.reach + c.near;
}

FASTINIT_FN double narrow_form64(const uint32_t w[2], const TruncatedNormal<double>& c) {
  const double v = (static_cast<double>(static_cast<int32_t>(w[0] ^ 0x80000000u)) +
                    static_cast<double>(static_cast<int32_t>(w[1] >> 1)) * 0x1p-31) *
                   0x1p-31;
  const double rest = c.c2 + v * (c.c3 + v * (c.c4 + v * c.c5));
  return v * c.c1 + (v * v * rest + c.c0);
}

FASTINIT_FN double placed64(double y, const TruncatedNormal<double>& c) {
  return clamp64(y * c.unit + c.anchor, c.lo, c.hi);
}

// The normal number of a side: 1 - 2 * its tail probability is `x`, and `length` is -2 log(1 - x^2).
FASTINIT_FN double quantile64(double x, double length, bool upper) {
  double z;
  if (length > 10.0) {
    const double s = sqrt64(length);
    z = s < 6.0 ? horner(s - 4.5, FASTINIT_QUANTILE_TAIL_NEAR_F64) : horner(s - 8.75, FASTINIT_QUANTILE_TAIL_FAR_F64);
  } else {
    z = x * horner(length, FASTINIT_QUANTILE_CENTRAL_F64);
  }
  return upper ? z : -z;
}

FASTINIT_FN double truncated_normal64(const uint32_t w[2], const TruncatedNormal<double>& c) {
  if (c.form == Form::narrow) return placed64(narrow_form64(w, c), c);
  const uint32_t k = w[0] >> 1;
  const bool upper = static_cast<int32_t>(k) > c.threshold;
  const uint32_t flip = upper ? 0x7fffffffu : 0u;
  const double t = to_double(k ^ flip, (w[1] >> 1) ^ flip);
  const double p = t * c.step + (upper ? c.base_upper : c.base_lower);
  if (c.form == Form::far) return placed64(far_tail64(p, c), c);
  const double x = t * c.x_step + (upper ? c.x_upper : c.x_lower);
  const double p4 = p * 4.0;
  return placed64(quantile64(x, neg2log64<0>(p4 - p4 * p), upper) * c.std + c.mean, c);
}

// A distribution: the two values of a block.
struct UniformDist64 {
  using Constants = Uniform<double>;
  FASTINIT_FN void values(const uint32_t w[4], const Constants& c, double e[2]) {
    e[0] = uniform64(w, c);
    e[1] = uniform64(w + 2, c);
  }
};
struct NormalDist64 {
  using Constants = Normal<double>;
  FASTINIT_FN void values(const uint32_t w[4], const Constants& c, double e[2]) { normal_pair64(w, c, e); }
};
struct TruncatedNormalDist64 {
  using Constants = TruncatedNormal<double>;
  FASTINIT_FN void values(const uint32_t w[4], const Constants& c, double e[2]) {
    e[0] = truncated_normal64(w, c);
    e[1] = truncated_normal64(w + 2, c);
  }
};

template <int n>
FASTINIT_FN void run_steps64(const Step* program, int steps, double (&e)[n]) {
  for (int s = 0; s < steps; ++s) {
    const double c = program[s].f64;
    for (int j = 0; j < n; ++j) {
      switch (program[s].op) {
        case Op::mul:
          e[j] = mul64(e[j], c);
          break;
        case Op::add:
          e[j] = add64(e[j], c);
          break;
        case Op::div:
          e[j] = div64(e[j], c);
          break;
        default:
          break;
      }
    }
  }
}

struct ProgramDist64 {
  using Constants = Program;
  FASTINIT_FN void values(const uint32_t w[4], const Program& c, double e[2]) {
    double drawn[2];
    if (c.kind == Kind::uniform) {
      UniformDist64::values(w, c.constants->uniform_f64, drawn);
    } else if (c.kind == Kind::normal) {
      NormalDist64::values(w, c.constants->normal_f64, drawn);
    } else {
      TruncatedNormalDist64::values(w, c.constants->truncated_f64, drawn);
    }
    run_steps64(c.steps, c.count, drawn);
    e[0] = drawn[0];
    e[1] = drawn[1];
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
