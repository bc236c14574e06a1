// A lane of one number: CUDA's threads, and the CPU where there is nothing better.
#pragma once

namespace fastinit {
namespace FASTINIT_ISA {

using F = float;
using U = uint32_t;
using Mask = bool;
constexpr int kLanes = 1;

FASTINIT_FN U splat(uint32_t x) { return x; }
FASTINIT_FN F splat(float x) { return x; }
#ifdef __CUDACC__
FASTINIT_FN U bits(F x) { return __float_as_uint(x); }
FASTINIT_FN F from_bits(U x) { return __uint_as_float(x); }
#else
FASTINIT_FN U bits(F x) {
  U u;
  memcpy(&u, &x, 4);
  return u;
}
FASTINIT_FN F from_bits(U x) {
  F f;
  memcpy(&f, &x, 4);
  return f;
}
#endif

FASTINIT_FN U add(U a, U b) { return a + b; }
FASTINIT_FN U sub(U a, U b) { return a - b; }
FASTINIT_FN U bit_and(U a, U b) { return a & b; }
FASTINIT_FN U bit_or(U a, U b) { return a | b; }
FASTINIT_FN U bit_xor(U a, U b) { return a ^ b; }
FASTINIT_FN U xor3(U a, U b, U c) { return a ^ b ^ c; }
template <int n>
FASTINIT_FN U shl(U a) {
  return a << n;
}
template <int n>
FASTINIT_FN U shr(U a) {
  return a >> n;
}
FASTINIT_FN void mul_wide(U a, uint32_t b, U& hi, U& lo) {
#if defined(__CUDA_ARCH__)
  // Opaque, because the compiler would widen what comes before and then multiply 64 bits by 64.
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
#else
  const uint64_t product = static_cast<uint64_t>(a) * b;
#endif
  hi = static_cast<U>(product >> 32);
  lo = static_cast<U>(product);
}

#ifdef __CUDACC__
FASTINIT_FN F to_float(U a) { return __int2float_rn(static_cast<int>(a)); }
FASTINIT_FN F add(F a, F b) { return __fadd_rn(a, b); }
FASTINIT_FN F mul(F a, F b) { return __fmul_rn(a, b); }
FASTINIT_FN F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
FASTINIT_FN F div(F a, F b) { return __fdiv_rn(a, b); }
FASTINIT_FN F min(F a, F b) { return fminf(a, b); }
FASTINIT_FN F max(F a, F b) { return fmaxf(a, b); }
#else
FASTINIT_FN F to_float(U a) { return static_cast<float>(static_cast<int32_t>(a)); }
FASTINIT_FN F add(F a, F b) { return a + b; }
FASTINIT_FN F mul(F a, F b) { return a * b; }
#if defined(__FMA__) || defined(__aarch64__)
FASTINIT_FN F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
#else
// Without a fused instruction: the product is exact in double; the sum is rounded to odd there (so that the second
// rounding cannot see a tie that was not one) and then to float.
FASTINIT_FN F fma(F a, F b, F c) {
  const double p = static_cast<double>(a) * static_cast<double>(b), d = c;
  double s = p + d;
  const double t = s - p;
  const double error = (p - (s - t)) + (d - t);
  uint64_t u;
  memcpy(&u, &s, 8);
  // Beside infinities and NaN the error is no number: both comparisons are false, and the sum stays what it is.
  if ((error > 0.0 || error < 0.0) && !(u & 1)) {
    u += ((error > 0.0) == (s > 0.0)) ? 1 : -1;
    memcpy(&s, &u, 8);
  }
  return static_cast<float>(s);
}
#endif
FASTINIT_FN F div(F a, F b) { return a / b; }
#ifndef FASTINIT_GPU
FASTINIT_FN F sqrt(F a) { return __builtin_sqrtf(a); }
#endif
FASTINIT_FN F min(F a, F b) { return a < b ? a : b; }
FASTINIT_FN F max(F a, F b) { return a > b ? a : b; }
#endif

FASTINIT_FN Mask greater(U a, U b) { return static_cast<int32_t>(a) > static_cast<int32_t>(b); }
FASTINIT_FN Mask greater(F a, F b) { return a > b; }
template <int n>
FASTINIT_FN Mask has_bit(U a) {
#if defined(__CUDA_ARCH__)
  // Opaque, because the compiler would shift the bit to the bottom, mask it and compare; like this it is one
  // instruction.
  uint32_t bit;
  asm("and.b32 %0, %1, %2;" : "=r"(bit) : "r"(a), "n"(1u << n));
  return bit != 0;
#else
  return (a >> n & 1) != 0;
#endif
}
FASTINIT_FN Mask is_nan(F a) { return a != a; }
FASTINIT_FN U select(Mask m, U a, U b) { return m ? a : b; }
FASTINIT_FN F select(Mask m, F a, F b) { return m ? a : b; }
FASTINIT_FN bool any(Mask m) { return m; }

constexpr bool kNonTemporal = false;
#ifndef __CUDACC__
FASTINIT_FN void fence() {}
#endif
FASTINIT_FN U load(const uint32_t* from) { return *from; }
FASTINIT_FN void put(uint32_t* to, U a) { *to = a; }
FASTINIT_FN U permute(U /* 0 */, U a) { return a; }

FASTINIT_FN U order32() { return 0; }
FASTINIT_FN U order16() { return 0; }
FASTINIT_FN U order8() { return 0; }
#ifndef __CUDACC__
template <bool non_temporal>
FASTINIT_FN void store32(void* to, const U e[4]) {
  memcpy(to, e, 16);
}
template <bool non_temporal>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  const U e[2] = {e01, e23};
  memcpy(to, e, 8);
}
template <bool non_temporal>
FASTINIT_FN void store8(void* to, U e0123) {
  memcpy(to, &e0123, 4);
}
#endif

}  // namespace FASTINIT_ISA
}  // namespace fastinit
