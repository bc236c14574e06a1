"""Samples, and truncated normals, each of which cuts something, that a formula for one side or tail would get wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torch_fastinit.initializers import Initializer, TruncatedNormal
from torch_fastinit.ops import Fill, fill

SEED = 20240607
INF = math.inf


def sample(
    initializer: Initializer, shape: tuple[int, ...], dtype: torch.dtype, seed: int = SEED, stream: int = 0
) -> np.ndarray:
    """Values of a fill, in float64."""
    tensor = torch.empty(shape, dtype=dtype)
    fill([Fill(tensor, initializer, seed, stream)])
    return tensor.double().numpy()


TRUNCATED = {
    "default": TruncatedNormal(),
    "five deviations of gpt's": TruncatedNormal(0.0, 0.02, -0.1, 0.1),
    "skew": TruncatedNormal(0.0, 1.0, -3.0, 1.5),
    "upper tail": TruncatedNormal(0.0, 1.0, 2.0, 3.0),
    "4 to 8": TruncatedNormal(0.0, 1.0, 4.0, 8.0),
    "-8 to -4": TruncatedNormal(0.0, 1.0, -8.0, -4.0),
    "8 to 9": TruncatedNormal(0.0, 1.0, 8.0, 9.0),
    "-9 to -8": TruncatedNormal(0.0, 1.0, -9.0, -8.0),
    "hardly cut": TruncatedNormal(0.0, 1.0, -6.5, 6.5),
    "hardly cut, on one side": TruncatedNormal(0.0, 1.0, -6.5, INF),
    "above 1": TruncatedNormal(0.0, 1.0, 1.0, INF),
    "below -4": TruncatedNormal(0.0, 1.0, -INF, -4.0),
    "above 7": TruncatedNormal(0.0, 1.0, 7.0, INF),
    "below -7": TruncatedNormal(0.0, 1.0, -INF, -7.0),
    "just near": TruncatedNormal(0.0, 1.0, math.nextafter(6.0, 0.0), 40.0),
    "just far": TruncatedNormal(0.0, 1.0, 6.0, 40.0),
    "100 sigma": TruncatedNormal(0.0, 0.01, 1.0, INF),
    "mean far above": TruncatedNormal(50.0, 1.0, 0.0, 1.0),
    "mean far below": TruncatedNormal(-30.0, 1.0, 0.0, 1.0),
    "wide deviation": TruncatedNormal(0.0, 1e6, -1.0, 1.0),
    "a mean and a deviation": TruncatedNormal(3.0, 2.0, 1.0, 4.5),
}
TRUNCATED_CASES = pytest.mark.parametrize(
    "initializer", TRUNCATED.values(), ids=[k.replace(" ", "_") for k in TRUNCATED]
)
