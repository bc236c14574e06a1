"""`report`: a row a tensor, what it is like against what its initialiser promises, and what is off."""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from torch_fastinit._torch import local_of, spec_of
from torch_fastinit.execution.meta import listed
from torch_fastinit.planning.promises import Promise, promised
from torch_fastinit.planning.report import Plan, describe, plural, table
from torch_fastinit.planning.tensors import Target, is_plain_meta, targets_of
from torch_fastinit.recording.active import outside
from torch_fastinit.recording.memory import overlaps
from torch_fastinit.recording.tensor import Deferred
from torch_fastinit.reporting.measured import HEADINGS, Histogram, Measured, cells
from torch_fastinit.reporting.memory import BINS, Elements, Statistics, histograms, statistics
from torch_fastinit.reporting.page import page, rows_of_html
from torch_fastinit.reporting.promises import Expected, differing, expected
from torch_fastinit.reporting.verdict import TESTS, faults


@dataclass(frozen=True, slots=True)
class Report:
    """What the tensors of a model are like: one `Measured` a tensor, in root order.

    Prints as a table, shows as one in a notebook, and saves as a page. `probability` bounds that of flagging anything
    in a model that is what was promised.
    """

    rows: tuple[Measured, ...]
    probability: float

    @property
    def flagged(self) -> tuple[Measured, ...]:
        """The rows of tensors of which something is off."""
        return tuple(row for row in self.rows if row.faults)

    @property
    def summary(self) -> str:
        """How many tensors there are, of how many something was promised, and how many are off."""
        known = sum(row.expected_std is not None for row in self.rows)
        elements = sum(row.count for row in self.rows)
        return (
            f"{plural(len(self.rows), 'tensor')}, {plural(elements, 'element')}; {known:,} with a promise, "
            f"{len(self.flagged):,} flagged "
            f"(a model as promised: probability at most {self.probability:g})"
        )

    def __str__(self) -> str:
        return table([HEADINGS, *map(cells, self.rows)]) + "\n" + self.summary

    def _repr_html_(self) -> str:
        return rows_of_html(self.rows, self.summary)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page that shows all of this, with a histogram of each tensor over its promised density.

        It is one file that asks for no other, from disk or network.

        Args:
            path: where, such as `"report.html"`. What is there is overwritten.

        Raises:
            TypeError: `path` is no path.
            OSError: it cannot be written to.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a str or an os.PathLike, not {type(path).__name__}")
        Path(path).write_bytes(page(self.rows, self.summary).encode("utf-8", "xmlcharrefreplace"))


def report(model: torch.nn.Module, *, plan: Plan | None = None, probability: float = 1e-6) -> Report:
    """What the tensors of a model are like, against what their initialisers promise.

    Mean, standard deviation, extremes, zeros and non-finite elements of every parameter and buffer, in one pass over
    the memory. What was promised is what `materialize` and `initialize` wrote, of which this package keeps a note as
    long as the modules live (a copy of a module has none); or what `plan` says, for a model that was built eagerly or
    loaded. Of a random tensor, the mean, the deviation about it, the number of zeros and the extremes are tested; a
    constant one must be it. The values are compared as they are now: training changes them, and is flagged.

    Args:
        model: any module whose parameters and buffers are real. Of a DTensor, this rank's part is reported; nothing is
            communicated. What cannot be examined (a sparse or nested tensor, a dtype that torch does not convert) has
            a row that says why.
        plan: what `torch_fastinit.plan` said of the same model while it was deferred. Default: the note.
        probability: the most that flagging anything may have by chance, in a model that is as promised. It is shared
            among all tests, by bounds that hold for tensors of any size.

    Returns:
        A `Report`. It prints as a table; `.rows` are plain data, `.flagged` those of which something is off, and
        `.save("report.html")` writes a page with histograms.

    Raises:
        TypeError: `model` is not a module, `plan` is not a `Plan`, or `probability` is no number.
        ValueError: `probability` is not between 0 and 1, or `plan` names no tensor of the model.
        RuntimeError: tensors are deferred, or on the meta device, and so have no values yet. The message names them.

    Example:
        >>> import torch, torch_fastinit as fastinit
        >>> model = fastinit.materialize(fastinit.skip_init(torch.nn.Linear, 256, 256), seed=0)
        >>> fastinit.report(model).flagged
        ()
        >>> _ = model.weight.data.mul_(1.03)
        >>> fastinit.report(model).flagged[0].faults
        ('minimum -0.06437 below -0.0625', 'maximum 0.06437 above 0.0625', 'deviation 0.0372, not 0.03608')
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"report() takes a torch.nn.Module, not {type(model).__name__}")
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"plan must be what fastinit.plan() returns, not {type(plan).__name__}")
    if isinstance(probability, bool) or not isinstance(probability, numbers.Real):
        raise TypeError(f"probability must be a number between 0 and 1, not {type(probability).__name__}")
    if not 0 < probability < 1:
        raise ValueError(f"probability must be between 0 and 1, not {probability!r}")
    with outside(), torch.no_grad():
        targets = targets_of(model)
        _refuse(targets)
        names = [target.name for target in targets]
        promises = promised(model, names) if plan is None else _promises(plan, names)
        return Report(tuple(_measure(_reported(targets, promises), promises, probability)), float(probability))


def _promises(plan: Plan, names: list[str]) -> dict[str, Promise]:
    planned = [row.name for row in plan.rows]
    if planned and names and not set(planned).intersection(names):
        raise ValueError(
            f"plan names no tensor of this model: it is of {listed(planned)}, the model has {listed(names)}; give the "
            "plan of a model that is built in the same way"
        )
    return {
        row.name: Promise(row.assignment, of_stream=False)
        for row in plan.rows
        if row.assignment is not None and row.how not in ("kept", "refused")
    }


_LARGEST = sys.float_info.max
#: What is reported, whether anything was promised of it or not.
_ROLES = ("parameter", "buffer")


def _refuse(targets: list[Target]) -> None:
    waiting = [one.name for one in targets if isinstance(one.tensor, Deferred) and one.role != "padding"]
    if waiting:
        raise RuntimeError(
            f"{listed(waiting)}: deferred, and so without values to report on; call fastinit.materialize(model) first"
        )
    lost = [
        target.name for target in targets if is_plain_meta(target.tensor) and target.role in ("parameter", "buffer")
    ]
    if lost:
        raise RuntimeError(
            f"{listed(lost)}: on the meta device, and so without values to report on; build the model inside "
            "fastinit.deferred() and call fastinit.materialize(model), or materialize(model, reset=True)"
        )


def _reported(targets: list[Target], promises: Mapping[str, Promise]) -> list[Target]:
    """Parameters and buffers, what else was promised, and what is inside of wrappers in place of these."""
    wrappers = {
        id(target.tensor)
        for target in targets
        if hasattr(target.tensor, "__tensor_flatten__") and spec_of(target.tensor) is None
    }
    shown: list[Target] = []
    for target in targets:
        inside = id(target.holder) in wrappers
        own = target.role in _ROLES or target.name in promises
        of_dtensor = target.holder is not None and spec_of(target.holder) is not None
        if (own or inside) and id(target.tensor) not in wrappers and not of_dtensor and target.role != "padding":
            shown.append(target)
    return shown


def _measure(targets: list[Target], promises: Mapping[str, Promise], probability: float) -> list[Measured]:
    tensors = [_local(target.tensor) for target in targets]
    elements = [None if isinstance(tensor, UninitializedTensorMixin) else Elements.of(tensor) for tensor in tensors]
    read = {i: one for i, one in enumerate(elements) if one is not None and not one.why and tensors[i].numel()}
    wanted = {i: _expected(promises.get(targets[i].name), tensors[i]) for i in read}
    known = {i: _near(wanted[i]) for i in read}
    found = dict(zip(read, statistics(list(read.values()), list(known.values())), strict=True))
    ranges = {i: known[i] or _all(found[i]) for i in read}
    left = [i for i in read if not found[i].parts]
    counts = histograms([read[i] for i in left], [ranges[i] for i in left])
    parts = {i: found[i].parts for i in read} | dict(zip(left, counts, strict=True))
    limit = math.log(TESTS * max(1, len(read))) - math.log(probability)
    unlike = {i: _differing(promises.get(targets[i].name), tensors[i], wanted[i]) for i in read}
    return [
        _measured(
            target,
            tensors[i],
            "no shape yet" if (one := elements[i]) is None else one.why and f"not examined: {one.why}",
            promises.get(target.name),
            found.get(i),
            wanted.get(i),
            tuple(faults(found[i], wanted[i], limit, unlike[i])) if i in read else (),
            _histogram(found[i], parts[i], ranges[i], wanted[i]) if i in read else None,
        )
        for i, target in enumerate(targets)
    ]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if spec_of(tensor) is None else local_of(tensor)


def _expected(promise: Promise | None, tensor: torch.Tensor) -> Expected | None:
    """Nothing is expected of a tensor that was cast since, or whose elements are not what their memory holds, one each.

    (They are lazily negated or conjugated, or some of them are one place.)
    """
    if promise is None or promise.assignment.dtype is not tensor.dtype:
        return None
    if tensor.is_neg() or tensor.is_conj() or overlaps(tensor):
        return None
    return expected(promise.assignment, promise.of_stream)


def _differing(promise: Promise | None, tensor: torch.Tensor, wanted: Expected | None) -> int:
    """Of integers and complex numbers, whose statistics are those of doubles, and of all their parts together."""
    if promise is None or wanted is None or tensor.dtype.is_floating_point:
        return 0
    return differing(promise.assignment, tensor) if tuple(tensor.shape) == promise.assignment.view.shape else 0


def _near(wanted: Expected | None) -> tuple[float, float] | None:
    """What the histogram of a law shows: what is near, within its bounds. None where nothing is random."""
    if wanted is None or not wanted.std > 0:
        return None
    return max(wanted.low, wanted.mean - 4.5 * wanted.std), min(wanted.high, wanted.mean + 4.5 * wanted.std)


def _all(found: Statistics) -> tuple[float, float]:
    """What any other histogram shows."""
    low, high = found.min, found.max
    if low == high:
        low, high = max(low - 0.5 - abs(low) / 2, -_LARGEST), min(high + 0.5 + abs(high) / 2, _LARGEST)
    return low, high


def _histogram(
    found: Statistics, counts: tuple[int, ...], bounds: tuple[float, float], wanted: Expected | None
) -> Histogram | None:
    if found.nonfinite == found.count:
        return None
    return Histogram(*bounds, counts, () if wanted is None else wanted.shares(*bounds, BINS))


def _measured(
    target: Target,
    local: torch.Tensor,
    note: str,
    promise: Promise | None,
    found: Statistics | None,
    wanted: Expected | None,
    off: tuple[str, ...],
    histogram: Histogram | None,
) -> Measured:
    one = None if promise is None else promise.assignment
    text = "" if one is None else describe(one)
    if one is not None and not text:
        text = one.source.how
    if note == "no shape yet":
        return Measured(target.name, (), local.dtype, local.device, 0, note=note)
    if spec_of(target.tensor) is not None and not note:
        note = f"this rank's part: {'x'.join(map(str, local.shape)) or 'scalar'}"
    shape, tied = () if local.is_nested else tuple(target.tensor.shape), tuple(target.others)
    common = (target.name, shape, local.dtype, local.device)
    if found is None:
        return Measured(*common, 0 if note else local.numel(), promise=text, note=note, tied=tied)
    return Measured(
        *common,
        found.count,
        found.mean,
        found.std,
        found.min,
        found.max,
        found.zeros,
        found.nonfinite,
        text,
        None if wanted is None else wanted.mean,
        None if wanted is None else wanted.std,
        None if wanted is None else wanted.zeros,
        None if wanted is None else wanted.low,
        None if wanted is None else wanted.high,
        off,
        note,
        tied,
        histogram,
    )
