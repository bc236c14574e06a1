// One register of NEON.
#pragma once
#include <arm_neon.h>

namespace fastinit {
namespace FASTINIT_ISA {
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
FASTINIT_FN U permute(U /* ascending, as all orders below */, U a) { return a; }

// Stores: the instructions for arrays of structures interleave whole registers, so the lanes' blocks are in order.
constexpr bool kNonTemporal = false;
FASTINIT_FN void fence() {}
FASTINIT_FN U ascending() {
  const uint32_t lanes[4] = {0, 1, 2, 3};
  return vld1q_u32(lanes);
}
FASTINIT_FN U order32() { return ascending(); }
FASTINIT_FN U order16() { return ascending(); }
FASTINIT_FN U order8() { return ascending(); }
template <bool non_temporal>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const uint32x4x4_t words = {{e[0], e[1], e[2], e[3]}};
  vst4q_u32(static_cast<uint32_t*>(to), words);
}
template <bool non_temporal>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  const uint32x4x2_t words = {{e01, e23}};
  vst2q_u32(static_cast<uint32_t*>(to), words);
}
template <bool non_temporal>
FASTINIT_FN void store8(void* to, U e0123) {
  vst1q_u8(static_cast<uint8_t*>(to), vreinterpretq_u8_u32(e0123));
}

}  // namespace one

}  // namespace FASTINIT_ISA
}  // namespace fastinit
