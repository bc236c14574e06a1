// The operations that the rest is written in, over one lane type: F holds floats, U 32-bit words, Mask truth values.
// A lane is a scalar (CUDA, fallback) or two vector registers (AVX2, AVX-512, NEON); each operation is one IEEE or
// integer operation per element and gives the same bits on every instruction set. Include it once per translation unit,
// with FASTINIT_ISA set, and FASTINIT_NEON for NEON, which every aarch64 has and no flag of the compiler's tells.
// csrc/lanes has the lane types themselves. FASTINIT_GPU: the scalars of a GPU, be it modelled.
#pragma once
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FASTINIT_FN static __device__ __forceinline__
#else
#define FASTINIT_FN static inline __attribute__((always_inline))
#endif

#if defined(__AVX512F__) && defined(FASTINIT_ISA)
#include "lanes/avx512.h"
#include "lanes/pair.h"
#elif defined(__AVX2__) && defined(FASTINIT_ISA)
#include "lanes/avx2.h"
#include "lanes/pair.h"
#elif defined(FASTINIT_NEON)
#include "lanes/neon.h"
#include "lanes/pair.h"
#else
#ifndef FASTINIT_ISA
#define FASTINIT_ISA scalar
#endif
#include "lanes/scalar.h"
#ifdef FASTINIT_GPU
#include "lanes/ptx.h"
#endif
#endif

namespace fastinit {
namespace FASTINIT_ISA {

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
