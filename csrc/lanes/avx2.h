// One register of AVX2, with FMA.
#pragma once
#include <immintrin.h>

namespace fastinit {
namespace FASTINIT_ISA {
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
FASTINIT_FN U permute(U order, U a) { return _mm256_permutevar8x32_epi32(a, order); }

// Stores: as for AVX-512, with two 128-bit parts instead of four.
constexpr bool kNonTemporal = true;
template <bool non_temporal>
FASTINIT_FN void write(U* to, U a) {
  if constexpr (non_temporal) {
    _mm256_stream_si256(to, a);
  } else {
    _mm256_storeu_si256(to, a);
  }
}
FASTINIT_FN void fence() { _mm_sfence(); }
FASTINIT_FN U order32() { return _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7); }
FASTINIT_FN U order16() { return _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7); }
FASTINIT_FN U order8() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
template <bool non_temporal>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const U a = _mm256_unpacklo_epi32(e[0], e[1]), b = _mm256_unpacklo_epi32(e[2], e[3]);
  const U c = _mm256_unpackhi_epi32(e[0], e[1]), d = _mm256_unpackhi_epi32(e[2], e[3]);
  U* p = static_cast<U*>(to);
  write<non_temporal>(p + 0, _mm256_unpacklo_epi64(a, b));
  write<non_temporal>(p + 1, _mm256_unpackhi_epi64(a, b));
  write<non_temporal>(p + 2, _mm256_unpacklo_epi64(c, d));
  write<non_temporal>(p + 3, _mm256_unpackhi_epi64(c, d));
}
template <bool non_temporal>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  U* p = static_cast<U*>(to);
  write<non_temporal>(p + 0, _mm256_unpacklo_epi32(e01, e23));
  write<non_temporal>(p + 1, _mm256_unpackhi_epi32(e01, e23));
}
template <bool non_temporal>
FASTINIT_FN void store8(void* to, U e0123) {
  write<non_temporal>(static_cast<U*>(to), e0123);
}

}  // namespace one

}  // namespace FASTINIT_ISA
}  // namespace fastinit
