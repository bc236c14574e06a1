// One register of AVX-512.
#pragma once
// GCC's own header leaves operands undefined where a mask makes them unused, and then warns of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace fastinit {
namespace FASTINIT_ISA {
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
// Lane `order[l]` of `a` in lane l.
FASTINIT_FN U permute(U order, U a) { return _mm512_permutexvar_epi32(order, a); }

// Stores. Word j of the block in lane l is element 4 * block + j. The lanes' blocks are numbered so that interleaving
// inside 128-bit parts, which is one instruction, leaves every stored vector in order; order32/16/8 give that
// numbering. `non_temporal` stores bypass the caches, to addresses that are multiples of 64, until `fence`; where
// kNonTemporal is false there are none.
constexpr bool kNonTemporal = true;
template <bool non_temporal>
FASTINIT_FN void write(U* to, U a) {
  if constexpr (non_temporal) {
    _mm512_stream_si512(to, a);
  } else {
    _mm512_storeu_si512(to, a);
  }
}
FASTINIT_FN void fence() { _mm_sfence(); }
FASTINIT_FN U order32() { return _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }
FASTINIT_FN U order16() { return _mm512_setr_epi32(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15); }
FASTINIT_FN U order8() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
template <bool non_temporal>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const U a = _mm512_unpacklo_epi32(e[0], e[1]), b = _mm512_unpacklo_epi32(e[2], e[3]);
  const U c = _mm512_unpackhi_epi32(e[0], e[1]), d = _mm512_unpackhi_epi32(e[2], e[3]);
  U* p = static_cast<U*>(to);
  write<non_temporal>(p + 0, _mm512_unpacklo_epi64(a, b));
  write<non_temporal>(p + 1, _mm512_unpackhi_epi64(a, b));
  write<non_temporal>(p + 2, _mm512_unpacklo_epi64(c, d));
  write<non_temporal>(p + 3, _mm512_unpackhi_epi64(c, d));
}
template <bool non_temporal>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  U* p = static_cast<U*>(to);
  write<non_temporal>(p + 0, _mm512_unpacklo_epi32(e01, e23));
  write<non_temporal>(p + 1, _mm512_unpackhi_epi32(e01, e23));
}
template <bool non_temporal>
FASTINIT_FN void store8(void* to, U e0123) {
  write<non_temporal>(static_cast<U*>(to), e0123);
}

}  // namespace one

}  // namespace FASTINIT_ISA
}  // namespace fastinit
