"""The stream as it has always been: the hashes in golden.txt, which no refactoring changes.

tests/support/reference.py says what the bits must be; this says that they are the same as yesterday, whatever else
moved. After a deliberate change of the stream, `python tests/stream/test_golden.py` writes the file again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

import torch_fastinit as fastinit
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
    Step,
    TruncatedNormal,
    Uniform,
)
from torch_fastinit.ops import Fill, Region, fill

FILE = Path(__file__).with_name("golden.txt")
HEADER = """\
# What fills write, as hashes. A commit that changes a line changes the stream: it says so in docs/stream.md and in
# CHANGELOG.md. To write this file again: python tests/stream/test_golden.py
#
# what     an initializer with its parameters; eager: a function of fastinit.init after torch.manual_seed(seed);
#          materialize: a tensor of the module that test_golden.py builds
# dtype    of the tensor
# shape    of the tensor; for a part of one, [from:to] in every dimension
# seed     a fill's stream is that of the name "golden"
# hash     blake2b, 16 bytes, of the elements in row-major order, little-endian
"""
STREAM = fastinit.stream_id("golden")
SEED = 0x0123456789ABCDEF
SHAPE = (33, 65)  # odd, so that vectors and pairs do not come out even

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
REAL = (F32, F64, F16, BF16, E4M3, E5M2)
COMPLEX = (torch.complex64, torch.complex128)
INF = float("inf")

DRAWS: dict[str, Initializer] = {
    "uniform(-0.1,0.1)": Uniform(-0.1, 0.1),
    "normal(0,0.02)": Normal(0.0, 0.02),
    "truncated(0,1,-2,2)": TruncatedNormal(0.0, 1.0, -2.0, 2.0),
    "truncated(0,1,8,9)": TruncatedNormal(0.0, 1.0, 8.0, 9.0),
    "truncated(0,0.02,-2,2)": TruncatedNormal(0.0, 0.02, -2.0, 2.0),
}
PROGRAMS = {
    "normal*0.02": Program(Normal(), F32, (Step(Op.MUL, 0.02, F32),)),
    "uniform*2-1": Program(Uniform(), F32, (Step(Op.MUL, 2.0, F32), Step(Op.ADD, -1.0, F32))),
    "truncated/3": Program(TruncatedNormal(0.0, 1.0, 8.0, 9.0), F32, (Step(Op.DIV, 3.0, F32),)),
    "normal:bfloat16*0.1": Program(Normal(), F32, (Step(Op.CAST, 0.0, BF16), Step(Op.MUL, 0.1, BF16))),
    "normal:float8_e5m2": Program(Normal(), F32, (Step(Op.CAST, 0.0, E5M2),)),
    "normal/7+0.5": Program(Normal(), F64, (Step(Op.DIV, 7.0, F64), Step(Op.ADD, 0.5, F64))),
}
MIXTURES: dict[str, Initializer] = {
    "uniforms around zero": Mixture(((0.25, Uniform(-10.0, -5.0)), (0.5, Constant(0.0)), (0.25, Uniform(5.0, 10.0)))),
    "spike and slab": Mixture(((0.9, Normal(0.0, 1e-3)), (0.1, Normal(0.0, 1.0)))),
}
CASES: list[tuple[str, Initializer, torch.dtype, Sequence[int], int]] = [
    *((name, draw, dtype, SHAPE, SEED) for name, draw in DRAWS.items() for dtype in REAL),
    *(
        (name, DRAWS[name], dtype, SHAPE, SEED)
        for name in list(DRAWS)[:2]
        for dtype in (torch.complex64, torch.complex128)
    ),
    # every seed, low and high half
    *(("normal(0,1)", Normal(), F32, SHAPE, seed) for seed in (0, 1, 2**32, 2**63, 2**64 - 1)),
    # one element, less than a block, many tiles
    *(("normal(0,1)", Normal(), BF16, (size,), SEED) for size in (1, 3, 70001)),
    *(("uniform(0,1)", Uniform(), F64, (size,), SEED) for size in (1, 3, 70001)),
    ("bits", Bits(), torch.int32, SHAPE, SEED),
    ("bits+2**36+1", Bits(2**36 + 1), torch.int32, SHAPE, SEED),
    ("truncated(0,1,-inf,0)", TruncatedNormal(0.0, 1.0, -INF, 0.0), F32, SHAPE, SEED),
    ("truncated(0,1,7,inf)", TruncatedNormal(0.0, 1.0, 7.0, INF), F32, SHAPE, SEED),
    *(("sparse(0.3,0.01)", Sparse(0.3), dtype, SHAPE, SEED) for dtype in (F32, F64, BF16, E4M3)),
    *(("eye", Eye(), dtype, SHAPE, SEED) for dtype in (F32, E5M2)),
    ("dirac", Dirac(), F32, (7, 5, 3), SEED),
    ("dirac(2)", Dirac(2), F16, (8, 5, 3, 3), SEED),
    *(("constant(0.1)", Constant(0.1), dtype, (5,), SEED) for dtype in (F32, BF16, E4M3, torch.complex64)),
    *((name, mixture, dtype, SHAPE, SEED) for name, mixture in MIXTURES.items() for dtype in REAL),
    *((name, program, program.steps[-1].dtype, SHAPE, SEED) for name, program in PROGRAMS.items()),
]
PARTS: list[tuple[str, Initializer, torch.dtype, Sequence[int], Sequence[tuple[int, int]]]] = [
    ("normal(0,1)", Normal(), F32, SHAPE, ((2, 9), (1, 64))),
    ("uniform(0,1)", Uniform(), F64, (2**20, 2**20, 5), ((2**20 - 3, 2**20), (7, 18), (0, 4))),  # past 2**32
    ("sparse(0.3,0.01)", Sparse(0.3), F32, SHAPE, ((20, 33), (3, 40))),
    *(("spike and slab", MIXTURES["spike and slab"], dtype, SHAPE, ((2, 31), (1, 64))) for dtype in (F32, F64)),
]
EAGER = {
    "xavier_uniform_": fastinit.init.xavier_uniform_,
    "kaiming_normal_": fastinit.init.kaiming_normal_,
    "trunc_normal_": fastinit.init.trunc_normal_,
    "sparse_": lambda tensor: fastinit.init.sparse_(tensor, 0.3),
}


class Module(nn.Sequential):
    """Named layers, a parameter whose draw is scaled, and one that takes two draws."""

    def __init__(self) -> None:
        super().__init__(nn.Embedding(11, 5, padding_idx=2), nn.Linear(5, 7), nn.LayerNorm(7))
        self.scale = nn.Parameter(torch.randn(3, 5) * 0.02)
        self.sum = nn.Parameter(torch.rand(5, 3) + torch.randn(5, 3))


def line(what: str, tensor: torch.Tensor, seed: int, shape: str | None = None) -> str:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    shape = shape or "x".join(map(str, tensor.shape))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return f"{what:27} {dtype:13} {shape:45} {seed:#018x} {hashlib.blake2b(raw, digest_size=16).hexdigest()}"


def lines() -> Iterator[str]:
    for what, initializer, dtype, shape, seed in CASES:
        tensor = torch.empty(shape, dtype=dtype)
        fill([Fill(tensor, initializer, seed, STREAM)])
        yield line(what, tensor, seed)
    for what, initializer, dtype, shape, box in PARTS:
        tensor = torch.empty([end - start for start, end in box], dtype=dtype)
        fill([Fill(tensor, initializer, SEED, STREAM, Region(tuple(shape), tuple(start for start, _ in box)))])
        yield line(what, tensor, SEED, "x".join(map(str, shape)) + "[" + ",".join(f"{a}:{b}" for a, b in box) + "]")
    for what, function in EAGER.items():
        torch.manual_seed(7)
        yield line(f"eager:{what}", function(torch.empty(SHAPE)), 7)
    with fastinit.deferred():
        module = Module()
    fastinit.materialize(module, seed=SEED)
    for what, tensor in module.named_parameters():
        yield line(f"materialize:{what}", tensor, SEED)


def text() -> str:
    return HEADER + "".join(f"{line}\n" for line in lines())


def test_golden(isa: str) -> None:
    """On every instruction set."""
    assert text().splitlines() == FILE.read_text().splitlines()


if __name__ == "__main__":
    FILE.write_text(text())
