"""The plan as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch

from torch_fastinit.codes import Op
from torch_fastinit.initializers import Initializer, Mixture, Program
from torch_fastinit.planning.draws import dependencies, logical_value
from torch_fastinit.planning.fold import short_name
from torch_fastinit.planning.planner import Assignment, Filled, Kept, Replayed, Shared, Zeros
from torch_fastinit.planning.rules import Rule
from torch_fastinit.planning.tensors import Target


@dataclass(frozen=True, slots=True)
class Row:
    """What happens to one tensor.

    `how` is `"one pass"`, `"replayed"`, `"kept"` (already real), `"shared"` (memory that the constructor got from
    elsewhere), `"copied"` (loaded from a real tensor), `"zeros"` (nothing writes it), `"unwritten"` or `"refused"` (on
    the plain meta device: `materialize` raises unless it is called with `reset=True`). `by` names the methods that
    `reset=True` runs for it. Of a sharded tensor, `shape` is the logical one, `local_shape` and `nbytes` are this
    rank's, and `placements` are torch's. `rule` is the key of `init=` that the values come from, "recorded" where
    they come from none, and empty for what is kept, or where there is no `init=`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    what: str
    nbytes: int
    how: str
    why: str = ""
    tied: tuple[str, ...] = ()
    random: bool = False
    by: str = ""
    local_shape: tuple[int, ...] | None = None
    placements: str = ""
    rule: str = ""
    #: What the rest was read from, which `report` reads again.
    assignment: Assignment | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `materialize` would do: one `Row` a tensor, in root order. Prints as a table."""

    rows: tuple[Row, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that would be materialised."""
        return sum(row.nbytes for row in self.rows if row.how != "kept")

    def share(self, how: str = "one pass", *, random: bool = True) -> float:
        """The share of (random) bytes that is materialised in this way; 1 if there are none."""
        rows = [row for row in self.rows if row.how != "kept" and (row.random or not random)]
        total = sum(row.nbytes for row in rows)
        return sum(row.nbytes for row in rows if row.how == how) / total if total else 1.0

    def _any(self, field: str) -> bool:
        return any(getattr(row, field) for row in self.rows)

    def __str__(self) -> str:
        # Each column: its heading, what it says of a row, and whether it is there.
        columns: tuple[tuple[str, Callable[[Row], str], bool], ...] = (
            ("name", lambda row: row.name + (f" (= {', '.join(row.tied)})" if row.tied else ""), True),
            ("shape", lambda row: _by(row.shape), True),
            ("local", lambda row: "" if row.local_shape is None else _by(row.local_shape), self._any("placements")),
            ("placements", lambda row: row.placements, self._any("placements")),
            ("dtype", lambda row: short_name(row.dtype), True),
            ("device", lambda row: str(row.device), len({row.device for row in self.rows}) > 1),
            ("what", lambda row: row.what, True),
            ("rule", lambda row: row.rule, self._any("rule")),
            ("bytes", lambda row: f"{row.nbytes:,}", True),
            ("how", lambda row: row.how + ": " * bool(row.why) + row.why + ", by " * bool(row.by) + row.by, True),
        )
        shown = [(heading, text) for heading, text, there in columns if there]
        lines = [[heading for heading, _ in shown], *([text(row) for _, text in shown] for row in self.rows)]
        total = f"{plural(len(self.rows), 'tensor')}, {plural(self.nbytes, 'byte')}"
        total += f"; {self.share(random=False):.1%} in one pass"
        return f"{table(lines)}\n{total}"


def plural(count: int, noun: str) -> str:
    """So many of them, in English."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text; the first is the headings."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rows.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(rows)


def rows(
    targets: Sequence[Target],
    assignments: Sequence[Assignment],
    writers: Callable[[torch.Tensor], str] = lambda tensor: "",
    rules: Mapping[str, Rule] | None = None,
) -> Iterator[Row]:
    """One row for each assignment. `writers` names the methods that a tensor's values come from, `rules` its rule."""
    for target, one in zip(targets, assignments, strict=True):
        kept = isinstance(one.source, Kept)
        random = not isinstance(one.source, (Kept, Shared)) and any(
            entry.random for entry in dependencies(logical_value(target))
        )
        yield Row(
            name=one.name,
            shape=one.shard.shape if one.shard else tuple(one.view.shape),
            dtype=one.dtype,
            device=one.device,
            what=describe(one),
            nbytes=0 if kept and not one.view.shape else one.nbytes,
            how=one.source.how,
            why=one.source.why,
            tied=() if kept else tuple(target.others),
            random=random,
            by=writers(target.tensor),
            local_shape=tuple(one.view.shape) if one.shard else None,
            placements=one.shard.placements if one.shard else "",
            rule="" if kept or rules is None else _key(rules.get(target.name)),
            assignment=one,
        )


def _key(rule: Rule | None) -> str:
    return "recorded" if rule is None or rule.value is None else rule.key


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def describe(one: Assignment) -> str:
    """What is written to a tensor, in words."""
    if isinstance(one.source, Filled):
        return ", then ".join(_describe_initializer(fill.initializer) for fill in one.source.fills)
    return {Zeros: "Constant(value=0)", Replayed: "recorded operations"}.get(type(one.source), "")


_OPERATIONS = {Op.MUL: " times {:.6g}", Op.ADD: " plus {:.6g}", Op.DIV: " divided by {:.6g}", Op.CAST: ""}


def _describe_initializer(initializer: Initializer) -> str:
    if isinstance(initializer, Program):
        text, now = _describe_initializer(initializer.draw), initializer.dtype
        for step in initializer.steps:
            text += _OPERATIONS[step.op].format(step.operand)
            if step.dtype is not now:
                text, now = f"{text} as {short_name(step.dtype)}", step.dtype
        return text
    if isinstance(initializer, Mixture):
        parts = (f"{chance:.6g} {_describe_initializer(law)}" for chance, law in initializer.components)
        return f"Mixture({', '.join(parts)})"
    values = (f"{f.name}={getattr(initializer, f.name):.6g}" for f in fields(initializer))
    return f"{type(initializer).__name__}({', '.join(values)})"
