"""What an operator's schema says about memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Signature:
    """What the schema of an operator says about memory."""

    writes: tuple[tuple[int, str], ...]  # the arguments that it changes: position and name
    returns_written: tuple[int | None, ...]  # for each result, which of those it is
    overwrites: bool
    random: bool
    reads_values: bool  # what it returns depends on values
    reshapes: bool  # it changes the metadata of its first argument in place
    out: bool
    takes_device: bool
    writes_if: int | None = None  # the flag (its position) without which it writes nothing

    @property
    def without_writes(self) -> Signature:
        return replace(self, writes=(), returns_written=(None,) * len(self.returns_written), writes_if=None)


_OVERWRITING = frozenset(
    "aten::normal_ aten::uniform_ aten::fill_ aten::zero_ aten::copy_ aten::random_ aten::bernoulli_ "
    "aten::exponential_ aten::cauchy_ aten::log_normal_ aten::geometric_ fastinit::fill_ fastinit::fill_batch_".split()
)


#: Operators that write only when `training` is set, and the arguments of which their schema does not say so.
_SILENT_WRITES = {
    "aten::native_batch_norm": ("running_mean", "running_var"),
    "aten::cudnn_batch_norm": ("running_mean", "running_var"),
    "aten::miopen_batch_norm": ("running_mean", "running_var"),
    "aten::_native_batch_norm_legit": (),  # it says so
}


_TAG_OUT = getattr(torch.Tag, "out", None)  # from torch 2.12 on


def _is_out(func: Any) -> bool:
    """Whether `func` is an `out=` overload. Where torch has no tag for them, aten's schemas tell them as well."""
    if _TAG_OUT is not None:
        return _TAG_OUT in func.tags
    keywords = [a.alias_info for a in func._schema.arguments if a.kwarg_only]
    return func.namespace == "aten" and any(info is not None and info.is_write for info in keywords)


@functools.cache
def signature_of(func: Any) -> Signature:
    schema, tags, out = func._schema, func.tags, _is_out(func)
    writes = [(i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    overwrites = schema.name in _OVERWRITING or (out and all(schema.arguments[i].kwarg_only for i, _ in writes))
    silent = _SILENT_WRITES.get(schema.name, ())
    writes = [(i, a.name) for i, a in enumerate(schema.arguments) if a.name in silent] + writes
    training = [i for i, a in enumerate(schema.arguments) if a.name == "training"]
    infos = [schema.arguments[i].alias_info for i, _ in writes]
    sets = [frozenset() if info is None else frozenset(info.before_set) for info in infos]

    def written(result: Any) -> int | None:
        info = result.alias_info
        return sets.index(frozenset(info.before_set)) if info is not None and info.is_write else None

    return Signature(
        writes=tuple(writes),
        returns_written=tuple(written(result) for result in schema.returns),
        overwrites=overwrites and not silent,
        random=torch.Tag.nondeterministic_seeded in tags,
        reads_values=torch.Tag.data_dependent_output in tags
        or torch.Tag.dynamic_output_shape in tags
        or not (writes or schema.returns),  # a check
        reshapes=torch.Tag.inplace_view in tags,
        out=out,
        takes_device=any(a.name == "device" for a in schema.arguments),
        writes_if=training[0] if schema.name in _SILENT_WRITES and training and not out else None,
    )
