"""Words -> values, and the rounding to narrow dtypes: csrc/distributions.h, function for function.

docs/stream.md states every operation; the order of operations here is part of the stream. Kernels are launched with
``enable_fp_fusion=False``, so that a product and a sum stay two operations where ``tl.fma`` does not say otherwise.
"""

import triton
import triton.language as tl

from .coefficients import (
    COSINE_F32,
    COSINE_F64,
    MILLS_F32,
    MILLS_F64,
    NEG2LOG_F32,
    NEG2LOG_F64,
    QUANTILE_CENTRAL_F32,
    QUANTILE_CENTRAL_F64,
    QUANTILE_TAIL_F32,
    QUANTILE_TAIL_FAR_F64,
    QUANTILE_TAIL_NEAR_F64,
    SINE_F32,
    SINE_F64,
)


@triton.jit
def to_float(x):
    return x.to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def clamp(x, lo, hi):
    """Bounds first: with ``hi`` never +0 and ``lo`` never -0, equal operands give the bound."""
    return tl.maximum(lo, tl.minimum(hi, x))


@triton.jit
def horner(x, coefficients: tl.constexpr, degree: tl.constexpr):
    """Horner's rule in float32, coefficients lowest first."""
    result = tl.full(x.shape, coefficients[degree], tl.float32)
    for n in tl.static_range(degree - 1, -1, -1):
        result = tl.fma(x, result, tl.full(x.shape, coefficients[n], tl.float32))
    return result


@triton.jit
def horner64(x, coefficients: tl.constexpr, degree: tl.constexpr):
    """Horner's rule in float64: a product and a sum a step."""
    result = tl.full(x.shape, coefficients[degree], tl.float64)
    for n in tl.static_range(degree - 1, -1, -1):
        result = (coefficients[n]) + x * result
    return result


# ---- float32 ---------------------------------------------------------------------------------------------------------


@triton.jit
def neg2log(x, scale: tl.constexpr):
    """-2 log(x 2^-scale), for x positive and normal."""
    i = x.to(tl.uint32, bitcast=True) - ((0x3F3504F3 + scale * 0x800000) & 0xFFFFFFFF)
    e = i & 0xFF800000  # the exponent, 2^23 times: the same product as of the exponent itself
    f = (i - e + 0x3F3504F3).to(tl.float32, bitcast=True) + -1.0
    e = e.to(tl.int32, bitcast=True).to(tl.float32)
    return tl.fma(e, -1.6525916635146132e-07, f * horner(f, NEG2LOG_F32, 8))


@triton.jit
def normal_pair(w0, w1):
    """Box and Muller (1958): words to the radius and the angle of a normal pair."""
    radius = tl.sqrt_rn(neg2log(to_float(w0 >> 1) + 0.5, 31))
    v = w1 + 0x20000000  # the quarter turn lies in the upper two bits
    y = to_float(w1 << 2) * 4.656612873077393e-10
    y2 = y * y
    s = y * horner(y2, SINE_F32, 3)
    c = horner(y2, COSINE_F32, 3)
    swap = (v & 0x40000000) != 0
    # Half a turn changes both signs, a quarter turn from there on the cosine's.
    turned = (radius.to(tl.uint32, bitcast=True) ^ (v & 0x80000000)).to(tl.float32, bitcast=True)
    return turned * tl.where(swap, -s, c), turned * tl.where(swap, c, s)


@triton.jit
def reciprocal(y):
    """1 / y for y in [1, 4]: four Newton steps from an estimate good to 12%."""
    r = (0x7EF311C7 - y.to(tl.uint32, bitcast=True)).to(tl.float32, bitcast=True)
    for _ in tl.static_range(4):
        r = tl.fma(r, tl.fma(-y, r, 1.0), r)
    return r


@triton.jit
def far_tail(ratio, k):
    """The far tail: Q(z) = ratio Q(alpha), alpha >= 6, by Newton's method on delta = (z / alpha)^2 - 1."""
    near, reach, kappa, psi_of_kappa = k[6], k[7], k[8], k[9]
    e = neg2log(ratio, 0) * kappa
    delta = tl.fma(neg2log(e + 1.0, 0), 0.5 * kappa, e)
    for _ in tl.static_range(2):
        y = delta + 1.0
        w = kappa * reciprocal(y)
        psi = w * horner(w, MILLS_F32, 4)
        change = tl.fma(neg2log(y, 0), -0.5, tl.fma(psi, 2.0, -psi_of_kappa))
        miss = tl.fma(kappa, change, delta + -e)
        slope = tl.fma(tl.fma(w, -2.0, 1.0), w, 1.0)
        delta = tl.fma(-miss, reciprocal(slope), delta)
    stretch = delta * reciprocal(tl.sqrt_rn(delta + 1.0) + 1.0)
    return tl.fma(stretch, reach, near)


@triton.jit
def narrow_form(w, k):
    v = to_float(w ^ 0x80000000) * 4.656612873077393e-10
    rest = tl.fma(tl.fma(tl.fma(k[9], v, k[8]), v, k[7]), v, k[6])
    return tl.fma(v, k[5], tl.fma(v * v, rest, k[4]))


@triton.jit
def truncated_normal(w, threshold, FORM: tl.constexpr, k):
    """FORM is that of csrc/fill.h: near, far or narrow; or 3, near where no element takes the tail."""
    n = w >> 1
    upper = n.to(tl.int32, bitcast=True) > threshold
    t = to_float(tl.where(upper, n ^ 0x7FFFFFFF, n))
    if FORM == 2:
        y = narrow_form(w, k)
    elif FORM == 1:
        y = far_tail(tl.fma(t, k[4], k[5]), k)
    else:
        p = tl.fma(t, k[4], tl.where(upper, k[6], k[5]))
        # From here on with the sign of the side.
        x = tl.where(upper, tl.fma(t, k[9], k[11]), tl.fma(t, -k[9], -k[10]))
        length = neg2log(tl.fma(-p, p, p), -2)
        z = x * horner(length, QUANTILE_CENTRAL_F32, 8)
        # A branch would be one for the whole program, and some lane of so many nearly always takes it: the host knows.
        if FORM != 3:
            tail = horner(tl.sqrt_rn(length) + -6.0, QUANTILE_TAIL_F32, 10)
            z = tl.where(length > 10.0, tl.where(upper, tail, -tail), z)
        y = tl.fma(z, k[8], k[7])
    return clamp(tl.fma(y, k[2], k[3]), k[0], k[1])


@triton.jit
def chosen(n, k, WORD: tl.constexpr):
    """The six numbers of the last component that begins at the word ``n`` or before it, element by element.

    ``k`` is where the components lie, each six words of type WORD, and how many there are.
    """
    at = tl.cast(k[0], tl.int64).to(tl.pointer_type(WORD)) + (tl.cast(k[1], tl.int64) - 1) * 6
    n = n.to(WORD)
    zero = tl.zeros_like(n)
    first, last, unit = zero + tl.load(at), zero + tl.load(at + 1), zero + tl.load(at + 2)
    scale, start, hi = zero + tl.load(at + 3), zero + tl.load(at + 4), zero + tl.load(at + 5)
    for _ in range(tl.cast(k[1], tl.int64) - 1):
        before = n < tl.load(at)
        at -= 6
        first = tl.where(before, tl.load(at), first)
        last = tl.where(before, tl.load(at + 1), last)
        unit = tl.where(before, tl.load(at + 2), unit)
        scale = tl.where(before, tl.load(at + 3), scale)
        start = tl.where(before, tl.load(at + 4), start)
        hi = tl.where(before, tl.load(at + 5), hi)
    return first.to(tl.uint32), last.to(tl.uint32), unit, scale, start, hi


@triton.jit
def quantile(j, last, unit):
    """The standard normal number at place ``j`` of the places 0 to ``last``, each of the probability ``unit``."""
    d = j + j - last
    upper = d.to(tl.int32, bitcast=True) > 0
    p = tl.fma(to_float(tl.where(upper, last - j, j)), unit, unit * 0.5)
    length = neg2log(tl.fma(-p, p, p), -2)
    tail = horner(tl.sqrt_rn(length) + -6.0, QUANTILE_TAIL_F32, 10)
    z = to_float(d) * unit * horner(length, QUANTILE_CENTRAL_F32, 8)
    return tl.where(length > 10.0, tl.where(upper, tail, -tail), z)


@triton.jit
def mixture(w, NORMALS: tl.constexpr, k):
    """A component's place, or the normal number there where places have a probability, becomes its value."""
    first, last, unit, scale, start, hi = chosen(w >> 1, k, tl.uint32)
    j = (w >> 1) - first
    y = to_float(j)
    if NORMALS:
        unit = unit.to(tl.float32, bitcast=True)
        y = tl.where(unit > 0.0, quantile(j, last, unit), y)
    value = tl.fma(y, scale.to(tl.float32, bitcast=True), start.to(tl.float32, bitcast=True))
    hi = hi.to(tl.float32, bitcast=True)
    return tl.where(value < hi, value, hi)


# ---- float32 to narrow dtypes, to nearest even -----------------------------------------------------------------------


@triton.jit
def narrow(x, exponent: tl.constexpr, mantissa: tl.constexpr, top: tl.constexpr, nan: tl.constexpr):
    """A binary format with so many bits of each; what lies past the largest value becomes ``top``."""
    drop: tl.constexpr = 23 - mantissa
    bias: tl.constexpr = (1 << (exponent - 1)) - 1
    magnitude = x & 0x7FFFFFFF
    # Normal results: add half of the last place (less one, plus its parity), rebias, drop.
    parity = (magnitude >> drop) & 1
    n = (magnitude + parity + (((1 << (drop - 1)) - 1 - ((127 - bias) << 23)) & 0xFFFFFFFF)) >> drop
    # Subnormal results: an addition whose last place is the format's smallest subnormal does the rounding.
    magic = (127 - bias + 1 + drop) << 23
    tiny = (magnitude.to(tl.float32, bitcast=True) + magic.to(tl.float32, bitcast=True)).to(
        tl.uint32, bitcast=True
    ) - magic
    n = tl.where(magnitude < ((128 - bias) << 23), tiny, n)
    n = tl.where(n.to(tl.int32, bitcast=True) > top, top, n)
    n = tl.where(magnitude > 0x7F800000, nan, n)
    return n | ((x >> 31) << (exponent + mantissa))


@triton.jit
def round_bf16(x):
    """float32's exponent: no other range, so no subnormals of its own."""
    n = (x + ((x >> 16) & 1) + 0x7FFF) >> 16
    return tl.where((x & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, n)


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """The bits of a float32 in the dtype with this code (that of csrc/fill.h)."""
    if DTYPE == 2:
        return narrow(x, 5, 10, 0x7C00, 0x7E00)
    elif DTYPE == 3:
        return round_bf16(x)
    elif DTYPE == 4:
        return narrow(x, 4, 3, 0x7E, 0x7F)
    elif DTYPE == 5:
        return narrow(x, 5, 2, 0x7C, 0x7F)
    else:
        return x


@triton.jit
def widen(n, exponent: tl.constexpr, mantissa: tl.constexpr, top: tl.constexpr, infinite: tl.constexpr):
    """The bits of the float32 that a value of such a format is."""
    drop: tl.constexpr = 23 - mantissa
    bias: tl.constexpr = (1 << (exponent - 1)) - 1
    magnitude = n & ((1 << (exponent + mantissa)) - 1)
    # The exponent's bits read as float32's make it 2^(127 - bias) times too small; so they do of subnormals.
    scale: tl.constexpr = 2.0 ** (127 - bias)
    x = ((magnitude << drop).to(tl.float32, bitcast=True) * scale).to(tl.uint32, bitcast=True)
    if infinite:
        x = tl.where(magnitude >= top, 0x7F800000, x)
    x = tl.where(magnitude > top, 0x7FC00000, x)
    return x | ((n >> (exponent + mantissa)) << 31)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """A float32 as the dtype with this code has it, in float32."""
    n = round_to(x.to(tl.uint32, bitcast=True), DTYPE)
    if DTYPE == 2:
        n = widen(n, 5, 10, 0x7C00, True)
    elif DTYPE == 3:
        n = n << 16
    elif DTYPE == 4:
        n = widen(n, 4, 3, 0x7E, False)
    elif DTYPE == 5:
        n = widen(n, 5, 2, 0x7C, True)
    return n.to(tl.float32, bitcast=True)


@triton.jit
def operate(x, OP: tl.constexpr, c):
    if OP == 1:
        x = x * c
    elif OP == 2:
        x = x + c
    elif OP == 3:
        x = x / c if x.dtype == tl.float64 else tl.div_rn(x, c + tl.zeros_like(x))
    return x


@triton.jit
def run_steps(x, PROGRAM: tl.constexpr, p):
    """What is done to float32 values (as bits) after they were drawn, each operation with its own rounding.

    PROGRAM has six digits of six bits, the first step lowest: 1 + operation + 4 * dtype (codes of csrc/fill.h), or 0.
    """
    y = x.to(tl.float32, bitcast=True)
    for n in tl.static_range(6):
        if ((PROGRAM >> (6 * n)) & 63) > 0:
            y = operate(y, (((PROGRAM >> (6 * n)) & 63) - 1) & 3, p[n])
            y = rounded(y, (((PROGRAM >> (6 * n)) & 63) - 1) >> 2)
    return y.to(tl.uint32, bitcast=True)


# ---- float64: the same formulas over doubles, without fma ------------------------------------------------------------


@triton.jit
def clamp64(x, lo, hi):
    x = tl.where(x < hi, x, hi)
    return tl.where(x > lo, x, lo)


@triton.jit
def to_double(x):
    return x.to(tl.int32, bitcast=True).to(tl.float64)


@triton.jit
def integer62(hi, lo):
    return to_double(hi) * 2147483648.0 + to_double(lo)


@triton.jit
def neg2log64(x, scale: tl.constexpr):
    root = 0x3FE6A09E667F3BCD
    i = x.to(tl.uint64, bitcast=True) - (0x3FE6A09E667F3BCD + (scale << 52))
    e = (i.to(tl.int64, bitcast=True) >> 52).to(tl.int32).to(tl.float64)
    f = ((i & (0x000FFFFFFFFFFFFF)) + root).to(tl.float64, bitcast=True) - 1.0
    # -2 log 2 in two parts: the first is exact in every product with e.
    return e * -1.3862943611165974 + (e * -3.293189916579416e-12 + f * horner64(f, NEG2LOG_F64, 20))


@triton.jit
def uniform64(w0, w1, k):
    u = to_double(w0 >> 5) * 67108864.0 + to_double(w1 >> 6)
    return clamp64(u * k[0] + k[1], k[2], k[3])


@triton.jit
def normal_pair64(w0, w1, w2, w3, k):
    radius = tl.sqrt(neg2log64(integer62(w0 >> 1, w1 >> 1) + 0.5, 62))
    q = (w2 + 0x20000000) >> 30
    y = (to_double(w2 << 2) + to_double(w3 >> 1) * 1.862645149230957e-09) * 4.656612873077393e-10
    y2 = y * y
    s = y * horner64(y2, SINE_F64, 7)
    c = horner64(y2, COSINE_F64, 7)
    swap = (q & 1) != 0
    cosine = tl.where(swap, s, c)
    sine = tl.where(swap, c, s)
    even = radius * tl.where(((q + 1) & 2) != 0, -cosine, cosine) * k[1] + k[0]
    odd = radius * tl.where((q & 2) != 0, -sine, sine) * k[1] + k[0]
    return even, odd


@triton.jit
def reciprocal64(y):
    r = ((0x7FDE623822FC16E6) - y.to(tl.uint64, bitcast=True)).to(tl.float64, bitcast=True)
    for _ in tl.static_range(5):
        r = r + r * (1.0 - y * r)
    return r


@triton.jit
def far_tail64(ratio, k):
    near, reach, kappa, psi_of_kappa = k[6], k[7], k[8], k[9]
    e = neg2log64(ratio, 0) * kappa
    delta = e + neg2log64(1.0 + e, 0) * (0.5 * kappa)
    for _ in tl.static_range(4):
        y = 1.0 + delta
        w = kappa * reciprocal64(y)
        psi = w * horner64(w, MILLS_F64, 10)
        change = neg2log64(y, 0) * -0.5 + (psi * 2.0 - psi_of_kappa)
        miss = kappa * change + (delta - e)
        slope = 1.0 + w * (1.0 - 2.0 * w)
        delta = delta - miss * reciprocal64(slope)
    stretch = delta * reciprocal64(1.0 + tl.sqrt(1.0 + delta))
    return stretch * reach + near


@triton.jit
def narrow_form64(w0, w1, k):
    v = (to_double(w0 ^ 0x80000000) + to_double(w1 >> 1) * 4.656612873077393e-10) * 4.656612873077393e-10
    rest = k[6] + v * (k[7] + v * (k[8] + v * k[9]))
    return v * k[5] + (v * v * rest + k[4])


@triton.jit
def truncated_normal64(w0, w1, threshold, FORM: tl.constexpr, k):
    n = w0 >> 1
    upper = n.to(tl.int32, bitcast=True) > threshold
    flip = tl.where(upper, 0x7FFFFFFF, 0)
    t = integer62(n ^ flip, (w1 >> 1) ^ flip)
    if FORM == 2:
        y = narrow_form64(w0, w1, k)
    elif FORM == 1:
        y = far_tail64(t * k[4] + k[5], k)
    else:
        p = t * k[4] + tl.where(upper, k[6], k[5])
        x = t * k[9] + tl.where(upper, k[11], k[10])
        p4 = p * 4.0
        length = neg2log64(p4 - p4 * p, 0)
        z = x * horner64(length, QUANTILE_CENTRAL_F64, 20)
        if FORM != 3:
            s = tl.sqrt(length)
            near = horner64(s - 4.5, QUANTILE_TAIL_NEAR_F64, 20)
            far = horner64(s - 8.75, QUANTILE_TAIL_FAR_F64, 20)
            z = tl.where(length > 10.0, tl.where(s < 6.0, near, far), z)
        y = tl.where(upper, z, -z) * k[8] + k[7]
    return clamp64(y * k[2] + k[3], k[0], k[1])


@triton.jit
def mixture64(w0, w1, NORMALS: tl.constexpr, k):
    first, last, unit, scale, start, hi = chosen(w0 >> 1, k, tl.uint64)
    j, low = (w0 >> 1) - first, w1 >> 1
    y = integer62(j, low)
    if NORMALS:
        unit = unit.to(tl.float64, bitcast=True)
        n = to_double(j + j - last) * 2147483648.0 + to_double(low + low - 0x7FFFFFFF)
        upper = n > 0.0
        p = integer62(tl.where(upper, last - j, j), tl.where(upper, low ^ 0x7FFFFFFF, low)) * unit + 0.5 * unit
        p4 = p * 4.0
        length = neg2log64(p4 - p4 * p, 0)
        s = tl.sqrt(length)
        near = horner64(s - 4.5, QUANTILE_TAIL_NEAR_F64, 20)
        far = horner64(s - 8.75, QUANTILE_TAIL_FAR_F64, 20)
        tail = tl.where(s < 6.0, near, far)
        z = n * unit * horner64(length, QUANTILE_CENTRAL_F64, 20)
        z = tl.where(length > 10.0, tl.where(upper, tail, -tail), z)
        y = tl.where(unit > 0.0, z, y)
    value = y * scale.to(tl.float64, bitcast=True) + start.to(tl.float64, bitcast=True)
    hi = hi.to(tl.float64, bitcast=True)
    return tl.where(value < hi, value, hi)


@triton.jit
def run_steps64(x, PROGRAM: tl.constexpr, p):
    for n in tl.static_range(6):
        if ((PROGRAM >> (6 * n)) & 63) > 0:
            x = operate(x, (((PROGRAM >> (6 * n)) & 63) - 1) & 3, p[n])
    return x
