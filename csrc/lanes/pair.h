// A lane of two registers: each operation is done on both, side by side, because one chain of Philox rounds is mostly
// waiting, and a processor does not look far enough ahead to find the next one by itself.
#pragma once

namespace fastinit {
namespace FASTINIT_ISA {

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

// `order` is one of those below: within each register.
FASTINIT_FN U permute(U order, U x) { return {one::permute(order.a, x.a), one::permute(order.a, x.b)}; }

constexpr bool kNonTemporal = one::kNonTemporal;
FASTINIT_FN void fence() { one::fence(); }

// The second register's blocks follow the first's.
FASTINIT_FN U after(one::U order) { return {order, one::add(order, one::splat(uint32_t{one::kLanes}))}; }
FASTINIT_FN U order32() { return after(one::order32()); }
FASTINIT_FN U order16() { return after(one::order16()); }
FASTINIT_FN U order8() { return after(one::order8()); }
template <bool non_temporal>
FASTINIT_FN void store32(void* to, const U e[4]) {
  const one::U first[4] = {e[0].a, e[1].a, e[2].a, e[3].a}, second[4] = {e[0].b, e[1].b, e[2].b, e[3].b};
  one::store32<non_temporal>(to, first);
  one::store32<non_temporal>(static_cast<one::U*>(to) + 4, second);
}
template <bool non_temporal>
FASTINIT_FN void store16(void* to, U e01, U e23) {
  one::store16<non_temporal>(to, e01.a, e23.a);
  one::store16<non_temporal>(static_cast<one::U*>(to) + 2, e01.b, e23.b);
}
template <bool non_temporal>
FASTINIT_FN void store8(void* to, U e0123) {
  one::store8<non_temporal>(to, e0123.a);
  one::store8<non_temporal>(static_cast<one::U*>(to) + 1, e0123.b);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
