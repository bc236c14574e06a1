"""`materialize(progress=)`: shown where somebody waits at a terminal, never in a log."""

from __future__ import annotations

import builtins
import io
import threading
import types
from typing import Any

import pytest
import torch
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit.execution import executor, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def build() -> nn.Module:
    with fastinit.deferred():
        module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
        nn.init.orthogonal_(module[1].weight)
    return module


@pytest.fixture(params=[io.StringIO, Terminal], ids=["log", "terminal"])
def stderr(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream: io.StringIO = request.param()
    # Not `sys.stderr` itself, which pytest sets anew between a fixture and its test.
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))
    return stream


def test_a_quick_model_shows_nothing(stderr: io.StringIO) -> None:
    fastinit.materialize(build(), seed=0)
    assert stderr.getvalue() == ""


def test_who_waits_at_a_terminal_sees_a_bar(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    fastinit.materialize(build(), seed=0)
    assert ("materialize" in stderr.getvalue()) == stderr.isatty()
    if stderr.isatty():
        assert stderr.getvalue().endswith("\r")  # and it is gone afterwards


@pytest.mark.parametrize("replay", [None, "torch"])
def test_true_and_false(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch, replay: Any) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    fastinit.materialize(build(), replay=replay, progress=False)
    assert stderr.getvalue() == ""
    before = threading.active_count()
    fastinit.materialize(build(), replay=replay, progress=True)
    assert "100%" in stderr.getvalue()
    assert "33.3k" in stderr.getvalue()  # all the bytes, fills and replays
    assert threading.active_count() == before


def test_parts_change_no_value(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "BETWEEN_LOOKS", 1)
    ours = fastinit.materialize(build(), seed=0, progress=True, verify=True)
    same = fastinit.materialize(build(), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), same.parameters(), strict=True))


def test_of_several_ranks_the_first_shows_it(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "_rank", lambda: 1)
    fastinit.materialize(build(), seed=0)
    assert stderr.getvalue() == ""


def test_without_tqdm(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tqdm":
            raise ImportError(name)
        return original(name, *rest)

    module = build()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install \"torch_fastinit\[progress\]\""):
        fastinit.materialize(module, progress=True)
    assert fastinit.is_deferred(module)
    fastinit.materialize(module)
    assert not fastinit.is_deferred(module)


def test_an_interrupt_closes_the_bar(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executor.Executor, "_replay", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fastinit.materialize(module, progress=True)
    assert stderr.getvalue().endswith("\n")
    assert fastinit.is_deferred(module)


def test_another_word() -> None:
    with pytest.raises(TypeError, match="progress must be None, True or False, not 'bar'"):
        fastinit.materialize(build(), progress="bar")


@pytest.mark.parametrize("what", ["no isatty", "closed", "none"])
def test_a_standard_error_that_is_no_file(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    stream = {"no isatty": types.SimpleNamespace(write=len, flush=list), "closed": closed, "none": None}[what]
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=stream))
    assert not fastinit.is_deferred(fastinit.materialize(build(), seed=0))
