// How often each distribution of csrc/distributions.h, as a GPU has it, asks for a fused multiply-add: for a block of
// four words in the middle, which take no tail.
#include <math.h>
#include <stdio.h>

static int fmas = 0;
static float counted(float a, float b, float c) {
  ++fmas;
  return fmaf(a, b, c);
}
#define __builtin_fmaf counted
#define FASTINIT_ISA gpu
#define FASTINIT_GPU
#include "../../../csrc/distributions.h"

using namespace fastinit;
using namespace fastinit::gpu;

template <class Dist>
void count(const char* name, const typename Dist::Constants& c) {
  const U words[4] = {0x40000000u, 0x50000000u, 0x30000000u, 0x60000000u};
  U out[4];
  fmas = 0;
  Dist::values(words, c, out);
  printf("%s: %d\n", name, fmas);
}

int main() {
  TruncatedNormal<float> c{};
  c.threshold = 0x3fffffff;
  c.form = Form::near;
  c.lo = -2.0f;
  c.hi = 2.0f;
  c.unit = c.std = 1.0f;
  c.step = 0x1p-31f;
  c.base_lower = c.base_upper = 0.1f;
  c.x_step = 0x1p-30f;
  count<BitsDist>("bits", {});
  count<UniformDist>("uniform", {0x1p-24f, 0.0f, 0.0f, 1.0f});
  count<NormalDist>("normal", {0.0f, 1.0f});
  count<PlainTruncatedNormalDist>("truncated_normal", c);
  count<TruncatedNormalDist>("truncated_normal with tails", c);
}
