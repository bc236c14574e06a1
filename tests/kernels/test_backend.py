"""Which backend serves a device: torch_fastinit/backend.py decides, in one place."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

import torch_fastinit as fastinit
from torch_fastinit import backend
from torch_fastinit.initializers import Normal
from torch_fastinit.ops import Fill, fill


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a fresh process; afterwards as it was."""
    monkeypatch.delenv("FASTINIT_BACKEND", raising=False)
    before = dict(backend.serving)
    backend.serving.clear()
    yield
    backend.serving.clear()
    backend.serving.update(before)


CUDA = torch.device("cuda", 0)


class Recorder:
    """A backend that only notes that it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, fills: Iterable[Fill], fresh: bool) -> None:
        self.calls += 1


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> Recorder:
    """Backend ``name`` is a recorder, which for this reason cannot serve any device (or can)."""
    recorder = Recorder()
    provider = backend.Provider(name, name.upper(), recorder, lambda device: reason)
    monkeypatch.setitem(backend.PROVIDERS, name, provider)
    return recorder


def test_cpu_is_served_by_cpp() -> None:
    fill([Fill(torch.empty(3), Normal())])
    assert backend.serving["cpu"].name == "cpu"
    assert fastinit.backends()["cpu"].startswith("C++ (")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """GPUs of these compute capabilities, of which this build has code for 8.0 and above alone; Triton is installed."""
    capabilities = [(9, 0), (7, 5), (6, 1)]
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(backend._C, "has_cuda", lambda: True)
    image = "no kernel image is available for execution on the device"

    def cuda_error(index: int) -> str:
        return "" if capabilities[index] >= (8, 0) else image

    monkeypatch.setattr(backend._C, "cuda_error", cuda_error, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    return capabilities


def test_each_gpu_has_what_serves_it(gpus: list[tuple[int, int]]) -> None:
    """By its index, not by its type: machines have different ones."""
    one, two, three = (torch.device("cuda", index) for index in range(3))
    assert backend.provider_for(one).name == "cuda"
    with pytest.warns(UserWarning, match=r"cannot be used on 'cuda:1' \(no kernel image.*\); Triton serves"):
        assert backend.provider_for(two).name == "triton"
    assert backend.provider_for(two).name == "triton"  # without a second warning
    reason = r"'cuda:2' \(cuda: no kernel image .*; triton: compiles from .* capability 7.0 on, and this GPU has 6.1"
    with pytest.raises(RuntimeError, match=reason):
        backend.provider_for(three)
    assert backend.provider_for(one).name == "cuda"
    served = fastinit.backends()
    assert (served["cuda:0"], served["cuda:1"]) == ("CUDA C++", "Triton")
    assert served["cuda:2"].startswith("none: no backend")
    with pytest.raises(RuntimeError, match="'cuda' cannot serve 'cuda:1': no kernel image"):
        fastinit.backends(cuda="cuda")
    del gpus[2]
    assert fastinit.backends(cuda="triton")["cuda"] == "Triton"
    assert backend.provider_for(one).name == "triton"
    fastinit.backends(cuda="auto")
    assert backend.provider_for(one).name == "cuda"


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_amd_and_intel_are_served_by_triton(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4" if kind == "cuda" else None)
    monkeypatch.setattr(backend._C, "has_cuda", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backend.provider_for(torch.device(kind, 1)).name == "triton"


def test_no_warning_where_there_are_no_cuda_kernels(
    gpus: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend._C, "has_cuda", lambda: False)
    assert backend.provider_for(CUDA).name == "triton"
    backend.serving.clear()
    monkeypatch.setattr(backend._C, "has_cuda", lambda: True)
    monkeypatch.setenv("FASTINIT_BACKEND", "triton")
    assert backend.provider_for(CUDA).name == "triton"


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
    assert [backend._decide(torch.device(kind, 0)).name for kind in backend.DEVICES] == ["triton"] * 3
    monkeypatch.setenv("FASTINIT_BACKEND", "cuda")  # serves one device; the others are as they were
    assert [backend._decide(torch.device(kind, 0)).name for kind in backend.DEVICES] == ["cpu", "cuda", "triton"]
    pretend(monkeypatch, "cuda", "this build has no CUDA kernels")
    with pytest.raises(RuntimeError, match="'cuda' cannot serve 'cuda:0': this build has no CUDA kernels"):
        backend._decide(CUDA)
    monkeypatch.setenv("FASTINIT_BACKEND", "tpu")
    with pytest.raises(ValueError, match="FASTINIT_BACKEND is 'tpu'; it can be one of cpu, cuda, triton or unset"):
        backend._decide(torch.device("cpu"))


def test_what_cannot_be_forced_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no backend serves device type 'tpu'"):
        fastinit.backends(tpu="triton")
    with pytest.raises(ValueError, match="there is no backend 'opencl'"):
        fastinit.backends(cpu="opencl")
    with pytest.raises(RuntimeError, match="'cuda' cannot serve 'cpu': it is not made for it"):
        fastinit.backends(cpu="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RuntimeError, match="'triton' cannot serve 'cuda': this machine has no such device"):
        fastinit.backends(cuda="triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "found")
    with pytest.raises(RuntimeError, match="only in its interpreter"):
        fastinit.backends(cpu="triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        fastinit.backends(cpu="triton")
    with pytest.raises(RuntimeError, match=r"no backend .* 'xpu:0' \(triton: Triton is not installed\)"):
        backend._decide(torch.device("xpu", 0))


# Huge pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def undecided_pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FASTINIT_HUGE_PAGES", raising=False)
    backend.huge_pages.cache_clear()
    yield
    backend.huge_pages.cache_clear()


@pytest.mark.usefixtures("undecided_pages")
@pytest.mark.parametrize(
    ("features", "asked"),
    [([], True), (["01100101" + "0" * 120], False), (["01100001", "0" * 128], True), (["0" * 128, "000001"], False)],
    ids=["no balloon", "reporting", "not reporting", "the second is reporting"],
)
def test_huge_pages_unless_free_memory_goes_back(
    features: list[str], asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, text in enumerate(features):
        (tmp_path / f"virtio{n}").mkdir()
        (tmp_path / f"virtio{n}" / "features").write_text(text + "\n")
    monkeypatch.setattr(backend, "_BALLOONS", str(tmp_path / "virtio*" / "features"))
    assert backend.huge_pages() is asked


@pytest.mark.usefixtures("undecided_pages")
def test_an_unknown_wish_for_huge_pages_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINIT_HUGE_PAGES", "yes")
    layer = fastinit.skip_init(torch.nn.Linear, 3, 2)
    with pytest.raises(ValueError, match="FASTINIT_HUGE_PAGES is 'yes'; it can be 1, 0 or unset"):
        fastinit.materialize(layer)
    assert fastinit.is_deferred(layer)


def flags_of(tensor: torch.Tensor) -> set[str]:
    """What the system keeps about the mapping in which the middle of a tensor lies."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if not word.endswith(":"):
            start, end = (int(address, 16) for address in word.split("-"))
            inside = start <= middle < end
        elif inside and word == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError("the tensor lies in no mapping")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no transparent huge pages"
)
@pytest.mark.usefixtures("undecided_pages")
@pytest.mark.parametrize("wish", ["0", "1"])
def test_large_fresh_tensors_ask_for_huge_pages(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTINIT_HUGE_PAGES", wish)
    # Larger than the GNU C library keeps in its heap: each has a mapping of its own, which goes when it is freed.
    layer = fastinit.skip_init(torch.nn.Linear, 4096, 3000, bias=False)
    fastinit.materialize(layer, seed=0)
    assert ("hg" in flags_of(layer.weight)) == (wish == "1")
    eager = fastinit.init.normal_(torch.empty(4096, 3000))
    assert "hg" not in flags_of(eager)  # whose memory it is, we do not know
