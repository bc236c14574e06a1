"""What only a GPU can show: the same bits on the device, by each backend; graphs, streams, memory, whole models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.bits import REAL, SEED, STREAM
from support.layouts import ANY, BOXES, LAYOUTS, Layout, batch, raw
from support.parameters import EMPTY, MIXTURES, NORMAL, PROGRAMS, TRUNCATED, UNIFORM

import torch_fastinit as fastinit
from torch_fastinit import backend, init
from torch_fastinit.initializers import Initializer, Normal, Program, Sparse, TruncatedNormal, Uniform
from torch_fastinit.ops import Fill, Region, fill

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")


@pytest.fixture(params=["cuda", "triton"])
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    """The GPU's fills by each backend in turn."""
    name: str = request.param
    reason = backend.PROVIDERS[name].why_not(torch.device("cuda", 0))
    if reason:
        pytest.skip(f"backend {name!r} cannot serve this GPU: {reason}")
    fastinit.backends(cuda=name)
    yield name
    fastinit.backends(cuda="auto")


def on_gpu(fills: list[Fill], buffers: list[torch.Tensor], layout: Layout) -> tuple[list[Fill], list[torch.Tensor]]:
    """The same batch, over copies of the buffers on the GPU."""
    there = [b.view(torch.uint8).cuda().view(b.dtype) for b in buffers]
    moved = [
        Fill(layout.view(b), f.initializer, f.seed, f.stream, f.region, f.second)
        for f, b in zip(fills, there, strict=True)
    ]
    return moved, there


ALL_LAYOUTS = LAYOUTS | BOXES


@pytest.mark.parametrize("layout", ALL_LAYOUTS.values(), ids=[name.replace(" ", "_") for name in ALL_LAYOUTS])
def test_layouts(layout: Layout, served: str) -> None:
    here: list[torch.Tensor] = []
    fills = batch(layout, here)
    moved, there = on_gpu(fills, here, layout)
    fill(fills)
    fill(moved)
    for f, a, b in zip(fills, here, there, strict=True):
        assert torch.equal(raw(a), raw(b)), (f.initializer, f.tensor.dtype)


EVERY = {
    f"{kind}: {name}": v
    for kind, g in {"u": UNIFORM, "n": NORMAL, "t": TRUNCATED, "e": EMPTY, "m": MIXTURES}.items()
    for name, v in g.items()
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=[name.replace(" ", "_") for name in PROGRAMS])
def test_programs(program: Program, served: str) -> None:
    dtype = program.steps[-1].dtype
    here, there = torch.empty(50_001, dtype=dtype), torch.empty(50_001, dtype=dtype, device="cuda")
    fill([Fill(here, program, SEED, STREAM)])
    fill([Fill(there, program, SEED, STREAM)])
    assert torch.equal(raw(here), raw(there))


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_every_distribution(dtype: torch.dtype, served: str) -> None:
    for name, initializer in EVERY.items():
        here, there = torch.empty(50_001, dtype=dtype), torch.empty(50_001, dtype=dtype, device="cuda")
        fill([Fill(here, initializer, SEED, STREAM)])
        fill([Fill(there, initializer, SEED, STREAM)])
        assert torch.equal(raw(here), raw(there)), name


def test_sparse(served: str) -> None:
    for shape in ((1000, 70), (130, 4096)):
        for dtype in REAL:
            here, there = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype, device="cuda")
            fill([Fill(here, Sparse(0.9), SEED, STREAM)])
            fill([Fill(there, Sparse(0.9), SEED, STREAM)])
            assert torch.equal(raw(here), raw(there))


def fingerprint(t: torch.Tensor) -> int:
    """A sum over bit patterns, each times an odd number that depends on its place, modulo 2^64."""
    words = t.view(torch.int32)
    place = torch.arange(words.numel(), device=t.device, dtype=torch.int64)
    return int(((words.to(torch.int64) + 1) * (2 * place + 1)).sum().item())


# A full 2^32 elements of float32, piece by piece: a piece on the GPU is part of one fill, on the CPU a region.
@pytest.mark.parametrize(
    "initializer", [Uniform(), Normal(), TruncatedNormal()], ids=["uniform", "normal", "truncated"]
)
def test_two_to_the_32_elements(initializer: Initializer, served: str) -> None:
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("a float32 tensor of 2^32 elements needs 16 GiB of free GPU memory, and some to compare it")
    if os.environ.get("FASTINIT_TEST_FULL", "0") != "1":
        pieces = [0, 2**31 - 2**23, 2**32 - 2**24]  # the whole takes the CPU some minutes
    else:
        pieces = list(range(0, 2**32, 2**24))
    whole = torch.empty(2**32 + 5, device="cuda")
    fill([Fill(whole, initializer, SEED, STREAM)])
    here = torch.empty(2**24)
    for start in pieces:
        fill([Fill(here, initializer, SEED, STREAM, Region((2**32 + 5,), (start,)))])
        assert fingerprint(whole[start : start + 2**24]) == fingerprint(here), start
    tail = torch.empty(1000)
    fill([Fill(tail, initializer, SEED, STREAM, Region((2**32 + 5,), (2**32 + 5 - 1000,)))])
    assert torch.equal(whole[-1000:].cpu(), tail)


def test_a_graph_replays_the_values_that_it_captured(served: str) -> None:
    t = torch.empty(10_000, device="cuda")
    init.normal_(t)  # kernels are loaded and compiled
    graph = torch.cuda.CUDAGraph()
    torch.manual_seed(3)
    with torch.cuda.graph(graph):
        init.normal_(t)
    graph.replay()
    first = t.clone()
    t.zero_()
    torch.manual_seed(4)
    graph.replay()
    assert torch.equal(first, t)
    torch.manual_seed(3)
    assert torch.equal(init.normal_(torch.empty(10_000)), first.cpu())


def test_several_streams(served: str) -> None:
    streams = [torch.cuda.Stream() for _ in range(4)]
    tensors = [torch.empty(1_000_000, device="cuda") for _ in streams]
    torch.cuda.synchronize()
    for n in range(3):
        for stream, t in zip(streams, tensors, strict=True):
            with torch.cuda.stream(stream):
                fill([Fill(t, Normal(), SEED, n)])
                t.mul_(2.0)  # ordered after the fill only if the fill is on this stream
    torch.cuda.synchronize()
    here = torch.empty(1_000_000)
    fill([Fill(here, Normal(), SEED, 2)])
    for t in tensors:
        assert torch.equal(t.cpu(), here * 2.0)


def test_nothing_waits_for_the_device(served: str) -> None:
    t = torch.empty(4096, device="cuda")
    for function in (init.uniform_, init.trunc_normal_, init.normal_):
        function(t)  # loaded, and in Triton compiled, which takes longer than the device sleeps below
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():  # torch says once that this mode is a prototype
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        init.uniform_(t)
        init.trunc_normal_(t)
        busy = torch.cuda.Event()
        torch.cuda._sleep(200_000_000)
        init.normal_(t)
        busy.record()
        assert not busy.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def test_another_device(served: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    t = torch.empty(1000, device="cuda:1")
    assert torch.cuda.current_device() == 0
    fill([Fill(t, Normal(), SEED, STREAM)])
    assert torch.cuda.current_device() == 0
    here = torch.empty(1000)
    fill([Fill(here, Normal(), SEED, STREAM)])
    assert torch.equal(t.cpu(), here)


def test_out_of_memory_leaves_the_module_deferred(served: str) -> None:
    with fastinit.deferred():
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(1 << 20, 1 << 22, bias=False))
    with pytest.raises(torch.OutOfMemoryError):
        fastinit.materialize(model, device="cuda", seed=0)
    assert all(p.is_meta for p in model.parameters())
    model.pop(1)
    fastinit.materialize(model, device="cuda", seed=0)
    assert all(p.is_cuda for p in model.parameters())


def test_a_whole_model_has_the_weights_of_the_cpu(served: str) -> None:
    def build() -> torch.nn.Module:
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        return torch.nn.Sequential(
            torch.nn.Embedding(100, 64), torch.nn.TransformerEncoder(layer, 2), torch.nn.Conv2d(3, 8, 3)
        )

    models = []
    for device in ("cpu", "cuda"):
        with fastinit.deferred():
            models.append(build())
        fastinit.materialize(models[-1], device=device, seed=1)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert b.is_cuda
        assert torch.equal(a, b.cpu()), name


class OnTheGpu(torch.nn.Module):
    """A constructor that draws on both devices, seeds one or all, and reads what it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(33, 17, device="cuda")
        self.b = torch.nn.Linear(9, 5)
        self.c = torch.nn.Parameter(torch.randn(40, device="cuda") * self.a.weight.std().item())
        torch.nn.init.trunc_normal_(self.a.weight, std=0.5)
        state = torch.cuda.get_rng_state()
        self.d = torch.nn.Parameter(torch.rand(7, device="cuda"))
        torch.cuda.set_rng_state(state)
        self.e = torch.nn.Parameter(torch.rand(7, device="cuda"))
        with torch.random.fork_rng():
            torch.cuda.manual_seed_all(5)
            self.f = torch.nn.Parameter(torch.randn(6, device="cuda"))
            self.g = torch.nn.Parameter(torch.randn(6))
            torch.manual_seed(6)
            self.h = torch.nn.Parameter(torch.randn(6, device="cuda"))
        self.i = torch.nn.Parameter(torch.empty(300, device="cuda").exponential_())
        self.j = torch.nn.Parameter(torch.randn(6).cuda())


def test_constructors_on_the_gpu_are_replayed_like_eager() -> None:
    def generators() -> list[torch.Tensor]:
        return [torch.get_rng_state(), torch.cuda.get_rng_state()]

    torch.manual_seed(3)
    start = generators()
    eager, end = OnTheGpu(), generators()
    torch.manual_seed(3)
    with fastinit.deferred():
        module = OnTheGpu()
    assert all(torch.equal(a, b) for a, b in zip(start, generators(), strict=True))
    fastinit.materialize(module, replay="torch")
    assert all(torch.equal(a, b) for a, b in zip(end, generators(), strict=True))
    for (name, a), b in zip(eager.named_parameters(), module.parameters(), strict=True):
        assert a.device == b.device and torch.equal(a, b), name
    with fastinit.deferred():
        module = OnTheGpu()
    before = generators()
    fastinit.materialize(module, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, generators(), strict=True))
    assert torch.equal(module.f, eager.f) and torch.equal(module.h, eager.h)
    assert not torch.equal(module.a.weight, eager.a.weight) and not torch.equal(module.g, eager.g)


def test_a_cuda_generator_is_read_on_the_host(served: str) -> None:
    generator = torch.Generator("cuda").manual_seed(5)
    a = init.normal_(torch.empty(100, device="cuda"), generator=generator)
    b = init.normal_(torch.empty(100, device="cuda"), generator=generator)
    assert not torch.equal(a, b)
    generator.manual_seed(5)
    assert torch.equal(init.normal_(torch.empty(100, device="cuda"), generator=generator), a)


def test_compute_sanitizer_is_clean() -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        pytest.skip("compute-sanitizer is not installed")
    code = (
        "import torch; from support.layouts import *; from torch_fastinit.ops import fill\n"
        "for layout in (LAYOUTS | BOXES).values():\n"
        "    buffers = []\n"
        "    fills = batch(layout, buffers)\n"
        "    there = [b.view(torch.uint8).cuda().view(b.dtype) for b in buffers]\n"
        "    fill([Fill(layout.view(b), f.initializer, f.seed, f.stream, f.region) for f, b in zip(fills, there)])\n"
        "torch.cuda.synchronize()\n"
    )
    for check in ("memcheck", "initcheck"):
        out = subprocess.run(
            [
                sanitizer,
                f"--tool={check}",
                "--report-api-errors=no",  # what torch tries, and answers for itself
                "--error-exitcode=9",
                "--kernel-name-exclude=kernel_substring=at::",
                sys.executable,
                "-c",
                code,
            ],
            cwd=Path(__file__).parents[1],
            env=dict(os.environ, FASTINIT_BACKEND="cuda", PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]


def test_batches_of_many_tensors(served: str) -> None:
    sizes = [1 + 37 * n % 5000 for n in range(700)]
    there = [torch.empty(n, device="cuda") for n in sizes]
    here = [torch.empty(n) for n in sizes]
    for tensors in (here, there):
        fill([Fill(t, ANY[n % len(ANY)], SEED, n) for n, t in enumerate(tensors)])
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
