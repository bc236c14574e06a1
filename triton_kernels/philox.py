"""Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011): csrc/philox.h.

Triton's own ``tl.philox`` becomes Philox4x64 when a counter word has 64 bits, so it is not used.
"""

import triton
import triton.language as tl


@triton.jit
def philox(block_lo, block_hi, seed_lo, seed_hi, stream_lo, stream_hi):
    """The four words of each block. Whatever is a scalar stays one: a program computes its round keys once."""
    a, b, c, d = block_lo, block_hi, stream_lo, stream_hi
    k0, k1 = seed_lo, seed_hi
    for _ in tl.static_range(10):
        x = a.to(tl.uint64) * 0xD2511F53  # both halves of the product in one instruction
        y = c.to(tl.uint64) * 0xCD9E8D57
        # The part that may be a scalar first.
        a, c = (y >> 32).to(tl.uint32) ^ (b ^ k0), (x >> 32).to(tl.uint32) ^ (d ^ k1)
        b, d = y.to(tl.uint32), x.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return a, b, c, d
