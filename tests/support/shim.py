"""csrc/cuda.cu and csrc/tables.cpp as ordinary C++, with blocks and threads as loops, behind ctypes.

tests/support/cuda_shim/cuda_runtime.h is the CUDA runtime there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

from support.wire import to_wire

from torch_fastinit import backend
from torch_fastinit.ops import Fill

ROOT = Path(__file__).resolve().parents[2]
# Arithmetic as in the build; undefined behaviour (a misaligned store, an overflow) ends the process.
FLAGS = (
    "-std=c++17 -O1 -shared -fPIC -ffp-contract=off -fno-strict-aliasing -Wno-unknown-pragmas "
    "-fsanitize=undefined -fsanitize-undefined-trap-on-error"
)


class State(ctypes.Structure):
    """``Shim`` of cuda_runtime.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("devices", "current", "launches", "launched_on", "without_code")),
        ("stream", ctypes.c_size_t),
        *((name, ctypes.c_int) for name in ("next_launch", "driver", "skip", "words", "chunk")),
        *(("entries", ctypes.c_int * 5), ("plain", ctypes.c_int)),
    ]


PATHS = ("run", "box", "rows", "elements", "sparse")


class Shim:
    """The compiled kernels."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.shim_fill.restype = ctypes.c_char_p
        self.library.shim_cuda_error.restype = ctypes.c_char_p
        self.library.shim_state.restype = ctypes.POINTER(State)
        self.state: State = self.library.shim_state().contents
        self.device, self.stream = 0, 0

    def fill(self, fills: Iterable[Fill], fresh: bool = False) -> None:
        _, rows, recipe, params = to_wire(fills)
        lists = (
            *((ctypes.c_int64 * len(rows))(*rows), ctypes.c_size_t(len(rows))),
            *((ctypes.c_int64 * len(recipe))(*recipe), ctypes.c_size_t(len(recipe))),
            *((ctypes.c_double * len(params))(*params), ctypes.c_size_t(len(params))),
        )
        message = self.library.shim_fill(*lists, ctypes.c_int(self.device), ctypes.c_size_t(self.stream))
        if message is not None:
            raise RuntimeError(message.decode())

    def paths(self) -> dict[str, int]:
        """How many entries went by each path since the last call."""
        found = {name: n for name, n in zip(PATHS, self.state.entries, strict=True) if n}
        self.state.entries[:] = [0] * len(PATHS)
        return found

    def provider(self) -> backend.Provider:
        return backend.Provider("shim", "csrc/cuda.cu", self.fill, lambda device: "")


def built() -> Path:
    """The shared library, kept between runs under the hash of what it is made of."""
    sources = [p for p in sorted((ROOT / "csrc").rglob("*.[ch]*")) if p.is_file()]
    sources += [*sorted((ROOT / "tests" / "support" / "cuda_shim").iterdir()), ROOT / "tests" / "support" / "wire.h"]
    machine = ["-mfma"] if "x86" in os.uname().machine else []
    command = [*shlex.split(os.environ.get("CXX", "c++")), *FLAGS.split(), *machine]
    key = hashlib.sha256(b"\0".join([repr(command).encode(), *(path.read_bytes() for path in sources)])).hexdigest()
    target = ROOT / "build" / "cuda_shim" / f"{key[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        shim = ROOT / "tests" / "support" / "cuda_shim"
        inputs = [str(shim / "shim.cpp"), *(str(ROOT / "csrc" / name) for name in ("lower.cpp", "tables.cpp"))]
        subprocess.run([*command, f"-I{shim}", *inputs, "-o", str(part)], check=True)
        part.replace(target)
    return target
