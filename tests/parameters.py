"""The parameters that every backend's tests go through, each for a reason that its name gives."""

from __future__ import annotations

import math

from torch_fastinit.initializers import Normal, TruncatedNormal, Uniform

INF = math.inf

UNIFORM = {
    "default": Uniform(),
    "kaiming": Uniform(-0.0883883476483184, 0.0883883476483184),
    "up to 0": Uniform(-1.0, 0.0),
    "from -0": Uniform(-0.0, 0.5),
    "a few values of float32 wide": Uniform(1.0, 1.0 + 2.0**-20),
    "less than a value of float16 wide": Uniform(1.0, 1.0001),
    "between two values of float32": Uniform(1.0 + 2.0**-40, 1.0 + 2.0**-39),
    "a point": Uniform(1.0, 1.0),
    "a point that float32 does not have": Uniform(0.1, 0.1),
    "beyond float8": Uniform(-1e5, 1e5),
    "subnormal in float16": Uniform(-1e-6, 1e-6),
    "subnormal in float32": Uniform(-1e-40, 1e-38),
    "subnormal in float64": Uniform(-1e-310, 1e-308),
}

NORMAL = {
    "standard": Normal(),
    "gpt": Normal(0.0, 0.02),
    "a mean": Normal(-3.7, 0.1),
    "a point": Normal(0.3, 0.0),
    "a negative deviation": Normal(0.0, -1.0),
    "past the largest float8": Normal(0.0, 400.0),
    "past the largest float16": Normal(0.0, 4e4),
    "past the largest float32": Normal(0.0, 1e38),
    "subnormal in float16": Normal(0.0, 1e-7),
    "subnormal in float32": Normal(0.0, 1e-40),
}

TRUNCATED = {
    "default": TruncatedNormal(),
    "gpt": TruncatedNormal(0.0, 0.02, -2.0, 2.0),
    "one deviation": TruncatedNormal(0.0, 1.0, -1.0, 1.0),
    "skew": TruncatedNormal(0.0, 1.0, -3.0, 1.5),
    "straddling a little": TruncatedNormal(0.0, 1.0, -1e-3, 5.0),
    "upper tail": TruncatedNormal(0.0, 1.0, 2.0, 3.0),
    "4 to 8": TruncatedNormal(0.0, 1.0, 4.0, 8.0),
    "-8 to -4": TruncatedNormal(0.0, 1.0, -8.0, -4.0),
    "8 to 9": TruncatedNormal(0.0, 1.0, 8.0, 9.0),
    "-9 to -8": TruncatedNormal(0.0, 1.0, -9.0, -8.0),
    "unbounded": TruncatedNormal(0.0, 1.0, -INF, INF),
    "above 0": TruncatedNormal(0.0, 1.0, 0.0, INF),
    "below 0": TruncatedNormal(0.0, 1.0, -INF, 0.0),
    "above 4": TruncatedNormal(0.0, 1.0, 4.0, INF),
    "below -4": TruncatedNormal(0.0, 1.0, -INF, -4.0),
    "above 7": TruncatedNormal(0.0, 1.0, 7.0, INF),
    "below -7": TruncatedNormal(0.0, 1.0, -INF, -7.0),
    "above -7": TruncatedNormal(0.0, 1.0, -7.0, INF),
    "just near": TruncatedNormal(0.0, 1.0, math.nextafter(6.0, 0.0), 40.0),
    "just far": TruncatedNormal(0.0, 1.0, 6.0, 40.0),
    "100 sigma": TruncatedNormal(0.0, 0.01, 1.0, 2.0),
    "-100 sigma": TruncatedNormal(0.0, 0.01, -2.0, -1.0),
    "1e10 sigma": TruncatedNormal(0.0, 1e-10, 1.0, INF),
    "1e21 sigma, whose kappa is subnormal": TruncatedNormal(0.0, 1e-21, 1.0, INF),
    "mean far above": TruncatedNormal(50.0, 1.0, 0.0, 1.0),
    "mean far below": TruncatedNormal(-50.0, 1.0, 0.0, 1.0),
    "narrow": TruncatedNormal(0.0, 1.0, 0.5, 0.500001),
    "narrow in the tail": TruncatedNormal(0.0, 1.0, 20.0, 20.001),
    "wide deviation": TruncatedNormal(0.0, 1e6, -1.0, 1.0),
    "a point": TruncatedNormal(0.0, 1.0, 0.25, 0.25),
    "a point that float32 does not have": TruncatedNormal(0.0, 1.0, 0.1, 0.1),
    "no deviation": TruncatedNormal(0.5, 0.0, -2.0, 2.0),
    "no deviation, a mean outside": TruncatedNormal(5.0, 0.0, -2.0, 2.0),
    "a negative deviation": TruncatedNormal(-5.0, -1.0, -2.0, 2.0),
}

# Intervals in which a narrow dtype, or any, has no value: all elements are round(a), with that dtype's overflow.
EMPTY = {
    "past float8": Uniform(500.0, 600.0),
    "past float16": Uniform(-1e6, -1e5),
    "past float16, truncated": TruncatedNormal(0.0, 1.0, 1e5, 1e6),
    "past float32": Uniform(1e39, 1e40),
    "on the last tie of float16": Uniform(65520.0, 65530.0),
    "below the last tie of float16": Uniform(65510.0, 65519.0),
    "past float8, unbounded": TruncatedNormal(0.0, 1.0, 1e4, INF),
    "rounded to -0": Uniform(-1e-50, -0.9e-50),
}

ALL = UNIFORM | NORMAL | TRUNCATED
