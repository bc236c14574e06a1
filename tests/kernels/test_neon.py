"""The CPU backend compiled for aarch64 and run there by an emulator: the same bits, from NEON and from scalar code.

tests/support/emulated/server.cpp is the program. Compiler and emulator are those that `make test` fetches
(tools/aarch64.sh), or others on PATH. On an aarch64 machine the ordinary tests run the same kernels, with no emulator.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import platform
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch
from kernels.test_kernels import EXTREME_WORDS, FAR_BOXES, SIZES
from support.bits import REAL, SEED, STREAM, bits_of, check, check_box, dirty, expected
from support.layouts import LAYOUTS, Layout, batch, raw
from support.parameters import ALL, EMPTY, MIXTURES, NORMAL, PROGRAMS, TRUNCATED, UNIFORM
from support.wire import to_wire

from torch_fastinit import backend
from torch_fastinit.initializers import Normal, Program, Sparse, TruncatedNormal, Uniform
from torch_fastinit.ops import Fill, Region, fill

ROOT = Path(__file__).resolve().parents[2]
TOOLS = os.pathsep.join([str(ROOT / ".venv" / "aarch64" / "bin"), os.environ.get("PATH", "")])
CXX = shutil.which("aarch64-linux-gnu-g++", path=TOOLS)
EMULATOR = next((path for n in ("qemu-aarch64", "qemu-aarch64-static") if (path := shutil.which(n, path=TOOLS))), None)

if platform.machine() == "aarch64":
    pytestmark = pytest.mark.skip(reason="this machine is an aarch64: the other tests run its kernels")
elif os.environ.get("AARCH64") == "0":
    pytestmark = pytest.mark.skip(reason="left out by AARCH64=0")
elif CXX is None or EMULATOR is None:
    missing = "aarch64-linux-gnu-g++" if CXX is None else "qemu-aarch64"
    pytestmark = pytest.mark.skip(reason=f"no {missing} (tools/aarch64.sh fetches it where there is apt-get)")

#: Bits of the FPCR register: subnormals flushed to zero, and rounding towards zero.
FLUSH, TRUNCATE = 1 << 24, 3 << 22


def bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


class Server:
    """The running program; see ``Request`` in tests/support/emulated/server.cpp."""

    def __init__(self, program: Path) -> None:
        assert EMULATOR is not None
        self.process = subprocess.Popen([EMULATOR, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.of = self.process.stdin, self.process.stdout
        self.instruction_sets = self.of.readline().decode().split()
        self.instruction_set = "neon"
        self.threads = 2
        self.mode = self.mode_after = 0
        self.calls = 0

    def fill(self, fills: Iterable[Fill], fresh: bool = False) -> None:
        """Sends whole storages, so that what was written beside a view shows, and keeps their addresses' low bits."""
        tensors, rows, recipe, params = to_wire(fills)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.numel()}
        memory, places = bytearray(), {}
        for address, storage in storages.items():
            memory += bytes((address - len(memory)) % 4096)
            places[address] = len(memory)
            memory += bytes_of(storage).numpy().tobytes()
        at = 0
        for t in tensors:
            base = t.untyped_storage().data_ptr()
            rows[at] = rows[at] - base + places[base] if t.numel() else 0
            at += 3 + 2 * t.dim()
        sizes = (len(rows), len(recipe), len(params), len(memory))
        self.to.write(struct.pack("<8sQ5q", self.instruction_set.encode(), self.mode, self.threads, *sizes))
        self.to.write(struct.pack(f"<{len(rows)}q{len(recipe)}q{len(params)}d", *rows, *recipe, *params) + memory)
        self.to.flush()
        self.mode_after, length = struct.unpack("<QQ", self.of.read(16))
        message = self.of.read(length).decode()
        answer = self.of.read(len(memory))
        assert len(answer) == len(memory)
        if message:
            raise RuntimeError(message)
        for address, storage in storages.items():
            part = bytearray(answer[places[address] : places[address] + len(storage)])
            bytes_of(storage).copy_(torch.frombuffer(part, dtype=torch.uint8))
        self.calls += 1

    def provider(self) -> backend.Provider:
        return backend.Provider("emulated", "C++", self.fill, lambda device: "")


def load_setup() -> ModuleType:
    """setup.py as it is on an aarch64, without running it."""
    spec = importlib.util.spec_from_file_location("setup_for_aarch64", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        patch.setattr(platform, "machine", lambda: "aarch64")
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def built() -> Path:
    """The folder of the program and its assembly, kept between runs under the hash of what they are made of."""
    assert CXX is not None
    setup = load_setup()
    main = ROOT / "tests" / "support" / "emulated" / "server.cpp"
    # As the build on such a machine would compile it.
    parts = [(source, stem, own) for source, stem, own in setup.compilations(None) if stem != "bindings"]
    version = subprocess.run([CXX, "--version"], check=True, capture_output=True).stdout
    sources = [path for path in sorted((ROOT / "csrc").rglob("*.[ch]*")) if path.is_file()]
    contents = [path.read_bytes() for path in (*sources, main, ROOT / "tests" / "support" / "wire.h")]
    key = hashlib.sha256(b"\0".join([repr((setup.CXX_FLAGS, parts)).encode(), version, *contents])).hexdigest()
    folder = ROOT / "build" / "aarch64" / key[:16]
    if not (folder / "server").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for source, stem, own in [*parts, (main, "server", [])]:
            command = [CXX, *setup.CXX_FLAGS, "-Werror", *own, "-S", str(source), "-o", str(folder / f"{stem}.s")]
            subprocess.run(command, check=True)
        part = folder / f"server.{os.getpid()}"
        subprocess.run([CXX, "-static", "-pthread", *map(str, folder.glob("*.s")), "-o", str(part)], check=True)
        part.replace(folder / "server")
    return folder


@pytest.fixture(scope="session")
def process(built: Path) -> Iterator[Server]:
    server = Server(built / "server")
    yield server
    server.to.close()
    assert server.process.wait(timeout=60) == 0
    server.of.close()


@pytest.fixture(params=["neon", "scalar"])
def server(request: pytest.FixtureRequest, process: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Fills of CPU tensors go through the emulated program."""
    process.instruction_set, process.mode, process.threads, process.calls = request.param, 0, 2, 0
    monkeypatch.setitem(backend.serving, "cpu", process.provider())
    yield process
    assert process.calls > 0


def test_instruction_sets(process: Server) -> None:
    assert process.instruction_sets == ["neon", "scalar"]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=[name.replace(" ", "_") for name in LAYOUTS])
def test_layouts(layout: Layout, process: Server, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ours: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    work = batch(layout, ours)
    fill(work)
    monkeypatch.setitem(backend.serving, "cpu", backend.PROVIDERS["cpu"])
    fill(batch(layout, theirs))
    for f, a, b in zip(work, ours, theirs, strict=True):
        assert torch.equal(raw(a), raw(b)), (f.initializer, f.tensor.dtype)


GROUPS = {"uniform": UNIFORM, "normal": NORMAL, "truncated_normal": TRUNCATED, "empty": EMPTY, "mixture": MIXTURES}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("dtype", REAL)
def test_same_bits_as_the_reference(group: str, dtype: torch.dtype, server: Server) -> None:
    for initializer in GROUPS[group].values():
        check(initializer, dirty((31, 37), dtype))  # as in test_kernels, where the reference was computed


@pytest.mark.parametrize("initializer", PROGRAMS.values(), ids=[name.replace(" ", "_") for name in PROGRAMS])
def test_programs(initializer: Program, server: Server) -> None:
    check(initializer, dirty((31, 37), initializer.steps[-1].dtype))


@pytest.mark.parametrize("mode", [FLUSH, TRUNCATE, FLUSH | TRUNCATE], ids=["flush", "truncate", "both"])
def test_floating_point_mode(mode: int, server: Server) -> None:
    server.mode = mode
    for name, initializer in (UNIFORM | NORMAL).items():
        for dtype in REAL:
            check(initializer, dirty((31, 37), dtype))
            assert server.mode_after == mode, name
    # Enough for a second thread, which inherits the mode.
    check(Normal(0.0, 1e-39), dirty((2, 40000), torch.float32))


@pytest.mark.parametrize("dtype", REAL)
def test_sizes(dtype: torch.dtype, server: Server) -> None:
    for initializer in (Uniform(), Normal(), TruncatedNormal(), TRUNCATED["8 to 9"]):
        whole = expected(initializer, (max(SIZES),), dtype)
        for size in SIZES:
            tensor = dirty((size,), dtype)
            fill([Fill(tensor, initializer, SEED, STREAM)])
            assert (bits_of(tensor) == whole[:size]).all()


@pytest.mark.parametrize(("shape", "box"), FAR_BOXES)
def test_far_out(shape: tuple[int, ...], box: tuple, server: Server) -> None:
    for initializer in (Uniform(), Normal(), TruncatedNormal(), TRUNCATED["8 to 9"], MIXTURES["spike and slab"]):
        for dtype in REAL:
            check_box(initializer, shape, box, dtype)


@pytest.mark.parametrize("n", EXTREME_WORDS)
def test_extreme_words(n: int, server: Server) -> None:
    for initializer in ALL.values():
        tensor = dirty((7,), torch.float32)
        fill([Fill(tensor, initializer, 0, 0, Region((2**34,), (n - 3,)))])
        want = expected(initializer, (2**34,), torch.float32, ((n - 3, n + 4),), seed=0, stream=0)
        assert (bits_of(tensor) == want).all()


@pytest.mark.parametrize("shape", [(31, 131), (1, 5), (7, 1)])
def test_sparse(shape: tuple[int, int], server: Server) -> None:
    for dtype in REAL:
        check(Sparse(0.7, 0.5), dirty(shape, dtype))


def test_nan_is_nan_in_every_dtype(server: Server) -> None:
    for dtype in REAL:
        tensor = torch.zeros(67, dtype=dtype)
        fill([Fill(tensor, Normal(math.nan, 1.0), SEED, STREAM)])
        assert bool(tensor.float().isnan().all())


def test_several_pieces(server: Server) -> None:
    for dtype in (torch.float32, torch.bfloat16):  # on two threads, with a ragged end
        ours, theirs = dirty((2**18 + 3000 + 7,), dtype), dirty((2**18 + 3000 + 7,), dtype)
        fill([Fill(ours, Normal(), SEED, STREAM)])
        backend.PROVIDERS["cpu"].run([Fill(theirs, Normal(), SEED, STREAM)], False)
        assert torch.equal(raw(ours), raw(theirs))


def hot_loop(assembly: str, value: str, dtype: str) -> list[str]:
    """The instructions of the loop over whole tiles of a distribution in a dtype."""
    name = rf"^(_ZN8fastinit4neon7tiles32INS0_\d+{value}ENS0_\d+{dtype}E\S*):\n(.*?)^\t\.size\t\1"
    function = re.search(name, assembly, re.MULTILINE | re.DOTALL)
    assert function is not None
    lines = [line.strip() for line in function[2].splitlines()]
    loops = []
    for at, line in enumerate(lines):
        jump = re.fullmatch(r"(?:b\.?\w*|cbn?z\s+\w+,|tbn?z\s+\w+, \S+)\s+(\.L\d+)", line)
        if jump is not None and f"{jump[1]}:" in lines[:at]:
            loops.append(lines[lines.index(f"{jump[1]}:") + 1 : at + 1])
    loops = [[i.expandtabs(1) for i in loop if re.match(r"[a-z]", i)] for loop in loops]
    return min((loop for loop in loops if any(i.startswith("umull2") for i in loop)), key=len)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "E4M3"])
@pytest.mark.parametrize("value", ["UniformDist", "NormalDist"])
def test_hot_loop(value: str, dtype: str, built: Path) -> None:
    loop = hot_loop((built / "cpu_kernels_neon.s").read_text(), value, dtype)
    count = Counter(instruction.split()[0] for instruction in loop)
    # Two tiles side by side: 18 products (10 rounds, of which the first two take one each) in two registers, each in a
    # lower and an upper half.
    assert (count["umull"], count["umull2"]) == (72, 72)
    assert (count["uzp1"], count["uzp2"]) == (72, 72)
    assert {"F32": count["st4"], "BF16": count["st2"], "E4M3": 4}[dtype] == 4
    # Nothing element by element: no scalar multiplication, no scalar float, no element moved out of a register.
    scalar = r"(u|s)?mul[lh]? [wx]|m(add|sub) [wx]|f\w+ s\d|(umov|smov|ins) |mov [wx]\d+, v"
    assert [i for i in loop if re.match(scalar, i)] == []
