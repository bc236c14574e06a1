"""The ranks of a sharded module agree on seed and model before any work, and on success after it."""

from __future__ import annotations

import functools
import itertools
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.fake_ranks import fake_rank
from support.ranks import Ranks
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import torch_fastinit as fastinit
from torch_fastinit.execution import agreement, swap
from torch_fastinit.execution.agreement import Agreement
from torch_fastinit.execution.executor import Executor
from torch_fastinit.planning.digest import lines_of
from torch_fastinit.planning.draws import assign_draws
from torch_fastinit.planning.planner import Planner
from torch_fastinit.planning.tensors import targets_of
from torch_fastinit.recording.active import outside
from torch_fastinit.recording.tensor import Deferred

#: The timeout of the groups, in seconds. A rank that waits for another in vain would need that long.
TIMEOUT = 10.0


class Net(nn.Module):
    """Filled, folded, replayed and orthogonal tensors, of which few ranks hold rows of some."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.few = nn.Parameter(torch.rand(1, 4) * 2 - 1)
        self.after = nn.Parameter(self.few.detach().repeat(3, 1) + 1)  # of a draw of another tensor
        self.replayed = nn.Parameter(torch.empty(5, 2).exponential_(2.0))
        self.square = nn.Parameter(nn.init.orthogonal_(torch.empty(6, 6)))
        self.register_buffer("steps", torch.arange(3.0))


class OtherOrder(Net):
    """But for `after`, which has the draw of the first of the two names."""

    def __init__(self) -> None:
        super().__init__()
        self._parameters = dict(reversed(self._parameters.items()))
        self._parameters["after"] = self._parameters.pop("after")
        self._modules = dict(reversed(self._modules.items()))


class OtherName(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = self._parameters.pop("few")


class OtherShape(Net):
    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Parameter(torch.rand(2, 4) * 2 - 1)


class OtherDtype(Net):
    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Parameter(torch.rand(1, 4, dtype=torch.float64) * 2 - 1)


class OtherFill(Net):
    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Parameter(torch.rand(1, 4) * 2 - 1.5)


class OtherReplay(Net):
    def __init__(self) -> None:
        super().__init__()
        self.replayed = nn.Parameter(torch.empty(5, 2).exponential_(3.0))


class OtherBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(3))


#: How a module is sharded over a world: the mesh's shape, and what is done.
LAYOUTS: dict[str, tuple[int, ...]] = {"fsdp": (2,), "fsdp3": (3,), "tp": (2,), "both": (2, 2), "hsdp": (2, 2)}


def world_of(layout: str) -> int:
    return int(torch.tensor(LAYOUTS[layout]).prod())


@functools.cache
def mesh_of(layout: str) -> DeviceMesh:
    """Made once in each worker, by all ranks."""
    shape = LAYOUTS[layout]
    return init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp") if len(shape) == 2 else (layout,))


def sharded(layout: str, kind: Callable[[], nn.Module] = Net) -> Any:
    mesh = mesh_of(layout)
    with fastinit.deferred():
        module = kind()
    if layout in ("tp", "both"):
        plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        parallelize_module(module, mesh["tp"], plan)
    if layout != "tp":
        fully_shard(module, mesh=mesh["dp"] if layout == "both" else mesh)
    return module


def snapshot(module: nn.Module) -> list[Any]:
    """What a module is, but for the bits of its tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return [(name, id(t), type(t), dict(vars(t))) for (name, t) in zip(module.state_dict(), tensors, strict=False)]


def all_deferred(module: nn.Module) -> bool:
    """Whether nothing of it is real."""
    tensors = [*module.parameters(), *module.buffers()]
    return all((t.to_local() if isinstance(t, DTensor) else t).is_meta for t in tensors)


def bits(module: nn.Module) -> dict[str, list[float]]:
    """What this rank holds, by name."""
    return {name: (t.to_local() if isinstance(t, DTensor) else t).tolist() for name, t in module.state_dict().items()}


def refused(module: nn.Module, **arguments: Any) -> str:
    """The error of a `materialize` that fails soon and leaves the module as it was."""
    groups = len(dist.distributed_c10d._world.pg_map)
    before, start = snapshot(module), time.monotonic()
    try:
        fastinit.materialize(module, **arguments)
    except (Exception, Injected) as error:
        assert time.monotonic() - start < TIMEOUT / 2
        assert snapshot(module) == before and all_deferred(module)
        assert len(dist.distributed_c10d._world.pg_map) == groups
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def expected(layout: str, seed: int) -> dict[str, list[float]]:
    """What this rank should hold, from a module that is materialised without a word to others."""
    return bits(fastinit.materialize(sharded(layout), seed=seed, check=False))


# ---- Seeds ----------------------------------------------------------------------------------------------------------


def different_seeds(layout: str) -> str:
    module = sharded(layout)
    message = refused(module, seed=7 if dist.get_rank() == 1 else -3)
    assert bits(fastinit.materialize(module, seed=5)) == expected(layout, 5)
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_different_seeds(ranks: Ranks, layout: str) -> None:
    messages = ranks.run(world_of(layout), different_seeds, layout, group_timeout=TIMEOUT)
    others = {2: "rank 0", 3: "ranks 0, 2", 4: "ranks 0, 2, 3"}[world_of(layout)]
    for message in messages:
        assert message == (
            f"RuntimeError: the ranks of the module's mesh were given different seeds: -3 on {others}; 7 on rank 1; "
            "no rank has changed its module"
        )


def a_seed_on_one_rank() -> tuple[str, str]:
    module = sharded("fsdp")
    message = refused(module, seed=None if dist.get_rank() else 2)
    torch.manual_seed(0)
    module = sharded("fsdp")
    replayed: dict[str, Any] = {"replay": "torch"} if dist.get_rank() else {"seed": 0}
    other = refused(module, **replayed)
    assert bits(fastinit.materialize(module, seed=5)) == expected("fsdp", 5)
    return message, other


def test_a_seed_on_one_rank_alone(ranks: Ranks) -> None:
    for message, other in ranks.run(2, a_seed_on_one_rank, group_timeout=TIMEOUT):
        assert "given different seeds: 2 on rank 0; none on rank 1;" in message
        assert "given different seeds: 0 on rank 0; that of torch's generator on rank 1;" in other


def extreme_seeds() -> None:
    for seed in (2**63 - 1, -(2**63), 2**64 - 1, 0):
        assert bits(fastinit.materialize(sharded("both"), seed=seed)) == expected("both", seed)


def test_any_seed(ranks: Ranks) -> None:
    ranks.run(4, extreme_seeds, group_timeout=TIMEOUT)


def no_seed(layout: str) -> torch.Tensor:
    torch.manual_seed(100 + dist.get_rank())
    module = fastinit.materialize(sharded(layout))
    after = torch.get_rng_state()
    torch.manual_seed(100 + dist.get_rank())
    torch.empty((), dtype=torch.int64).random_(-(2**63), None)  # once
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(100)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    assert bits(module) == expected(layout, seed)
    return after


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_seed_that_of_the_first_rank_is_used(ranks: Ranks, layout: str) -> None:
    """And every rank's own generator draws once."""
    after = ranks.run(world_of(layout), no_seed, layout, group_timeout=TIMEOUT)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(after, 2))


def the_first_by_the_mesh() -> None:
    mesh = DeviceMesh("cpu", [2, 0, 1])
    torch.manual_seed(100 + dist.get_rank())
    with fastinit.deferred():
        module = Net()
    fastinit.materialize(fully_shard(module, mesh=mesh))
    with fastinit.deferred():
        other = Net()
    torch.manual_seed(102)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    assert bits(fastinit.materialize(fully_shard(other, mesh=mesh), seed=seed, check=False)) == bits(module)


def test_the_first_rank_is_that_of_the_mesh(ranks: Ranks) -> None:
    ranks.run(3, the_first_by_the_mesh, group_timeout=TIMEOUT)


# ---- Models ---------------------------------------------------------------------------------------------------------


OTHERS: list[tuple[type[Net], str]] = [
    (OtherName, "names"),
    (OtherShape, "logical shapes or dtypes"),
    (OtherDtype, "logical shapes or dtypes"),
    (OtherFill, "initial values"),
    (OtherReplay, "initial values"),
    (OtherBuffer, "initial values"),
]


def other_models(layout: str) -> list[str]:
    odd = dist.get_rank() == world_of(layout) - 1
    messages = []
    for kind, _ in OTHERS:
        module = sharded(layout, kind if odd else Net)
        messages.append(refused(module, seed=5))
        assert bits(fastinit.materialize(sharded(layout) if odd else module, seed=5)) == expected(layout, 5)
    return messages


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_model_on_one_rank(ranks: Ranks, layout: str) -> None:
    world = world_of(layout)
    for messages in ranks.run(world, other_models, layout, group_timeout=TIMEOUT):
        for message, (_, what) in zip(messages, OTHERS, strict=True):
            if world > 2:
                most = ", ".join(map(str, range(world - 1)))
                assert f"hold different models: rank {world - 1} with other {what} than ranks {most}. Build" in message
            else:
                assert f"hold different models: rank 1 with other {what} than rank 0. Build" in message


def another_order(layout: str) -> None:
    kinds = [OtherOrder, Net]
    module = fastinit.materialize(sharded(layout, kinds[dist.get_rank() % 2]), seed=5)
    assert list(bits(module)) != list(expected(layout, 5)) or dist.get_rank() % 2
    assert bits(module) == expected(layout, 5)
    with fastinit.deferred():
        one_process = Net()
    fastinit.materialize(one_process, seed=5)
    for name, parameter in sorted(module.named_parameters()):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert torch.equal(whole, one_process.get_parameter(name)), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_order_under_the_same_names(ranks: Ranks, layout: str) -> None:
    ranks.run(world_of(layout), another_order, layout, group_timeout=TIMEOUT)


def test_digests_say_nothing_of_one_process() -> None:
    """No address, and the same on every rank, with an empty shard too."""
    found = {layout: [] for layout in LAYOUTS}  # type: dict[str, list[Any]]
    for layout in LAYOUTS:
        for rank in range(world_of(layout)):
            mesh_of.cache_clear()
            with fake_rank(rank, world_of(layout)):
                module = sharded(layout)
                targets = [target for target in targets_of(module) if isinstance(target.tensor, Deferred)]
                with outside():
                    draws = assign_draws(targets)
                    planner = Planner(draws)
                    lines = [
                        lines_of(target, one, planner, draws)
                        for target, one in zip(targets, planner.plan(targets), strict=True)
                    ]
            assert not any(" 0x" in text for three in lines if three is not None for text in three)
            found[layout].append([three for three in lines if three is not None])
            assert len(found[layout][-1]) == len(module.state_dict())
    mesh_of.cache_clear()
    assert all(one == lines[0] for lines in found.values() for one in lines)


def test_a_digest_has_the_numbers_of_a_fill_that_is_replayed() -> None:
    found = []
    for bound in (1.0, 2.0):
        with fastinit.deferred(), torch.no_grad():
            module = nn.Module()
            module.weight = nn.Parameter(torch.empty(4, 4))
            fastinit.init.uniform_(module.weight, -bound, bound)
            module.weight.abs_()
        (target,) = targets_of(module)
        draws = assign_draws([target])
        planner = Planner(draws)
        found.append(lines_of(target, planner.plan([target])[0], planner, draws))
    assert found[0] != found[1]


# ---- Failures -------------------------------------------------------------------------------------------------------


class Injected(BaseException):
    """No `Exception`, as an interrupt is none."""


def raises_in(where: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error("injected")

    owner, name = {
        "plan": (Planner, "plan"),
        "digest": (agreement, "lines_of"),
        "fill": (Executor, "_fill"),
        "replay": (Executor, "_replay"),
        "swap": (swap, "finished"),
    }[where]
    monkeypatch.setattr(owner, name, fail)


def failing(layout: str, error: type[BaseException], odd: Sequence[int]) -> list[str]:
    messages, here = [], dist.get_rank()
    for where in ("plan", "digest", "fill", "replay", "swap"):
        module = sharded(layout)
        with pytest.MonkeyPatch.context() as monkeypatch:
            if here in odd:
                raises_in(where, error, monkeypatch)
            messages.append(refused(module, seed=5))
        assert bits(fastinit.materialize(module, seed=5)) == expected(layout, 5)
    return messages


@pytest.mark.parametrize("error", [ValueError, Injected])
@pytest.mark.parametrize("layout", ["fsdp3", "tp", "both"])
def test_a_rank_that_raises(ranks: Ranks, layout: str, error: type[BaseException]) -> None:
    """Wherever it does: planning, filling, replaying, or when the tensors are about to be put in place."""
    world = world_of(layout)
    odd = [world - 1] if world < 4 else [1, 3]
    for rank, messages in enumerate(ranks.run(world, failing, layout, error, odd, group_timeout=TIMEOUT)):
        for message in messages:
            if rank in odd:
                assert message.endswith("injected")
            else:
                who = "ranks 1, 3" if len(odd) > 1 else f"rank {odd[0]}"
                assert message == (
                    f"RuntimeError: materialize() failed on {who} of the module's mesh, where the reason is raised; "
                    "no rank has changed its module"
                )


def interrupted(when: str) -> str:
    """The last rank is interrupted while it waits for the others in a reduction."""
    module = sharded("fsdp3")
    before = snapshot(module)

    def handler(*_: Any) -> None:
        raise KeyboardInterrupt

    owner: Any = Planner if when == "before" else Executor
    name = "plan" if when == "before" else "run"
    original = getattr(owner, name)

    def slow(*args: Any) -> Any:
        time.sleep(1.0)
        return original(*args)

    signal.signal(signal.SIGALRM, handler)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if dist.get_rank() == 2:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
        else:
            monkeypatch.setattr(owner, name, slow)
        try:
            fastinit.materialize(module, seed=5)
        except KeyboardInterrupt:
            found = "interrupted"
        except RuntimeError as error:
            found = "told" if "failed on rank 2 " in str(error) else str(error)
        else:
            found = "well"
    real = not all_deferred(module)
    assert real or snapshot(module) == before
    assert bits(fastinit.materialize(sharded("fsdp3") if real else module, seed=5)) == expected("fsdp3", 5)
    return f"{found}, {'real' if real else 'deferred'}"


def test_an_interrupt_in_the_first_reduction(ranks: Ranks) -> None:
    """The rank goes through both reductions all the same: the others need not wait for it."""
    found = ranks.run(3, interrupted, "before", group_timeout=TIMEOUT)
    assert found == ["told, deferred", "told, deferred", "interrupted, deferred"]


def test_an_interrupt_in_the_second_reduction_comes_after_the_module_is_real(ranks: Ranks) -> None:
    """By then the others are told that all is well: it is too late to leave this rank's module deferred."""
    found = ranks.run(3, interrupted, "after", group_timeout=TIMEOUT)
    assert found == ["well, real", "well, real", "interrupted, real"]


def a_rank_that_dies() -> str:
    module = sharded("fsdp3")
    dist.barrier()
    if dist.get_rank() == 1:
        return "died"
    before = snapshot(module)
    try:
        fastinit.materialize(module, seed=5)
    except Exception as error:
        assert snapshot(module) == before and all_deferred(module)
        return type(error).__name__
    return "well"


def test_a_rank_that_does_not_come(ranks: Ranks) -> None:
    """torch's own error, after the group's timeout."""
    start = time.monotonic()
    found = ranks.run(3, a_rank_that_dies, group_timeout=1.0)
    assert found[1] == "died" and found[0].endswith("Error") and found[2].endswith("Error")
    assert time.monotonic() - start < 5


# ---- Who takes part -------------------------------------------------------------------------------------------------


def alone() -> None:
    """Ranks 0 and 1 materialise their stage, which is sharded over them; rank 3 a module of its own."""
    stages = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    with fastinit.deferred():
        whole = nn.Sequential(Net(), Net())
    fastinit.pin_names(whole)
    stage = dist.get_rank() // 2
    fully_shard(whole[stage], mesh=stages["dp"])
    if stage == 0:
        fastinit.materialize(whole[0], seed=5)
        assert not all_deferred(whole[0])
    with fastinit.deferred():
        plain = Net()
    if dist.get_rank() == 3:
        fastinit.materialize(plain)
        assert not all_deferred(plain)


def test_a_stage_alone_does_not_hang(ranks: Ranks) -> None:
    ranks.run(4, alone, timeout=TIMEOUT)


def on_a_sub_mesh(inside: bool) -> None:
    """Ranks 0 and 1 alone hold a module whose part is sharded over them."""
    pair = DeviceMesh("cpu", [0, 1])
    if dist.get_rank() < 2:
        with fastinit.deferred():
            module = nn.ModuleDict({"part": Net(), "rest": nn.Linear(2, 2)})
        fully_shard(module["part"], mesh=pair)
        groups = len(dist.distributed_c10d._world.pg_map)
        if inside:
            assert "different seeds" in refused(module, seed=dist.get_rank())
        fastinit.materialize(module, seed=3)
        assert len(dist.distributed_c10d._world.pg_map) == groups


@pytest.mark.parametrize("inside", [False, True])
def test_a_part_on_a_sub_mesh(ranks: Ranks, inside: bool) -> None:
    ranks.run(4, on_a_sub_mesh, inside, timeout=TIMEOUT)


class Experts(nn.Module):
    """What expert parallelism makes: experts on a mesh of their own, named alike or not, and the rest on all ranks."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 8)
        self.experts = nn.Sequential()
        self.experts.add_module(name, nn.Linear(8, 4))


def experts(same_names: bool) -> list[str]:
    rows = init_device_mesh("cpu", (2, 2), mesh_dim_names=("ep", "expert_dp"))
    mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    messages = []
    for seeds in ([1, 1, 1, 2], [2, 1, 1, 1], [None] * 4):
        with fastinit.deferred():
            module = Experts("0" if same_names else str(dist.get_rank() // 2))
        fully_shard(module.experts, mesh=rows["expert_dp"])
        fully_shard(module, mesh=mesh)
        if seeds[0] is not None:
            messages.append(refused(module, seed=seeds[dist.get_rank()]))
        torch.manual_seed(dist.get_rank())
        fastinit.materialize(module, seed=None)
    torch.manual_seed(0)
    seed = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    with fastinit.deferred():
        whole = Experts("0" if same_names else str(dist.get_rank() // 2))
    fastinit.materialize(whole, seed=seed)
    for (name, a), b in zip(module.named_parameters(), whole.parameters(), strict=True):
        assert isinstance(a, DTensor) and torch.equal(a.full_tensor(), b), name
    return messages


@pytest.mark.parametrize("same_names", [True, False])
def test_meshes_of_different_sizes(ranks: Ranks, same_names: bool) -> None:
    for first, last in ranks.run(4, experts, same_names, group_timeout=TIMEOUT):
        assert "different seeds: 1 on ranks 0, 1, 2; 2 on rank 3;" in first
        assert "different seeds: 2 on rank 0; 1 on ranks 1, 2, 3;" in last


def crossed() -> list[str]:
    """A part over the rows of the mesh, another over its columns, and none over both: what one says, all hear of."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    messages = []
    for odd in range(4):
        with fastinit.deferred():
            module = nn.ModuleDict({"a": Net(), "b": Net()})
        fully_shard(module["a"], mesh=mesh["rows"])
        fully_shard(module["b"], mesh=mesh["columns"])
        messages.append(refused(module, seed=int(dist.get_rank() == odd)))
        with pytest.MonkeyPatch.context() as monkeypatch:
            if dist.get_rank() == odd:
                raises_in("fill", ValueError, monkeypatch)
            messages.append(refused(module, seed=5))
        torch.manual_seed(dist.get_rank())
        fastinit.materialize(module)
    return messages


def test_meshes_that_cross(ranks: Ranks) -> None:
    for rank, messages in enumerate(ranks.run(4, crossed, group_timeout=TIMEOUT)):
        for odd in range(4):
            assert f"1 on rank {odd}" in messages[2 * odd]
            assert f"failed on rank {odd} " in messages[2 * odd + 1] or rank == odd


def reductions(layout: str) -> list[list[int]]:
    """Which ranks each reduction is over."""
    over: list[list[int]] = []
    original = Agreement._over

    def counting(self: Agreement, group: Any, tensor: torch.Tensor) -> Any:
        over.append(dist.get_process_group_ranks(group.handle))
        return original(self, group, tensor)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Agreement, "_over", counting)
        module = fastinit.materialize(sharded(layout), seed=5)
        fastinit.materialize(module, seed=5)  # real already
    return over


def test_two_reductions_over_each_dimension(ranks: Ranks) -> None:
    assert ranks.run(3, reductions, "fsdp3", group_timeout=TIMEOUT) == [[[0, 1, 2]] * 2] * 3
    over = ranks.run(4, reductions, "both", group_timeout=TIMEOUT)
    assert over == [[[0, 2], [0, 1]] * 2, [[1, 3], [0, 1]] * 2, [[0, 2], [2, 3]] * 2, [[1, 3], [2, 3]] * 2]


def unchecked() -> str:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Agreement, "_over", None)
        module = sharded("both")
        with pytest.raises(ValueError, match=r"needs a seed= with check=False"):
            fastinit.materialize(module, check=False)
        assert all_deferred(module)
        if dist.get_rank() == 0:  # all the others are elsewhere
            fastinit.materialize(module, seed=5, check=False)
        with fastinit.deferred():
            plain = Net()
        fastinit.materialize(plain, check=False)
        fastinit.plan(sharded("both"))
    return "well"


def test_without_the_check(ranks: Ranks) -> None:
    assert ranks.run(4, unchecked, timeout=TIMEOUT) == ["well"] * 4


def parity() -> str:
    """Each rank replays with its own generator; the models are compared all the same."""
    torch.manual_seed(3)
    whole = Net()
    torch.manual_seed(3)
    module = sharded("fsdp")
    fastinit.materialize(module, replay="torch")
    for (name, a), b in zip(module.named_parameters(), whole.parameters(), strict=True):
        assert isinstance(a, DTensor) and torch.equal(a.full_tensor(), b), name
    torch.manual_seed(3)
    return refused(sharded("fsdp", OtherFill if dist.get_rank() else Net), replay="torch")


def test_replayed_by_torch(ranks: Ranks) -> None:
    for message in ranks.run(2, parity, group_timeout=TIMEOUT):
        assert "hold different models: rank 1 with other initial values than rank 0" in message


def from_meta() -> list[str]:
    """`reset=True`: a method that raises on one rank, other seeds, then neither."""
    mesh = init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    fully_shard(module, mesh=mesh)
    messages = [refused(module, reset=True, seed=dist.get_rank())]
    with pytest.MonkeyPatch.context() as monkeypatch:
        if dist.get_rank():
            monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: 1 / 0)
        messages.append(refused(module, reset=True, seed=5))
    messages.append(refused(module, seed=5))  # of plain meta tensors, on both
    with pytest.MonkeyPatch.context() as monkeypatch:
        if dist.get_rank():
            monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: [p.data.zero_() for p in self.parameters()])
        messages.append(refused(module, reset=True, seed=5))
    with fastinit.deferred():
        expected = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    fastinit.materialize(expected, seed=5)
    fastinit.materialize(module, reset=True, seed=5)
    for a, b in zip(module.parameters(), expected.parameters(), strict=True):
        assert isinstance(a, DTensor) and torch.equal(a.full_tensor(), b)
    return messages


def test_modules_on_the_meta_device(ranks: Ranks) -> None:
    first, second = ranks.run(2, from_meta, group_timeout=TIMEOUT)
    assert "0 on rank 0; 1 on rank 1" in first[0] and first[0] == second[0]
    assert "failed on rank 1 " in first[1] and "division by zero" in second[1]
    assert "on the meta device" in first[2] and first[2] == second[2]
    assert "rank 1 with other initial values than rank 0" in first[3] and first[3] == second[3]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_group_whose_collectives_do_nothing(layout: str) -> None:
    """torch's fake backend: every rank is told what it said itself."""
    mesh_of.cache_clear()
    with fake_rank(0, world_of(layout)):
        module = sharded(layout)
        fastinit.materialize(module)
        assert not all_deferred(module)
    mesh_of.cache_clear()
