"""The reference itself: arithmetic against exact fractions, conversions against torch, coefficients against csrc."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from support import reference
from support.bits import bits_of, name_of

from torch_fastinit._torch import float8_saturates

HEADER = reference.PAGE.parents[1] / "csrc" / "coefficients.h"


def header_tables(text: str) -> dict[str, list[float]]:
    """The coefficient tables of the C++ header, by the names of the page."""
    text = text.replace("\\\n", " ")
    macros = re.findall(r"^#define FASTINIT_(\w+) +(-?0x[^\n]+)$", text, re.MULTILINE)
    return {name: [float.fromhex(c.strip().rstrip("f")) for c in body.split(",")] for name, body in macros}


def test_the_page_and_the_kernels_have_the_same_coefficients() -> None:
    page = reference.page_tables(reference.PAGE.read_text(encoding="utf-8") + "\n")
    header = header_tables(HEADER.read_text(encoding="utf-8"))
    assert page == header == reference.C
    assert set(page) == set(re.findall(r"\b[A-Z0-9_]+_F(?:32|64)\b", reference.PAGE.read_text(encoding="utf-8")))


def test_coefficients_of_f32_are_f32() -> None:
    for name, table in reference.C.items():
        assert len(table) >= 4, name
        if name.endswith("_F32"):
            assert table == [float(np.float32(c)) for c in table], name


def rounded_to_f32(x: Fraction) -> float:
    """A fraction to the nearest f32, ties to even: the definition, in integers."""
    if x == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(x)))
    exponent += (abs(x) >= Fraction(2) ** (exponent + 1)) - (abs(x) < Fraction(2) ** exponent)
    ulp = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(x / ulp) * ulp  # Python rounds a tie to even
    return float(rounded) if abs(rounded) < Fraction(2) ** 128 else math.copysign(math.inf, rounded)


def test_fma_does_not_round_twice() -> None:
    a, b, c = np.float32(97), np.float32(172961 * 2.0**-24), np.float32(2.0**-60)
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) == 1.0
    assert reference.fma(a, b, c) == np.float32(1 + 2.0**-23)
    assert reference.fma(-a, b, -c) == np.float32(-1 - 2.0**-23)


def test_fma_is_exact_rounded_once() -> None:
    # Random patterns of the exponents that matter, subnormal results among them, and sums that cancel; near ties (the
    # product's last bits followed by a far smaller addend) are what a naive fma gets wrong.
    rng = np.random.default_rng(0)
    significand = rng.integers(-(2**24) + 1, 2**24, size=(3, 4000)).astype(np.float64)
    exponent = rng.integers(-100, 20, size=(3, 4000))
    exponent[2, ::2] = exponent[0, ::2] + exponent[1, ::2] + rng.integers(-60, 60, size=2000)
    a, b, c = np.ldexp(significand, exponent).astype(np.float32)
    c[::7] = -(a[::7] * b[::7])
    got = reference.fma(a, b, c)
    for x, y, z, value in zip(a, b, c, got, strict=True):
        exact = rounded_to_f32(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
        assert float(value) == exact, (x, y, z)


NARROW = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_rounding_is_that_of_torch(dtype: torch.dtype) -> None:
    # Every upper half of a float32, with lower halves on, beside and between the ties of all four dtypes.
    high = np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16)
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF], dtype=np.uint32)
    x = (high | low).view(np.float32).ravel()
    x = np.where(np.isnan(x), np.float32(0), x)
    if dtype is torch.float8_e4m3fn and not float8_saturates():  # torch before 2.12: NaN past the largest value
        x = x[np.abs(x) <= 448]
    ours = reference.round_narrow(x, name_of(dtype))
    np.testing.assert_array_equal(ours, bits_of(torch.from_numpy(x).to(dtype)))


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [(torch.float16, 0x7E00), (torch.bfloat16, 0x7FC0), (torch.float8_e4m3fn, 0x7F), (torch.float8_e5m2, 0x7F)],
)
def test_nan_is_kept(dtype: torch.dtype, pattern: int) -> None:
    ours = reference.round_narrow(np.array([np.nan], dtype=np.float32), name_of(dtype))
    assert ours.tolist() == [pattern]
    assert bool(torch.from_numpy(ours).view(dtype).isnan().all())


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_values_are_those_of_torch(dtype: torch.dtype) -> None:
    size = dtype.itemsize
    patterns = torch.arange(2 ** (8 * size), dtype=torch.int32).to(torch.int8 if size == 1 else torch.int16)
    values = patterns.view(dtype).double().numpy()
    values = np.unique(values[~np.isnan(values)])
    np.testing.assert_array_equal(reference.narrow_values(name_of(dtype)), values)


@pytest.mark.parametrize(
    ("dtype", "a", "b", "open_right", "lo", "hi"),
    [
        ("float32", 0.1, 0.3, True, float(np.float32(0.1)), float(np.nextafter(np.float32(0.3), np.float32(0)))),
        ("float32", -0.3, -0.1, False, float(np.nextafter(np.float32(-0.3), np.float32(0))), float(np.float32(-0.1))),
        ("float64", 0.1, 0.3, True, 0.1, math.nextafter(0.3, 0)),
        ("bfloat16", 1.0, 1.01, True, 1.0, 1.0078125),
        ("bfloat16", 1.0, 1.0078125, True, 1.0, 1.0),
        ("bfloat16", 1.0, 1.0078125, False, 1.0, 1.0078125),
        ("float8_e4m3fn", -math.inf, math.inf, False, -448.0, 448.0),
        ("float8_e4m3fn", -1e9, 1e9, False, -448.0, 448.0),
        ("float8_e5m2", -1e9, 1e9, False, -57344.0, 57344.0),
        ("float16", 5.0, math.inf, False, 5.0, math.inf),
        ("float16", 1e-9, 1.0, False, 2.0**-24, 1.0),
    ],
)
def test_bounds(dtype: str, a: float, b: float, open_right: bool, lo: float, hi: float) -> None:
    assert reference.bounds(a, b, dtype, open_right) == (lo, hi)


def test_bounds_of_zero_and_empty_ones() -> None:
    assert [math.copysign(1, x) for x in reference.bounds(-0.0, 0.0, "float16", False)] == [1, -1]
    assert reference.bounds(1.001, 1.002, "bfloat16", False) is None
    assert reference.bounds(0.1, 0.1, "float32", False) is None
    assert reference.bounds(500.0, 600.0, "float8_e4m3fn", False) is None
