"""On which device each tensor goes: `materialize(device=)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import torch

from torch_fastinit.arguments import is_function
from torch_fastinit.planning.tensors import Target
from torch_fastinit.recording.tensor import Deferred

Device = torch.device | str | int
#: One device for all tensors; devices by prefixes of names; or a function of a name and the deferred tensor.
DeviceRule = Device | Mapping[str, Device] | Callable[[str, torch.Tensor], "Device | None"] | None
#: The device that is asked for, of each target: None leaves it where it would be.
DeviceOf = Callable[[Target], "torch.device | None"]


def devices_of(rule: DeviceRule, module: torch.nn.Module, targets: Sequence[Target]) -> torch.device | DeviceOf | None:
    """What `device=` says, checked: one device, or a function that has an answer for each target."""
    if rule is None or (isinstance(rule, (torch.device, str, int)) and not isinstance(rule, bool)):
        return _device(rule, "device")
    of_name: Callable[[str, torch.Tensor], Device | None]
    if isinstance(rule, Mapping):
        of_name = _by_prefix(rule, module, targets)
    elif is_function(rule):
        of_name = rule
    else:
        raise TypeError(f"device must be a device, a mapping from names to devices or a function, not {rule!r}")

    def device_of(target: Target) -> torch.device | None:
        seen = target.tensor if target.holder is None else target.holder
        found = {name: _device(of_name(name, seen), f"device for {name!r}") for name in (target.name, *target.others)}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name!r} to {device}" for name, device in found.items())
            raise RuntimeError(f"{target.name!r} is one tensor with several names, and device= sends {said}")
        return found[target.name]

    return device_of


def _by_prefix(
    rule: Mapping[str, Device], module: torch.nn.Module, targets: Sequence[Target]
) -> Callable[[str, torch.Tensor], Device]:
    """As accelerate's `device_map`: a key is the name of a tensor or of a module, "" the whole; the longest counts."""
    names = {name for name, _ in module.named_modules(remove_duplicate=False)}
    names.update(name for target in targets for name in (target.name, *target.others))
    for key, device in rule.items():
        if not isinstance(key, str):
            raise TypeError(f"device: the key {key!r} is no name of a tensor or a module")
        if key not in names:
            near = get_close_matches(key, names, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"device: no tensor or module has the name {key!r}{hint}")
        if device is None:
            raise TypeError(f"device for {key!r} must be a device, not None")
        _device(device, f"device for {key!r}")

    def of_name(name: str, tensor: torch.Tensor) -> Device:
        prefix = name
        while prefix not in rule:
            if not prefix:
                raise ValueError(
                    f'device: no key is {name!r} or the name of a module around it; "" stands for the rest'
                )
            prefix = prefix.rpartition(".")[0]
        return rule[prefix]

    return of_name


def _device(device: object, what: str) -> torch.device | None:
    if device is None or isinstance(device, torch.device):
        return device
    if not isinstance(device, (str, int)) or isinstance(device, bool):
        raise TypeError(f"{what} must be a torch.device, its name or its index, not {device!r}")
    try:
        return torch.device(device)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what} is {device!r}: {error}") from error


def refuse_split(targets: Sequence[Target], devices: Sequence[torch.device]) -> None:
    """Raise if tensors that share memory are sent to different devices."""
    first: dict[object, tuple[str, torch.device]] = {}
    for target, device in zip(targets, devices, strict=True):
        if isinstance(target.tensor, Deferred):
            name, other = first.setdefault(target.tensor._value.storage, (target.name, device))
            if device != other:
                raise RuntimeError(
                    f"{name!r} and {target.name!r} share memory, and device= sends the one to {other} and the other to "
                    f"{device}"
                )
