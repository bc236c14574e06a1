"""The cases of ``make bench`` on small tensors, under pytest-benchmark: ``pytest benchmarks/``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cases import Case, cases

ELEMENTS = 1 << 16


@pytest.fixture(params=cases(sparse_side=256), ids=lambda case: case.label)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    with request.param.forced():
        yield request.param


@pytest.mark.parametrize("who", ["theirs", "ours"])
def test_fill(benchmark: Any, case: Case, who: str) -> None:
    t = case.tensor(ELEMENTS)
    benchmark.group = case.label
    benchmark.extra_info["bytes"] = t.nbytes
    benchmark(getattr(case, who), t)
    assert t.count_nonzero() > 0.09 * t.numel()  # sparse_ leaves a tenth
