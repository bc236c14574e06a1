"""Which backend serves a device: the only file that calls one.

| device | backends, the first that can serve it does |
|---|---|
| `cpu` | `cpu` (C++); `triton` in Triton's interpreter, if forced |
| `cuda` | `cuda` (CUDA C++, where the build and the driver have it; not on AMD); `triton` |
| `xpu` | `triton` |

The environment variable `FASTINIT_BACKEND` names one to be used for every device that it can serve; `backends` forces
one for a device. `FASTINIT_HUGE_PAGES` is for fresh CPU memory (see `huge_pages`).
"""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

from torch_fastinit import _C
from torch_fastinit.codes import DTYPE_CODES

#: Fills of `torch_fastinit.ops`, made ready there: all of them on one device.
Fills = Iterable[Any]


class Provider:
    """Something that can run fills. (A dataclass would take a tenth of the package's import time to make.)

    `run(fills, fresh)` runs them; `fresh` says that nobody else has seen their memory yet. `why_not(device)` says why
    it cannot serve a device ("" if it can).
    """

    def __init__(
        self, name: str, title: str, run: Callable[[Fills, bool], None], why_not: Callable[[torch.device], str]
    ):
        self.name, self.title, self.run, self.why_not = name, title, run, why_not


def _fill_cpu(fills: Fills, fresh: bool) -> None:
    """On `torch.get_num_threads()` threads, without the GIL."""
    _C.fill_cpu(fills, DTYPE_CODES, torch.get_num_threads(), fresh, fresh and huge_pages())


def _fill_cuda(fills: Fills, fresh: bool) -> None:
    """On the current stream of the tensors' device; returns without waiting."""
    fills = tuple(fills)
    device = fills[0].tensor.device
    _C.fill_cuda(fills, DTYPE_CODES, device.index, torch.cuda.current_stream(device).cuda_stream)


def _fill_triton(fills: Fills, fresh: bool) -> None:
    """On the current stream of the tensors' device; returns without waiting, once the kernels are compiled."""
    import torch_fastinit.triton_kernels as triton_kernels  # takes its time, so only where it is used

    fills = tuple(fills)
    tensors, lowered = [fill.tensor for fill in fills], _C.lowered(fills, DTYPE_CODES)
    device = tensors[0].device
    with contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device):
        triton_kernels.fill(tensors, lowered)


def _no_cpu(device: torch.device) -> str:
    return "" if device.type == "cpu" else "runs on the CPU alone"


def _no_cuda(device: torch.device) -> str:
    if device.type != "cuda" or torch.version.hip is not None:
        return "runs on NVIDIA's GPUs alone"
    if not _C.has_cuda():
        return "this build has no CUDA kernels"
    return _C.cuda_error(_index_of(device))


#: The compute capability that Triton's compiler begins with.
_TRITON_FROM = (7, 0)


def _no_triton(device: torch.device) -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(_index_of(device))
        if capability < _TRITON_FROM:
            return "compiles from compute capability {}.{} on, and this GPU has {}.{}".format(
                *_TRITON_FROM, *capability
            )
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return "runs on the CPU only in its interpreter (TRITON_INTERPRET=1 in the environment)"
    return ""


PROVIDERS = {
    "cpu": Provider("cpu", "C++", _fill_cpu, _no_cpu),
    "cuda": Provider("cuda", "CUDA C++", _fill_cuda, _no_cuda),
    "triton": Provider("triton", "Triton", _fill_triton, _no_triton),
}
#: For each type of device what may serve it, best first.
DEVICES: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "triton"), "cuda": ("cuda", "triton"), "xpu": ("triton",)}

#: What serves a type of device, where that was forced or is the CPU; and what serves a device, once that was decided.
serving: dict[str | torch.device, Provider] = {}


def _index_of(device: torch.device) -> int:
    """Which of the devices of its type; without an index, the current one."""
    return int(torch.get_device_module(device.type).current_device()) if device.index is None else device.index


def _refuse(device: torch.device, name: str, reason: str) -> RuntimeError:
    return RuntimeError(f"backend {name!r} cannot serve {str(device)!r}: {reason}")


def _decide(device: torch.device) -> Provider:
    wanted = os.environ.get("FASTINIT_BACKEND", "")
    if wanted and wanted not in PROVIDERS:
        raise ValueError(f"FASTINIT_BACKEND is {wanted!r}; it can be one of {', '.join(PROVIDERS)} or unset")
    candidates = [PROVIDERS[name] for name in DEVICES[device.type]]
    for provider in candidates:
        if provider.name == wanted:
            reason = provider.why_not(device)
            if not reason:
                return provider
            if device.type != "cpu":
                raise _refuse(device, wanted, reason)
    reasons: list[str] = []
    for provider in candidates:
        reason = provider.why_not(device)
        if not reason:
            return provider
        reasons.append(f"{provider.name}: {reason}")
    raise RuntimeError(f"no backend of torch_fastinit can serve {str(device)!r} ({'; '.join(reasons)})")


def provider_for(device: torch.device) -> Provider:
    """What serves this device."""
    found = serving.get(device.type) or serving.get(device)
    if found is None:
        found = serving.setdefault("cpu" if device.type == "cpu" else device, _decide(device))
        if found.name == "triton" and os.environ.get("FASTINIT_BACKEND", "") != "triton":
            _say_why_not_cuda(device)
    return found


def _say_why_not_cuda(device: torch.device) -> None:
    """Warn where this build has CUDA kernels, and they cannot be used on an NVIDIA GPU."""
    if device.type == "cuda" and _C.has_cuda() and torch.version.hip is None:
        reason = PROVIDERS["cuda"].why_not(device)
        warnings.warn(
            f"torch_fastinit: its CUDA kernels cannot be used on {str(device)!r} ({reason}); Triton serves instead, "
            "with the same values",
            stacklevel=3,
        )


#: A virtual machine's devices of the kind that takes memory away from it and gives it back.
_BALLOONS = "/sys/bus/virtio/drivers/virtio_balloon/virtio*/features"
#: The place in `features` of free page reporting (virtio 1.2, section 5.5.3: VIRTIO_BALLOON_F_REPORTING).
_REPORTING = 5


@functools.cache
def huge_pages() -> bool:
    """Whether the system is asked for huge pages where a large CPU tensor's memory is touched for the first time.

    `FASTINIT_HUGE_PAGES` says 1 or 0. By default yes, but for a virtual machine that tells its host which pages are
    free: it is those that a huge page is made of, and to get them back takes longer than to do without.
    """
    wanted = os.environ.get("FASTINIT_HUGE_PAGES", "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"FASTINIT_HUGE_PAGES is {wanted!r}; it can be 1, 0 or unset")
    if wanted:
        return wanted == "1"
    for path in glob.glob(_BALLOONS):
        with contextlib.suppress(OSError), open(path) as features:
            if features.read()[_REPORTING : _REPORTING + 1] == "1":
                return False
    return True


def backends(**force: str) -> dict[str, str]:
    """What serves each device, and how it was built.

    All backends write the same bits, so this is about speed and about what was built.

    Args:
        force: for a type of device (`cpu`, `cuda`, `xpu`) the backend that shall serve it from now on: `"cpu"`,
            `"cuda"`, `"triton"`, or `"auto"` for the first that can. Before the first fill on a device, the
            environment variable `FASTINIT_BACKEND` names one for all devices that it can serve.

    Returns:
        A dictionary from the type of device to a description. Types that this machine lacks are left out; where the
        devices of a type are served by different backends, each has an entry of its own, such as `"cuda:1"`.

    Raises:
        ValueError: there is no such device type or backend.
        RuntimeError: the backend cannot serve the device; the message says why.

    Example:
        >>> import torch_fastinit as fastinit
        >>> fastinit.backends()["cpu"].split()[0]
        'C++'
    """
    for kind, name in force.items():
        if kind not in DEVICES:
            raise ValueError(f"no backend serves device type {kind!r}; there are {', '.join(DEVICES)}")
        if name == "auto":
            for key in [key for key in serving if torch.device(key).type == kind]:
                del serving[key]
            continue
        if name not in PROVIDERS:
            raise ValueError(f"there is no backend {name!r}; there are {', '.join(PROVIDERS)} and auto")
        provider = PROVIDERS[name]
        if name not in DEVICES[kind]:
            raise _refuse(torch.device(kind), name, "it is not made for it")
        devices = _devices(kind)
        if not devices:
            raise _refuse(torch.device(kind), name, "this machine has no such device")
        for device in devices:
            reason = provider.why_not(device)
            if reason:
                raise _refuse(device, name, reason)
        serving[kind] = provider
    found: dict[str, str] = {}
    for kind in DEVICES:
        described = {str(device): _described(device) for device in _devices(kind)}
        alike = len(set(described.values())) == 1
        found |= {kind: next(iter(described.values()))} if alike else described
    return found


def _devices(kind: str) -> list[torch.device]:
    """The devices of a type that this machine has."""
    if kind == "cpu":
        return [torch.device("cpu")]
    return [torch.device(kind, index) for index in range(torch.get_device_module(kind).device_count())]


def _described(device: torch.device) -> str:
    try:
        provider = serving.get(device.type) or serving.get(device) or _decide(device)
    except RuntimeError as error:
        return f"none: {error}"
    return f"{provider.title} ({_C.instruction_set()})" if provider.name == "cpu" else provider.title


def reasons() -> dict[str, dict[str, str]]:
    """For each device of this machine, why each of the backends made for it cannot serve it; empty where it can."""
    return {
        str(device): {name: PROVIDERS[name].why_not(device) for name in DEVICES[kind]}
        for kind in DEVICES
        for device in _devices(kind)
    }
