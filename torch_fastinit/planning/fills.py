"""A fill that is planned: plain data, bound to memory when it is run."""

from __future__ import annotations

from dataclasses import dataclass

from torch_fastinit.initializers import Initializer
from torch_fastinit.ops import Region
from torch_fastinit.recording.memory import View

#: The name that a draw belongs to, and its number among that name's draws (docs/stream.md, section 2).
Draw = tuple[str, int]


@dataclass(slots=True)
class PlannedFill:
    """What to write, from which draw, into which part of a storage. Plain data: no tensor, no entry of the tape.

    `draw` is None where nothing is random; `box` is the part of the logical tensor, None for the whole.
    """

    initializer: Initializer
    view: View
    draw: Draw | None = None
    box: Region | None = None
