// Two float32 values to a narrow dtype side by side, by the GPU's own conversion where it has one. That agrees with
// `round` of csrc/distributions.h on every float32, but:
//   - NaN, which the GPU writes in a pattern of its own;
//   - what overflows float8_e5m2, which the GPU makes the largest value and torch infinity.
// So only fills in which neither can occur may come here (csrc/tables.cpp sees to it). tools/ptx.cu compares all 2^32.
#pragma once
#include "distributions.h"

namespace fastinit {
namespace FASTINIT_ISA {

FASTINIT_FN U convert2(BF16, F low, F high) { return cvt_bf16x2(high, low); }
FASTINIT_FN U convert2(F16, F low, F high) { return cvt_f16x2(high, low); }
FASTINIT_FN U convert2(E4M3, F low, F high) { return cvt_e4m3x2(high, low); }
FASTINIT_FN U convert2(E5M2, F low, F high) { return cvt_e5m2x2(high, low); }

// In the low 16 or 32 bits, `low` lowest.
template <class Format>
FASTINIT_FN U pack2(U low, U high) {
  if constexpr (kArchitecture >= (Format::kBytes == 2 ? 800 : 890)) {
    return convert2(Format(), from_bits(low), from_bits(high));
  } else {
    return Format::round(low) | Format::round(high) << (8 * Format::kBytes);
  }
}

}  // namespace FASTINIT_ISA
}  // namespace fastinit
