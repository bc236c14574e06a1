"""Derives the polynomial coefficients of csrc/coefficients.h and prints that file.

Each polynomial is the relative least-squares fit at Chebyshev points in 60-digit arithmetic, its coefficients rounded
one after the other, lowest first, each time fitting the rest again so that they absorb the rounding. The printed error
is that of the rounded polynomial in exact arithmetic, relative to the function.

    python tools/fit.py > csrc/coefficients.h
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np

mp.mp.dps = 60

Function = Callable[[mp.mpf], mp.mpf]


def fit(
    f: Function, lo: mp.mpf, hi: mp.mpf, degree: int, dtype: type, fixed: dict[int, float] | None = None
) -> tuple[list[float], float]:
    """Rounded coefficients, lowest first, of a polynomial close to ``f`` on [lo, hi]; its largest relative error."""
    lo, hi = mp.mpf(lo), mp.mpf(hi)
    points = 8 * degree
    xs = [(lo + hi) / 2 + (hi - lo) / 2 * mp.cos(mp.pi * (m + mp.mpf(1) / 2) / points) for m in range(points)]
    ys = [f(x) for x in xs]
    known: dict[int, mp.mpf] = {k: mp.mpf(v) for k, v in (fixed or {}).items()}
    weights = [1 / y for y in ys]
    while len(known) <= degree:
        powers = [k for k in range(degree + 1) if k not in known]
        a = mp.matrix(points, len(powers))
        b = mp.matrix(points, 1)
        for i, (x, y, w) in enumerate(zip(xs, ys, weights)):
            for j, p in enumerate(powers):
                a[i, j] = w * x**p
            b[i] = w * (y - sum(c * x**k for k, c in known.items()))
        solution = mp.lu_solve(a.T * a, a.T * b)
        known[powers[0]] = mp.mpf(float(dtype(float(solution[0]))))
    error = max(abs(sum(c * x**k for k, c in known.items()) - y) / abs(y) for x, y in zip(xs, ys))
    return [float(known[k]) for k in range(degree + 1)], float(error)


def neg2log1p(x: mp.mpf) -> mp.mpf:
    """-2 log(1 + x) / x"""
    return mp.mpf(-2) if x == 0 else -2 * mp.log1p(x) / x


def sine(y: mp.mpf) -> mp.mpf:
    """sin(pi/4 sqrt(y)) / sqrt(y)"""
    return mp.pi / 4 if y == 0 else mp.sin(mp.pi / 4 * mp.sqrt(y)) / mp.sqrt(y)


def cosine(y: mp.mpf) -> mp.mpf:
    """cos(pi/4 sqrt(y))"""
    return mp.cos(mp.pi / 4 * mp.sqrt(y))


def quantile_central(length: mp.mpf) -> mp.mpf:
    """z / x at -2 log(1 - x^2) = length, where z is the normal quantile of (1 + x) / 2."""
    if length < mp.mpf("1e-25"):
        return mp.sqrt(mp.pi / 2)
    x = mp.sqrt(-mp.expm1(-length / 2))
    return quantile_tail(mp.sqrt(length)) / x


def quantile_tail(s: mp.mpf) -> mp.mpf:
    """The normal quantile z of 1 - p, where s = sqrt(-2 log(4 p (1 - p)))."""
    v = mp.exp(-s * s / 2)
    p = v / (2 * (1 + mp.sqrt(1 - v)))  # the smaller root of 4 p (1 - p) = v
    z = mp.mpf(s)
    for _ in range(80):  # Newton on log Q(z) = log p
        q = mp.erfc(z / mp.sqrt(2)) / 2
        step = (mp.log(q) - mp.log(p)) * q / (mp.exp(-z * z / 2) / mp.sqrt(2 * mp.pi))
        z += step
        if abs(step) < mp.mpf("1e-45"):
            break
    return z


def mills(w: mp.mpf) -> mp.mpf:
    """-log(z m(z)) / w at w = 1 / z^2, where m is Mills' ratio Q / phi."""
    if w == 0:
        return mp.mpf(1)
    z = 1 / mp.sqrt(w)
    m = mp.erfc(z / mp.sqrt(2)) / 2 * mp.sqrt(2 * mp.pi) * mp.exp(z * z / 2)
    return -mp.log(z * m) / w


def main() -> None:
    half = mp.sqrt(mp.mpf(1) / 2)
    knee = mp.sqrt(10)
    shifted = lambda by: lambda t: quantile_tail(t + by)  # noqa: E731
    exact_log = {0: -2.0, 1: 1.0}
    table = [
        ("NEG2LOG_F32", neg2log1p, half - 1, 2 * half - 1, 8, np.float32, exact_log),
        ("SINE_F32", sine, 0, 1, 3, np.float32, None),
        ("COSINE_F32", cosine, 0, 1, 3, np.float32, {0: 1.0}),
        ("QUANTILE_CENTRAL_F32", quantile_central, 0, 10, 8, np.float32, None),
        ("QUANTILE_TAIL_F32", shifted(6), knee - 6, mp.mpf("9.25") - 6, 10, np.float32, None),
        ("MILLS_F32", mills, 0, mp.mpf(1) / 36, 4, np.float32, None),
        ("NEG2LOG_F64", neg2log1p, half - 1, 2 * half - 1, 20, np.float64, exact_log),
        ("SINE_F64", sine, 0, 1, 7, np.float64, None),
        ("COSINE_F64", cosine, 0, 1, 7, np.float64, {0: 1.0}),
        ("QUANTILE_CENTRAL_F64", quantile_central, 0, 10, 20, np.float64, None),
        ("QUANTILE_TAIL_NEAR_F64", shifted(mp.mpf("4.5")), knee - mp.mpf("4.5"), mp.mpf("1.5"), 20, np.float64, None),
        ("QUANTILE_TAIL_FAR_F64", shifted(mp.mpf("8.75")), mp.mpf("-2.75"), mp.mpf("2.75"), 20, np.float64, None),
        ("MILLS_F64", mills, 0, mp.mpf(1) / 36, 10, np.float64, None),
    ]
    print(
        "// Polynomial coefficients, lowest power first. Written by tools/fit.py; docs/stream.md says where each is",
        end="",
    )
    print(" used.")
    print("#pragma once\n\n// clang-format off")
    for name, f, lo, hi, degree, dtype, fixed in table:
        coefficients, error = fit(f, lo, hi, degree, dtype, fixed)
        suffix = "f" if dtype is np.float32 else ""
        doc = " ".join((f.__doc__ or f"{quantile_tail.__doc__} In s less a shift.").split()).rstrip(".")
        print(f"// {doc}; relative error below {error:.1e}")
        words = [c.hex() + suffix for c in coefficients]
        body = ", \\\n    ".join(", ".join(words[i : i + 4]) for i in range(0, len(words), 4))
        print(f"#define FASTINIT_{name} \\\n    {body}\n")


if __name__ == "__main__":
    main()
