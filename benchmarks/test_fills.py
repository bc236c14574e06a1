"""The cases of ``make bench`` on small tensors, under pytest-benchmark: ``pytest benchmarks/``."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import Case, cases

ELEMENTS = 1 << 16


CASES = cases(side=256, tail=1 << 10)  # torch takes about 40 microseconds for an element of that tail


@pytest.mark.parametrize(
    ("case", "who"),
    [pytest.param(c, who, id=f"{c.label} {who}") for c in CASES for who in ("theirs", "ours") if getattr(c, who)],
)
def test_fill(benchmark: Any, case: Case, who: str) -> None:
    t = case.tensor(ELEMENTS)
    benchmark.group = case.label
    benchmark.extra_info["bytes"] = t.nbytes
    with case.forced():
        benchmark(getattr(case, who), t)
    # sparse_ leaves a tenth, eye_ the diagonal. Not every dtype can count what is not zero.
    assert t.float().count_nonzero() > (255 if case.name == "eye_" else 0.09 * t.numel())
