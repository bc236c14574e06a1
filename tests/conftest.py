"""Fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import pytest
import torch
from support.comparison import check_like_eager

from torch_fastinit import _C

# Triton decides at its first import whether its own library is interpreted or compiled, and others import it too.
# Where there is no GPU to compile for, it is imported here, to be interpreted (tests/kernels/test_triton.py).
if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import triton.language  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.path.name != "test_benchmarks.py")


#: The property by which a test asks for a text below the results: `record_property(SHOWN, text)`.
SHOWN = "shown in the summary"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tables that tests have made, whichever process ran them."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == SHOWN:
                terminalreporter.section(report.nodeid.rpartition("::")[2])
                terminalreporter.write_line(text)


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


@pytest.fixture(params=_C.instruction_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine, in use."""
    before = _C.instruction_set()
    _C.set_instruction_set(request.param)
    yield request.param
    _C.set_instruction_set(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """One thread, one a core of a small machine, and more than that, uneven."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
