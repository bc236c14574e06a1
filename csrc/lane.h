// The operations that the rest is written in, over one lane type: F holds floats, U 32-bit words, Mask truth values.
// A lane is a scalar (CUDA, fallback) or two vector registers (AVX2, AVX-512, NEON); each operation is one IEEE or
// integer operation per element and gives the same bits on every instruction set. Include it once per translation unit,
// with FASTINIT_ISA set, and FASTINIT_NEON for NEON, which every aarch64 has and no flag of the compiler's tells.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(FASTINIT_ISA)
// GCC's own header leaves operands undefined where a mask makes them unused, and then warns of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#define FASTINIT_LANE_AVX512
#elif defined(__AVX2__) && defined(FASTINIT_ISA)
#include <immintrin.h>
#define FASTINIT_LANE_AVX2
#elif defined(FASTINIT_NEON)
#include <arm_neon.h>
#define FASTINIT_LANE_NEON
#endif

#ifdef __CUDACC__
#define FASTINIT_FN static __device__ __forceinline__
#else
#define FASTINIT_FN static inline __attribute__((always_inline))
#endif

#ifndef FASTINIT_ISA
#define FASTINIT_ISA scalar
#endif

namespace fastinit {
namespace FASTINIT_ISA {

#if defined(FASTINIT_LANE_AVX512)

namespace one {

using F = __m512;
using U = __m512i;
using Mask = __mmask16;
constexpr int kLanes = 16;

FASTINIT_FN U splat(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
FASTINIT_FN F splat(float x) { return _mm512_set1_ps(x); }
FASTINIT_FN U bits(F x) { return _mm512_castps_si512(x); }
FASTINIT_FN F from_bits(U x) { return _mm512_castsi512_ps(x); }

FASTINIT_FN U add(U a, U b) { return _mm512_add_epi32(a, b); }
FASTINIT_FN U sub(U a, U b) { return _mm512_sub_epi32(a, b); }
FASTINIT_FN U bit_and(U a, U b) { return _mm512_and_si512(a, b); }
FASTINIT_FN U bit_or(U a, U b) { return _mm512_or_si512(a, b); }
FASTINIT_FN U bit_xor(U a, U b) { return _mm512_xor_si512(a, b); }
FASTINIT_FN U xor3(U a, U b, U c) { return _mm512_ternarylogic_epi32(a, b, c, 0x96); }
template <int n>
FASTINIT_FN U shl(U a) {
  return _mm512_slli_epi32(a, n);
}
template <int n>
FASTINIT_FN U shr(U a) {
  return _mm512_srli_epi32(a, n);
}
template <int n>
FASTINIT_FN U sar(U a) {
  return _mm512_srai_epi32(a, n);
}
FASTINIT_FN void mul_wide(U a, uint32_t b, U& hi, U& lo) {
  const U m = splat(b);
  const U even = _mm512_mul_epu32(a, m);
  const U odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), m);
  hi = _mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  lo = _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
}

FASTINIT_FN F to_float(U a) { return _mm512_cvtepi32_ps(a); }
FASTINIT_FN F add(F a, F b) { return _mm512_add_ps(a, b); }
FASTINIT_FN F mul(F a, F b) { return _mm512_mul_ps(a, b); }
FASTINIT_FN F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
FASTINIT_FN F div(F a, F b) { return _mm512_div_ps(a, b); }
FASTINIT_FN F sqrt(F a) { return _mm512_sqrt_ps(a); }
FASTINIT_FN F min(F a, F b) { return _mm512_min_ps(a, b); }
FASTINIT_FN F max(F a, F b) { return _mm512_max_ps(a, b); }

FASTINIT_FN Mask greater(U a, U b) { return _mm512_cmpgt_epi32_mask(a, b); }
FASTINIT_FN Mask greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
template <int n>
FASTINIT_FN Mask has_bit(U a) {
  return _mm512_test_epi32_mask(a, splat(uint32_t{1} << n));
}
FASTINIT_FN Mask is_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
FASTINIT_FN U select(Mask m, U a, U b) { return _mm512_mask_blend_epi32(m, b, a); }
FASTINIT_FN F select(Mask m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
FASTINIT_FN bool any(Mask m) { return m != 0; }

// A lane's words from and to consecutive addresses, in order.
FASTINIT_FN U load(const uint32_t* from) { return _mm512_loadu_si512(from); }
FASTINIT_FN void put(uint32_t* to, U a) { _mm512_storeu_si512(to, a); }

// Stores. Word j of the block in lane l is element 4 * block + j. The lanes' blocks are numbered so that interleaving
// inside 128-bit parts, which is one instruction, leaves every stored vector in order; order32/16/8 give that
// numbering. `past`: past the caches, to addresses that are multiples of 64, until `fence`; where kPast is false
// there are no such stores.
constexpr bool kPast = true;
template <bool past>
FASTINIT_FN void write(U* to, U a) {
  if constexpr (past) {
    _mm512_stream_si512(to, a);
  } else {
    _mm512_storeu_si512(to, a);
  }
}
FASTINIT_FN void fence() { _mm_sfence(); }
FASTINIT_FN U order32() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }
FASTINIT_FN U order16() { return _mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15); }
FASTINIT_FN U order8() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
template <bool past>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const U a = _mm512_unpacklo_epi32(e[0], e[1]), b = _mm512_unpacklo_epi32(e[2], e[3]);
  const U c = _mm512_unpackhi_epi32(e[0], e[1]), d = _mm512_unpackhi_epi32(e[2], e[3]);
  U* p = static_cast<U*>(to);
  write<past>(p + 0, _mm512_unpacklo_epi64(a, b));
  write<past>(p + 1, _mm512_unpackhi_epi64(a, b));
  write<past>(p + 2, _mm512_unpacklo_epi64(c, d));
  write<past>(p + 3, _mm512_unpackhi_epi64(c, d));
}
template <bool past>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  U* p = static_cast<U*>(to);
  write<past>(p + 0, _mm512_unpacklo_epi32(e01, e23));
  write<past>(p + 1, _mm512_unpackhi_epi32(e01, e23));
}
template <bool past>
FASTINIT_FN void store8(void* to, U e0123) {
  write<past>(static_cast<U*>(to), e0123);
}

}  // namespace one

#elif defined(FASTINIT_LANE_AVX2)

namespace one {

using F = __m256;
using U = __m256i;
using Mask = __m256i;
constexpr int kLanes = 8;

FASTINIT_FN U splat(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
FASTINIT_FN F splat(float x) { return _mm256_set1_ps(x); }
FASTINIT_FN U bits(F x) { return _mm256_castps_si256(x); }
FASTINIT_FN F from_bits(U x) { return _mm256_castsi256_ps(x); }

FASTINIT_FN U add(U a, U b) { return _mm256_add_epi32(a, b); }
FASTINIT_FN U sub(U a, U b) { return _mm256_sub_epi32(a, b); }
FASTINIT_FN U bit_and(U a, U b) { return _mm256_and_si256(a, b); }
FASTINIT_FN U bit_or(U a, U b) { return _mm256_or_si256(a, b); }
FASTINIT_FN U bit_xor(U a, U b) { return _mm256_xor_si256(a, b); }
FASTINIT_FN U xor3(U a, U b, U c) { return bit_xor(bit_xor(a, b), c); }
template <int n>
FASTINIT_FN U shl(U a) {
  return _mm256_slli_epi32(a, n);
}
template <int n>
FASTINIT_FN U shr(U a) {
  return _mm256_srli_epi32(a, n);
}
template <int n>
FASTINIT_FN U sar(U a) {
  return _mm256_srai_epi32(a, n);
}
FASTINIT_FN void mul_wide(U a, uint32_t b, U& hi, U& lo) {
  const U m = splat(b);
  const U even = _mm256_mul_epu32(a, m);
  const U odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), m);
  hi = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  lo = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

FASTINIT_FN F to_float(U a) { return _mm256_cvtepi32_ps(a); }
FASTINIT_FN F add(F a, F b) { return _mm256_add_ps(a, b); }
FASTINIT_FN F mul(F a, F b) { return _mm256_mul_ps(a, b); }
FASTINIT_FN F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
FASTINIT_FN F div(F a, F b) { return _mm256_div_ps(a, b); }
FASTINIT_FN F sqrt(F a) { return _mm256_sqrt_ps(a); }
FASTINIT_FN F min(F a, F b) { return _mm256_min_ps(a, b); }
FASTINIT_FN F max(F a, F b) { return _mm256_max_ps(a, b); }

FASTINIT_FN Mask greater(U a, U b) { return _mm256_cmpgt_epi32(a, b); }
FASTINIT_FN Mask greater(F a, F b) { return bits(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
template <int n>
FASTINIT_FN Mask has_bit(U a) {
  return greater(splat(0u), shl<31 - n>(a));
}
FASTINIT_FN Mask is_nan(F a) { return bits(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)); }
FASTINIT_FN U select(Mask m, U a, U b) { return _mm256_blendv_epi8(b, a, m); }
FASTINIT_FN F select(Mask m, F a, F b) { return _mm256_blendv_ps(b, a, from_bits(m)); }
FASTINIT_FN bool any(Mask m) { return !_mm256_testz_si256(m, m); }

FASTINIT_FN U load(const uint32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const U*>(from)); }
FASTINIT_FN void put(uint32_t* to, U a) { _mm256_storeu_si256(reinterpret_cast<U*>(to), a); }

// Stores: as for AVX-512, with two 128-bit parts instead of four.
constexpr bool kPast = true;
template <bool past>
FASTINIT_FN void write(U* to, U a) {
  if constexpr (past) {
    _mm256_stream_si256(to, a);
  } else {
    _mm256_storeu_si256(to, a);
  }
}
FASTINIT_FN void fence() { _mm_sfence(); }
FASTINIT_FN U order32() { return _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7); }
FASTINIT_FN U order16() { return _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7); }
FASTINIT_FN U order8() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
template <bool past>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const U a = _mm256_unpacklo_epi32(e[0], e[1]), b = _mm256_unpacklo_epi32(e[2], e[3]);
  const U c = _mm256_unpackhi_epi32(e[0], e[1]), d = _mm256_unpackhi_epi32(e[2], e[3]);
  U* p = static_cast<U*>(to);
  write<past>(p + 0, _mm256_unpacklo_epi64(a, b));
  write<past>(p + 1, _mm256_unpackhi_epi64(a, b));
  write<past>(p + 2, _mm256_unpacklo_epi64(c, d));
  write<past>(p + 3, _mm256_unpackhi_epi64(c, d));
}
template <bool past>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  U* p = static_cast<U*>(to);
  write<past>(p + 0, _mm256_unpacklo_epi32(e01, e23));
  write<past>(p + 1, _mm256_unpackhi_epi32(e01, e23));
}
template <bool past>
FASTINIT_FN void store8(void* to, U e0123) {
  write<past>(static_cast<U*>(to), e0123);
}

}  // namespace one

#elif defined(FASTINIT_LANE_NEON)

namespace one {

using F = float32x4_t;
using U = uint32x4_t;
using Mask = uint32x4_t;
constexpr int kLanes = 4;

FASTINIT_FN U splat(uint32_t x) { return vdupq_n_u32(x); }
FASTINIT_FN F splat(float x) { return vdupq_n_f32(x); }
FASTINIT_FN U bits(F x) { return vreinterpretq_u32_f32(x); }
FASTINIT_FN F from_bits(U x) { return vreinterpretq_f32_u32(x); }

FASTINIT_FN U add(U a, U b) { return vaddq_u32(a, b); }
FASTINIT_FN U sub(U a, U b) { return vsubq_u32(a, b); }
FASTINIT_FN U bit_and(U a, U b) { return vandq_u32(a, b); }
FASTINIT_FN U bit_or(U a, U b) { return vorrq_u32(a, b); }
FASTINIT_FN U bit_xor(U a, U b) { return veorq_u32(a, b); }
FASTINIT_FN U xor3(U a, U b, U c) { return bit_xor(bit_xor(a, b), c); }
template <int n>
FASTINIT_FN U shl(U a) {
  return vshlq_n_u32(a, n);
}
template <int n>
FASTINIT_FN U shr(U a) {
  return vshrq_n_u32(a, n);
}
template <int n>
FASTINIT_FN U sar(U a) {
  return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), n));
}
FASTINIT_FN void mul_wide(U a, uint32_t b, U& hi, U& lo) {
  const U m = splat(b);
  const U first = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(m)));
  const U last = vreinterpretq_u32_u64(vmull_high_u32(a, m));
  hi = vuzp2q_u32(first, last);
  lo = vuzp1q_u32(first, last);
}

FASTINIT_FN F to_float(U a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
FASTINIT_FN F add(F a, F b) { return vaddq_f32(a, b); }
FASTINIT_FN F mul(F a, F b) { return vmulq_f32(a, b); }
FASTINIT_FN F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
FASTINIT_FN F div(F a, F b) { return vdivq_f32(a, b); }
FASTINIT_FN F sqrt(F a) { return vsqrtq_f32(a); }
// Not vminq and vmaxq, whose result for NaN is another (see clamp).
FASTINIT_FN F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
FASTINIT_FN F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

FASTINIT_FN Mask greater(U a, U b) { return vcgtq_s32(vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b)); }
FASTINIT_FN Mask greater(F a, F b) { return vcgtq_f32(a, b); }
template <int n>
FASTINIT_FN Mask has_bit(U a) {
  return vtstq_u32(a, splat(uint32_t{1} << n));
}
FASTINIT_FN Mask is_nan(F a) { return vmvnq_u32(vceqq_f32(a, a)); }
FASTINIT_FN U select(Mask m, U a, U b) { return vbslq_u32(m, a, b); }
FASTINIT_FN F select(Mask m, F a, F b) { return vbslq_f32(m, a, b); }
FASTINIT_FN bool any(Mask m) { return vmaxvq_u32(m) != 0; }

FASTINIT_FN U load(const uint32_t* from) { return vld1q_u32(from); }
FASTINIT_FN void put(uint32_t* to, U a) { vst1q_u32(to, a); }

// Stores: the instructions for arrays of structures interleave whole registers, so the lanes' blocks are in order.
constexpr bool kPast = false;
FASTINIT_FN void fence() {}
FASTINIT_FN U ascending() {
  const uint32_t lanes[4] = {0, 1, 2, 3};
  return vld1q_u32(lanes);
}
FASTINIT_FN U order32() { return ascending(); }
FASTINIT_FN U order16() { return ascending(); }
FASTINIT_FN U order8() { return ascending(); }
template <bool past>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const uint32x4x4_t words = {{e[0], e[1], e[2], e[3]}};
  vst4q_u32(static_cast<uint32_t*>(to), words);
}
template <bool past>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  const uint32x4x2_t words = {{e01, e23}};
  vst2q_u32(static_cast<uint32_t*>(to), words);
}
template <bool past>
FASTINIT_FN void store8(void* to, U e0123) {
  vst1q_u8(static_cast<uint8_t*>(to), vreinterpretq_u8_u32(e0123));
}

}  // namespace one

#else

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
template <int n>
FASTINIT_FN U sar(U a) {
  return static_cast<U>(static_cast<int32_t>(a) >> n);
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
FASTINIT_FN F sqrt(F a) { return __fsqrt_rn(a); }
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
  if (error != 0.0 && !(u & 1)) {
    u += ((error > 0.0) == (s > 0.0)) ? 1 : -1;
    memcpy(&s, &u, 8);
  }
  return static_cast<float>(s);
}
#endif
FASTINIT_FN F div(F a, F b) { return a / b; }
FASTINIT_FN F sqrt(F a) { return __builtin_sqrtf(a); }
FASTINIT_FN F min(F a, F b) { return a < b ? a : b; }
FASTINIT_FN F max(F a, F b) { return a > b ? a : b; }
#endif

FASTINIT_FN Mask greater(U a, U b) { return static_cast<int32_t>(a) > static_cast<int32_t>(b); }
FASTINIT_FN Mask greater(F a, F b) { return a > b; }
template <int n>
FASTINIT_FN Mask has_bit(U a) {
#if defined(__CUDA_ARCH__)
  // Opaque, because the compiler would shift the bit to the bottom, mask it and compare.
  int32_t top;
  asm("shl.b32 %0, %1, %2;" : "=r"(top) : "r"(a), "n"(31 - n));
  return top < 0;
#else
  return (a >> n & 1) != 0;
#endif
}
FASTINIT_FN Mask is_nan(F a) { return a != a; }
FASTINIT_FN U select(Mask m, U a, U b) { return m ? a : b; }
FASTINIT_FN F select(Mask m, F a, F b) { return m ? a : b; }
FASTINIT_FN bool any(Mask m) { return m; }

constexpr bool kPast = false;
#ifndef __CUDACC__
FASTINIT_FN void fence() {}
#endif
FASTINIT_FN U load(const uint32_t* from) { return *from; }
FASTINIT_FN void put(uint32_t* to, U a) { *to = a; }

FASTINIT_FN U order32() { return 0; }
FASTINIT_FN U order16() { return 0; }
FASTINIT_FN U order8() { return 0; }
#ifndef __CUDACC__
template <bool past>
FASTINIT_FN void store32(void* to, const U e[4]) {
  memcpy(to, e, 16);
}
template <bool past>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  const U e[2] = {e01, e23};
  memcpy(to, e, 8);
}
template <bool past>
FASTINIT_FN void store8(void* to, U e0123) {
  memcpy(to, &e0123, 4);
}
#endif

#endif

#if defined(FASTINIT_LANE_AVX512) || defined(FASTINIT_LANE_AVX2) || defined(FASTINIT_LANE_NEON)

// A lane is two registers: each operation is done on both, side by side, because one chain of Philox rounds is mostly
// waiting, and a processor does not look far enough ahead to find the next one by itself.
constexpr int kLanes = 2 * one::kLanes;
struct U {
  one::U a, b;
};
struct F {
  one::F a, b;
};
struct Mask {
  one::Mask a, b;
};

FASTINIT_FN U splat(uint32_t x) { return {one::splat(x), one::splat(x)}; }
FASTINIT_FN F splat(float x) { return {one::splat(x), one::splat(x)}; }

#define FASTINIT_BOTH_1(R, op, A) \
  FASTINIT_FN R op(A x) { return {one::op(x.a), one::op(x.b)}; }
#define FASTINIT_BOTH_2(R, op, A, B) \
  FASTINIT_FN R op(A x, B y) { return {one::op(x.a, y.a), one::op(x.b, y.b)}; }
#define FASTINIT_BOTH_3(R, op, A, B, C) \
  FASTINIT_FN R op(A x, B y, C z) { return {one::op(x.a, y.a, z.a), one::op(x.b, y.b, z.b)}; }
#define FASTINIT_BOTH_SHIFT(op)                \
  template <int n>                             \
  FASTINIT_FN U op(U x) {                      \
    return {one::op<n>(x.a), one::op<n>(x.b)}; \
  }
FASTINIT_BOTH_1(U, bits, F)
FASTINIT_BOTH_1(F, from_bits, U)
FASTINIT_BOTH_2(U, add, U, U)
FASTINIT_BOTH_2(U, sub, U, U)
FASTINIT_BOTH_2(U, bit_and, U, U)
FASTINIT_BOTH_2(U, bit_or, U, U)
FASTINIT_BOTH_2(U, bit_xor, U, U)
FASTINIT_BOTH_3(U, xor3, U, U, U)
FASTINIT_BOTH_SHIFT(shl)
FASTINIT_BOTH_SHIFT(shr)
FASTINIT_BOTH_SHIFT(sar)
FASTINIT_FN void mul_wide(U x, uint32_t y, U& hi, U& lo) {
  one::mul_wide(x.a, y, hi.a, lo.a);
  one::mul_wide(x.b, y, hi.b, lo.b);
}
FASTINIT_BOTH_1(F, to_float, U)
FASTINIT_BOTH_2(F, add, F, F)
FASTINIT_BOTH_2(F, mul, F, F)
FASTINIT_BOTH_3(F, fma, F, F, F)
FASTINIT_BOTH_2(F, div, F, F)
FASTINIT_BOTH_1(F, sqrt, F)
FASTINIT_BOTH_2(F, min, F, F)
FASTINIT_BOTH_2(F, max, F, F)
FASTINIT_BOTH_2(Mask, greater, U, U)
FASTINIT_BOTH_2(Mask, greater, F, F)
template <int n>
FASTINIT_FN Mask has_bit(U x) {
  return {one::has_bit<n>(x.a), one::has_bit<n>(x.b)};
}
FASTINIT_BOTH_1(Mask, is_nan, F)
FASTINIT_BOTH_3(U, select, Mask, U, U)
FASTINIT_BOTH_3(F, select, Mask, F, F)
FASTINIT_FN bool any(Mask m) { return one::any(m.a) || one::any(m.b); }

FASTINIT_FN U load(const uint32_t* from) { return {one::load(from), one::load(from + one::kLanes)}; }
FASTINIT_FN void put(uint32_t* to, U x) {
  one::put(to, x.a);
  one::put(to + one::kLanes, x.b);
}

constexpr bool kPast = one::kPast;
FASTINIT_FN void fence() { one::fence(); }

// The second register's blocks follow the first's.
FASTINIT_FN U after(one::U order) { return {order, one::add(order, one::splat(uint32_t{one::kLanes}))}; }
FASTINIT_FN U order32() { return after(one::order32()); }
FASTINIT_FN U order16() { return after(one::order16()); }
FASTINIT_FN U order8() { return after(one::order8()); }
template <bool past>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const one::U first[4] = {e[0].a, e[1].a, e[2].a, e[3].a}, second[4] = {e[0].b, e[1].b, e[2].b, e[3].b};
  one::store32<past>(to, first);
  one::store32<past>(static_cast<one::U*>(to) + 4, second);
}
template <bool past>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  one::store16<past>(to, e01.a, e23.a);
  one::store16<past>(static_cast<one::U*>(to) + 2, e01.b, e23.b);
}
template <bool past>
FASTINIT_FN void store8(void* to, U e0123) {
  one::store8<past>(to, e0123.a);
  one::store8<past>(static_cast<one::U*>(to) + 1, e0123.b);
}

#endif

// What follows is the same for every lane.

#ifdef __CUDACC__
FASTINIT_FN F neg(F a) { return -a; }  // a modifier of the next instruction
#else
FASTINIT_FN F neg(F a) { return from_bits(bit_xor(bits(a), splat(0x80000000u))); }
#endif
// Signed zeros: with `hi` never +0 and `lo` never -0 (csrc/lower.cpp sees to it), this min and max, where equal
// operands give the second, agree with instructions that order -0 below +0.
FASTINIT_FN F clamp(F x, float lo, float hi) { return max(min(x, splat(hi)), splat(lo)); }

// Horner's rule, coefficients lowest first.
FASTINIT_FN F horner(F, float c) { return splat(c); }
template <class... Rest>
FASTINIT_FN F horner(F x, float c, Rest... rest) {
  return fma(x, horner(x, rest...), splat(c));
}

// float64 is written over plain doubles, and without fma.
FASTINIT_FN double horner(double, double c) { return c; }
template <class... Rest>
FASTINIT_FN double horner(double x, double c, Rest... rest) {
#ifdef __CUDACC__
  return __dadd_rn(c, __dmul_rn(x, horner(x, rest...)));
#else
  return c + x * horner(x, rest...);
#endif
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
