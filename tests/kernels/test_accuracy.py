"""The function from words to values, against exact inversion: what statistics cannot see.

Errors are in units in the last place of the value or, where values pass through zero or are all near a far mean, of the
deviation that they are made from. The bounds are what was measured over ten times as many values, rounded up.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import special
from support import reference
from support.samples import SEED, TRUNCATED_CASES, sample

from torch_fastinit.initializers import Normal, TruncatedNormal


def mirrored(t: TruncatedNormal) -> TruncatedNormal:
    return TruncatedNormal(-t.mean, t.std, -t.b, -t.a)


def exact_quantile(k: np.ndarray, t: TruncatedNormal) -> np.ndarray:
    """The number below which (k + 1/2) 2^-31 of the mass of [a, b] lies, by scipy in float64."""
    alpha, beta = (t.a - t.mean) / t.std, (t.b - t.mean) / t.std
    if alpha + beta > 0:  # from the side of the heavier tail
        return -exact_quantile(2**31 - 1 - k, mirrored(t))
    u = (k + 0.5) * 2.0**-31
    top = special.log_ndtr(beta)
    ratio = np.exp(special.log_ndtr(alpha) - top)
    log_p = top + np.log(ratio + u * (1 - ratio))
    rest = np.log1p(-np.minimum(np.exp(log_p), 1 - 2.0**-53))
    return t.mean + t.std * np.where(log_p < math.log(0.5), special.ndtri_exp(log_p), -special.ndtri_exp(rest))


def unit(values: np.ndarray, t: TruncatedNormal, kind: type[np.floating]) -> np.ndarray:
    """The last place of each value or of what it was made from: the mean, or the deviation if no value is larger."""
    last_place = np.spacing(np.maximum(np.abs(values), abs(t.mean)).astype(kind)).astype(np.float64)
    return np.maximum(last_place, float(np.finfo(kind).eps) * min(t.std, np.abs(values).max()))


@TRUNCATED_CASES
def test_float32_truncated_normal(initializer: TruncatedNormal) -> None:
    t, count = initializer, 20000
    x = sample(t, (count,), torch.float32)
    k = (reference.words(SEED, 0, 0, count) >> np.uint32(1)).astype(np.float64)
    exact = np.clip(exact_quantile(k, t), t.a, t.b)
    assert np.max(np.abs(x - exact) / unit(exact, t, np.float32)) < 4


@TRUNCATED_CASES
def test_float64_truncated_normal(initializer: TruncatedNormal) -> None:
    t, count = initializer, 60
    x = sample(t, (count,), torch.float64)
    w = [int(v) >> 1 for v in reference.words(SEED, 0, 0, 2 * count)]
    errors = []
    with mpmath.workdps(60):
        for n, value in enumerate(x):
            side, z, u = t, mpmath.mpf(float(value)), (mpmath.mpf(w[2 * n] * 2**31 + w[2 * n + 1]) + 0.5) / 2**62
            if t.a + t.b > 2 * t.mean:
                side, z, u = mirrored(t), -z, 1 - u
            alpha, beta, z = ((mpmath.mpf(v) - side.mean) / mpmath.mpf(side.std) for v in (side.a, side.b, z))
            low, high = mpmath.ncdf(alpha), mpmath.ncdf(beta)
            # One step of Newton's method from the value: the error, to first order
            errors.append(float((mpmath.ncdf(z) - (low + u * (high - low))) / mpmath.npdf(z)) * t.std)
    assert np.max(np.abs(errors) / unit(x, t, np.float64)) < 6


def normal_unit(radius: np.ndarray, std: float, kind: type[np.floating]) -> np.ndarray:
    """The last place of a pair's radius, and what it loses near 0 to the rounding of a probability near 1."""
    eps = float(np.finfo(kind).eps)
    return np.spacing(radius.astype(kind)).astype(np.float64) + eps / 2 * std * std / radius


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_float32_normal(std: float) -> None:
    count = 20000
    x = sample(Normal(0.0, std), (count,), torch.float32).reshape(-1, 2)
    w = reference.words(SEED, 0, 0, count).astype(np.float64).reshape(-1, 2)
    radius = std * np.sqrt(-2 * np.log((np.floor(w[:, 0] / 2) + 0.5) * 2.0**-31))
    angle = 2 * math.pi * w[:, 1] * 2.0**-32
    exact = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    assert np.max(np.abs(x - exact) / normal_unit(radius, std, np.float32)[:, None]) < 3


def test_float64_normal() -> None:
    count = 400
    x = sample(Normal(), (count,), torch.float64).reshape(-1, 2)
    words = [[int(v) for v in block] for block in reference.words(SEED, 0, 0, 2 * count).reshape(-1, 4)]
    errors, radii = [], []
    with mpmath.workdps(40):
        for pair, (w0, w1, w2, w3) in zip(x, words, strict=True):
            u = (mpmath.mpf((w0 >> 1) * 2**31 + (w1 >> 1)) + 0.5) / 2**62
            radius = mpmath.sqrt(-2 * mpmath.log(u))
            angle = 2 * mpmath.pi * mpmath.mpf(w2 * 2**31 + (w3 >> 1)) / 2**63
            exact = (radius * mpmath.cos(angle), radius * mpmath.sin(angle))
            errors.append([abs(float(mpmath.mpf(float(v)) - e)) for v, e in zip(pair, exact, strict=True)])
            radii.append(float(radius))
    assert np.max(np.array(errors) / normal_unit(np.array(radii), 1.0, np.float64)[:, None]) < 3
