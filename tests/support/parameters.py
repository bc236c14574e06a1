"""The parameters that every backend's tests go through, each for a reason that its name gives."""

from __future__ import annotations

import math

import torch

from torch_fastinit.initializers import (
    Constant,
    Initializer,
    Mixture,
    Normal,
    Op,
    Program,
    Step,
    TruncatedNormal,
    Uniform,
)

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
    "narrow beside the mean": TruncatedNormal(1.0, 1.0, 1e-6, 2e-6),
    "narrow, and 0 is in it": TruncatedNormal(-0.3, 0.1, -1e-5, 1e-5),
    "narrow in the far tail": TruncatedNormal(0.0, 1.0, -30.0001, -30.0),
    "narrow in float64": TruncatedNormal(0.0, 1.0, 1.5, 1.5 + 1e-14),
    "narrow and subnormal in float32": TruncatedNormal(0.0, 1e-38, 1e-38, 1e-38 + 3e-44),
    "narrow and subnormal in float64": TruncatedNormal(0.0, 1e-307, 2e-308, 2e-308 + 1e-321),
    "huge deviation": TruncatedNormal(0.0, 1e38, -1.0, 1.0),
    "a deviation that float32 does not have": TruncatedNormal(1e38, 1e39, -3e38, 3e38),
    "a mean of many deviations": TruncatedNormal(0.1, 1e-7, 0.1 - 2e-7, 0.1 + 3e-7),
    "a far tail at many deviations": TruncatedNormal(0.1, 1e-7, 0.1 + 8.3e-7, INF),
    "a far tail farther than float32": TruncatedNormal(-3e38, 5e37, 3e38, INF),
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

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
MUL, ADD, DIV, CAST = Op.MUL, Op.ADD, Op.DIV, Op.CAST


def program(draw: Initializer, dtype: torch.dtype, *steps: tuple[Op, float] | tuple[Op, float, torch.dtype]) -> Program:
    """Steps without a dtype are in that of the step before."""
    done: list[Step] = []
    now = dtype
    for op, operand, *other in steps:
        (now,) = other or (now,)
        done.append(Step(op, operand, now))
    return Program(draw, dtype, tuple(done))


PROGRAMS = {
    "scaled": program(Normal(), F32, (MUL, 0.02)),
    "scaled and shifted": program(Normal(), F32, (MUL, 0.1), (ADD, -0.3)),
    "affine": program(Uniform(), F32, (MUL, 2.0), (ADD, -1.0)),
    "divided": program(Normal(), F32, (DIV, math.sqrt(768.0))),
    "truncated, scaled and shifted": program(TruncatedNormal(), F32, (MUL, 0.02 / 0.87962566103423978), (ADD, 0.5)),
    "far tail, scaled": program(TruncatedNormal(0.0, 1.0, 8.0, 9.0), F32, (MUL, -0.125)),
    "five steps": program(Uniform(-1.0, 1.0), F32, (MUL, 0.3), (ADD, 0.1), (DIV, 0.7), (MUL, -1.0), (ADD, 1e-3)),
    "cast to bfloat16": program(Uniform(), F32, (CAST, 0.0, BF16)),
    "cast to float16": program(TruncatedNormal(), F32, (CAST, 0.0, F16)),
    "cast to float8_e4m3fn": program(Uniform(-1.0, 1.0), F32, (CAST, 0.0, E4M3)),
    "cast to float8_e5m2": program(Uniform(-1.0, 1.0), F32, (CAST, 0.0, E5M2)),
    "in bfloat16": program(Normal(), BF16, (MUL, 0.02), (ADD, 1.0)),
    "in float16": program(Uniform(-1.0, 1.0), F16, (MUL, 0.3), (DIV, 3.0), (ADD, 0.01)),
    "in float8_e4m3fn and out": program(Normal(), E4M3, (CAST, 0.0, F32), (MUL, 0.1)),
    "in float8_e5m2 and out": program(Normal(0.0, 1e-4), E5M2, (CAST, 0.0, BF16)),
    "through bfloat16": program(Normal(), F32, (CAST, 0.0, BF16), (CAST, 0.0, F32), (ADD, 0.1)),
    "subnormal in float16": program(Normal(0.0, 1e-6), F16, (CAST, 0.0, F32), (MUL, 3.0)),
    "subnormal in float32": program(Uniform(-1e-38, 1e-38), F32, (MUL, 0.01)),
    "to infinity": program(Normal(0.0, 3e4), F16, (MUL, 3.0), (CAST, 0.0, F32), (ADD, -1.0)),
    "past the largest float8_e4m3fn": program(Normal(0.0, 300.0), F32, (MUL, 2.0), (CAST, 0.0, E4M3)),
    "float64": program(Normal(), F64, (MUL, 0.1), (ADD, -0.3), (DIV, 7.0)),
    "float64, uniform": program(Uniform(), F64, (MUL, 0.1), (CAST, 0.0)),
    "float64, truncated": program(TruncatedNormal(0.0, 1.0, 8.0, 9.0), F64, (MUL, 0.1)),
    "a constant, since no float16 lies between": program(Uniform(1.0001, 1.0002), F16, (MUL, 3.0), (CAST, 0.0, BF16)),
    "a constant, since nothing deviates": program(TruncatedNormal(0.3, 0.0), F32, (MUL, 0.1), (CAST, 0.0, F16)),
    "a constant of float64": program(TruncatedNormal(0.3, 0.0), F64, (MUL, 0.1), (ADD, 1.0)),
}


def mixture(*components: tuple[float, Initializer]) -> Mixture:
    return Mixture(components)


MIXTURES = {
    "d2l": mixture((0.25, Uniform(-10.0, -5.0)), (0.5, Constant(0.0)), (0.25, Uniform(5.0, 10.0))),
    "one uniform": mixture((1.0, Uniform(-1.0, 3.0))),
    "one normal": mixture((1.0, Normal(0.5, 2.0))),
    "one constant": mixture((1.0, Constant(0.1))),
    "spike and slab": mixture((0.9, Normal(0.0, 1e-3)), (0.1, Normal(0.0, 1.0))),
    "two modes and a floor": mixture((0.3, Normal(-2.0, 0.1)), (0.3, Normal(2.0, 0.1)), (0.4, Uniform(-3.0, 3.0))),
    "ternary": mixture((1 / 3, Constant(-1.0)), (1 / 3, Constant(0.0)), (1 / 3, Constant(1.0))),
    "zeros of both signs": mixture((0.5, Constant(-0.0)), (0.3, Constant(0.0)), (0.2, Uniform(-1.0, 0.0))),
    "infinities": mixture((0.2, Constant(-INF)), (0.6, Normal()), (0.2, Constant(INF))),
    "points": mixture((0.5, Uniform(1.0, 1.0)), (0.25, Uniform(0.1, 0.1)), (0.25, Normal(0.3, 0.0))),
    "tiny probabilities": mixture(
        (1e-12, Constant(7.0)), (2.0**-31, Constant(8.0)), (3e-9, Normal()), (1.0, Uniform())
    ),
    "a probability of 0": mixture((0.0, Constant(7.0)), (1.0, Uniform()), (0.0, Normal())),
    "three places of a normal": mixture((1.4e-9, Normal(5.0, 1.0)), (1 - 1.4e-9, Constant(1.0))),
    "beyond narrow dtypes": mixture((0.5, Uniform(-1e5, 1e5)), (0.25, Constant(1e6)), (0.25, Normal(0.0, 4e4))),
    "between values of narrow dtypes": mixture((0.5, Uniform(1.0, 1.0001)), (0.5, Uniform(1.0001, 1.0002))),
    "subnormal": mixture((0.5, Uniform(-1e-40, 1e-38)), (0.5, Normal(0.0, 1e-39))),
    "fifty": mixture(*((0.02, (Uniform(n, n + 1.0), Normal(n, 0.1), Constant(float(n)))[n % 3]) for n in range(50))),
    "as many as there may be": mixture(*((1 / 256, Uniform(n, n + 0.5)) for n in range(256))),
}
