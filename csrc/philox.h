// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011) over lanes.
#pragma once
#include "fill.h"
#include "lane.h"

namespace fastinit {
namespace FASTINIT_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

// A block is (block, stream) as four words, put through ten of these rounds. The keys, at first the seed's halves, grow
// by kPhiloxW0 and kPhiloxW1 from round to round.
FASTINIT_FN void philox_round(uint32_t key0, uint32_t key1, U w[4]) {
  U hi0, lo0, hi1, lo1;
  mul_wide(w[0], kPhiloxM0, hi0, lo0);
  mul_wide(w[2], kPhiloxM1, hi1, lo1);
  w[0] = xor3(hi1, w[1], splat(key0));
  w[1] = lo1;
  w[2] = xor3(hi0, w[3], splat(key1));
  w[3] = lo0;
}

// Of the words that go in, (block_lo, block_hi, stream_lo, stream_hi), only block_lo differs between blocks that are
// filled together. So rounds 1 and 2 come to two products a block; the rest is computed once:
//   round 1: w0 = hi(M1 stream_lo) ^ block_hi ^ k0      the same in every block: `a` below
//            w1 = lo(M1 stream_lo)                      the same
//            w2 = hi(M0 block_lo) ^ stream_hi ^ k1      r1_c is what is mixed in
//            w3 = lo(M0 block_lo)
//   round 2: w0 = hi(M1 w2) ^ w1 ^ k0'                  r2_a is what is mixed in
//            w1 = lo(M1 w2)
//            w2 = hi(M0 w0) ^ w3 ^ k1'                  r2_c is what is mixed into w3
//            w3 = lo(M0 w0)                             r2_d
struct Philox {
  uint32_t key0[10], key1[10];  // of each round
  uint32_t r1_c, r2_a, r2_c, r2_d;
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

// Rounds 1 and 2.
FASTINIT_FN void philox_begin(U block, const Philox& p, U w[4]) {
  U hi0, lo0, hi1, lo1;
  mul_wide(block, kPhiloxM0, hi0, lo0);
  mul_wide(bit_xor(hi0, splat(p.r1_c)), kPhiloxM1, hi1, lo1);
  w[0] = bit_xor(hi1, splat(p.r2_a));
  w[1] = lo1;
  w[2] = bit_xor(lo0, splat(p.r2_c));
  w[3] = splat(p.r2_d);
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
