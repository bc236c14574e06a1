"""Thousands of ranks, and large shards: what one rank pays in time and memory."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_ranks import on_fake_ranks
from support.ranks import Ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torch_fastinit as fastinit
from torch_fastinit.shards import part_of

ROOT = Path(__file__).resolve().parents[2]
DATA, TENSOR = 512, 8
WORLD = DATA * TENSOR
HIDDEN, INNER, KEYS, WORDS, LAYERS = 8192, 28672, 1024, 128256, 80  # of a Llama with 70B parameters


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        for name, (inputs, outputs) in SHAPES.items():
            setattr(self, name, nn.Linear(inputs, outputs, bias=False))


SHAPES = {
    "query": (HIDDEN, HIDDEN),
    "key": (HIDDEN, KEYS),
    "value": (HIDDEN, KEYS),
    "output": (HIDDEN, HIDDEN),
    "gate": (HIDDEN, INNER),
    "up": (HIDDEN, INNER),
    "down": (INNER, HIDDEN),
}
STYLES = {name: RowwiseParallel() if name in ("output", "down") else ColwiseParallel() for name in SHAPES}


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, WORDS, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(rank: int, how: str) -> dict[str, float]:
    """In a process of its own: construct, shard, plan."""
    from support.fake_ranks import fake_rank

    with fake_rank(rank, WORLD):
        mesh = init_device_mesh("cpu", (DATA, TENSOR), mesh_dim_names=("data", "tensor"))
        before = resident()
        with fastinit.deferred() if how == "deferred" else torch.device("meta"):
            model = Llama()
        for layer in model.layers:
            parallelize_module(layer, mesh["tensor"], STYLES)
        start = time.perf_counter()
        for layer in model.layers:
            fully_shard(layer, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
        found = {"fully_shard": time.perf_counter() - start}
        if how == "deferred":
            start = time.perf_counter()
            plan = fastinit.plan(model)
            found |= {"plan": time.perf_counter() - start, "one pass": plan.share(random=False), "bytes": plan.nbytes}
        return {**found, "memory": resident() - before}


def measured(ranks: list[int], how: str) -> list[dict[str, float]]:
    """One rank after another, in one process: the memory is that of the first one."""
    each = f"[measure(rank, {how!r}) for rank in {ranks}]"
    code = f"import json; from distributed.test_scale import measure; print(json.dumps({each}))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    out = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True
    ).stdout
    found: list[dict[str, float]] = json.loads(out.splitlines()[-1])
    return found


def test_a_rank_of_4096() -> None:
    (meta,) = measured([0], "meta")
    found = measured([0, WORLD // 2 + 3, WORLD - 1], "deferred")
    assert found[0]["memory"] - meta["memory"] < 100e6
    for ours in found:
        print(ours, meta)
        assert ours["one pass"] == 1.0
        assert ours["plan"] < 1.0
        assert ours["fully_shard"] < 2 * meta["fully_shard"]


#: Shapes of the model's tensors and how 512 x 8 ranks hold them.
HELD = [
    ((WORDS, HIDDEN), (Shard(0), Replicate())),
    ((HIDDEN,), (Shard(0), Replicate())),
    *[((outputs, inputs), (Shard(0), Shard(1))) for inputs, outputs in SHAPES.values() if inputs == INNER],
    ((HIDDEN, HIDDEN), (Shard(0), Shard(1))),
]


def strided(shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[object, ...]]:
    """As FSDP leaves what tensor parallelism has cut on the same dimension."""
    from torch.distributed.tensor.placement_types import _StridedShard

    return shape, (_StridedShard(0, split_factor=TENSOR), Shard(0))


def cells(shape: tuple[int, ...], placements: tuple[object, ...]) -> np.ndarray:
    """How often each element of a logical tensor is held, along each dimension's edges of shards."""
    boxes = []
    for data in range(DATA):
        for tensor in range(TENSOR):
            for piece in part_of(shape, (DATA, TENSOR), (data, tensor), placements).pieces():
                boxes.append((piece.region.offsets, piece.shape))
    edges = [
        np.unique([0, shape[d], *(o[d] for o, _ in boxes), *(o[d] + s[d] for o, s in boxes)]) for d in range(len(shape))
    ]
    counts = np.zeros([len(edge) - 1 for edge in edges], dtype=np.int64)
    for offsets, size in boxes:
        at = [
            slice(np.searchsorted(edge, first), np.searchsorted(edge, first + length))
            for edge, first, length in zip(edges, offsets, size, strict=True)
        ]
        counts[tuple(at)] += 1
    return counts


def test_every_element_is_held_once_a_replica() -> None:
    start = time.perf_counter()
    held = [*HELD, *(strided(shape) for shape in ((HIDDEN, HIDDEN), (KEYS, HIDDEN), (INNER, HIDDEN)))]
    for shape, placements in held:
        replicas = TENSOR if any(isinstance(p, Replicate) for p in placements) else 1
        assert (cells(shape, placements) == replicas).all(), (shape, placements)
    assert time.perf_counter() - start < 10


def test_16_ranks_hold_what_torch_splits() -> None:
    some = [0, 1, 7, 8, 511, 512, 777, 1024, 2047, 2048, 2500, 3000, 3333, 4000, 4094, 4095]
    index = torch.arange(2100 * 16).view(2100, 16)

    def local(mesh: torch.distributed.DeviceMesh) -> tuple[object, ...]:
        where = mesh.get_coordinate()
        assert where is not None
        found = []
        for placements in (
            [Shard(0), Replicate()],
            [Shard(0), Shard(1)],
            [Replicate(), Shard(0)],
            [Shard(0), Shard(0)],
        ):
            ours = part_of(index.shape, mesh.shape, where, placements)
            theirs = distribute_tensor(index, mesh, placements, src_data_rank=None).to_local()
            rows = [piece.of_logical(index).reshape(-1) for piece in ours.pieces()]
            found.append(torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *rows]), theirs.reshape(-1)))
        return tuple(found)

    assert set(on_fake_ranks((DATA, TENSOR), local, ranks=some).values()) == {(True,) * 4}


# --- memory -----------------------------------------------------------------------------------------------------------


class Large(nn.Module):
    def __init__(self, initialise: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8192, 8192))  # 256 MiB
        if initialise == "normal":
            nn.init.normal_(self.weight)
        elif initialise == "program":
            self.weight = nn.Parameter(torch.randn(8192, 8192) * 0.02)
        else:
            nn.init.normal_(self.weight).detach().exp_()


def peak(initialise: str) -> tuple[int, int]:
    """The bytes of this rank's shard, and how much the resident memory grows at most in `materialize`."""
    with fastinit.deferred():
        model = Large(initialise)
    fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    (row,) = fastinit.plan(model).rows
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    fastinit.materialize(model, seed=0)
    status = Path("/proc/self/status").read_text()
    high = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert high is not None
    return row.nbytes, int(high[1]) * 1024 - before


@pytest.mark.parametrize("initialise", ["normal", "program", "replayed"])
def test_peak_memory_is_the_shard(ranks: Ranks, initialise: str) -> None:
    whole = 8192 * 8192 * 4
    for nbytes, grown in ranks.run(3, peak, initialise):
        print(initialise, nbytes, grown)
        assert math.isclose(nbytes, whole / 3, rel_tol=0.01)
        assert grown < nbytes + 64e6 + (whole if initialise == "replayed" else 0)
