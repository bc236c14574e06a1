"""Sharded models after `materialize`: a step, checkpoints, `torch.compile`; and checkpoints loaded before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import transformers
from support.ranks import Ranks
from support.sharded import Corners, deferred, local, ties, twice_in_memory, whole
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import LlamaConfig, LlamaForCausalLM

import torch_fastinit as fastinit

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=6,
        vocab_size=47,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def untied() -> nn.Module:
    config = LlamaConfig(**{**llama().config.to_dict(), "vocab_size": 48, "tie_word_embeddings": False})
    return LlamaForCausalLM(config)


def line() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def data_parallel(model: Any) -> Any:
    mesh = line()
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


PLAN: dict[str, Any] = {
    "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
    "model.layers.*.self_attn.q_proj": ColwiseParallel(),
    "model.layers.*.self_attn.k_proj": ColwiseParallel(),
    "model.layers.*.self_attn.v_proj": ColwiseParallel(),
    "model.layers.*.self_attn.o_proj": RowwiseParallel(),
    "model.layers.*.mlp.gate_proj": ColwiseParallel(),
    "model.layers.*.mlp.up_proj": ColwiseParallel(),
    "model.layers.*.mlp.down_proj": RowwiseParallel(),
}


def tensor_parallel(model: Any) -> Any:
    return parallelize_module(model, line(), PLAN)


WAYS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "fsdp": (llama, data_parallel),
    "tp": (untied, tensor_parallel),
}


def full(tensor: Tensor) -> Tensor:
    """All of a tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def tokens() -> Tensor:
    return torch.arange(6 * 9).view(6, 9) % 47


def loss_of(model: Any, batch: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=batch, labels=batch).loss
    return loss


# --- a step -----------------------------------------------------------------------------------------------------------


def check_step(way: str) -> None:
    build, shard = WAYS[way]
    one = whole(build, dtype=torch.float64)
    model = shard(deferred(build))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    fastinit.materialize(model, seed=0, dtype=torch.float64)
    before = {name: full(parameter).clone() for name, parameter in model.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in one.named_parameters())

    batch = tokens()
    expected = loss_of(one, batch)
    expected.backward()
    loss = loss_of(model, batch.chunk(dist.get_world_size())[dist.get_rank()] if way == "fsdp" else batch)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / dist.get_world_size(), expected.detach(), rtol=1e-6, atol=0.0)
    sizes: dict[str, float] = {}
    for name, parameter in one.named_parameters():
        gradient = full(model.get_parameter(name).grad)
        sizes[name] = float(parameter.grad.norm())
        assert float((gradient - parameter.grad).norm()) <= 1e-4 * sizes[name], name
    assert min(sizes.values()) > 0.0

    optimizer.step()
    torch.optim.SGD(one.parameters(), lr=0.5, momentum=0.9).step()
    for name, parameter in one.named_parameters():
        after = full(model.get_parameter(name))
        torch.testing.assert_close(after, parameter.detach(), rtol=1e-6, atol=1e-7)
        assert not torch.equal(after, before[name])
    assert twice_in_memory(model) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", [2, 3])
def test_a_step_is_that_of_one_rank(ranks: Ranks, world: int, way: str) -> None:
    ranks.run(world, check_step, way)


# --- torch.compile ----------------------------------------------------------------------------------------------------


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5))


def fsdp_layers() -> Any:
    return fully_shard(deferred(layers), mesh=line())


def tp_layers() -> Any:
    return parallelize_module(deferred(layers), line(), {"0": ColwiseParallel(), "2": RowwiseParallel()})


def check_compile() -> None:
    x = torch.arange(24.0).view(4, 6) / 24
    for build in (fsdp_layers, tp_layers):
        model, other = (fastinit.materialize(build(), seed=0) for _ in range(2))
        compiled = torch.compile(model, backend="aot_eager")
        results = []
        for one in (compiled, other):
            loss = one(x).square().sum()
            loss.backward()
            results.append(loss.detach())
        torch.testing.assert_close(results[0], results[1])
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(full(a.grad), full(b.grad))


def test_compiled(ranks: Ranks) -> None:
    ranks.run(2, check_compile)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Layers that a tensor-parallel plan knows, and corners that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()
        self.corners = Corners()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def fsdp_model(model: Any) -> Any:
    fully_shard(model.layers, mesh=line())
    return fully_shard(model, mesh=line())


def tp_model(model: Any) -> Any:
    plan: dict[str, Any] = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model.layers, line(), plan)
    return model


SHARDED: dict[str, Callable[[Any], Any]] = {"fsdp": fsdp_model, "tp": tp_model}
#: What the checkpoint with missing keys has.
SAVED = ("layers.0.weight", "layers.2.bias", "corners.two_draws", "corners.one", "corners.noise", "corners.sparse")


def seeded(seed: int) -> dict[str, Tensor]:
    """The one-process model's tensors, by name."""
    state: dict[str, Tensor] = fastinit.materialize(deferred(Model), seed=seed).state_dict()
    return state


def check_saved(folder: str) -> None:
    """`state_dict()` before the first forward; and after it, the memory is still that which was handed out."""
    for way, shard in SHARDED.items():
        model = fastinit.materialize(shard(deferred(Model)), seed=1)
        state = model.state_dict()
        expected = seeded(1)
        assert list(state) == list(expected)
        assert all(torch.equal(full(state[name]), value) for name, value in expected.items())
        dcp.save(state, checkpoint_id=f"{folder}/{way}")
        dcp.save({name: state[name] for name in SAVED}, checkpoint_id=f"{folder}/{way}-part")
        model(torch.ones(2, 6)).sum().backward()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer.step()
        for name, value in model.state_dict().items():
            assert local(value).data_ptr() == local(state[name]).data_ptr(), name


def check_loaded(folder: str) -> list[str]:
    """On another world size, by another way: into a real model, and into one that is deferred."""
    found = []
    loaded, fresh = seeded(1), seeded(0)
    for saved in SHARDED:
        for way, shard in SHARDED.items():
            model = fastinit.materialize(shard(deferred(Model)), seed=0)
            dcp.load(model.state_dict(), checkpoint_id=f"{folder}/{saved}")
            found += [f"{saved}, {way}, real: {name}" for name in unequal(model, loaded)]

            model = shard(deferred(Model))
            state = {name: value for name, value in model.state_dict().items() if name in SAVED}
            dcp.load(state, checkpoint_id=f"{folder}/{saved}-part")
            incompatible = model.load_state_dict(state, strict=False, assign=True)
            assert incompatible.unexpected_keys == [] and len(incompatible.missing_keys) == len(fresh) - len(SAVED)
            fastinit.materialize(model, seed=0)
            mixed = {**fresh, **{name: loaded[name] for name in SAVED}}
            found += [f"{saved}, {way}, deferred: {name}" for name in unequal(model, mixed)]
            found += steps(model)
    return found


def unequal(model: nn.Module, expected: dict[str, Tensor]) -> list[str]:
    state = model.state_dict()
    assert list(state) == list(expected)
    return [name for name, value in expected.items() if not torch.equal(full(state[name]), value)]


def steps(model: Any) -> list[str]:
    """What a step leaves unchanged, or in memory twice."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [full(parameter).clone() for parameter in model.layers.parameters()]
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    after = [full(parameter) for parameter in model.layers.parameters()]
    still = [f"{i} is not trained" for i, (a, b) in enumerate(zip(before, after, strict=True)) if torch.equal(a, b)]
    return still + [f"{name}: twice in memory" for name in twice_in_memory(model)]


def test_checkpoints(ranks: Ranks, tmp_path: Path) -> None:
    """Saved on two ranks, loaded on three and by one process."""
    ranks.run(2, check_saved, str(tmp_path))
    assert ranks.run(3, check_loaded, str(tmp_path)) == [[]] * 3
    assert ranks.run(1, check_loaded, str(tmp_path)) == [[]]


def check_copied() -> list[str]:
    """Loading without `assign` is a copy, which is recorded; it warns of nothing. Ties stay."""
    found = []
    loaded, fresh = seeded(1), seeded(0)
    mixed = {**fresh, **{name: loaded[name] for name in SAVED}}
    for way, shard in SHARDED.items():
        source = fastinit.materialize(shard(deferred(Model)), seed=1).state_dict()
        model = shard(deferred(Model))
        before, tied = list(model.parameters()), ties(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.load_state_dict({name: source[name] for name in SAVED}, strict=False)
        fastinit.materialize(model, seed=0)
        found += [f"{way}, copied: {name}" for name in unequal(model, mixed)] + steps(model)
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True)) and ties(model) == tied

        model = shard(deferred(Model))
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        given = {name: loaded[name].clone() for name in SAVED} if dist.get_rank() == 0 else {}
        set_model_state_dict(model, given, options=options)
        fastinit.materialize(model, seed=0)
        found += [f"{way}, broadcast: {name}" for name in unequal(model, mixed)] + steps(model)
    return found


def test_copies_into_shards(ranks: Ranks) -> None:
    assert ranks.run(3, check_copied) == [[]] * 3
