// PTX instructions that CUDA C++ has no name for, and what is made of them. Compiled as ordinary C++ each is what the
// PTX ISA says of it, so that tests/support/cuda_shim and tools/ptx.cu can hold them to the rest without a GPU.
#pragma once

namespace fastinit {
namespace FASTINIT_ISA {

#if !defined(__CUDACC__)
constexpr int kArchitecture = 900;  // what is modelled here
#elif defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;  // nvcc's pass over host code
#endif

// ---- rounding to narrow dtypes, two at a time: `low` into the low half ------------------------------------------

#ifdef __CUDACC__
// sm_80
FASTINIT_FN U cvt_bf16x2(F high, F low) {
  U out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
FASTINIT_FN U cvt_f16x2(F high, F low) {
  U out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
// sm_89
FASTINIT_FN U cvt_e4m3x2(F high, F low) {
  uint16_t out;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
  return out;
}
FASTINIT_FN U cvt_e5m2x2(F high, F low) {
  uint16_t out;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
  return out;
}
#else
// cvt.rn: to nearest even among the multiples of the last place, subnormals included, which double arithmetic does
// exactly; the sign is kept. What lies past the largest value becomes `over`, and NaN becomes `nan`, without its sign.
template <int exponent, int mantissa, uint32_t largest, uint32_t over, uint32_t nan>
FASTINIT_FN U cvt_rn(F x) {
  constexpr int bias = (1 << (exponent - 1)) - 1;
  if (x != x) return nan;
  const double size = __builtin_fabs(static_cast<double>(x));
  uint64_t pattern;
  memcpy(&pattern, &size, 8);
  int binade = static_cast<int>(pattern >> 52) - 1023;
  if (binade < 1 - bias) binade = 1 - bias;
  if (binade > bias + 1) binade = bias + 1;
  const uint64_t scale = static_cast<uint64_t>(1023 + mantissa - binade) << 52;  // one over the last place
  double places;
  memcpy(&places, &scale, 8);
  places *= size;
  // Adding 2^52 rounds to an integer; the sum of the binade's first pattern and the places above it carries by itself.
  if (!(places < 0x1p24)) return over | (x < 0.0f ? 1u << (exponent + mantissa) : 0u);
  const uint32_t rounded = static_cast<uint32_t>(static_cast<int64_t>((places + 0x1p52) - 0x1p52));
  U n = (static_cast<uint32_t>(binade + bias - 1) << mantissa) + rounded;
  if (n > largest) n = over;
  return n | static_cast<uint32_t>(__builtin_signbit(x) != 0) << (exponent + mantissa);
}
FASTINIT_FN U cvt_bf16x2(F high, F low) {
  return cvt_rn<8, 7, 0x7f7fu, 0x7f80u, 0x7fffu>(high) << 16 | cvt_rn<8, 7, 0x7f7fu, 0x7f80u, 0x7fffu>(low);
}
FASTINIT_FN U cvt_f16x2(F high, F low) {
  return cvt_rn<5, 10, 0x7bffu, 0x7c00u, 0x7fffu>(high) << 16 | cvt_rn<5, 10, 0x7bffu, 0x7c00u, 0x7fffu>(low);
}
// .satfinite: the largest value in place of infinity.
FASTINIT_FN U cvt_e4m3x2(F high, F low) {
  return cvt_rn<4, 3, 0x7eu, 0x7eu, 0x7fu>(high) << 8 | cvt_rn<4, 3, 0x7eu, 0x7eu, 0x7fu>(low);
}
FASTINIT_FN U cvt_e5m2x2(F high, F low) {
  return cvt_rn<5, 2, 0x7bu, 0x7bu, 0x7fu>(high) << 8 | cvt_rn<5, 2, 0x7bu, 0x7bu, 0x7fu>(low);
}
#endif

// ---- the square root, without the branch and the call of __fsqrt_rn -----------------------------------------------

// 1 / sqrt(a), within 2^-22.4 of it (PTX ISA) and within two last places (CUDA C++ Programming Guide); a is normal.
FASTINIT_FN F rsqrt_approx(F a) {
#ifdef __CUDACC__
  F r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
#else
  return static_cast<F>(1.0 / __builtin_sqrt(static_cast<double>(a)));
#endif
}

// sqrt(a), correctly rounded, from any `r` as near as that to 1 / sqrt(a): Goldschmidt's step for the root and half of
// its reciprocal, then Newton's with an exact residual. tools/ptx.cu tries every mantissa, either parity of the
// exponent and every such r; powers of four scale every operation exactly. Newton's step alone, which nvcc's own
// sqrt.rn is, rounds some arguments wrongly from one r or another within two last places: it needs to know the GPU.
FASTINIT_FN F root_from(F a, F r) {
  F s = mul(a, r), h = mul(r, splat(0.5f));
  const F e = fma(-s, h, splat(0.5f));
  s = fma(s, e, s);
  h = fma(h, e, h);
  return fma(fma(-s, s, a), h, s);
}

// Of a zero, or a in [2^-60, 2^60]: all that a distribution asks for (-2 log of something, or 1 + delta). Zeros keep
// their sign: what `max` is for, since the reciprocal root of a zero is infinite.
FASTINIT_FN F sqrt(F a) { return root_from(a, rsqrt_approx(max(a, splat(0x1p-60f)))); }

}  // namespace FASTINIT_ISA
}  // namespace fastinit
