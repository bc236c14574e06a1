"""Reads PTX for what would break the promise of equal bits, or of tensors of any size, or cost a hot loop dearly.

- Each floating-point operation rounds by itself: `add.f32` without `.rn` is one that an assembler may contract, and a
  float64 kernel asks for no fma.
- Nothing flushes subnormals or approximates, but for what `APPROXIMATE` lists with its reason.
- No address comes from a product of 32 bits. (A quotient times its divisor cannot overflow.)
- No local memory, no calls.

`problems` is used by tests/kernels/test_cuda_build.py on what the build and Triton made of the kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: Instructions that are not exact, and why they may stand.
APPROXIMATE = {"rsqrt.approx.ftz.f32": "a first guess; csrc/lanes/ptx.h corrects it to the correctly rounded root"}
ROUNDED = {"add", "sub", "mul", "div", "fma", "mad", "rcp", "sqrt"}
INSTRUCTION = re.compile(r"^\s*(?:\{\s*)?(?:@!?%\w+\s+)?([a-z]\w*(?:[.:]+\w+)*)\s*([^;]*);")
REGISTER = re.compile(r"%\w+")
#: What carries an address, or the 32-bit number that becomes part of one, from its operands to its result.
CARRIES = {"add", "sub", "mov", "cvta", "cvt", "shl", "shr", "mul", "mad", "selp", "or", "and", "min", "max"}


class Instruction(NamedTuple):
    line: int
    opcode: str
    result: list[str]
    operands: list[str]


def instructions(ptx: str) -> Iterator[Instruction]:
    for number, line in enumerate(ptx.splitlines(), 1):
        found = INSTRUCTION.match(line)
        if found is None:
            continue
        first, _, rest = found[2].partition("}" if found[2].startswith("{") else ",")
        yield Instruction(number, found[1], REGISTER.findall(first), REGISTER.findall(rest))


def problems(ptx: str) -> list[str]:
    """What is wrong, with its line; empty if nothing is."""
    code = list(instructions(ptx))
    found = [f"{i.line}: {i.opcode}: {why}" for i in code if (why := objection(i.opcode))]
    found += [
        f"{number}: local memory" for number, line in enumerate(ptx.splitlines(), 1) if re.match(r"\s*\.local\b", line)
    ]
    makers: dict[str, list[Instruction]] = {}
    for i in code:
        for register in i.result:
            makers.setdefault(register, []).append(i)
    return found + sorted(narrow_addresses(code, makers))


def objection(opcode: str) -> str:
    name, *modifiers = re.split(r"[.:]+", opcode)
    if name == "call":
        return "a call"
    if "local" in modifiers:
        return "local memory"
    if opcode in APPROXIMATE:
        return ""
    if {"approx", "full"} & set(modifiers) or name in ("sin", "cos", "lg2", "ex2", "tanh"):
        return "an approximation"
    if "ftz" in modifiers:
        return "flushes subnormals"
    if name in ROUNDED and {"f32", "f64"} & set(modifiers):
        if "rn" not in modifiers:
            return "may be contracted"
        if name in ("fma", "mad") and "f64" in modifiers:
            return "an fma in float64"
    return ""


def narrow_addresses(code: list[Instruction], makers: dict[str, list[Instruction]]) -> set[str]:
    found = set()
    for i in code:
        if i.opcode.split(".")[0] not in ("ld", "st", "atom", "red"):
            continue
        # A store's address comes first, a load's last.
        queue = list(i.result[:1] if i.opcode.startswith("st") else i.operands)
        seen: set[str] = set()
        while queue:
            register = queue.pop()
            if register in seen:
                continue
            seen.add(register)
            for maker in makers.get(register, ()):
                name, *modifiers = maker.opcode.split(".")
                if name in ("mul", "mad") and "lo" in modifiers and {"s32", "u32"} & set(modifiers):
                    factors = maker.operands[:2]
                    if not any(m.opcode.startswith("div.u32") for f in factors for m in makers.get(f, ())):
                        found.add(f"{maker.line}: {maker.opcode}: part of the address in line {i.line}")
                if name in CARRIES:
                    queue += maker.operands
    return found
