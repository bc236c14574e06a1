"""Private names of torch: all in torch_fastinit/_torch.py, and none that is missing goes by unsaid."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_fastinit import _torch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(_torch.__file__)
NAMES = re.findall(r'_private\(\s*"([^"]+)"\)', SOURCE.read_text())


def root_of(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_names(tree: ast.AST) -> list[str]:
    """What a module takes from torch that has an underscore in front; operators are public, whatever their names."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [part for part in parts if part.startswith("_")]
        elif isinstance(node, ast.Attribute) and root_of(node) == "torch" and re.match(r"_(?!_)", node.attr):
            found.append(node.attr)
    return found


FAN_HELPERS = [
    "_calculate_correct_fan",
    "_calculate_fan_in_and_fan_out",
]  # which init.py has, since libraries import them


def test_they_stand_in_one_file() -> None:
    found = {}
    for folder in ("torch_fastinit", "triton_kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            names = private_names(ast.parse(path.read_text()))
            if names and path != SOURCE:
                found[path.name] = names
    assert found == {"init.py": FAN_HELPERS}
    assert private_names(ast.parse("import torch\ntorch._C.f\nfrom torch._ops import x")) == ["_ops", "_C"]


def test_every_name_is_there() -> None:
    assert len(NAMES) > 35
    for name in NAMES:
        pkgutil.resolve_name(name)


def fresh() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("fresh_torch_names", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("missing", [name for name in NAMES if "distributed" not in name])
def test_a_missing_name_is_an_error_at_import(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pkgutil.resolve_name

    def resolve(name: str) -> Any:
        if name == missing:
            raise AttributeError(name)
        return original(name)

    monkeypatch.setattr(pkgutil, "resolve_name", resolve)
    with pytest.raises(ImportError) as caught:
        fresh()
    wanted = f"torch {torch.__version__} has no {missing.replace(':', '.')}, which torch_fastinit needs"
    assert str(caught.value).startswith(wanted)


def test_a_missing_attribute_is_an_error_when_it_is_needed() -> None:
    with pytest.raises(
        RuntimeError, match=rf"torch {re.escape(torch.__version__)} has no SimpleNamespace._spec, which"
    ):
        _torch.attribute(types.SimpleNamespace(), "_spec")
    with pytest.raises(RuntimeError, match=r"has no torch\.nn\._none, which"):
        _torch.attribute(torch.nn, "_none")
