// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011) over lanes.
#pragma once
#include "fill.h"
#include "lane.h"

namespace fastinit {
namespace FASTINIT_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

// All that does not change between blocks that share the high half of their block number: the round keys, and the
// products of the first two rounds that only meet the stream.
struct Philox {
  uint32_t key0[10], key1[10];
  uint32_t r1_c;        // round 1: what is mixed into hi(M0 * block)
  uint32_t r2_a, r2_c;  // round 2: what is mixed into hi(M1 * c) and into lo(M0 * block)
  uint32_t r2_d;        // round 2: word 3, the same in every block
};

FASTINIT_FN Philox philox_prepare(uint64_t seed, uint64_t stream, uint32_t block_hi) {
  Philox p;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int r = 0; r < 10; ++r) {
    p.key0[r] = k0;
    p.key1[r] = k1;
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  const uint64_t stream_product = static_cast<uint64_t>(kPhiloxM1) * static_cast<uint32_t>(stream);
  const uint32_t a = static_cast<uint32_t>(stream_product >> 32) ^ block_hi ^ p.key0[0];
  const uint64_t a_product = static_cast<uint64_t>(kPhiloxM0) * a;
  p.r1_c = static_cast<uint32_t>(stream >> 32) ^ p.key1[0];
  p.r2_a = static_cast<uint32_t>(stream_product) ^ p.key0[1];
  p.r2_c = static_cast<uint32_t>(a_product >> 32) ^ p.key1[1];
  p.r2_d = static_cast<uint32_t>(a_product);
  return p;
}

// The first two rounds, and one of the others.
FASTINIT_FN void philox_begin(U block, const Philox& p, U w[4]) {
  U hi0, lo0, hi1, lo1;
  mul_wide(block, kPhiloxM0, hi0, lo0);
  mul_wide(bit_xor(hi0, splat(p.r1_c)), kPhiloxM1, hi1, lo1);
  w[0] = bit_xor(hi1, splat(p.r2_a));
  w[1] = lo1;
  w[2] = bit_xor(lo0, splat(p.r2_c));
  w[3] = splat(p.r2_d);
}
FASTINIT_FN void philox_round(uint32_t key0, uint32_t key1, U w[4]) {
  U hi0, lo0, hi1, lo1;
  mul_wide(w[0], kPhiloxM0, hi0, lo0);
  mul_wide(w[2], kPhiloxM1, hi1, lo1);
  w[0] = xor3(hi1, w[1], splat(key0));
  w[1] = lo1;
  w[2] = xor3(hi0, w[3], splat(key1));
  w[3] = lo0;
}

// The four words of each lane's block, whose number has the low half `block`; side by side for several lanes of blocks.
template <int n>
FASTINIT_FN void philox(const U (&block)[n], const Philox& p, U (&w)[n][4]) {
#pragma GCC unroll 4
  for (int i = 0; i < n; ++i) philox_begin(block[i], p, w[i]);
#pragma GCC unroll 8
  for (int r = 2; r < 10; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) philox_round(p.key0[r], p.key1[r], w[i]);
  }
}
FASTINIT_FN void philox(U block, const Philox& p, U w[4]) {
  philox_begin(block, p, w);
#pragma GCC unroll 8
  for (int r = 2; r < 10; ++r) philox_round(p.key0[r], p.key1[r], w);
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
