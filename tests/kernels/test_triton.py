"""triton_kernels/ without a GPU: the reference's bits in Triton's interpreter, and compiled for GPUs.

Triton is not part of every build of torch; these tests are skipped where it is missing or (for the interpreter, whose
fma is not fused before 3.9) too old, and the reason says so.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import reference
from support.bits import REAL, check, check_box, dirty
from support.layouts import LAYOUTS, Layout, batch, raw
from support.parameters import MIXTURES, NORMAL, PROGRAMS, TRUNCATED, UNIFORM

from torch_fastinit import _C, backend
from torch_fastinit.codes import DTYPE_CODES
from torch_fastinit.initializers import Constant, Initializer, Normal, Program, Sparse, TruncatedNormal
from torch_fastinit.ops import Fill, fill, ready

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def load(name: str) -> ModuleType:
    """triton_kernels under another name: a copy of its own, which needs nothing of torch_fastinit."""
    folder = ROOT / "triton_kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def need_fused_fma() -> None:
    if tuple(map(int, version("triton").split(".")[:2])) < (3, 9):
        pytest.skip("the interpreter's fma is not fused before Triton 3.9")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[ModuleType]:
    """The kernels as Triton's interpreter runs them, on CPU tensors."""
    need_fused_fma()
    if torch.cuda.is_available():
        pytest.skip("Triton compiles for the GPU in this process, and interprets only where there is none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield load("interpreted_triton_kernels")


def provider(interpreted: ModuleType) -> backend.Provider:
    def run(fills: Iterable[Fill], fresh: bool) -> None:
        fills = tuple(fills)
        interpreted.fill([fill.tensor for fill in fills], _C.lowered(fills, DTYPE_CODES))

    return backend.Provider("interpreted", "Triton", run, lambda device: "")


@pytest.fixture
def triton_fills(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills of CPU tensors go through the interpreted kernels."""

    monkeypatch.setitem(backend.serving, "cpu", provider(interpreted))


# One of each form of each distribution; a launch of the interpreter takes a tenth of a second.
CHOSEN = {
    **{f"uniform: {name}": UNIFORM[name] for name in ("kaiming", "up to 0", "beyond float8", "subnormal in float32")},
    **{f"normal: {name}": NORMAL[name] for name in ("gpt", "past the largest float16", "subnormal in float16")},
    **{f"truncated: {name}": TRUNCATED[name] for name in ("default", "skew", "below 0", "8 to 9", "below -7")},
    **{f"mixture: {name}": MIXTURES[name] for name in ("d2l", "spike and slab", "zeros of both signs", "infinities")},
}


@pytest.mark.parametrize("initializer", CHOSEN.values(), ids=[name.replace(" ", "_") for name in CHOSEN])
def test_same_bits_as_the_reference(initializer: Initializer, triton_fills: None) -> None:
    for dtype in REAL:
        check(initializer, dirty((31, 37), dtype))  # as in test_kernels, where the reference was computed


@pytest.mark.parametrize("initializer", PROGRAMS.values(), ids=[name.replace(" ", "_") for name in PROGRAMS])
def test_programs(initializer: Program, triton_fills: None) -> None:
    check(initializer, dirty((31, 37), initializer.steps[-1].dtype))


def test_sparse(triton_fills: None) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check(Sparse(0.7, 0.5), dirty((7, 131), dtype))
    check_box(Sparse(0.7, 0.5), (20, 9), ((4, 11), (1, 8)), torch.float32)


# More than three dimensions are several launches, of which the interpreter takes its time: four will do.
FEWER = {
    name: layout for name, layout in LAYOUTS.items() if name not in ("ten dimensions", "several chunks and a rest")
}
FEWER["five dimensions"] = Layout((2, 2, 3, 1, 5), strides=(1, 80, 2, 7, 16))


@pytest.mark.parametrize("layout", FEWER.values(), ids=[name.replace(" ", "_") for name in FEWER])
def test_layouts(layout: Layout, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    dtypes = (torch.float32, torch.bfloat16)
    fill(batch(layout, theirs, dtypes))
    work = batch(layout, ours, dtypes)
    monkeypatch.setitem(backend.serving, "cpu", provider(interpreted))
    fill(work)
    for f, a, b in zip(work, ours, theirs, strict=True):
        assert torch.equal(raw(a), raw(b)), (f.initializer, f.tensor.dtype)


#: Layouts whose rows are written tile by tile, and what each tile is: blocks, and whether it is written whole.
ROWS = {
    "in step and aligned": (Layout((5, 256), shape=(9, 1024), box=(2, 128)), (64, True)),
    "in step, a ragged end": (Layout((3, 700), shape=(4, 1024), box=(1, 300)), (64, False)),
    "out of step": (Layout((4, 203), shape=(7, 303), box=(3, 98)), (64, False)),
    "with gaps": (Layout((3, 512), strides=(528, 1), offset=16), (128, True)),
    "with gaps, at an odd address": (Layout((3, 512), strides=(515, 1), offset=3), (128, False)),
    "several tiles": (Layout((2, 4096), shape=(2, 9000), box=(0, 4096)), (512, True)),
    "past 2^34 elements": (Layout((3, 128), shape=(2**30, 512), box=(2**26, 64)), (32, True)),
}


@pytest.mark.parametrize(("layout", "tiles"), ROWS.values(), ids=[name.replace(" ", "_") for name in ROWS])
def test_rows_go_tile_by_tile(
    layout: Layout, tiles: tuple[int, bool], interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    launch = interpreted._launch

    def watched(kernel: object, grid: object, to: object, integers: object, *fixed: Any, **options: Any) -> None:
        assert kernel is interpreted.kernels.run
        launched.append((fixed[5], fixed[7]))
        launch(kernel, grid, to, integers, *fixed, **options)

    for initializer, dtype in ((Normal(), torch.float32), (TruncatedNormal(), torch.bfloat16)):
        ours, theirs = layout.buffer(dtype), layout.buffer(dtype)
        fill([Fill(layout.view(theirs), initializer, 5, 7, layout.region)])
        with monkeypatch.context() as patch:
            patch.setitem(backend.serving, "cpu", provider(interpreted))
            patch.setattr(interpreted, "_launch", watched)
            fill([Fill(layout.view(ours), initializer, 5, 7, layout.region)])
        assert torch.equal(raw(ours), raw(theirs))
    assert launched == [tiles, tiles]


def test_rows_in_float64_and_out_of_reach(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    across = Layout((3, 256), shape=(2**26, 1024), box=(2**24 - 1, 100))  # the block number's high half changes
    short = Layout((9, 60), shape=(9, 256), box=(0, 8))
    for layout, dtype in ((ROWS["out of step"][0], torch.float64), (across, torch.float32), (short, torch.float32)):
        ours, theirs = layout.buffer(dtype), layout.buffer(dtype)
        fill([Fill(layout.view(theirs), Normal(), 5, 7, layout.region)])
        with monkeypatch.context() as patch:
            patch.setitem(backend.serving, "cpu", provider(interpreted))
            fill([Fill(layout.view(ours), Normal(), 5, 7, layout.region)])
        assert torch.equal(raw(ours), raw(theirs))


def test_whole_tiles(interpreted: ModuleType, triton_fills: None) -> None:
    # what a program writes without a mask, and a rest of less than a tile
    elements = 4 * interpreted.BLOCK * interpreted.TILES + 4 * 300 + 3
    check(UNIFORM["kaiming"], dirty((elements,), torch.float32))
    check(NORMAL["gpt"], dirty((elements,), torch.float16))
    check(TRUNCATED["default"], dirty((elements,), torch.float64))
    check(MIXTURES["spike and slab"], dirty((elements,), torch.float32))


# Of 2.9 deviations no element takes the tail, of 3 some do; one base that is small enough is enough.
@pytest.mark.parametrize(
    ("bounds", "without"), [((-2.0, 2.0), True), ((-2.9, 2.9), True), ((-3.0, 3.0), False), ((-1.0, 3.0), False)]
)
def test_the_tail_is_left_out_where_no_word_takes_it(
    bounds: tuple[float, float], without: bool, interpreted: ModuleType, triton_fills: None
) -> None:
    initializer = TruncatedNormal(0.0, 1.0, *bounds)
    for dtype in (torch.float32, torch.float64):
        tensor = dirty((31, 37), dtype)
        (lowered,) = _C.lowered([Fill(tensor.view(-1), initializer)], DTYPE_CODES)
        assert interpreted._form(lowered) == (3 if without else 0)
        check(initializer, tensor)
        if without:  # exactly: the element with the least probability has a length of at most 10
            least = min(lowered["constants"][5:7])
            assert -2 * math.log(4 * least * (1 - least)) < 10


def test_a_kernel_is_looked_up_once(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what was compiled is launched itself, with all arguments in order."""
    looked_up, launched = [], []

    class Launcher(dict):  # type: ignore[type-arg]
        def __missing__(self, grid: tuple[int, int, int]) -> Callable[..., object]:
            return lambda *arguments, **options: self.call(grid, arguments)

    class Compiled(Launcher):
        def call(self, grid: tuple[int, int, int], arguments: tuple[object, ...]) -> None:
            launched.append((grid, arguments[1:]))

    class Kernel(Launcher):
        __hash__ = object.__hash__

        def call(self, grid: tuple[int, int, int], arguments: tuple[object, ...]) -> Compiled:
            looked_up.append((grid, arguments[1:]))
            return Compiled()

    monkeypatch.setattr(interpreted, "_compiled", {})
    monkeypatch.setattr(interpreted.kernels, "run", Kernel())
    for tensor in (torch.empty(100), torch.empty(100), torch.empty(100, dtype=torch.bfloat16)):
        fills = [Fill(tensor, Normal())]
        interpreted.fill([tensor], _C.lowered(fills, DTYPE_CODES))
    assert len(looked_up) == 2  # one for each dtype
    assert launched == looked_up[:1]


def test_contiguous_constants_are_torchs(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreted.kernels, "patterned", None)  # which nobody asks
    for dtype, value in ((torch.float32, -1.5), (torch.bfloat16, -0.0), (torch.uint8, 200), (torch.float64, -2.0)):
        buffer = torch.full((9,), 7, dtype=dtype)
        tensor = buffer[2:7]
        interpreted.fill([tensor], _C.lowered([ready(Fill(tensor, Constant(value)))], DTYPE_CODES))
        expected = torch.full((9,), 7, dtype=dtype)
        expected[2:7].fill_(value)
        assert torch.equal(raw(buffer), raw(expected))


def test_coefficients_are_those_of_the_page(interpreted: ModuleType) -> None:
    module = vars(sys.modules[f"{interpreted.__name__}.coefficients"])
    tables = {name: list(table.value) for name, table in module.items() if name.isupper()}
    assert tables == reference.C


def test_names_are_those_of_csrc(interpreted: ModuleType) -> None:
    module = vars(sys.modules[f"{interpreted.__name__}.distributions"])
    names = [name for name, value in module.items() if hasattr(value, "fn")]
    files = ("distributions.h", "mixture.h", "lane.h", "lanes/scalar.h", "cuda_kernels.cuh")
    text = "".join((ROOT / "csrc" / file).read_text() for file in files)
    assert len(names) > 12
    # Where C++ overloads a name, or has a method of a type, Triton needs another.
    assert {name for name in names if f" {name}(" not in text} == {"horner64", "integer62", "round_bf16"}


def test_nothing_of_the_package_is_imported() -> None:
    code = "import sys, triton_kernels; print('torch_fastinit' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_triton_is_imported_only_when_used() -> None:
    code = "import sys, torch_fastinit; print([m for m in sys.modules if m.split('.')[0] == 'triton'])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    code = "import sys, torch; print([m for m in sys.modules if m.split('.')[0] == 'triton'])"
    torch_alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == torch_alone.stdout


def test_forced_by_the_environment() -> None:
    need_fused_fma()
    code = (
        "import torch, torch_fastinit as f; t = torch.empty(100); torch.manual_seed(0); f.init.normal_(t);"
        "print(f.backends()['cpu']); f.backends(cpu='cpu'); u = torch.empty(100); torch.manual_seed(0);"
        "f.init.normal_(u); print(f.backends()['cpu'].split()[0], torch.equal(t, u))"
    )
    environment = dict(os.environ, FASTINIT_BACKEND="triton", TRITON_INTERPRET="1")
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", env=environment, capture_output=True, text=True
    )
    assert out.stdout.split() == ["Triton", "C++", "True"], out.stderr


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
def test_compiles_for(target: str) -> None:
    """To machine code, without a GPU and without spills."""
    command = [sys.executable, str(ROOT / "tools" / "sass.py"), "--triton-only", "--target", target, "--json", "-"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    out = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    kernels = json.loads(out.stdout)
    assert {k["distribution"] for k in kernels} == {
        "uniform",
        "normal",
        "truncated_normal",
        "truncated_normal with tails",
        "mixture",
        "mixture with normals",
        "far_tail",
        "normal in float64",
        "truncated_normal in float64",
        "program",
        "sparse",
        "patterned",
    }
    for kernel in kernels:
        assert kernel["bytes"] > 0
        assert kernel["local_bytes"] in (0, None), kernel
