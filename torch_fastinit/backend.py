"""Which backend serves a device: the only file that calls one.

==========  =======================================================================================================
device      backends, the first that can serve it does
==========  =======================================================================================================
``cpu``     ``cpu`` (C++); ``triton`` in Triton's interpreter, if forced
``cuda``    ``cuda`` (CUDA C++, where the build and the driver have it; not on AMD); ``triton``
``xpu``     ``triton``
==========  =======================================================================================================

The environment variable ``FASTINIT_BACKEND`` names one to be used for every device that it can serve;
:func:`backends` forces one for a device. ``FASTINIT_HUGE_PAGES`` is for fresh CPU memory (:func:`huge_pages`).
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import warnings
from collections.abc import Callable, Sequence

import torch

from torch_fastinit import _C

__all__ = ["DEVICES", "DTYPE_CODES", "backends", "begin", "run"]

#: dtypes that the kernels write; csrc/fill.h has the same list. A constant goes into any dtype, by its bit pattern: the
#: code of others is the last of fill.h's plus the item size.
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.float8_e4m3fn: 4,
    torch.float8_e5m2: 5,
    torch.int32: 6,
}

Backend = Callable[[Sequence[torch.Tensor], Sequence[int], Sequence[float]], None]


# Each backend: how it runs a batch, and why it cannot serve a type of device ("" if it can).


def _fill_cpu(tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
    """On ``torch.get_num_threads()`` threads, without the GIL."""
    _C.fill_cpu(tensors, DTYPE_CODES, recipe, params, torch.get_num_threads())


def _fill_cuda(tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
    """On the current stream of the tensors' device; returns without waiting."""
    device = tensors[0].device
    stream = torch.cuda.current_stream(device).cuda_stream
    _C.fill_cuda(tensors, DTYPE_CODES, recipe, params, device.index, stream)


def _fill_triton(tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
    """On the current stream of the tensors' device; returns without waiting, once the kernels are compiled."""
    import torch_fastinit.triton_kernels as triton_kernels  # takes its time, so only where it is used

    fills = _C.lowered(tensors, DTYPE_CODES, recipe, params)
    if tensors[0].device.type == "cpu":
        triton_kernels.fill(tensors, fills)
    else:
        with torch.get_device_module(tensors[0].device).device(tensors[0].device):
            triton_kernels.fill(tensors, fills)


def _no_cpu(device: str) -> str:
    return "" if device == "cpu" else "runs on the CPU alone"


def _no_cuda(device: str) -> str:
    if device != "cuda" or torch.version.hip is not None:
        return "runs on NVIDIA's GPUs alone"
    if not _C.has_cuda():
        return "this build has no CUDA kernels"
    return _C.cuda_error()


@functools.cache
def _has_triton() -> bool:
    import importlib.util

    return importlib.util.find_spec("triton") is not None


def _no_triton(device: str) -> str:
    if not _has_triton():
        return "Triton is not installed"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET", "0") != "1":
        return "runs on the CPU only in its interpreter (TRITON_INTERPRET=1 in the environment)"
    return ""


_BACKENDS: dict[str, tuple[Backend, Callable[[str], str], str]] = {
    "cpu": (_fill_cpu, _no_cpu, "C++"),
    "cuda": (_fill_cuda, _no_cuda, "CUDA C++"),
    "triton": (_fill_triton, _no_triton, "Triton"),
}
#: For each type of device what may serve it, best first.
DEVICES: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "triton"),
    "cuda": ("cuda", "triton"),
    "xpu": ("triton",),
}

#: What serves each type of device, once that was decided: its name and how it runs a batch.
_serving: dict[str, tuple[str, Backend]] = {}


def _refuse(device: str, name: str, reason: str) -> RuntimeError:
    return RuntimeError(f"backend {name!r} cannot serve device type {device!r}: {reason}")


def _decide(device: str) -> tuple[str, Backend]:
    wanted = os.environ.get("FASTINIT_BACKEND", "")
    if wanted and wanted not in _BACKENDS:
        raise ValueError(f"FASTINIT_BACKEND is {wanted!r}; it can be one of {', '.join(_BACKENDS)} or unset")
    names = DEVICES[device]
    if wanted in names:
        reason = _BACKENDS[wanted][1](device)
        if not reason:
            return wanted, _BACKENDS[wanted][0]
        if device != "cpu":
            raise _refuse(device, wanted, reason)
    reasons: list[str] = []
    for name in names:
        reason = _BACKENDS[name][1](device)
        if not reason:
            if name == "triton" and "cuda" in names and _C.has_cuda() and torch.version.hip is None:
                warnings.warn(
                    f"torch_fastinit: its CUDA kernels cannot be used here ({reasons[0]}); Triton serves instead, "
                    "with the same values",
                    stacklevel=2,
                )
            return name, _BACKENDS[name][0]
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(f"no backend of torch_fastinit can serve device type {device!r} ({'; '.join(reasons)})")


def run(device: str, tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]) -> None:
    """Run a batch of fills (see :mod:`torch_fastinit.ops`), all of it on one device of this type."""
    if device not in _serving:
        _serving[device] = _decide(device)
    _serving[device][1](tensors, recipe, params)


def begin(
    device: str, tensors: Sequence[torch.Tensor], recipe: Sequence[int], params: Sequence[float]
) -> Callable[[], None]:
    """:func:`run` for tensors in fresh memory: other threads may still be at it, until what this returns is called."""
    if device not in _serving:
        _serving[device] = _decide(device)
    if _serving[device][1] is not _fill_cpu:
        _serving[device][1](tensors, recipe, params)
        return _nothing
    return _C.BatchOnCpu(tensors, DTYPE_CODES, recipe, params, torch.get_num_threads(), huge_pages()).finish


def _nothing() -> None:
    pass


#: A virtual machine's devices of the kind that takes memory away from it and gives it back.
_BALLOONS = "/sys/bus/virtio/drivers/virtio_balloon/virtio*/features"
#: The place in ``features`` of free page reporting (virtio 1.2, section 5.5.3: VIRTIO_BALLOON_F_REPORTING).
_REPORTING = 5


@functools.cache
def huge_pages() -> bool:
    """Whether the system is asked for huge pages where a large CPU tensor's memory is touched for the first time.

    ``FASTINIT_HUGE_PAGES`` says 1 or 0. By default yes, but for a virtual machine that tells its host which pages are
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
    """What serves each type of device, and how it was built.

    All backends write the same bits, so this is about speed and about what was built.

    Args:
        force: for a type of device (``cpu``, ``cuda``, ``xpu``) the backend that shall serve it from now on:
            ``"cpu"``, ``"cuda"``, ``"triton"``, or ``"auto"`` for the first that can. Before the first fill on a
            device, the environment variable ``FASTINIT_BACKEND`` names one for all devices that it can serve.

    Returns:
        A dictionary from the type of device to a description. Devices that this machine lacks are left out.

    Raises:
        ValueError: there is no such device type or backend.
        RuntimeError: the backend cannot serve the device; the message says why.

    Example:
        >>> import torch_fastinit as fastinit
        >>> fastinit.backends()["cpu"].split()[0]
        'C++'
    """
    for device, name in force.items():
        if device not in DEVICES:
            raise ValueError(f"no backend serves device type {device!r}; there are {', '.join(DEVICES)}")
        if name == "auto":
            _serving.pop(device, None)
            continue
        if name not in _BACKENDS:
            raise ValueError(f"there is no backend {name!r}; there are {', '.join(_BACKENDS)} and auto")
        serve, reason_of, _ = _BACKENDS[name]
        reason = reason_of(device) if name in DEVICES[device] else "it is not made for it"
        if reason:
            raise _refuse(device, name, reason)
        _serving[device] = (name, serve)
    return {device: _described(device) for device in DEVICES if _present(device)}


def _present(device: str) -> bool:
    return device == "cpu" or bool(torch.get_device_module(device).is_available())


def _described(device: str) -> str:
    try:
        name = _serving[device][0] if device in _serving else _decide(device)[0]
    except RuntimeError as error:
        return f"none: {error}"
    title = _BACKENDS[name][2]
    return f"{title} ({_C.instruction_set()})" if name == "cpu" else title
