"""Deferred tensors have no memory: what says so outside a context, and what identifies memory inside."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import torch_fastinit as fastinit

FIRST = r"has no memory yet.*call fastinit\.materialize\(module\) first"


def linear() -> nn.Linear:
    with fastinit.deferred():
        return nn.Linear(5, 3)


@contextlib.contextmanager
def refused(shape: str = r"shape \(3, 5\)") -> Iterator[None]:
    with pytest.raises(RuntimeError, match=f"{shape}.*{FIRST}"):
        yield


@pytest.mark.parametrize(
    "use",
    [
        lambda w: w.data_ptr(),
        lambda w: w.share_memory_(),
        lambda w: ctypes.string_at(w.data_ptr(), 4),
        lambda w: torch.nn.functional.linear(torch.ones(5), w),
        lambda w: w.backward(torch.ones(3, 5)),
        lambda w: setattr(w, "grad", torch.ones(3, 5)),
        lambda w: w.sum(),
        lambda w: torch.zeros_like(w).add_(w),
    ],
)
def test_a_tensor_says_so_and_names_its_shape(use: Callable[[torch.Tensor], Any]) -> None:
    with refused(r"shape \((3, 5|5, 3)\)"):
        use(linear().weight)


def test_code_in_c_gets_no_address() -> None:
    weight = linear().weight
    with pytest.raises(RuntimeError):
        torch._C.TensorBase.data_ptr(weight)
    with pytest.raises(RuntimeError):
        torch._C._to_dlpack(weight.detach())  # type: ignore[attr-defined]


def test_storages() -> None:
    storage = linear().weight.untyped_storage()
    assert storage.nbytes() == 60 and not storage.is_shared()
    for method, arguments in (("data_ptr", ()), ("tolist", ()), ("clone", ()), ("fill_", (0,)), ("resize_", (0,))):
        with pytest.raises(RuntimeError, match=rf"60 bytes.*no {method}\(\).*fastinit\.materialize\(module\) first"):
            getattr(storage, method)(*arguments)


def test_save_pretrained(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    with fastinit.deferred():
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    with refused("shape"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    fastinit.materialize(model, seed=0).save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_inside_a_context_memory_has_an_identity() -> None:
    with fastinit.deferred():
        a, b = nn.Linear(4, 4), nn.Linear(4, 4)
        b.weight = nn.Parameter(a.weight.data)
        assert a.weight.data_ptr() == b.weight.data_ptr() != a.bias.data_ptr()
        assert a.weight[1].data_ptr() - a.weight.data_ptr() == 16
        pointers = [t.untyped_storage().data_ptr() for t in (a.weight, b.weight, a.bias, b.bias)]
        assert pointers[0] == pointers[1] and len(set(pointers)) == 3
        assert a.weight.untyped_storage()._cdata == b.weight.untyped_storage()._cdata


def test_what_is_known_has_memory() -> None:
    """Values that no draw decides can be read, and what numpy got is memory."""
    with fastinit.deferred():
        norm = nn.BatchNorm1d(3)
    ones = norm.running_var.numpy()
    assert norm.running_var.data_ptr() == ones.ctypes.data
    assert torch.from_dlpack(norm.running_var).tolist() == [1, 1, 1]
    ones[0] = 7
    assert fastinit.materialize(norm).running_var.tolist() == [7, 1, 1]


def test_a_refused_forward_changes_no_parameter() -> None:
    layer = linear()
    with refused("shape"):
        layer(torch.ones(2, 5)).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(fastinit.materialize(layer, seed=1).weight, fastinit.materialize(linear(), seed=1).weight)


def test_the_function_that_makes_capsules() -> None:
    layer = linear()
    assert torch.utils.dlpack.to_dlpack is torch.to_dlpack  # type: ignore[attr-defined]
    assert torch.from_dlpack(torch.utils.dlpack.to_dlpack(torch.ones(3))).tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="materialize"):
        torch.utils.dlpack.to_dlpack(layer.weight.detach())


def test_fresh_memory_on_a_device_is_real():
    """Loading a checkpoint asks for it, tensor by tensor. `to_empty` would lose what was recorded."""
    with fastinit.deferred():
        layer = torch.nn.Linear(3, 2)
    fresh = torch.empty_like(layer.weight, device="cpu")
    assert not fastinit.is_deferred(fresh) and fresh.shape == (2, 3) and fresh.fill_(1).sum() == 6
    with pytest.raises(RuntimeError, match="to_empty"):
        layer.to_empty(device="cpu")
    assert fastinit.is_deferred(layer)
