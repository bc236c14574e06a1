"""Fixtures of the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from comparison import check_like_eager


@pytest.fixture
def poison() -> Iterator[None]:
    """Fresh memory is NaN, so that nothing can pass by luck."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def same_as_eager(poison: None) -> Callable[[Callable[[], torch.nn.Module]], torch.nn.Module]:
    """Builds a module eagerly and deferred, and compares; returns the latter."""
    return check_like_eager
