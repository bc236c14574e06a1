"""Initialisers that are one entry of the tape each."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch

from torch_fastinit import orthogonal
from torch_fastinit._torch import no_grad_trunc_normal_
from torch_fastinit.orthogonal import COMPUTED_IN
from torch_fastinit.recording.active import active, outside
from torch_fastinit.recording.generators import OwnGenerators, states
from torch_fastinit.recording.originals import dirac_, orthogonal_, own_orthogonal_, sparse_, trunc_normal_
from torch_fastinit.recording.recorder import draw_now, record
from torch_fastinit.recording.tensor import Deferred


def _initializer(original: Callable[..., Any], *, random: bool) -> Callable[..., Any]:
    """One entry for a whole function of `torch.nn.init` whose first argument is a deferred tensor."""

    def call(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, Deferred) or (tensor._value.storage.shared is not None and not random):
            return original(tensor, *args, **kwargs)
        with outside():
            value = tensor._value
            tape = active.tape or value.storage.tape
            bound = inspect.signature(original).bind(tensor, *args, **kwargs)
            bound.apply_defaults()
            keywords = dict(bound.arguments)
            del keywords["tensor"]
            if value.storage.shared is not None:  # on a tensor that reports meta, the original does nothing
                draw_now(original, (value,), keywords, [value], tape)
            else:
                record(tape, original, (value,), keywords, [value], overwrites=True, random=random)
        torch.autograd.graph.increment_version(tensor)
        return tensor

    return call


def _sparse(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if tensor.ndimension() != 2:
        raise ValueError("Only tensors with 2 dimensions are supported")
    return _record_sparse(tensor, *args, **kwargs)


def _dirac(tensor: torch.Tensor, groups: int = 1) -> Any:
    if tensor.ndimension() not in (3, 4, 5) or tensor.size(0) % groups:
        return dirac_(tensor, groups)  # raises
    return _record_dirac(tensor, operator.index(groups))


def _orthogonal(tensor: torch.Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Any:
    if isinstance(tensor, Deferred):
        if tensor.ndimension() < 2 or tensor.numel() == 0:
            return orthogonal_(tensor, gain, generator)  # raises, or does nothing
        if tensor.dtype not in (torch.float32, torch.float64) or not isinstance(gain, (int, float, torch.Tensor)):
            with outside():  # raises what torch does
                empty = torch.empty(1, 1, dtype=tensor.dtype, device="cpu")
                OwnGenerators(states()).run(orthogonal_, (empty, gain), {})
        tensor._value.shadow.view(tensor.shape[0], -1)
    return _record_orthogonal(tensor, gain, generator)


def _own_orthogonal(tensor: torch.Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Any:
    deferred = isinstance(tensor, Deferred)
    if deferred and (tensor.ndimension() < 2 or tensor.numel() == 0 or tensor.dtype not in COMPUTED_IN):
        return own_orthogonal_(tensor, gain, generator)
    return _record_own_orthogonal(tensor, gain, generator)


_record_orthogonal = _initializer(orthogonal_, random=True)
_record_own_orthogonal = _initializer(own_orthogonal_, random=True)
_record_sparse = _initializer(sparse_, random=True)
_record_dirac = _initializer(dirac_, random=False)


PATCHES: dict[str, tuple[Any, Callable[..., Any]]] = {
    "trunc_normal_": (no_grad_trunc_normal_, _initializer(trunc_normal_, random=True)),
    "sparse_": (torch.nn.init.sparse_, _sparse),
    "dirac_": (torch.nn.init.dirac_, _dirac),
    "orthogonal_": (torch.nn.init.orthogonal_, _orthogonal),
    "fastinit.orthogonal.orthogonal_": (orthogonal.orthogonal_, _own_orthogonal),
}
