"""The stream in NumPy, written from docs/stream.md alone: what every backend is held to, bit for bit.

Nothing here is shared with the kernels, and nothing is fast. One file, in the order of the page's sections where Python
lets it; the coefficients are read from the page itself.

``words`` gives raw words; ``fill`` gives the bit patterns that an initializer writes into a region of a logical tensor,
as unsigned integers of the item size (for a complex dtype: of the size of its parts, in one more dimension of 2). Only
the region is computed, whatever the size of the logical tensor.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from torch_fastinit.initializers import (
    Bits,
    Constant,
    Dirac,
    Eye,
    Initializer,
    Mixture,
    Normal,
    Op,
    Program,
    Sparse,
    TruncatedNormal,
    Uniform,
)

Array = np.ndarray
u32, u64, i32, i64, f32, f64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stream.md"


def page_tables(text: str) -> dict[str, list[float]]:
    """The coefficient tables of the page: a name in backticks alone on its line, then one number an indented line."""
    tables = re.findall(r"^`([A-Z0-9_]+)`\n\n((?:    \S+\n)+)", text, re.MULTILINE)
    return {name: [float.fromhex(line) for line in body.split()] for name, body in tables}


C = page_tables(PAGE.read_text(encoding="utf-8") + "\n")


# Section 1: words.


def philox4x32_10(counter: Sequence[Array | int], key: Sequence[int]) -> list[Array]:
    """Four words of 32 bits (in arrays of 64) from a counter of four and a key of two."""
    c0, c1, c2, c3 = (np.asarray(c, dtype=u64) for c in counter)
    k0, k1 = key
    low, half = u64(0xFFFFFFFF), u64(32)
    for _ in range(10):
        p0, p1 = u64(0xD2511F53) * c0, u64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ u64(k0), p1 & low, (p0 >> half) ^ c3 ^ u64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def halves(word: int) -> tuple[int, int]:
    return word & 0xFFFFFFFF, (word >> 32) & 0xFFFFFFFF


def block_words(seed: int, stream: int, block: Array, lane: Array) -> Array:
    """Word ``lane`` of each block."""
    block = np.asarray(block, dtype=u64)
    s0, s1 = halves(stream)
    outputs = philox4x32_10((block & u64(0xFFFFFFFF), block >> u64(32), s0, s1), halves(seed))
    return np.choose(np.asarray(lane, dtype=i64), [np.broadcast_to(w, block.shape) for w in outputs]).astype(u32)


def words(seed: int, stream: int, first: int, count: int) -> Array:
    """Words ``first`` to ``first + count - 1`` of a stream; ``first`` may be any integer, taken modulo 2^66."""
    return shifted_words(seed, stream, first, np.arange(count, dtype=u64))


def shifted_words(seed: int, stream: int, first: int, index: Array) -> Array:
    """Word ``first + index`` of a stream."""
    n = index + u64(first % 4)
    return block_words(seed, stream, u64(first // 4 % 2**64) + n // u64(4), n % u64(4))


# Section 2: names and draws.


def blake2b_64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def draw_stream(first: int, draw: int) -> int:
    return first if draw == 0 else blake2b_64(first.to_bytes(8, "little") + draw.to_bytes(8, "little"))


# The notation of the page: fma, horner, and IEEE arithmetic, which NumPy's is.


def fma(a: Array | float, b: Array | float, c: Array | float) -> Array:
    """The f32 fma: the product is exact in f64, the sum is rounded to odd there, and then once, rightly, to f32."""
    a, b, c = (np.asarray(f32(x) if isinstance(x, float | int) else x) for x in (a, b, c))
    assert a.dtype == b.dtype == c.dtype == f32
    product, c64 = a.astype(f64) * b.astype(f64), c.astype(f64)
    total = product + c64
    bb = total - product  # Knuth's TwoSum: total + error is the exact sum
    error = (product - (total - bb)) + (c64 - bb)
    bits = np.asarray(total).view(i64)
    to_odd = np.isfinite(total) & (error != 0) & (bits & 1 == 0)
    away = np.where((error > 0) == (total > 0), 1, -1)
    return (bits + np.where(to_odd, away, 0)).view(f64).astype(f32)


def horner32(x: Array, name: str) -> Array:
    *rest, last = (f32(c) for c in C[name])
    value = np.full_like(x, last)
    for c in reversed(rest):
        value = fma(value, x, c)
    return value


def horner64(x: Array, name: str) -> Array:
    *rest, last = C[name]
    value = np.full_like(x, last)
    for c in reversed(rest):
        value = c + x * value
    return value


def signed32(w: Array) -> Array:
    return w.astype(u32).view(i32)


# Section 4: common functions.


def neg2log32(x: Array, s: int = 0) -> Array:
    i = x.view(u32) - u32(0x3F3504F3 + (s << 23))
    e = (i.view(i32) >> 23).astype(f32)
    f = ((i & u32(0x007FFFFF)) + u32(0x3F3504F3)).view(f32) + f32(-1)
    return fma(e, float.fromhex("-0x1.62e430p+0"), f * horner32(f, "NEG2LOG_F32"))


def neg2log64(x: Array, s: int = 0) -> Array:
    root = 0x3FE6A09E667F3BCD
    i = x.view(u64) - u64(root + (s << 52))
    e = (i.view(i64) >> 52).astype(f64)
    f = ((i & u64(0x000FFFFFFFFFFFFF)) + u64(root)).view(f64) - 1
    high, low = float.fromhex("-0x1.62e42fefa0000p+0"), float.fromhex("-0x1.cf79abc9e3b39p-39")
    return e * high + (e * low + f * horner64(f, "NEG2LOG_F64"))


def integer62(hi: Array, lo: Array) -> Array:
    return hi.astype(f64) * 2.0**31 + lo.astype(f64)


def reciprocal32(y: Array) -> Array:
    r = (u32(0x7EF311C7) - y.view(u32)).view(f32)
    for _ in range(4):
        r = fma(r, fma(-y, r, 1), r)
    return r


def reciprocal64(y: Array) -> Array:
    r = (u64(0x7FDE623822FC16E6) - y.view(u64)).view(f64)
    for _ in range(5):
        r = r + r * (1 - y * r)
    return r


# Section 8: dtypes and bounds.

#: exponent bits, mantissa bits, whether there are infinities (else the last pattern alone is NaN)
NARROW = {
    "float16": (5, 10, True),
    "bfloat16": (8, 7, True),
    "float8_e4m3fn": (4, 3, False),
    "float8_e5m2": (5, 2, True),
}


def round_narrow(x: Array, dtype: str) -> Array:
    """f32 values to the bit patterns of a narrower dtype, in integers."""
    exponents, m, infinite = NARROW[dtype]
    bias = 2 ** (exponents - 1) - 1
    width = 1 + exponents + m
    bits = x.view(u32).astype(i64)
    sign, magnitude = bits >> 31 << (width - 1), bits & 0x7FFFFFFF
    field = magnitude >> 23
    significand = (magnitude & 0x7FFFFF) | np.where(field > 0, 1 << 23, 0)
    exponent = np.maximum(field, 1) - 127
    target = np.maximum(exponent, 1 - bias)
    shift = np.minimum(23 - m + target - exponent, 40)
    quotient, rest, half = significand >> shift, significand & ((1 << shift) - 1), 1 << (shift - 1)
    quotient += (rest > half) | ((rest == half) & (quotient & 1 == 1))
    pattern = ((target + bias - 1) << m) + quotient
    largest = ((1 << exponents) - 1) << m if infinite else (1 << (width - 1)) - 2
    pattern = np.where((pattern > largest) | (field == 255), largest, pattern) | sign
    nan = {"float16": 0x7E00, "bfloat16": 0x7FC0}.get(dtype, 0x7F)
    pattern = np.where(magnitude > 0x7F800000, nan | (0 if dtype == "bfloat16" else sign), pattern)
    return pattern.astype(f"u{width // 8}")


@functools.cache
def narrow_values(dtype: str) -> Array:
    """Every value of a narrow dtype but NaN, in order."""
    exponents, m, infinite = NARROW[dtype]
    bias = 2 ** (exponents - 1) - 1
    pattern = np.arange(1 << (exponents + m))
    field, fraction = pattern >> m, pattern & ((1 << m) - 1)
    value = np.ldexp(np.where(field > 0, fraction + (1 << m), fraction).astype(f64), np.maximum(field, 1) - bias - m)
    if infinite:
        value[field == (1 << exponents) - 1] = np.inf
        value = np.unique(value)
    else:
        value = value[:-1]
    return np.concatenate([-value[:0:-1], value])


def at_or_above(a: float, dtype: str, strictly: bool = False) -> float | None:
    """The smallest value of the dtype that is at least (or above) ``a``."""
    if dtype in NARROW:
        values = narrow_values(dtype)
        if math.isinf(a) and not NARROW[dtype][2]:
            a = math.copysign(values[-1], a)
        above = values[values > a] if strictly else values[values >= a]
        return float(above[0]) if above.size else None
    kind = f32 if dtype == "float32" else f64
    x = kind(a)
    if float(x) < a or (strictly and float(x) == a):
        x = np.nextafter(x, kind(np.inf))
    return float(x)


def bounds(a: float, b: float, dtype: str, open_right: bool) -> tuple[float, float] | None:
    """``lo`` and ``hi``, or None for an empty interval."""
    lo, mirrored = at_or_above(a, dtype), at_or_above(-b, dtype, strictly=open_right)
    if lo is None or mirrored is None or lo > -mirrored:
        return None
    return (lo if lo != 0 else 0.0), (-mirrored if mirrored != 0 else -0.0)


def clamp(x: Array, lo: float, hi: float) -> Array:
    lo, hi = x.dtype.type(lo), x.dtype.type(hi)
    x = np.where(x < hi, x, hi)
    return np.where(x > lo, x, lo)


def to_bits(x: Array, dtype: str) -> Array:
    """Values of the arithmetic's type to bit patterns of the tensor's."""
    if dtype in NARROW:
        return round_narrow(x, dtype)
    return x.view(u32 if dtype == "float32" else u64)


def values_of_bits(pattern: Array, dtype: str) -> Array:
    """What bit patterns of a dtype are, in the arithmetic's type: exactly."""
    if dtype in ("float32", "float64"):
        return pattern.view(f32 if dtype == "float32" else f64)
    exponents, m, infinite = NARROW[dtype]
    bias = 2 ** (exponents - 1) - 1
    pattern = pattern.astype(i64)
    field, fraction = pattern >> m & ((1 << exponents) - 1), pattern & ((1 << m) - 1)
    value = np.ldexp(np.where(field > 0, fraction + (1 << m), fraction).astype(f64), np.maximum(field, 1) - bias - m)
    if infinite:
        value = np.where(field == (1 << exponents) - 1, np.where(fraction == 0, np.inf, np.nan), value)
    else:
        value = np.where(pattern & 0x7F == 0x7F, np.nan, value)
    return np.copysign(value, np.where(pattern >> (exponents + m) != 0, -1.0, 1.0)).astype(f32)


def is_wide(dtype: str) -> bool:
    return dtype == "float64"


def constant(value: float, like: Array, dtype: str) -> Array:
    return np.full(like.shape, value, dtype=f64 if is_wide(dtype) else f32)


# Section 3: the words of an element. ``word(k, index)`` is the word that the element with that index has at place k.


def element_words(seed: int, stream: int, index: Array, wide: bool) -> list[Array]:
    """The one word (or, for wide arithmetic, the two) of each element of a uniform or truncated normal fill."""
    if not wide:
        return [block_words(seed, stream, index // u64(4), index % u64(4))]
    block, lane = index // u64(2), index % u64(2) * u64(2)
    return [block_words(seed, stream, block, lane + u64(k)) for k in range(2)]


def pair_words(seed: int, stream: int, index: Array, wide: bool) -> list[Array]:
    """The two (or four) words of the pair that each element of a normal fill is in."""
    pair = index // u64(2)
    if wide:
        return [block_words(seed, stream, pair, np.full(pair.shape, k)) for k in range(4)]
    return [block_words(seed, stream, pair // u64(2), pair % u64(2) * u64(2) + u64(k)) for k in range(2)]


# Section 5: uniform.


def uniform_values(w: list[Array], a: float, b: float, lo: float, hi: float) -> Array:
    if len(w) == 1:
        scale, start = f32((b - a) * 2.0**-24), f32(a)
        return clamp(fma((w[0] >> u32(8)).astype(f32), scale, start), lo, hi)
    u = (w[0] >> u32(5)).astype(f64) * 2.0**26 + (w[1] >> u32(6)).astype(f64)
    return clamp(u * ((b - a) * 2.0**-53) + a, lo, hi)


# Section 6: normal.


def radius32(w0: Array) -> Array:
    return np.sqrt(neg2log32((w0 >> u32(1)).astype(f32) + f32(0.5), 31))


def radius64(w0: Array, w1: Array) -> Array:
    return np.sqrt(neg2log64(integer62(w0 >> u32(1), w1 >> u32(1)) + 0.5, 62))


def turn(q: Array, odd: Array, s: Array, c: Array) -> Array:
    return np.where(odd, np.choose(q, [s, c, -s, -c]), np.choose(q, [c, -s, -c, s]))


def normal_values(w: list[Array], index: Array, mean: float, std: float) -> Array:
    odd = index % u64(2) == 1
    angle = w[len(w) // 2]
    q = ((angle + u32(2**29)) >> u32(30)).astype(i64)
    if len(w) == 2:
        y = signed32(angle << u32(2)).astype(f32) * f32(2.0**-31)
        y2 = y * y
        s, c = y * horner32(y2, "SINE_F32"), horner32(y2, "COSINE_F32")
        return fma(radius32(w[0]) * turn(q, odd, s, c), f32(std), f32(mean))
    y = (signed32(angle << u32(2)).astype(f64) + (w[3] >> u32(1)).astype(f64) * 2.0**-29) * 2.0**-31
    y2 = y * y
    s, c = y * horner64(y2, "SINE_F64"), horner64(y2, "COSINE_F64")
    return (radius64(w[0], w[1]) * turn(q, odd, s, c)) * std + mean


# Section 7: truncated normal. First the functions of its constants, in f64 and one value at a time.


def exp(x: float) -> float:
    if not x > -745:
        return 0.0
    k = math.floor(x * float.fromhex("0x1.71547652b82fep+0") + 0.5)
    r = (x - k * float.fromhex("0x1.62e42fefa0000p-1")) - k * float.fromhex("0x1.cf79abc9e3b39p-40")
    total = 1.0
    for n in range(17, 0, -1):
        total = 1 + r * total / n
    return math.ldexp(total, k)


def density(z: float) -> float:
    return exp(-0.5 * z * z) * float.fromhex("0x1.9884533d43651p-2")


def mills_ratio(z: float) -> float:
    m = z
    for n in range(100, 0, -1):
        m = z + n / m
    return 1 / m


def central(z: float) -> float:
    if z >= 2:
        return 0.5 - survival(z)
    term = total = z
    for n in range(3, 122, 2):
        term = term * (z * z) / n
        total = total + term
    return density(z) * total


def survival(z: float) -> float:
    if z < 2:
        return 0.5 - central(z)
    return density(z) * mills_ratio(z) if z < 40 else 0.0


def upper_tail(z: float) -> float:
    return 0.5 + central(-z) if z < 0 else survival(z)


def signed_central(z: float) -> float:
    return -central(-z) if z < 0 else central(z)


def mass(a: float, b: float) -> float:
    if a > 1:
        return survival(a) - survival(b)
    if b < -1:
        return survival(-b) - survival(-a)
    return signed_central(b) - signed_central(a)


def psi64(kappa: Array) -> Array:
    return kappa * horner64(np.asarray(kappa, dtype=f64), "MILLS_F64")


def pick(w: list[Array], threshold: int) -> tuple[Array, Array]:
    """The integer ``t`` of each element, as a float of the arithmetic's type, and its side."""
    k = w[0] >> u32(1)
    upper = k.astype(i64) > threshold
    flip = np.where(upper, u32(0x7FFFFFFF), u32(0))
    if len(w) == 1:
        return (k ^ flip).astype(f32), upper
    return integer62(k ^ flip, (w[1] >> u32(1)) ^ flip), upper


def cuts_nothing(mean: float, std: float, lo: float, hi: float, dtype: str) -> bool:
    """Whether all of the normal's values, of which words of 0 have the largest and the smallest, are in [lo, hi]."""
    zero = np.zeros(1, u32)
    angles = (zero + u32(2**31), zero)
    pairs = ([zero, zero, angle, zero] if is_wide(dtype) else [zero, angle] for angle in angles)
    ends = (normal_values(w, np.zeros(1, u64), mean, std) for w in pairs)
    first, last = (values_of_bits(to_bits(x, dtype), dtype)[0] for x in ends)
    return bool(lo <= first and last <= hi)


def truncated_normal_values(w: list[Array], mean: float, std: float, a: float, b: float, lo: float, hi: float) -> Array:
    kind: type = f32 if len(w) == 1 else f64
    alpha, beta, width = (float(x) for x in ((f64(a) - mean) / std, (f64(b) - mean) / std, (f64(b) - a) / std))
    distance, narrow = max(abs(alpha), abs(beta)), 2.0**-9 if kind is f32 else 2.0**-38
    if width * distance <= 64 * narrow and width <= max(narrow * distance, 2.0**-64):
        y, unit, anchor = narrow_form(w, (alpha, beta), width, a, b)
    else:
        far = alpha >= 6 or beta <= -6
        point, spread = mean, std
        if far:
            point = a if alpha >= 6 else b
            spread = float(f64(point) - mean)
        scale = min(float(f64(b) - a), std / max(1.0, alpha, -beta))
        unit, anchor = 1.0, -0.0
        moved, stretched = abs(float(kind(point)) - point), abs(float(kind(spread)) - spread)
        if not (moved <= 2.0**-13 * scale and stretched <= 2.0**-13 * abs(spread)):
            unit = unit_of(spread, kind)
            anchor = float(kind(point)) if np.isfinite(kind(point)) else 0.0
            point -= anchor
        origin, stretch = kind(point / unit), kind(spread / unit)
        values = far_values if far else near_values
        y = values(w, (alpha, beta), origin, stretch)
    unit, anchor = kind(unit), kind(anchor)
    return clamp(fma(y, unit, anchor) if kind is f32 else y * unit + anchor, lo, hi)


def unit_of(x: float, kind: type) -> float:
    """The power of two at or below ``|x|``, if the type has it."""
    lowest, highest = (-149, 127) if kind is f32 else (-1074, 1023)
    exponent = math.frexp(x)[1] - 1 if math.isfinite(x) else highest
    return math.ldexp(1.0, min(max(exponent, lowest), highest))


def narrow_form(
    w: list[Array], interval: tuple[float, float], width: float, a: float, b: float
) -> tuple[Array, float, float]:
    kind: type = f32 if len(w) == 1 else f64
    middle, half = 0.5 * a + 0.5 * b, 0.5 * (b - a)
    unit = unit_of(half, kind)
    anchor = float(kind(middle))
    tilt = 0.25 * (interval[0] + interval[1]) * width
    tanh = tilt * (15 + tilt * tilt) / (15 + 6 * (tilt * tilt))
    e1 = half / unit * ((15 + tilt * tilt) / (15 + 6 * (tilt * tilt)))
    e2 = e1 * tanh / 2
    e3 = e1 * tanh * tanh / 3
    e4 = e1 * tanh * tanh * tanh / 4
    e5 = e1 * tanh * tanh * tanh * tanh / 5
    e0 = 0.5 * ((a - anchor) + (b - anchor)) / unit - (e2 + e4)
    c0, c1, c2, c3, c4, c5 = (kind(e) for e in (e0, e1, e2, e3, e4, e5))
    if kind is f32:
        v = signed32(w[0] ^ u32(2**31)).astype(f32) * f32(2.0**-31)
        rest = fma(fma(fma(c5, v, c4), v, c3), v, c2)
        return fma(v, c1, fma(v * v, rest, c0)), unit, anchor
    v = (signed32(w[0] ^ u32(2**31)).astype(f64) + (w[1] >> u32(1)).astype(f64) * 2.0**-31) * 2.0**-31
    rest = c2 + v * (c3 + v * (c4 + v * c5))
    return v * c1 + ((v * v) * rest + c0), unit, anchor


def near_values(w: list[Array], interval: tuple[float, float], origin: f64, stretch: f64) -> Array:
    alpha, beta = interval
    kind: type = f32 if len(w) == 1 else f64
    unit = 2.0**-31 if len(w) == 1 else 2.0**-62
    m, below = mass(alpha, beta), upper_tail(-alpha)
    share = float(np.floor((0.5 - f64(below)) / m * 2.0**31))
    threshold = int(min(share, 2.0**31) if share > 0 else 0) - 1
    step, x_step = kind(m * unit), kind(-2 * (m * unit))
    base_lower, base_upper = kind(below + m * (0.5 * unit)), kind(upper_tail(beta) + m * (0.5 * unit))
    x_lower = kind(-2 * signed_central(alpha) - m * unit)
    x_upper = kind(2 * signed_central(beta) - m * unit)

    t, upper = pick(w, threshold)
    base, x_base = np.where(upper, base_upper, base_lower), np.where(upper, x_upper, x_lower)
    if kind is f32:
        p, x = fma(t, step, base), fma(t, x_step, x_base)
        p4 = p * f32(4)
        length = neg2log32(fma(-p4, p, p4))
        tail = horner32(np.sqrt(length) + f32(-6), "QUANTILE_TAIL_F32")
        z = np.where(length > 10, tail, x * horner32(length, "QUANTILE_CENTRAL_F32"))
        return fma(np.where(upper, z, -z), stretch, origin)
    p, x = t * step + base, t * x_step + x_base
    p4 = p * 4
    length = neg2log64(p4 - p4 * p)
    s = np.sqrt(length)
    tail = np.where(s < 6, horner64(s - 4.5, "QUANTILE_TAIL_NEAR_F64"), horner64(s - 8.75, "QUANTILE_TAIL_FAR_F64"))
    z = np.where(length > 10, tail, x * horner64(length, "QUANTILE_CENTRAL_F64"))
    return np.where(upper, z, -z) * stretch + origin


def far_values(w: list[Array], interval: tuple[float, float], origin: f64, stretch: f64) -> Array:
    alpha, beta = interval
    upper_side = alpha >= 6
    near_z, other = (alpha, beta) if upper_side else (-beta, -alpha)
    kind: type = f32 if len(w) == 1 else f64
    unit = 2.0**-31 if len(w) == 1 else 2.0**-62
    ratio = 0.0
    if not math.isinf(other):
        ratio = exp(-0.5 * (other - near_z) * (other + near_z)) * mills_ratio(other) / mills_ratio(near_z)
    exact_kappa = 1 / (near_z * near_z)
    step, base = kind((1 - ratio) * unit), kind(ratio + (1 - ratio) * (0.5 * unit))
    kappa, psi2 = kind(exact_kappa), kind(2 * psi64(exact_kappa))

    t, _ = pick(w, -1 if upper_side else 2**31 - 1)
    solve = far_delta32 if kind is f32 else far_delta64
    return solve(t, step, base, kappa, psi2, stretch, origin)


def far_delta32(t: Array, step: f32, base: f32, kappa: f32, psi2: f32, stretch: f32, origin: f32) -> Array:
    half_kappa = f32(0.5) * kappa
    e = neg2log32(fma(t, step, base)) * kappa
    delta = fma(neg2log32(e + f32(1)), half_kappa, e)
    for _ in range(2):
        y = delta + f32(1)
        w = kappa * reciprocal32(y)
        psi = w * horner32(w, "MILLS_F32")
        change = fma(neg2log32(y), -0.5, fma(psi, 2, -psi2))
        miss = fma(kappa, change, delta + (-e))
        slope = fma(fma(w, -2, 1), w, 1)
        delta = fma(-miss, reciprocal32(slope), delta)
    return fma(delta * reciprocal32(np.sqrt(delta + f32(1)) + f32(1)), stretch, origin)


def far_delta64(t: Array, step: f64, base: f64, kappa: f64, psi2: f64, stretch: f64, origin: f64) -> Array:
    half_kappa = 0.5 * kappa
    e = neg2log64(t * step + base) * kappa
    delta = e + neg2log64(1 + e) * half_kappa
    for _ in range(4):
        y = 1 + delta
        w = kappa * reciprocal64(y)
        psi = w * horner64(w, "MILLS_F64")
        change = neg2log64(y) * -0.5 + (psi * 2 - psi2)
        miss = kappa * change + (delta - e)
        slope = 1 + w * (1 - 2 * w)
        delta = delta - miss * reciprocal64(slope)
    return delta * reciprocal64(1 + np.sqrt(1 + delta)) * stretch + origin


# Sections 9 and 10: sparse, eye and dirac.


def sparse_zeros(seed: int, stream: int, shape: Sequence[int], box: tuple[slice, slice], sparsity: float) -> Array:
    """Which elements of a box of the matrix are zero: Knuth's Algorithm S down each of its columns."""
    rows, columns = shape
    selected = np.arange(box[1].start, box[1].stop, dtype=u64)
    left = np.full(selected.shape, min(math.ceil(sparsity * rows), rows), dtype=u64)
    zero = np.zeros((box[0].stop, selected.size), dtype=bool)
    for r in range(box[0].stop):
        index = u64(r * columns) + selected
        w = block_words(seed, stream, index // u64(4), index % u64(4)).astype(u64)
        zero[r] = (w * u64(rows - r)) >> u64(32) < left
        left -= zero[r]
    return zero[box[0]]


def ones_of_dirac(shape: Sequence[int], groups: int, position: list[Array]) -> Array:
    out, channel, *kernel = position
    each = shape[0] // groups
    one = (out < groups * each) & (out % each == channel) & (channel < min(each, shape[1]))
    for k, size in zip(kernel, shape[2:], strict=True):
        one = one & (k == size // 2)
    return one


# Section 13: mixtures.


def components_of(mixture: Mixture, dtype: str) -> list[tuple[int, int, bool, tuple[float, ...]]]:
    """First, count, whether it is a normal, and (unit, scale, start, hi), of every component that has a word."""
    chances = [chance for chance, _ in mixture.components]
    total = sum_in_order(chances)
    firsts = [math.floor(sum_in_order(chances[:n]) / total * 2.0**31 + 0.5) for n in range(len(chances))]
    found = []
    for first, end, (_, law) in zip(firsts, [*firsts[1:], 2**31], mixture.components, strict=True):
        if first == end:
            continue
        unit = 1 / (end - first) * (2.0**-31 if is_wide(dtype) else 1.0)
        if isinstance(law, Normal):
            constants = (law.std, law.mean, math.inf)
        else:
            a, b = (law.a, law.b) if isinstance(law, Uniform) else (float(law.value),) * 2
            limits = bounds(a, b, dtype, open_right=a != b) if isinstance(law, Uniform) else None
            step = (b - a) * unit if limits else math.copysign(0.0, a)
            start = float((f64 if is_wide(dtype) else f32)(a + 0.5 * step))
            start = max(start, limits[0]) if limits else start
            constants = (step, start, start if limits is None or limits[1] == start else limits[1])
        found.append((first, end - first, isinstance(law, Normal), (unit, *constants)))
    return found


def sum_in_order(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total = total + value
    return total


def mixture_values(w: list[Array], mixture: Mixture, dtype: str) -> Array:
    kind: type = f32 if len(w) == 1 else f64
    k = (w[0] >> u32(1)).astype(i64)
    low = (w[1] >> u32(1)).astype(i64) if len(w) == 2 else None
    values = np.empty(k.shape, kind)
    for first, count, is_normal, constants in components_of(mixture, dtype):
        own = (first <= k) & (k < first + count)
        j, within = k[own] - first, None if low is None else low[own]
        unit, scale, start, hi = (kind(c) for c in constants)
        y = quantile_of_place(j, within, count, unit) if is_normal else place(j, within)
        x = fma(y, scale, start) if kind is f32 else y * scale + start
        values[own] = np.where(x < hi, x, hi)
    return values


def place(j: Array, within: Array | None) -> Array:
    """The place in a component: ``j``, and for wide arithmetic 31 more bits."""
    return j.astype(f32) if within is None else integer62(j, within)


def quantile_of_place(j: Array, within: Array | None, count: int, unit: float) -> Array:
    d = 2 * j - (count - 1)
    if within is None:
        upper = d > 0
        t, x = place(np.where(upper, count - 1 - j, j), None), d.astype(f32) * unit
        p = fma(t, unit, f32(0.5) * unit)
        p4 = p * f32(4)
        length = neg2log32(fma(-p4, p, p4))
        tail = horner32(np.sqrt(length) + f32(-6), "QUANTILE_TAIL_F32")
        return np.where(length > 10, np.where(upper, tail, -tail), x * horner32(length, "QUANTILE_CENTRAL_F32"))
    n = d.astype(f64) * 2.0**31 + (2 * within - (2**31 - 1)).astype(f64)
    upper = n > 0
    t = place(np.where(upper, count - 1 - j, j), np.where(upper, within ^ 0x7FFFFFFF, within))
    p, x = t * unit + 0.5 * unit, n * unit
    p4 = p * 4
    length = neg2log64(p4 - p4 * p)
    s = np.sqrt(length)
    tail = np.where(s < 6, horner64(s - 4.5, "QUANTILE_TAIL_NEAR_F64"), horner64(s - 8.75, "QUANTILE_TAIL_FAR_F64"))
    return np.where(length > 10, np.where(upper, tail, -tail), x * horner64(length, "QUANTILE_CENTRAL_F64"))


# The public face.


def region_positions(box: Sequence[slice]) -> list[Array]:
    """The position of each element of a box in the logical tensor, one array (of int64) a dimension."""
    shape = [s.stop - s.start for s in box]
    return [
        np.broadcast_to(np.arange(s.start, s.stop).reshape([-1 if d == k else 1 for k in range(len(box))]), shape)
        for d, s in enumerate(box)
    ]


def region_indices(shape: Sequence[int], box: Sequence[slice]) -> Array:
    """The row-major index of each element of a box in the logical tensor, as uint64."""
    index = np.zeros([s.stop - s.start for s in box], dtype=u64)
    for position, size in zip(region_positions(box), shape, strict=True):
        index = index * u64(size) + position.astype(u64)
    return index


def fill(
    initializer: Initializer,
    shape: Sequence[int],
    dtype: str,
    seed: int = 0,
    stream: int = 0,
    second: int | None = None,
    region: Sequence[slice] | None = None,
) -> Array:
    """The bit patterns of ``initializer`` in a tensor of that shape, or in ``region`` (slices without steps) of it.

    ``dtype`` is torch's name of one. ``second`` is the stream of the second draw of a sparse fill, by default that of
    draw 1 of a tensor whose draw 0 is ``stream``.
    """
    shape = tuple(shape)
    box = [slice(0, n) for n in shape] if region is None else list(region)
    if dtype in ("complex64", "complex128"):
        shape, box = (*shape, 2), [*box, slice(0, 2)]
        dtype = "float32" if dtype == "complex64" else "float64"
        if isinstance(initializer, Normal):
            initializer = Normal(initializer.mean, initializer.std / math.sqrt(2))
    seed, stream = seed % 2**64, stream % 2**64
    index = region_indices(shape, box)
    with np.errstate(all="ignore"):
        if isinstance(initializer, Bits):
            return shifted_words(seed, stream, initializer.offset, index)
        if isinstance(initializer, Sparse):
            values = normal_fill(Normal(0.0, initializer.std), index, dtype, seed, stream)
            second = draw_stream(stream, 1) if second is None else second % 2**64
            zero = sparse_zeros(seed, second, shape, (box[0], box[1]), initializer.sparsity)
            return to_bits(np.where(zero, values.dtype.type(0), values), dtype)
        if isinstance(initializer, Program):
            return program_bits(initializer, shape, box, index, dtype, seed, stream)
        return to_bits(plain_values(initializer, shape, box, index, dtype, seed, stream), dtype)


# Section 11: programs.


def program_bits(
    program: Program, shape: Sequence[int], box: list[slice], index: Array, dtype: str, seed: int, stream: int
) -> Array:
    """Every step through memory: rounded to its dtype, and read from there by the next."""
    now = str(program.dtype).removeprefix("torch.")
    pattern = to_bits(plain_values(program.draw, shape, box, index, now, seed, stream), now)
    for step in program.steps:
        x = values_of_bits(pattern, now)
        now = str(step.dtype).removeprefix("torch.")
        c = (f64 if is_wide(now) else f32)(step.operand)
        assert x.dtype == c.dtype
        if step.op is Op.MUL:
            x = x * c
        elif step.op is Op.ADD:
            x = x + c
        elif step.op is Op.DIV:
            x = x / c
        pattern = to_bits(x, now)
    assert now == dtype
    return pattern


def normal_fill(initializer: Normal, index: Array, dtype: str, seed: int, stream: int) -> Array:
    w = pair_words(seed, stream, index, is_wide(dtype))
    return normal_values(w, index, initializer.mean, initializer.std)


def plain_values(
    initializer: Initializer, shape: Sequence[int], box: list[slice], index: Array, dtype: str, seed: int, stream: int
) -> Array:
    """Values in the arithmetic's type, of all initializers that are one value an element."""
    if isinstance(initializer, Normal):
        return normal_fill(initializer, index, dtype, seed, stream)
    if isinstance(initializer, Uniform):
        a, b = initializer.a, initializer.b
        limits = bounds(a, b, dtype, open_right=a != b)
        if limits is None:
            return constant(a, index, dtype)
        return uniform_values(element_words(seed, stream, index, is_wide(dtype)), a, b, *limits)
    if isinstance(initializer, TruncatedNormal):
        mean, std, a, b = initializer.params
        limits = bounds(a, b, dtype, open_right=False)
        if limits is None:
            return constant(a, index, dtype)
        if not std > 0:
            return clamp(constant(mean, index, dtype), *limits)
        if cuts_nothing(mean, std, *limits, dtype):
            return normal_fill(Normal(mean, std), index, dtype, seed, stream)
        w = element_words(seed, stream, index, is_wide(dtype))
        return truncated_normal_values(w, mean, std, a, b, *limits)
    if isinstance(initializer, Mixture):
        return mixture_values(element_words(seed, stream, index, is_wide(dtype)), initializer, dtype)
    if isinstance(initializer, Constant):
        return constant(float(initializer.value), index, dtype)
    position = region_positions(box)
    if isinstance(initializer, Eye):
        return (position[0] == position[1]).astype(constant(0.0, index, dtype).dtype)
    assert isinstance(initializer, Dirac)
    return ones_of_dirac(shape, initializer.groups, position).astype(constant(0.0, index, dtype).dtype)
