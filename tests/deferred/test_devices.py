"""`materialize(device=)` and `plan(device=)` by name. This machine need not have the devices of a plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torch_fastinit as fastinit


def build() -> nn.Sequential:
    with fastinit.deferred():
        return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 4))


def planned(module: nn.Module, device: Any) -> dict[str, str]:
    return {row.name: str(row.device) for row in fastinit.plan(module, device=device).rows}


def test_the_longest_name_counts() -> None:
    found = planned(build(), {"": "cpu", "1": "cuda:1", "1.1": torch.device("xpu"), "1.0.bias": "cpu"})
    assert found.pop("1.0.weight") == "cuda:1"
    assert {found.pop(f"1.1.{name}") for name in ("weight", "bias", "running_mean", "running_var")} == {"xpu"}
    assert found.pop("1.1.num_batches_tracked") == "xpu"
    assert set(found.values()) == {"cpu"}
    assert "1.0.bias" in found


def test_a_name_is_no_prefix_of_another_word() -> None:
    with fastinit.deferred():
        module = nn.ModuleDict({"head": nn.Linear(2, 2), "heads": nn.Linear(2, 2)})
    assert planned(module, {"": "cpu", "head": "cuda:0"})["heads.weight"] == "cpu"


def test_a_function() -> None:
    found = planned(build(), lambda name, tensor: "cuda:3" if tensor.dim() == 2 else None)
    assert {name for name, device in found.items() if device == "cuda:3"} == {"0.weight", "1.0.weight", "2.weight"}
    assert {device for name, device in found.items() if not name.endswith("weight")} == {"cpu"}


def test_the_plan_has_a_column_where_devices_differ() -> None:
    assert " device " not in str(fastinit.plan(build(), device="cuda:1"))
    assert " cuda:1 " in str(fastinit.plan(build(), device={"": "cpu", "2": "cuda:1"}))


def test_values_do_not_depend_on_the_rule() -> None:
    module = fastinit.materialize(build(), device={"0": "cpu", "1": "cpu", "2": "cpu"}, seed=0)
    same = fastinit.materialize(build(), seed=0)
    for a, b in zip(module.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_with_rules_and_with_reset() -> None:
    module = fastinit.materialize(build(), device=lambda name, tensor: "cpu", init={"*": 0}, seed=0)
    assert all(not p.any() for p in module.parameters())
    with torch.device("meta"):
        layer = nn.Linear(4, 4)
    assert fastinit.materialize(layer, device={"": "cpu"}, reset=True).weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        ({"2": "cpu"}, ValueError, "no key is '0.weight'"),
        ({"": "cpu", "1.2": "cpu"}, ValueError, "'1.2'; did you mean '1.1'"),
        ({0: "cpu"}, TypeError, "the key 0"),
        ({"": "disk"}, ValueError, "for '' is 'disk'"),
        ({"": None}, TypeError, "for '' must be a device"),
        (3.5, TypeError, "not 3.5"),
        (lambda name, tensor: 2.5, TypeError, "for '0.weight' must be"),
        (lambda name, tensor: "disk", ValueError, "for '0.weight' is 'disk'"),
    ],
    ids="rest typo key disk none number answer word".split(),
)
def test_what_means_no_device(device: Any, error: type[Exception], words: str) -> None:
    module = build()
    for call in (fastinit.plan, fastinit.materialize):
        with pytest.raises(error, match=words.replace("(", r"\(")):
            call(module, device=device)
    assert fastinit.is_deferred(module)


def test_one_memory_is_on_one_device() -> None:
    tied = build()
    tied[2].weight = tied[0].weight
    with fastinit.deferred():
        views, memory = nn.Module(), torch.randn(2, 4)
        views.a, views.b = nn.Parameter(memory[0]), nn.Parameter(memory[1])
    for module, rule, words in (
        (tied, {"0": "cpu", "1": "cpu", "2": "cuda"}, "'0.weight' to cpu, '2.weight' to cuda"),
        (views, {"a": "cuda", "b": "cpu"}, "'a' and 'b' share memory"),
    ):
        for call in (fastinit.plan, fastinit.materialize):
            with pytest.raises(RuntimeError, match=words):
                call(module, device=rule)
        assert fastinit.is_deferred(module)
