"""`torch.utils.dlpack.to_dlpack`, which is C's and would wrap the address of a deferred tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import dlpack

from torch_fastinit.recording.tensor import Deferred

_to_dlpack: Any = vars(dlpack)["to_dlpack"]


def _capsule(tensor: torch.Tensor, **kwargs: Any) -> Any:
    if isinstance(tensor, Deferred):
        return tensor.__dlpack__(**kwargs)
    return _to_dlpack(tensor, **kwargs)


def switch_capsules(redirect: bool) -> None:
    for module in (torch, dlpack):
        module.to_dlpack = _capsule if redirect else _to_dlpack  # type: ignore[attr-defined]
