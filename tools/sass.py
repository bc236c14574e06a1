"""Counts the instructions that a GPU executes for an output: of csrc/cuda.cu and of triton_kernels/.

No GPU is needed. Kernels are compiled for a target and disassembled; in every loop that stores 16 bytes at a time, the
shortest way round (which leaves out what is jumped over, such as the tails of a truncated normal) is divided by the
values that it stores. tools/sass.md is the table to which tests/kernels/test_cuda_build.py holds every count.

    python tools/sass.py                      # the table, for sm_90
    python tools/sass.py --write              # into tools/sass.md

cuobjdump and ptxas come with Triton.
"""

from __future__ import annotations

import argparse
import ast
import heapq
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tools" / "sass.md"
# Instructions per output that were wanted, by language, distribution and dtype.
BUDGET = {
    ("CUDA C++", "uniform", "float32"): 15.2,
    ("CUDA C++", "normal", "float32"): 34.0,
    ("CUDA C++", "truncated_normal", "float32"): 46.5,
    ("CUDA C++", "uniform", "bfloat16"): 16.5,
    ("CUDA C++", "normal", "bfloat16"): 35.0,
    ("CUDA C++", "truncated_normal", "bfloat16"): 50.0,
    ("CUDA C++", "uniform", "float16"): 16.5,
    ("CUDA C++", "uniform", "float8_e4m3fn"): 16.0,
    ("CUDA C++", "normal", "float8_e4m3fn"): 34.5,
    # 1.3 times what contiguous ones may take
    ("CUDA C++", "uniform, columns", "float32"): 19.8,
    ("CUDA C++", "normal, columns", "float32"): 44.2,
    ("CUDA C++", "normal, columns", "bfloat16"): 45.5,
    ("CUDA C++", "truncated_normal with tails, columns", "float32"): 60.5,
    ("Triton", "uniform", "float32"): 16.5,
    ("Triton", "normal", "float32"): 37.5,
    ("Triton", "truncated_normal", "float32"): 50.0,
}
#: How a loop of the CUDA kernel shows its dtype: the conversion in it, and blocks of four words for 16 bytes.
CONVERSIONS = {
    "F2FP.BF16": ("bfloat16", 2),
    "F2FP.F16": ("float16", 2),
    "F2FP.SATFINITE.E4M3": ("float8_e4m3fn", 4),
    "F2FP.SATFINITE.E5M2": ("float8_e5m2", 4),
}
LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")


def tool(name: str) -> str:
    """One of NVIDIA's binary tools, as Triton brings them."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name)


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@dataclass
class Instruction:
    address: int
    text: str

    @property
    def words(self) -> list[str]:
        words = self.text.split()
        return words[1:] if words[0].startswith("@") else words

    @property
    def conditional(self) -> bool:
        return self.text.startswith("@")

    @property
    def target(self) -> int | None:
        found = re.search(r"\b0x([0-9a-f]+)$", self.text)
        return int(found[1], 16) if found and self.words[0].startswith("BRA") else None


def disassemble(sass: str) -> list[Instruction]:
    found = (LINE.match(line) for line in sass.splitlines())
    return [Instruction(int(m[1], 16), m[2]) for m in found if m]


def functions(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """Each function by itself: addresses begin again."""
    starts = [n for n, i in enumerate(code) if n == 0 or i.address <= code[n - 1].address]
    for start, end in zip(starts, [*starts[1:], len(code)], strict=True):
        yield code[start:end]


def loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """The shortest way round each innermost loop that stores 16 bytes."""
    index = {instruction.address: n for n, instruction in enumerate(code)}
    for end, branch in enumerate(code):
        if branch.target is None or branch.target > branch.address or branch.target not in index:
            continue
        way = shortest(code, index, index[branch.target], end)
        if way and any(i.words[0].startswith("STG") and ".128" in i.words[0] for i in way):
            yield way


def shortest(code: list[Instruction], index: dict[int, int], start: int, end: int) -> list[Instruction]:
    """Dijkstra over the instructions between the head of a loop and its backward branch."""
    queue: list[tuple[int, int]] = [(1, start)]
    before: dict[int, int] = {start: -1}
    done: set[int] = set()
    while queue:
        cost, at = heapq.heappop(queue)
        if at in done:
            continue
        done.add(at)
        if at == end:
            way = []
            while at >= 0:
                way.append(code[at])
                at = before[at]
            return way[::-1]
        instruction = code[at]
        following = []
        opcode = instruction.words[0]
        if instruction.target is not None and instruction.target in index:
            following.append(index[instruction.target])
        if instruction.conditional or not opcode.startswith(("BRA", "EXIT", "RET", "CALL")):
            following.append(at + 1)
        for next_ in following:
            if start <= next_ <= end and next_ not in done and next_ not in before:
                before[next_] = at
                heapq.heappush(queue, (cost + 1, next_))
    return []


def count(way: list[Instruction], *prefixes: str) -> int:
    return sum(i.words[0].startswith(prefixes) for i in way)


def outputs(way: list[Instruction], bytes_: int = 4) -> int:
    stores = [i.words[0].rsplit(".", 1)[-1] for i in way if i.words[0].startswith("STG")]
    return sum({"128": 16, "64": 8}.get(width, 4) for width in stores) // bytes_


def kind_of(way: list[Instruction]) -> tuple[str, str] | None:
    """Distribution and dtype of a loop of the one CUDA kernel; None for float64 and where no random number is drawn."""
    dtype, blocks = next((v for k, v in CONVERSIONS.items() if count(way, k)), ("float32", 1))
    products, stores = count(way, "IMAD.WIDE.U32"), count(way, "STG")
    if count(way, "DADD", "DMUL", "DFMA") or not 17 * blocks <= products / stores <= 20 * blocks:
        return None
    fmas, clamps = count(way, "FFMA") / outputs(way, 4 // blocks), count(way, "FMNMX") / outputs(way, 4 // blocks)
    if fmas == 0:
        name, dtype = "bits", "int32"
    elif count(way, "MUFU.RSQ"):
        name = "normal"
    elif fmas < 2:
        name = "uniform" if clamps == 2 else "mixture"  # which has no lower bound
    else:
        name = "truncated_normal" if fmas < 22.5 else "truncated_normal with tails"
    # Rows with gaps between them: the place in a row is compared with its length, without a sign. (NE says whether a
    # pointer has come to the end of a mixture's components.)
    in_columns = any(re.match(r"ISETP\.(?!NE).*\.U32", i.words[0]) for i in way)
    return name + (", columns" if in_columns else ""), dtype


@dataclass
class Row:
    language: str
    distribution: str
    dtype: str
    target: str
    instructions: int
    outputs: int
    per_output: float
    registers: int | None
    local_bytes: int | None
    bytes: int
    fmas: float = 0.0  # per output


def resources(path: Path, target: str | None = None) -> tuple[int, int]:
    """Registers (for ``target``), and bytes of local memory, stack included: the most of any kernel and target."""
    text = run(tool("cuobjdump"), "--dump-resource-usage", str(path))
    usage = re.findall(r"arch = sm_(\d+)|\bREG:(\d+) STACK:(\d+) .*?\bLOCAL:(\d+)", text)
    arch, registers, local = "", [], []
    for name, reg, stack, bytes_ in usage:
        arch = name or arch
        if reg:
            local.append(int(stack) + int(bytes_))
            if target in (None, arch):
                registers.append(int(reg))
    if not registers:
        raise RuntimeError(f"cuobjdump says nothing of {path}")
    return max(registers), max(local)


def misfits(path: Path, architectures: set[str]) -> list[str]:
    """What is wrong with a library of CUDA kernels: missing code, spilled registers, PTX that 11.0 cannot take."""
    text = run(tool("cuobjdump"), "--dump-resource-usage", str(path))
    codes = set(re.findall(r"elf code:\n=+\narch = sm_(\d+)", text))
    found = [f"no code for {name}" for name in sorted(architectures - codes)]
    usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    if len(usage) != 2 * len(codes):  # with a large and a small table
        found.append(f"{len(usage)} kernels")
    for registers, *memory in usage:
        if int(registers) > 128:  # four blocks of 128 threads an SM
            found.append(f"{registers} registers")
        if any(map(int, memory)):
            found.append(f"stack, shared and local memory of {', '.join(memory)} bytes")
    ptx = re.findall(r"sm_(\d+)\.ptx", run(tool("cuobjdump"), "--list-ptx", str(path)))
    return found + [f"PTX of {name}, which a GPU of 11.0 cannot compile" for name in ptx if int(name) > 110]


def built_object() -> Path:
    """csrc/cuda.cu as the package was built."""
    found = sorted((ROOT / "build").glob("*/cuda.o"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit("csrc/cuda.cu was not built: nvcc was not found, or FASTINIT_CUDA=0")
    return found[-1]


def cuda_rows(target: str) -> list[Row]:
    obj = built_object()
    registers, local = resources(obj, target)
    code = disassemble(run(tool("cuobjdump"), "-sass", "-arch", f"sm_{target}", str(obj)))
    best: dict[tuple[str, str], Row] = {}
    for way in (way for function in functions(code) for way in loops(function)):
        kind = kind_of(way)
        if kind is None:
            continue
        name, dtype = kind
        n = outputs(way, {"bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}.get(dtype, 4))
        row = Row("CUDA C++", name, dtype, f"sm_{target}", len(way), n, len(way) / n, registers, local, 0)
        row.fmas = count(way, "FFMA") / n
        # A distribution has an unrolled loop and one for what is left: the hot one stores more. Of the kernels with a
        # large and a small table, the worse counts.
        if kind not in best or (n, len(way)) > (best[kind].outputs, best[kind].instructions):
            best[kind] = row
    order = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int32"]
    names = ["uniform", "normal", "truncated_normal", "truncated_normal with tails", "mixture", "bits"]

    def place(row: Row) -> tuple[bool, int, int]:
        name, _, columns = row.distribution.partition(", ")
        return bool(columns), names.index(name), order.index(row.dtype)

    return sorted(best.values(), key=place)


def load_kernels() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "fastinit_triton",
        ROOT / "triton_kernels" / "__init__.py",
        submodule_search_locations=[str(ROOT / "triton_kernels")],
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastinit_triton"] = module
    spec.loader.exec_module(module)
    return module


#: What is compiled with Triton: kernel and constants. KIND 2, 3, 4: csrc/fill.h.
TRITON: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("run", {"KIND": 2, "FORM": 0}),
    "normal": ("run", {"KIND": 3, "FORM": 0}),
    "truncated_normal": ("run", {"KIND": 4, "FORM": 3}),  # between bounds that no tail lies in, as the default's
    "truncated_normal with tails": ("run", {"KIND": 4, "FORM": 0}),
    "mixture": ("run", {"KIND": 8, "FORM": 0}),
    "mixture with normals": ("run", {"KIND": 8, "FORM": 1}),
    "far_tail": ("scattered", {"KIND": 4, "FORM": 1}),
    # times, plus and divided by something, in float16, bfloat16 and float8_e4m3fn
    "program": ("run", {"KIND": 3, "FORM": 0, "PROGRAM": 10 | 15 << 6 | 20 << 12}),
    # In these all is looked at but the count.
    "normal in float64": ("run", {"KIND": 3, "FORM": 0, "DTYPE": 1, "BYTES": 8}),
    "truncated_normal in float64": ("run", {"KIND": 4, "FORM": 0, "DTYPE": 1, "BYTES": 8}),
    "sparse": ("sparse", {}),
    "patterned": ("patterned", {"KIND": 9}),
}


def triton_rows(target: str, ptx: Path | None = None) -> list[Row]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = load_kernels()
    kind, arch = target.split(":") if ":" in target else ("cuda", target)
    gpu = GPUTarget(kind, int(arch) if kind == "cuda" else arch, 32 if kind == "cuda" else 64)
    rows = []
    for name, (kernel, own) in TRITON.items():
        function = getattr(module.kernels, kernel)
        constants = {
            "DTYPE": 0,
            "BYTES": 4,
            "PROGRAM": 0,
            "BLOCK": module.BLOCK,
            "TILES": module.TILES,
            "ALIGNED": True,
            **own,
        }
        if kernel == "sparse":
            constants["BLOCK"] = 128
        names = [p.name for p in function.params]
        constants = {k: v for k, v in constants.items() if k in names}
        pointer = f"*i{8 * constants['BYTES']}"
        signature = {n: "constexpr" if n in constants else pointer if n == "to" else "i64" for n in names}
        # What a launch finds by itself: the storage starts at a multiple of 16 bytes.
        attributes = {(names.index("to"),): [["tt.divisibility", 16]]}
        source = ASTSource(function, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
        binary = triton.compile(source, target=gpu, options=module.OPTIONS).asm
        code = binary["cubin" if kind == "cuda" else "hsaco"]
        if ptx is not None and kind == "cuda":
            (ptx / f"triton {name}.ptx").write_text(binary["ptx"])
        row = Row("Triton", name, "float32", target, 0, 0, 0.0, None, None, len(code))
        if kind == "cuda":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "kernel.cubin")
                path.write_bytes(code)
                row.registers, row.local_bytes = resources(path)
                if kernel == "run" and constants["DTYPE"] == 0:
                    ways = list(loops(disassemble(run(tool("cuobjdump"), "-sass", str(path)))))
                    if not ways:
                        raise RuntimeError(f"no loop of {name} stores 16 bytes at a time")
                    way = max(ways, key=outputs)
                    row.instructions, row.outputs = len(way), outputs(way)
                    row.per_output = row.instructions / row.outputs
        rows.append(row)
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| | | | instructions | outputs | per output | budget | registers |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if row.outputs:
            budget = BUDGET.get((row.language, row.distribution, row.dtype), "")
            lines.append(
                f"| {row.language} | {row.distribution} | {row.dtype} | {row.instructions} | {row.outputs} "
                f"| {row.per_output:.2f} | {budget} | {row.registers} |"
            )
    return "\n".join(lines)


def committed() -> dict[tuple[str, str, str], float]:
    """Instructions per output in tools/sass.md."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.read_text().splitlines() if "|" in line]
    return {(row[0], row[1], row[2]): float(row[5]) for row in rows[2:]}


def check_wheel(path: Path) -> int:
    """Whether the kernels in a wheel are as they should be, for every architecture that setup.py names."""
    named = re.search(r"^CUDA_ARCHITECTURES = (.*)$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert named is not None
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as folder:
        (library,) = (name for name in wheel.namelist() if Path(name).match("_C.*.so"))
        found = misfits(Path(wheel.extract(library, folder)), set(ast.literal_eval(named[1])))
    print("\n".join(found) or f"{path.name}: CUDA kernels for {named[1]}, none of which spills")
    return bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="90", help="90, cuda:90, hip:gfx942 (the latter two for Triton)")
    parser.add_argument("--triton-only", action="store_true")
    parser.add_argument("--cuda-only", action="store_true")
    parser.add_argument("--write", action="store_true", help="write the table to tools/sass.md")
    parser.add_argument("--ptx", type=Path, help="write the PTX of each kernel to this folder")
    parser.add_argument("--json", help="write every row to this file (-: to the output, in place of the table)")
    parser.add_argument("--check-wheel", type=Path, help="look at the kernels in this wheel, and nothing else")
    args = parser.parse_args()
    if args.check_wheel:
        return check_wheel(args.check_wheel)
    rows = [] if args.triton_only else cuda_rows(args.target)
    if not args.cuda_only:
        rows += triton_rows(args.target, args.ptx)
    if args.ptx and not args.triton_only:
        (args.ptx / "cuda.ptx").write_text(run(tool("cuobjdump"), "--dump-ptx", str(built_object())))
    text = json.dumps([asdict(row) for row in rows], indent=2)
    print(text if args.json == "-" else table(rows))
    if args.json and args.json != "-":
        Path(args.json).write_text(text + "\n")
    if args.write:
        heading = f"Instructions per output on sm_{args.target}, written by `python tools/sass.py --write`."
        TABLE.write_text(f"{heading}\n\n{table(rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
