// Words -> values of a mixture, over lanes: a word picks a component and the place in it (docs/stream.md, section 13).
#pragma once
#include "distributions.h"

namespace fastinit {
namespace FASTINIT_ISA {

template <class T>
FASTINIT_FN const Component<T>* components_of(const Mixture* mixture) {
  return reinterpret_cast<const Component<T>*>(mixture + 1);
}

// The standard normal number at place `j` of the places 0 to `last`, each of which has the probability `unit`. Where
// there is no normal, `unit` is 0, and so is the length: no word takes the tail.
FASTINIT_FN F quantile(U j, U last, F unit, Mask normal) {
  const U d = sub(add(j, j), last);
  const Mask upper = greater(d, splat(0u));
  const F p = fma(to_float(select(upper, sub(last, j), j)), unit, mul(unit, splat(0.5f)));
  const F length = select(normal, neg2log<-2>(fma(neg(p), p, p)), splat(0.0f));
  const F z = mul(mul(to_float(d), unit), horner(length, FASTINIT_QUANTILE_CENTRAL_F32));
  return any(greater(length, splat(10.0f))) ? near_tail(z, upper, length) : z;
}

// The constants of a component, lane by lane.
struct Chosen {
  U first, last;
  F unit, scale, start, hi;
};

FASTINIT_FN Chosen chosen(const Component<float>* c) {
  return {splat(c->first), splat(c->last), splat(c->unit), splat(c->scale), splat(c->start), splat(c->hi)};
}

FASTINIT_FN void choose(Mask where, const Component<float>* c, Chosen& to) {
  to.first = select(where, splat(c->first), to.first);
  to.last = select(where, splat(c->last), to.last);
  to.unit = select(where, splat(c->unit), to.unit);
  to.scale = select(where, splat(c->scale), to.scale);
  to.start = select(where, splat(c->start), to.start);
  to.hi = select(where, splat(c->hi), to.hi);
}

template <bool normals>
FASTINIT_FN F value_of(U k, const Chosen& c) {
  const U j = sub(k, c.first);
  F y = to_float(j);
  if constexpr (normals) {
    const Mask normal = greater(c.unit, splat(0.0f));
    y = select(normal, quantile(j, c.last, c.unit, normal), y);
  }
  return min(fma(y, c.scale, c.start), c.hi);
}

// The values of `n` words. The components are gone through from the last on: a lane has the last that begins at its
// word or before it. That is no gather, and the same for all threads of a GPU.
template <bool normals, int n>
FASTINIT_FN void mixture(const U* words, const Mixture* mixture, U* e) {
  const Component<float>* const begin = components_of<float>(mixture);
  const Component<float>* c = begin + (mixture->count - 1);
  U k[n];
  Chosen own[n];
  for (int i = 0; i < n; ++i) k[i] = shr<1>(words[i]);
  for (int i = 0; i < n; ++i) own[i] = chosen(c);
#pragma GCC unroll 1
  while (c != begin) {
    const U next = splat(c->first);
    --c;
    for (int i = 0; i < n; ++i) choose(greater(next, k[i]), c, own[i]);
  }
  for (int i = 0; i < n; ++i) e[i] = bits(value_of<normals>(k[i], own[i]));
}

template <bool normals>
struct MixtureDist {
  using Constants = const Mixture*;
  FASTINIT_FN void values(const U w[4], const Constants& c, U e[4]) {
    // As many as there are registers to hold constants for: all four on a GPU, two in AVX-512's 32 registers.
    constexpr int n = normals ? 1 : kLanes == 1 ? 4 : kLanes == 32 ? 2 : 1;
    for (int j = 0; j < 4; j += n) mixture<normals, n>(w + j, c, e + j);
  }
};

FASTINIT_FN double mixture64(const uint32_t w[2], const Mixture* mixture) {
  const uint32_t k = w[0] >> 1, l = w[1] >> 1;
  const Component<double>* c = components_of<double>(mixture);
  const Component<double>* const last = c + (mixture->count - 1);
  while (c != last && c[1].first <= k) ++c;
  const uint32_t j = k - c->first;
  double y = to_double(j, l);
  if (c->unit > 0.0) {
    const double n = static_cast<double>(static_cast<int32_t>(2u * j - c->last)) * 0x1p31 +
                     static_cast<double>(static_cast<int32_t>(2u * l - 0x7fffffffu));
    const bool upper = n > 0.0;
    const double t = upper ? to_double(c->last - j, l ^ 0x7fffffffu) : y;
    const double p = t * c->unit + 0.5 * c->unit, p4 = p * 4.0;
    y = quantile64((upper ? n : -n) * c->unit, neg2log64<0>(p4 - p4 * p), upper);
  }
  const double x = y * c->scale + c->start;
  return x < c->hi ? x : c->hi;
}

struct MixtureDist64 {
  using Constants = const Mixture*;
  FASTINIT_FN void values(const uint32_t w[4], const Constants& c, double e[2]) {
    e[0] = mixture64(w, c);
    e[1] = mixture64(w + 2, c);
  }
};

}  // namespace FASTINIT_ISA
}  // namespace fastinit
