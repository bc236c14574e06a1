"""Initial values of big PyTorch models, in one pass: a pure function of (seed, name, logical index)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torch_fastinit import init
from torch_fastinit.backend import backends
from torch_fastinit.eager import random_bits_
from torch_fastinit.forks import lock_before_forks
from torch_fastinit.stream import stream_id

if TYPE_CHECKING:
    from torch_fastinit import like as like
    from torch_fastinit.materializer import initialize, materialize, pin_names, plan
    from torch_fastinit.mixture import mixture_
    from torch_fastinit.ops import Region
    from torch_fastinit.recording.context import deferred, is_deferred, skip_init
    from torch_fastinit.reporting.reports import report

__all__ = [
    "Region",
    "backends",
    "deferred",
    "init",
    "initialize",
    "is_deferred",
    "like",
    "materialize",
    "mixture_",
    "pin_names",
    "plan",
    "random_bits_",
    "report",
    "skip_init",
    "stream_id",
]

__version__ = "0.1.0"

#: Names that are imported when they are first asked for, and from where: a fill needs no recorder. None of these
#: modules has the name of a function here, which importing it would replace; `like` is a module itself.
_LATER = {
    "deferred": "recording.context",
    "is_deferred": "recording.context",
    "like": "like",
    "Region": "ops",
    "initialize": "materializer",
    "materialize": "materializer",
    "mixture_": "mixture",
    "pin_names": "materializer",
    "plan": "materializer",
    "report": "reporting.reports",
    "skip_init": "recording.context",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        module = importlib.import_module(f"{__name__}.{_LATER[name]}")
        value = globals()[name] = module if _LATER[name] == name else getattr(module, name)
    return value


#: A fork in the middle of such an import would leave the child a module that nobody finishes.
_importing = lock_before_forks()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
