"""Ranks of real process groups, for every test of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.ranks import Ranks, ranks_server


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Runs functions on gloo ranks: `ranks.run(4, function, *args)` (tests/support/ranks.py)."""
    with ranks_server() as server:
        yield server
