"""torch_fastinit/codes.py has the numbers; csrc/fill.h and triton_kernels/ have the same."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from torch_fastinit.codes import DTYPE_CODES, MAX_COMPONENTS, MAX_STEPS, Kind, Op

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "csrc" / "fill.h").read_text()
#: The names of the dtypes in C++.
SHORT = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3"} | {
    "float8_e5m2": "e5m2",
    "int32": "i32",
}


def enum_of_csrc(name: str) -> dict[str, int]:
    body = re.search(rf"enum class {name} : int32_t {{([^}}]*)}}", HEADER)
    assert body is not None
    codes: dict[str, int] = {}
    for item in body[1].split(","):
        word, _, number = item.partition("=")
        codes[word.strip()] = int(number) if number else len(codes)
    return codes


def test_codes_of_csrc() -> None:
    assert enum_of_csrc("Kind") == {kind.name.lower(): kind.value for kind in Kind}
    assert enum_of_csrc("Op") == {op.name.lower(): op.value for op in Op}
    dtypes = {SHORT[str(dtype).removeprefix("torch.")]: code for dtype, code in DTYPE_CODES.items()}
    assert enum_of_csrc("DType") == dtypes | {"opaque": 64}
    steps = re.search(r"kMaxSteps = (\d+)", HEADER)
    assert steps is not None
    assert int(steps[1]) == MAX_STEPS + 1  # and the draw's own rounding
    components = re.search(r"kMaxComponents = (\d+)", HEADER)
    assert components is not None
    assert int(components[1]) == MAX_COMPONENTS


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_codes_of_triton_kernels() -> None:
    folder = ROOT / "triton_kernels"
    spec = importlib.util.spec_from_file_location(
        "triton_kernels_for_codes", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = {name: getattr(value, "value", value) for name, value in vars(module.kernels).items()}
    kinds = {kind.name: kind.value for kind in Kind if kind.name in found}
    assert set(kinds) >= {"BITS", "CONSTANT", "UNIFORM", "NORMAL", "TRUNCATED_NORMAL", "SPARSE", "MIXTURE", "DIAGONALS"}
    assert kinds == {name: found[name] for name in kinds}
    dtypes = {SHORT[str(dtype).removeprefix("torch.")].upper(): code for dtype, code in DTYPE_CODES.items()}
    assert {name: found[name] for name in dtypes if name in found} == {"F64": dtypes["F64"]}
