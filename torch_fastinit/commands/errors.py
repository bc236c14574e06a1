"""How a command says that it cannot be done."""

from __future__ import annotations


class CommandError(Exception):
    """What was asked for cannot be done, which is no fault of this package: a message, and exit code 1."""
