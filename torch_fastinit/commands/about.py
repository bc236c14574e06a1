"""What a bug report needs to know."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import torch_fastinit
from torch_fastinit import _C, backend


def about() -> dict[str, Any]:
    """Versions, backends and settings, as plain data."""
    return {
        "torch_fastinit": torch_fastinit.__version__,
        "torch": torch.__version__,
        "triton": _version("triton") or _version("pytorch-triton") or "not installed",
        "python": platform.python_version(),
        "system": f"{platform.platform()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        "processor": _processor(),
        "instruction set": f"{_C.instruction_set()} (of {', '.join(_C.instruction_sets())})",
        "threads": f"{torch.get_num_threads()} (of {len(os.sched_getaffinity(0))} processors)",
        "huge pages": _huge_pages(),
        "CUDA kernels": "built" if _C.has_cuda() else "not built",
        "torch's CUDA": torch.version.cuda or torch.version.hip or "none",
        "driver": _driver(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("FASTINIT_")},
        "devices": _devices(),
    }


def as_text(found: dict[str, Any]) -> str:
    """`about()`, a line each."""
    lines = []
    for name, value in found.items():
        if name == "environment":
            value = ", ".join(f"{key}={setting}" for key, setting in value.items()) or "no FASTINIT_ variables"
        if name == "devices":
            for device, described in value.items():
                lines.append(f"{device + ':':18}{described['backend']}")
                lines += [f"{'':18}not {other}: {why}" for other, why in described["not"].items()]
        else:
            lines.append(f"{name + ':':18}{value}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    found = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _huge_pages() -> str:
    system = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    try:
        asked = "asked for" if backend.huge_pages() else "not asked for"
    except ValueError as error:
        asked = str(error)
    return f"{asked}; the system's setting is {system[1] if system else 'unknown'}"


def _driver() -> str:
    found = re.search(r"(\d+\.\d+(?:\.\d+)?)", _read("/proc/driver/nvidia/version"))
    return f"NVIDIA {found[1]}" if found else "none found"


def _devices() -> dict[str, dict[str, Any]]:
    """What serves each device, and why the others do not."""
    try:
        serving = torch_fastinit.backends()
    except ValueError as error:  # FASTINIT_BACKEND
        serving = {"": str(error)}
    found = {}
    for device, why in backend.reasons().items():
        chosen = serving.get(device) or serving.get(torch.device(device).type) or serving.get("", "")
        known = {name: reason for name, reason in why.items() if reason}
        able = [backend.PROVIDERS[name].title for name in why if name not in known]
        found[device] = {"backend": chosen, "not": known, "able": able}
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
