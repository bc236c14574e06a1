"""The same model from any number of ranks: each shard has the bits of its box of the one-process model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from support.fake_ranks import on_fake_ranks
from support.ranks import Ranks
from support.sharded import Beside, Corners, deferred, different, local, on_meta, twice_in_memory, whole, with_indices
from torch import nn
from torch.distributed import get_world_size
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ViTConfig,
    ViTModel,
)
from transformers.distributed import DistributedConfig, utils

import torch_fastinit as fastinit
from torch_fastinit.planning import planner

transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]

# --- models -----------------------------------------------------------------------------------------------------------


def gpt2() -> nn.Module:
    config = GPT2Config(n_layer=2, n_embd=20, n_head=2, vocab_size=67, n_positions=16)
    return Beside(lambda: GPT2LMHeadModel(config))


def llama(tied: bool = True) -> nn.Module:
    config = LlamaConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=6,
        vocab_size=48,
        tie_word_embeddings=tied,
    )
    return Beside(lambda: LlamaForCausalLM(config))


def untied_llama() -> nn.Module:
    return llama(tied=False)


def vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=20, num_hidden_layers=2, num_attention_heads=2, intermediate_size=28, image_size=16, patch_size=4
    )
    return Beside(lambda: ViTModel(config))


BLOCKS = ("GPT2Block", "LlamaDecoderLayer", "ViTLayer")
WRAPPED = "_checkpoint_wrapped_module."


def blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in BLOCKS]


def shard(model: Any, mesh: DeviceMesh, **how: Any) -> None:
    for block in blocks(model):
        fully_shard(block, mesh=mesh, **how)
    fully_shard(model, mesh=mesh, **how)


def input_of(model: nn.Module) -> torch.Tensor:
    return torch.ones(1, 3, 16, 16) if "ViT" in type(model.model).__name__ else torch.arange(8).view(1, 8)


# --- FSDP2 ------------------------------------------------------------------------------------------------------------


def second_dimension(parameter: nn.Parameter) -> Shard | None:
    even = parameter.dim() == 2 and parameter.size(1) % get_world_size() == 0
    return Shard(1) if even else None


HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed precision": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)},
    "offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    "checkpointing": {},
    "placement": {"shard_placement_fn": second_dimension},
}


def check_fsdp(build: Callable[[], nn.Module]) -> list[str]:
    expected = whole(build)
    mesh = init_device_mesh("cpu", (get_world_size(),))
    found = []
    for name, how in HOW.items():
        model, indices = deferred(build), with_indices(build)
        for one in (model, indices):
            if name == "checkpointing":
                apply_activation_checkpointing(one, check_fn=lambda module: type(module).__name__ in BLOCKS)
            shard(one, mesh, **how)
        fastinit.materialize(model, seed=0)
        found += [f"{name}: {bad}" for bad in different(model, indices, expected, strip=WRAPPED)]
        found += [f"{name}: memory of {bad}" for bad in twice_in_memory(model)]
        model(input_of(model))[0].float().sum().backward()
    return found


@pytest.mark.parametrize("build", [gpt2, vit, llama], ids=lambda build: build.__name__)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_fsdp(ranks: Ranks, world: int, build: Callable[[], nn.Module]) -> None:
    assert ranks.run(world, check_fsdp, build) == [[]] * world


def check_meta(build: Callable[[], nn.Module]) -> list[str]:
    """torchtitan's order: shard on the meta device, then run the modules' own methods."""
    expected = whole(build, reset=True)
    mesh = init_device_mesh("cpu", (get_world_size(),))
    model, indices = on_meta(build), with_indices(build)
    for one in (model, indices):
        fully_shard(one[0], mesh=mesh)
        fully_shard(one, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fastinit.materialize(model, seed=0, reset=True)
    found = different(model, indices, expected) + twice_in_memory(model)
    before = [local(parameter).clone() for parameter in model.parameters()]
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    unchanged = all(torch.equal(a, local(b)) for a, b in zip(before, model.parameters(), strict=True))
    return found + (["the optimizer holds other parameters"] if unchanged else [])


def layers() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 13), nn.LayerNorm(13), nn.Linear(13, 1))


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_fsdp_on_meta(ranks: Ranks, world: int) -> None:
    assert ranks.run(world, check_meta, layers) == [[]] * world


def check_hsdp() -> tuple[list[str], tuple[int, ...], list[bytes]]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model, indices = deferred(gpt2), with_indices(gpt2)
    for one in (model, indices):
        shard(one, mesh)
    fastinit.materialize(model, seed=0)
    bits = [local(parameter).detach().numpy().tobytes() for parameter in model.parameters()]
    where = mesh.get_coordinate()
    assert where is not None
    return different(model, indices, whole(gpt2)), tuple(where), bits


def test_hsdp_replicas_are_equal(ranks: Ranks) -> None:
    found = {where: (bad, bits) for bad, where, bits in ranks.run(4, check_hsdp)}
    assert [bad for bad, _ in found.values()] == [[]] * 4
    for column in (0, 1):
        assert found[0, column][1] == found[1, column][1]
    assert found[0, 0][1] != found[0, 1][1]


# --- tensor parallelism -----------------------------------------------------------------------------------------------

PLAN: dict[str, Any] = {
    "model.model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
    "model.model.layers.*.self_attn.q_proj": ColwiseParallel(),
    "model.model.layers.*.self_attn.k_proj": ColwiseParallel(),
    "model.model.layers.*.self_attn.v_proj": ColwiseParallel(),
    "model.model.layers.*.self_attn.o_proj": RowwiseParallel(),
    "model.model.layers.*.mlp.gate_proj": ColwiseParallel(),
    "model.model.layers.*.mlp.up_proj": ColwiseParallel(),
    "model.model.layers.*.mlp.down_proj": RowwiseParallel(),
    "corners.linear": ColwiseParallel(),
    "corners.embedding": ColwiseParallel(),
}


def check_tensor_parallel(source: int | None) -> list[str]:
    mesh = init_device_mesh("cpu", (get_world_size(),))
    model, indices = deferred(untied_llama), with_indices(untied_llama)
    parallelize_module(model, mesh, PLAN, src_data_rank=source)
    parallelize_module(indices, mesh, PLAN, src_data_rank=None)
    fastinit.materialize(model, seed=0)
    return different(model, indices, whole(untied_llama))


@pytest.mark.parametrize("source", [0, None])
@pytest.mark.parametrize("world", [2, 3])
def test_tensor_parallel(ranks: Ranks, world: int, source: int | None) -> None:
    assert ranks.run(world, check_tensor_parallel, source) == [[]] * world


def check_tensor_parallel_on_meta() -> list[str]:
    mesh = init_device_mesh("cpu", (get_world_size(),))
    plan: dict[str, Any] = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model, indices = on_meta(even_layers), with_indices(even_layers)
    for one in (model, indices):
        parallelize_module(one, mesh, plan, src_data_rank=None)
    fastinit.materialize(model, seed=0, reset=True)
    return different(model, indices, whole(even_layers, reset=True))


def even_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 5))


@pytest.mark.parametrize("world", [2, 3])
def test_tensor_parallel_on_meta(ranks: Ranks, world: int) -> None:
    assert ranks.run(world, check_tensor_parallel_on_meta) == [[]] * world


def sharded_both_ways(model: Any, mesh: DeviceMesh) -> Any:
    parallelize_module(model, mesh["tensor"], PLAN, src_data_rank=None)
    shard(model, mesh["data"])
    return model


def check_both(inside: bool) -> list[str]:
    """FSDP2 over tensor parallelism, on the same dimension and on the other; outside a context, and inside one."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    if inside:
        model = deferred(lambda: sharded_both_ways(untied_llama(), mesh))
    else:
        model = sharded_both_ways(deferred(untied_llama), mesh)
    indices = sharded_both_ways(with_indices(untied_llama), mesh)
    placements = {str(parameter.placements) for parameter in model.parameters()}
    assert {"(Shard(dim=0), Shard(dim=1))", "(_StridedShard(dim=0, sf=2), Shard(dim=0))"} <= placements
    fastinit.materialize(model, seed=0)
    return different(model, indices, whole(untied_llama)) + twice_in_memory(model)


@pytest.mark.parametrize("inside", [False, True], ids=["after the context", "inside it"])
def test_fsdp_over_tensor_parallel(ranks: Ranks, inside: bool) -> None:
    assert ranks.run(4, check_both, inside) == [[]] * 4


def check_both_on_meta() -> list[str]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def sharded(model: Any) -> Any:
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()}, src_data_rank=None)
        return fully_shard(model, mesh=mesh["data"])

    model, indices = sharded(on_meta(even_layers)), sharded(with_indices(even_layers))
    assert {"_StridedShard", "Shard"} == {type(parameter.placements[0]).__name__ for parameter in model.parameters()}
    fastinit.materialize(model, seed=0, reset=True)
    return different(model, indices, whole(even_layers, reset=True)) + twice_in_memory(model)


def test_fsdp_over_tensor_parallel_on_meta(ranks: Ranks) -> None:
    assert ranks.run(4, check_both_on_meta) == [[]] * 4


def check_inside() -> list[str]:
    """As Lightning's `configure_model` is called."""
    mesh = init_device_mesh("cpu", (get_world_size(),))

    def build() -> Any:
        model = gpt2()
        shard(model, mesh)
        return model

    model, indices = deferred(build), with_indices(gpt2)
    shard(indices, mesh)
    fastinit.materialize(model, seed=0)
    return different(model, indices, whole(gpt2)) + twice_in_memory(model)


@pytest.mark.parametrize("world", [2, 3])
def test_fsdp_inside_a_context(ranks: Ranks, world: int) -> None:
    assert ranks.run(world, check_inside) == [[]] * world


class Copied(nn.Module):
    """A parameter of one row, and one that is made of it: the draw has the first one's name on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.randn(1, 6))
        self.many = nn.Parameter(torch.cat([self.one.detach()] * 8))


def check_draws_of_empty_shards(inside: bool) -> list[str]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))

    def distributed(model: Any, source: int | None) -> Any:
        for name, parameter in list(model.named_parameters()):
            new = distribute_tensor(parameter, mesh, [Shard(0), Shard(0)], src_data_rank=source)
            setattr(model, name, nn.Parameter(new))
        return model

    ways: dict[str, Callable[[Any], Any]] = {
        "fully_shard": lambda model: fully_shard(model, mesh=mesh),
        "distribute_tensor": lambda model: distributed(model, 0),
        "distribute_tensor, locally": lambda model: distributed(model, None),
    }
    found = []
    for name, way in ways.items():
        model = deferred(lambda way=way: way(Copied())) if inside else way(deferred(Copied))
        fastinit.materialize(model, seed=0)
        found += [f"{name}: {bad}" for bad in different(model, way(with_indices(Copied)), whole(Copied))]
    return found


@pytest.mark.parametrize("inside", [False, True], ids=["after the context", "inside it"])
def test_draws_of_empty_shards(ranks: Ranks, inside: bool) -> None:
    assert ranks.run(4, check_draws_of_empty_shards, inside) == [[]] * 4


# --- transformers' own sharding ---------------------------------------------------------------------------------------


def mixtral() -> nn.Module:
    return MixtralForCausalLM(
        MixtralConfig(
            hidden_size=32,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=64,
            num_local_experts=4,
            tie_word_embeddings=False,
        )
    )


def plain_llama() -> nn.Module:
    return untied_llama().model  # type: ignore[no-any-return]


def check_transformers(build: Callable[[], nn.Module], sizes: dict[str, int]) -> tuple[list[str], set[str]]:
    torch._C._get_accelerator = lambda *args: torch.device("cpu")  # it asks for an accelerator
    utils._bind_local_device = lambda *args: torch.device("cpu")
    expected = whole(build)
    model, indices = deferred(build), with_indices(build)
    for one in (model, indices):
        config, _, mesh = type(one).prepare_distribute_model(DistributedConfig(**sizes))
        type(one).maybe_distribute_model(one, config, mesh)
    fastinit.materialize(model, seed=0)
    placements = {str(parameter.placements) for parameter in model.parameters() if isinstance(parameter, DTensor)}
    return different(model, indices, expected), placements


STRIDED = "(_StridedShard(dim=0, sf=2), Shard(dim=0))"


@pytest.mark.parametrize(
    "build, sizes, placed",
    [
        (plain_llama, {"tp_size": 2, "fsdp_size": 2}, STRIDED),
        (mixtral, {"tp_size": 2, "fsdp_size": 2}, "(Shard(dim=0), _StridedShard(dim=1, sf=2))"),
        (mixtral, {"tp_size": 1, "fsdp_size": 4, "ep_size": 2}, STRIDED),
        (mixtral, {"tp_size": 2, "fsdp_size": 2, "ep_size": 2}, STRIDED),
    ],
    ids=["llama, tp and fsdp", "mixtral, tp and fsdp", "mixtral, ep and fsdp", "mixtral, ep, tp and fsdp"],
)
def test_distributed_config(ranks: Ranks, build: Callable[[], nn.Module], sizes: dict[str, int], placed: str) -> None:
    for bad, placements in ranks.run(4, check_transformers, build, sizes):
        assert bad == [] and placed in placements, placements


# --- placements that are rare -----------------------------------------------------------------------------------------


def check_uneven() -> tuple[bool, str]:
    """pytorch#168134: torch's placements misdescribe these shards; the recording does not."""
    mesh = init_device_mesh("cpu", (3, 2), mesh_dim_names=("data", "tensor"))

    def sharded(model: Any) -> Any:
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel()}, src_data_rank=None)
        return fully_shard(model, mesh=mesh["data"])

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 7))

    model = sharded(deferred(build))
    fastinit.materialize(model, seed=0)
    equal = different(model, sharded(with_indices(build)), whole(build)) == []
    on_torchs_meta = sharded(on_meta(build))
    try:
        fastinit.materialize(on_torchs_meta, seed=0, reset=True)
    except RuntimeError as error:
        assert all(parameter.is_meta for parameter in on_torchs_meta.parameters())
        return equal, str(error)
    return equal, ""


def test_shards_that_placements_misdescribe(ranks: Ranks) -> None:
    for equal, message in ranks.run(6, check_uneven):
        assert equal
        assert message.startswith("'0.weight': torch's placements (_StridedShard(dim=0, sf=2), Shard(dim=0))")


def check_placements() -> list[str]:
    """Every corner distributed by `distribute_tensor` itself, in all ways."""
    mesh = init_device_mesh("cpu", (2, 2))
    expected = whole(Corners)
    bad = []
    for source in (0, None):
        for placements in (
            [Shard(0), Shard(1)],
            [Shard(1), Shard(0)],
            [Shard(0), Shard(0)],
            [Replicate(), Shard(-1)],
            [Replicate(), Replicate()],
            [Partial(), Shard(0)],
            [Partial("avg"), Replicate()],
            [Shard(0), Partial()],
        ):
            model, indices = deferred(Corners), with_indices(Corners)
            for one, from_rank in ((model, source), (indices, None)):
                for module in one.modules():
                    for name, parameter in list(module.named_parameters(recurse=False)):
                        if parameter.dim() > 1:
                            new = distribute_tensor(parameter, mesh, placements, src_data_rank=from_rank)
                            setattr(module, name, nn.Parameter(new))
            fastinit.materialize(model, seed=0)
            if not any(isinstance(placement, Partial) for placement in placements):
                found = different(model, indices, expected)
            else:
                found = [
                    name
                    for name, parameter in model.named_parameters()
                    if not torch.equal(
                        parameter.full_tensor() if isinstance(parameter, DTensor) else parameter,
                        dict(expected.named_parameters(remove_duplicate=False))[name],
                    )
                ]
            bad += [f"{placements}: {name}" for name in found]
    return bad


def test_distribute_tensor(ranks: Ranks) -> None:
    assert ranks.run(4, check_placements) == [[]] * 4


EIGHT: dict[str, Any] = {
    "model.0": ColwiseParallel(),
    "model.2": RowwiseParallel(),
    "corners.linear": ColwiseParallel(),
    "corners.embedding": ColwiseParallel(),
}


def beside_layers() -> nn.Module:
    return Beside(even_layers)


def test_eight_fake_ranks() -> None:
    """HSDP over tensor parallelism, 2 x 2 x 2: shapes and boxes of every rank."""
    expected = whole(beside_layers)

    def check(mesh: DeviceMesh) -> tuple[list[str], int]:
        def sharded(model: Any) -> Any:
            plan: dict[str, Any] = EIGHT
            parallelize_module(model, mesh["tensor"], plan, src_data_rank=None)
            return fully_shard(model, mesh=mesh["replicate", "shard"])

        model, indices = sharded(deferred(beside_layers)), sharded(with_indices(beside_layers))
        fastinit.materialize(model, seed=0)
        want = dict(expected.named_parameters(remove_duplicate=False))
        bad = [
            name
            for (name, one), at in zip(model.named_parameters(), indices.parameters(), strict=True)
            if local(one).shape != local(at).shape
            or not torch.equal(local(one).flatten(), want[name].flatten()[local(at).detach().long().flatten()])
        ]
        return bad, sum(math.prod(local(parameter).shape) for parameter in model.parameters())

    found = on_fake_ranks((2, 2, 2), check, names=("replicate", "shard", "tensor"))
    assert [bad for bad, _ in found.values()] == [[]] * 8
    assert len({size for _, size in found.values()}) > 1


def test_tensors_go_to_the_devices_of_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown for a plan alone, with another device in place of a GPU's."""
    monkeypatch.setattr(planner, "mesh_device", lambda spec: torch.device("meta"))

    def devices(mesh: DeviceMesh) -> set[tuple[bool, bool, str]]:
        found = set()
        for how in ({}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}):
            model = fully_shard(deferred(layers), mesh=mesh, **how)
            rows = fastinit.plan(model).rows
            found |= {(bool(how), row.placements != "", str(row.device)) for row in rows}
            assert {str(row.device) for row in fastinit.plan(model, device="cpu").rows} == {"cpu"}
        return found

    expected = {(False, True, "meta"), (False, False, "meta"), (True, True, "cpu"), (True, False, "meta")}
    assert on_fake_ranks((2,), devices, ranks=[0]) == {0: expected}


# --- shards of few rows -----------------------------------------------------------------------------------------------


class FewRows(nn.Module):
    """Parameters of which most ranks hold nothing, or whose padded shards are as large as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Linear(4, 1)
        self.rows = nn.Linear(4, 2)
        self.column = nn.Parameter(torch.randn(3, 1))
        self.number = nn.Parameter(torch.randn(3)[1:2])
        self.copied = nn.Parameter(torch.randn(3)[1:2].clone())
        self.like = nn.Parameter(torch.zeros_like(self.row.weight))
        self.constant = nn.Parameter(torch.ones(1))


def check_few_rows(inside: bool) -> list[str]:
    expected, found = whole(FewRows), []
    line = init_device_mesh("cpu", (4,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))

    def distribute(model: nn.Module, mesh: DeviceMesh, placements: list[Any], **how: Any) -> None:
        for child in model.modules():
            for name, parameter in list(child._parameters.items()):
                if parameter is not None:
                    child._parameters[name] = nn.Parameter(distribute_tensor(parameter, mesh, placements, **how))

    def both(model: nn.Module) -> None:
        distribute(model, square["tp"], [Shard(0)])
        fully_shard(model, mesh=square["dp"])

    ways: dict[str, Callable[[nn.Module], object]] = {
        "fsdp": lambda model: fully_shard(model, mesh=line),
        "hsdp": lambda model: fully_shard(model, mesh=square),
        "tp": lambda model: distribute(model, line, [Shard(0)]),
        "last": lambda model: distribute(model, line, [Shard(-1)]),
        "no source": lambda model: distribute(model, line, [Shard(0)], src_data_rank=None),
        "square": lambda model: distribute(model, square, [Shard(0), Shard(0)]),
        "tp and fsdp": both,
    }
    for name, way in ways.items():
        model, indices = deferred(FewRows), with_indices(FewRows)
        way(indices)
        with fastinit.deferred() if inside else contextlib.nullcontext():
            way(model)
        fastinit.materialize(model, seed=0)
        found += [f"{name}: {bad}" for bad in different(model, indices, expected)]
    return found


@pytest.mark.parametrize("inside", [False, True])
def test_shards_of_few_rows(ranks: Ranks, inside: bool) -> None:
    assert ranks.run(4, check_few_rows, inside) == [[]] * 4


# --- shards that are loaded -------------------------------------------------------------------------------------------


class Uninitialised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(5, 3))
        self.linear = nn.Linear(3, 3)


def check_loaded(before: bool) -> list[str]:
    """State dicts without `assign`, before and after sharding; some ranks hold nothing of some parameters."""
    mesh = init_device_mesh("cpu", (4,))
    source = Uninitialised()
    nn.init.normal_(source.w)
    model = deferred(Uninitialised)
    if before:
        model.load_state_dict(source.state_dict())
    fully_shard(source, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if not before:
        try:
            fastinit.materialize(model, seed=0)
        except RuntimeError:
            model.load_state_dict(source.state_dict())
    fastinit.materialize(model, seed=0)
    with torch.no_grad():
        pairs = zip(model.named_parameters(), source.parameters(), strict=True)
        return [name for (name, parameter), other in pairs if not torch.equal(local(parameter), local(other))]


@pytest.mark.parametrize("before", [False, True])
def test_loaded_shards(ranks: Ranks, before: bool) -> None:
    assert ranks.run(4, check_loaded, before) == [[]] * 4
