"""Which backend serves a device: torch_fastinit/backend.py decides, in one place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pytest
import torch

import torch_fastinit as fastinit
from torch_fastinit import backend
from torch_fastinit.initializers import Normal
from torch_fastinit.ops import Fill, fill


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh process, and again afterwards."""
    monkeypatch.setattr(backend, "_serving", {})
    monkeypatch.delenv("FASTINIT_BACKEND", raising=False)


class Recorder:
    """A backend that only notes that it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
        self.calls += 1


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> Recorder:
    """Backend ``name`` is a recorder, which for this reason cannot serve any device (or can)."""
    recorder = Recorder()
    monkeypatch.setitem(backend._BACKENDS, name, (recorder, lambda device: reason, name.upper()))
    return recorder


def test_cpu_is_served_by_cpp() -> None:
    fill([Fill(torch.empty(3), Normal())])
    assert backend._serving["cpu"][0] == "cpu"
    assert fastinit.backends()["cpu"].startswith("C++ (")


def test_cuda_is_preferred_and_triton_steps_in_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", "")
    triton = pretend(monkeypatch, "triton", "")
    assert backend._decide("cuda")[0] == "cuda"
    pretend(monkeypatch, "cuda", "CUDA driver version is insufficient for CUDA runtime version")
    monkeypatch.setattr(backend._C, "has_cuda", lambda: True)
    monkeypatch.setitem(backend.DEVICES, "cpu", ("cuda", "triton"))
    with pytest.warns(UserWarning, match=r"driver version is insufficient.*Triton serves instead"):
        fill([Fill(torch.empty(3), Normal())])
    fill([Fill(torch.empty(3), Normal())])  # a second warning would be an error
    assert triton.calls == 2


def test_no_warning_where_there_were_no_cuda_kernels_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "triton", "")
    monkeypatch.setattr(backend._C, "has_cuda", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend._decide("cuda")[0] == "triton"
    monkeypatch.setattr(backend._C, "has_cuda", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "6.4")  # an AMD GPU
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend._decide("cuda")[0] == "triton"
        assert backend._decide("xpu")[0] == "triton"


def test_forcing(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pretend(monkeypatch, "triton", "")
    assert fastinit.backends(cpu="triton")["cpu"] == "TRITON"
    fill([Fill(torch.empty(3), Normal())])
    assert triton.calls == 1
    assert fastinit.backends(cpu="auto")["cpu"].startswith("C++")
    fill([Fill(torch.empty(3), Normal())])
    assert triton.calls == 1


def test_forcing_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", "")
    pretend(monkeypatch, "triton", "")
    monkeypatch.setenv("FASTINIT_BACKEND", "triton")
    assert [backend._decide(device)[0] for device in backend.DEVICES] == ["triton"] * 3
    monkeypatch.setenv("FASTINIT_BACKEND", "cuda")  # serves one device; the others are as they were
    assert [backend._decide(device)[0] for device in backend.DEVICES] == ["cpu", "cuda", "triton"]
    pretend(monkeypatch, "cuda", "this build has no CUDA kernels")
    with pytest.raises(RuntimeError, match="'cuda' cannot serve device type 'cuda': this build has no CUDA kernels"):
        backend._decide("cuda")
    monkeypatch.setenv("FASTINIT_BACKEND", "tpu")
    with pytest.raises(ValueError, match="FASTINIT_BACKEND is 'tpu'; it can be one of cpu, cuda, triton or unset"):
        backend._decide("cpu")


def test_what_cannot_be_forced_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no backend serves device type 'tpu'"):
        fastinit.backends(tpu="triton")
    with pytest.raises(ValueError, match="there is no backend 'opencl'"):
        fastinit.backends(cpu="opencl")
    with pytest.raises(RuntimeError, match="'cuda' cannot serve device type 'cpu': it is not made for it"):
        fastinit.backends(cpu="cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_has_triton", lambda: True)
    with pytest.raises(RuntimeError, match="only in its interpreter"):
        fastinit.backends(cpu="triton")
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        fastinit.backends(cpu="triton")
    with pytest.raises(RuntimeError, match=r"no backend .* device type 'xpu' \(triton: Triton is not installed\)"):
        backend._decide("xpu")
