"""The bar of `materialize(progress=)`."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

import torch

#: How long a bar that nobody asked for waits, in seconds: most models are there before.
DELAY = 2.0


class Progress:
    """Counts bytes, and shows them where that is wanted: always, never, or (None) to who waits at a terminal."""

    def __init__(self, wanted: bool | None) -> None:
        if wanted not in (None, True, False):
            raise TypeError(f"progress must be None, True or False, not {wanted!r}")
        self._wanted = wanted
        self._bar: Any = None
        if wanted is None and (not _at_terminal() or _rank() > 0):
            return
        if wanted is not False and sys.stderr is not None:
            self._bar = _bar_class(needed=wanted is True)

    @property
    def shown(self) -> bool:
        return self._bar is not None

    def begin(self, nbytes: int) -> None:
        if self._bar is not None:
            self._bar = self._bar(
                total=nbytes,
                file=sys.stderr,
                desc="materialize",
                unit="B",
                unit_scale=True,
                delay=0 if self._wanted else DELAY,
                leave=bool(self._wanted),
            )

    def add(self, nbytes: int) -> None:
        if self._bar is not None:
            self._bar.update(nbytes)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None and not isinstance(self._bar, type):
            self._bar.close()


def _bar_class(*, needed: bool) -> type | None:
    try:
        from tqdm import tqdm
    except ImportError as error:
        if needed:
            raise ImportError('progress=True needs tqdm: pip install "torch_fastinit[progress]"') from error
        return None

    return type("Bar", (tqdm,), {"monitor_interval": 0})  # no thread beside it, which would outlive it


def _at_terminal() -> bool:
    """Whether the standard error is one: it may be closed, missing, or an object that can be written to and no more."""
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, ValueError):
        return False


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0
