"""The arrows of the house: who imports whom in torch_fastinit/, who includes whom in csrc/."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "torch_fastinit"

#: From below. A module imports from its own floor and from those beneath it. A folder stands for all that is in it.
FLOORS = (
    ("_C", "_torch", "arguments", "codes", "fans", "forks", "stream", "initializers"),
    ("backend",),
    ("ops", "orthogonal", "shards"),
    ("recording",),
    ("planning",),
    ("execution",),
    ("eager", "dtensors"),
    ("init", "materializer", "mixture"),
    ("like", "reporting"),
    ("__init__",),
    ("commands", "__main__"),
)
FORBIDDEN = {
    "recording": ("planning", "init", "ops"),
    "planning": ("execution", "init", "backend"),
    "execution": ("init",),
    "execution.swap": ("planning.planner",),
    **dict.fromkeys(
        ("initializers", "stream", "codes", "ops", "backend", "orthogonal", "shards"), ("recording", "planning")
    ),
}
#: The one attribute of another module's object that is assigned to: the tape of this thread's context.
STATE = {"active.tape"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
KNOWN = {*MODULES, "_C"}


def inside(module: str, folder: str) -> bool:
    return module == folder or module.startswith(folder + ".")


def floor_of(module: str) -> int:
    (floor,) = (n for n, names in enumerate(FLOORS) if any(inside(module, name) for name in names))
    return floor


def imports_of(tree: ast.AST) -> set[str]:
    """The package's own modules that a module imports, wherever it does so: in functions and for types alone, too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("torch_fastinit.") for name in names if name.startswith("torch_fastinit.")}
    return found & KNOWN


IMPORTS = {name: imports_of(tree) - {name} for name, tree in MODULES.items()}


def test_every_module_has_a_floor() -> None:
    assert {name: floor_of(name) for name in KNOWN}
    assert sum(map(len, IMPORTS.values())) > 80  # imports are found at all


def test_no_import_points_up() -> None:
    up = [(a, b) for a, bs in IMPORTS.items() for b in bs if floor_of(b) > floor_of(a)]
    assert up == []


def test_no_forbidden_arrow() -> None:
    arrows = [
        (a, b)
        for a, bs in IMPORTS.items()
        for b in bs
        for source, targets in FORBIDDEN.items()
        if inside(a, source) and any(inside(b, target) for target in targets)
    ]
    assert arrows == []


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(node: str, way: list[str]) -> None:
        if node in way:
            found.append([*way[way.index(node) :], node])
        elif node not in done:
            for other in sorted(graph.get(node, ())):
                visit(other, [*way, node])
            done.add(node)

    for node in sorted(graph):
        visit(node, [])
    return found


def test_no_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles(IMPORTS) == []


def assigned_to_others(tree: ast.Module) -> set[str]:
    """Attributes of imported objects, or of their types, that a module assigns to."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torch_fastinit")
        for alias in node.names
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            targets: list[ast.expr] = [ast.Attribute(node.args[0], "?")]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Attribute):
                base = target.value
                if isinstance(base, ast.Call) and ast.unparse(base.func) == "type":
                    base = base.args[0]
                if isinstance(base, ast.Name) and base.id in imported:
                    found.add(ast.unparse(target))
    return found


def test_no_assignment_hides_an_arrow() -> None:
    hidden = ast.parse("from torch_fastinit.tensor import active\ntype(active).dispatch = print")
    assert assigned_to_others(hidden) == {"type(active).dispatch"}
    assert set().union(*map(assigned_to_others, MODULES.values())) == STATE


INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)
SOURCES = {
    str(path.relative_to(ROOT / "csrc")): set(INCLUDE.findall(path.read_text()))
    for path in sorted((ROOT / "csrc").rglob("*"))
    if path.suffix in (".h", ".cpp", ".cu", ".cuh")
}


def test_csrc_knows_neither_torch_nor_python() -> None:
    for name, included in SOURCES.items():
        foreign = {
            header for header in included if re.match(r"(torch|ATen|c10|pybind11)/|Python\.h|.*bindings", header)
        }
        assert not foreign or name == "bindings.cpp", (name, foreign)


def test_csrc_has_no_circle() -> None:
    local = {
        name: {other for header in headers for other in SOURCES if Path(other).name == Path(header).name}
        for name, headers in SOURCES.items()
    }
    assert any(local.values())
    assert circles(local) == []


@pytest.mark.parametrize("folder", ["torch_fastinit", "csrc", "triton_kernels"])
def test_files_are_short(folder: str) -> None:
    suffixes = {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh"}
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert lengths
    allowed = {"torch_fastinit/init.py": 700}
    assert {name: n for name, n in lengths.items() if n > allowed.get(name, 500)} == {}
