"""Plain meta modules: refused, or with reset=True what their own methods say."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from support.comparison import tensors_of
from torch import nn

import torch_fastinit as fastinit


def on_meta(build):
    with torch.device("meta"):
        return build()


def snapshot(module):
    """All that a failed call has to leave as it was."""
    tensors = {n: (id(t), type(t), t.device, t.requires_grad, dict(t.__dict__)) for n, t in tensors_of(module).items()}
    return tensors, [{k: id(v) for k, v in m.__dict__.items()} for m in module.modules()]


def refused(module, message, **how):
    """Both `materialize` and, where it resets, `plan` raise, and the module is as it was."""
    before = snapshot(module)
    with pytest.raises(RuntimeError, match=message):
        fastinit.materialize(module, seed=0, **how)
    if how.get("reset"):
        with pytest.raises(RuntimeError, match=message):
            fastinit.plan(module, reset=True)
    assert snapshot(module) == before


class Wrapped(nn.Module):
    """A container without tensors of its own, which resets its children's."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.a.weight, std=0.001)
        nn.init.zeros_(self.a.bias)


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)


class Lora(nn.Module):
    def __init__(self, base, r=4):
        super().__init__()
        self.base = base
        self.A = nn.Linear(base.in_features, r, bias=False)
        self.B = nn.Linear(r, base.out_features, bias=False)
        self.reset_lora_parameters()
        for layer in (self.A, self.B):
            layer.to(base.weight.device)

    def reset_lora_parameters(self):
        nn.init.kaiming_uniform_(self.A.weight, a=5**0.5)
        nn.init.zeros_(self.B.weight)


# --- without reset=True -----------------------------------------------------------------------------------------------


def test_it_is_refused_with_names_and_a_way_out():
    refused(on_meta(Gpt), r"^'up\.weight', 'up\.bias': .*what the constructor did.*fastinit\.deferred\(\).*reset=True")


def test_the_plan_says_so():
    model = on_meta(Gpt)
    before = snapshot(model)
    plan = fastinit.plan(model)
    assert [row.how for row in plan.rows] == ["refused"] * 2
    assert "reset=True" in str(plan)
    assert snapshot(model) == before


def test_buffers_and_other_attributes_too():
    def build():
        module = nn.Module()
        module.register_buffer("b", torch.zeros(2))
        module.c = torch.zeros(2)
        module.d = [torch.zeros(2)]
        return module

    refused(on_meta(build), r"'b', 'c', 'd\.0'")


def test_adapters_added_to_a_deferred_base_outside_the_context():
    with fastinit.deferred():
        base = nn.Linear(16, 16)
    refused(Lora(base), r"'A\.weight', 'B\.weight'")
    assert [row.by for row in fastinit.plan(Lora(base), reset=True).rows] == ["", "", *["reset_lora_parameters"] * 2]
    adapted = fastinit.materialize(Lora(base), seed=0, reset=True)
    with fastinit.deferred():
        whole = Lora(nn.Linear(16, 16))
    fastinit.materialize(whole, seed=0)
    for name, tensor in tensors_of(whole).items():
        assert torch.equal(tensors_of(adapted)[name], tensor), name
    assert not adapted.B.weight.any()


def test_what_a_constructor_puts_on_meta_stays_there():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 3)
            self.template = nn.Linear(3, 3, device="meta")
            self.shape = nn.Parameter(torch.empty(3, device="meta"))
            self.like = torch.zeros_like(self.shape)
            self.half = nn.Linear(2, 2, device="meta").half()

    for reset in (False, True):
        with fastinit.deferred():
            net = Net()
        assert {row.how for row in fastinit.plan(net, reset=reset).rows} == {"one pass", "kept"}
        fastinit.materialize(net, seed=0, reset=reset)
        for name, tensor in tensors_of(net).items():
            assert tensor.is_meta == (not name.startswith("body")), name


# --- with it ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (Wrapped, "a.weight"),
        (lambda: nn.Transformer(64, 4, 1, 1, 64, batch_first=True), "encoder.layers.0.linear1.weight"),
    ],
)
def test_containers_without_tensors_of_their_own(build, name):
    eager, ours = build(), fastinit.materialize(on_meta(build), seed=0, reset=True)
    a, b = tensors_of(eager)[name], tensors_of(ours)[name]
    assert float(b.detach().std()) == pytest.approx(float(a.detach().std()), rel=0.1)
    assert tensors_of(eager).keys() == tensors_of(ours).keys()
    assert all(t.isfinite().all() for t in tensors_of(ours).values())


def test_the_plan_names_the_methods():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.BatchNorm1d(4)
            self.third = nn.Parameter(torch.empty(4))

        def init_weights(self):
            nn.init.zeros_(self.first.bias)
            self.third.data[:2] = 1

        def reset_parameters(self):
            self.third.data[2:] = 2

    model = on_meta(Net)
    rows = {row.name: row for row in fastinit.plan(model, reset=True).rows}
    assert {name: row.by for name, row in rows.items()} == {
        "first.weight": "first.reset_parameters",
        "first.bias": "init_weights",
        "second.weight": "second.reset_parameters",
        "second.bias": "second.reset_parameters",
        "second.running_mean": "second.reset_parameters",
        "second.running_var": "second.reset_parameters",
        "second.num_batches_tracked": "second.reset_parameters",
        "third": "reset_parameters, init_weights",
    }
    assert "one pass, by first.reset_parameters" in str(fastinit.plan(model, reset=True))
    assert fastinit.materialize(model, seed=0, reset=True).third.tolist() == [1, 1, 2, 2]


def test_children_come_first():
    ran = []

    class Block(nn.Module):
        def __init__(self, name, *children):
            super().__init__()
            self.name, self.blocks, self.w = name, nn.ModuleList(children), nn.Parameter(torch.empty(2))

        def reset_parameters(self):
            ran.append(self.name)
            nn.init.ones_(self.w)

        def init_weights(self):
            ran.append(f"{self.name}!")

    model = on_meta(lambda: Block("a", Block("b", Block("c")), Block("d")))
    fastinit.materialize(model, seed=0, reset=True)
    assert ran == ["c", "c!", "b", "b!", "d", "d!", "a", "a!"]


def test_only_modules_with_plain_meta_tensors_below_them_run():
    class Loud(nn.Linear):
        def reset_parameters(self):
            if hasattr(self, "quiet"):
                raise AssertionError("not asked for")
            super().reset_parameters()

    real = Loud(2, 2)
    with fastinit.deferred():
        deferred = Loud(2, 2)
    real.quiet = deferred.quiet = True
    before = real.weight.clone()
    model = nn.ModuleDict({"real": real, "deferred": deferred, "meta": on_meta(lambda: nn.Linear(2, 2))})
    fastinit.materialize(model, seed=0, reset=True)
    assert torch.equal(real.weight, before)
    assert model["meta"].weight.isfinite().all()


def test_a_container_that_resets_real_and_deferred_tensors_too_leaves_them_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.real = nn.Linear(2, 2)
            with fastinit.deferred():
                self.deferred = nn.Linear(2, 2)
            self.meta = nn.Linear(2, 2, device="meta")

        def reset_parameters(self):
            for parameter in self.parameters():
                nn.init.constant_(parameter, 7.0)

    model = Net()
    before = model.real.weight.clone()
    with fastinit.deferred():
        alone = nn.ModuleDict({"deferred": nn.Linear(2, 2)})
    fastinit.materialize(alone, seed=3)
    fastinit.materialize(model, seed=3, reset=True)
    assert torch.equal(model.real.weight, before)
    assert torch.equal(model.deferred.weight, alone["deferred"].weight)
    assert model.meta.weight.unique().tolist() == [7.0]


def test_what_is_copied_from_real_and_deferred_tensors_is_what_they_hold():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.real = nn.Parameter(torch.arange(4.0))
            with fastinit.deferred():
                self.deferred = nn.Parameter(torch.randn(4))
            self.a = nn.Parameter(torch.empty(4, device="meta"))
            self.b = nn.Parameter(torch.empty(4, device="meta"))

        def reset_parameters(self):
            with torch.no_grad():
                self.a.copy_(self.real * 2)
                self.b.copy_(self.deferred)
                self.real.zero_()

    model = fastinit.materialize(Net(), seed=0, reset=True)
    assert model.real.tolist() == [0, 1, 2, 3]
    assert model.a.tolist() == [0, 2, 4, 6]
    assert torch.equal(model.b, model.deferred)


def test_identity_class_and_shared_memory():
    class Special(nn.Parameter):
        pass

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = Special(torch.empty(4, 4))
            self.part = nn.Parameter(self.whole.data[1:2], requires_grad=False)
            self.whole.mark = 5
            self.tied = self.whole

        def reset_parameters(self):
            nn.init.normal_(self.whole)

    model = on_meta(Net)
    whole, part = model.whole, model.part
    optimizer = torch.optim.SGD([whole])
    fastinit.materialize(model, seed=0, reset=True)
    assert model.whole is whole is model.tied is optimizer.param_groups[0]["params"][0]
    assert model.part is part
    assert type(whole) is Special
    assert whole.mark == 5
    assert whole.requires_grad
    assert not part.requires_grad
    assert torch.equal(part, whole[1:2])
    assert part.data_ptr() == whole[1:2].data_ptr()


def test_parameters_that_a_method_replaces():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.empty(3))

        def reset_parameters(self):
            self.w = nn.Parameter(torch.ones(3))

    model = on_meta(Net)
    old = model.w
    refused(model, "'w'", reset=True)  # what the optimizer holds would never get a value
    assert model.w is old


# --- errors of reset=True ---------------------------------------------------------------------------------------------


def test_a_method_that_needs_arguments():
    class Net(nn.Linear):
        def reset_parameters(self, std):
            nn.init.normal_(self.weight, std=std)

    def build(cls):
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.weight = nn.Parameter(torch.empty(2, 2))
        return nn.ModuleDict({"layer": layer})

    refused(on_meta(lambda: build(Net)), r"layer\.reset_parameters\(\) of a Net needs arguments \(std\)", reset=True)
    refused(on_meta(Gpt), r"_init_weights\(\) of a Gpt needs arguments \(module\)", reset=True)

    class Adapter(Lora):
        def reset_lora_parameters(self, name="a", *more, scale=1, **others):
            super().reset_lora_parameters()

    fastinit.materialize(on_meta(lambda: Adapter(nn.Linear(4, 4))), reset=True)

    class NeedsName(Lora):
        def __init__(self):
            nn.Module.__init__(self)
            self.A = nn.Linear(2, 2)

        def reset_lora_parameters(self, adapter_name):
            pass

    refused(
        on_meta(NeedsName), r"reset_lora_parameters\(\) of a NeedsName needs arguments \(adapter_name\)", reset=True
    )


def test_helpers_of_init_weights_may_take_arguments():
    class Good(Gpt):
        def init_weights(self):
            self.apply(self._init_weights)
            nn.init.zeros_(self.up.bias)

    model = fastinit.materialize(on_meta(Good), seed=0, reset=True)
    assert float(model.up.weight.detach().abs().max()) < 0.2
    assert not model.up.bias.any()


class Tied(nn.Module):
    def __init__(self, std=None):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight
        self.std = std

    def init_weights(self):
        if self.std is not None:
            nn.init.normal_(self.embed.weight, std=self.std)


def test_a_tied_weight_that_two_owners_reset_differently():
    message = (
        r"'embed\.weight' \(= head\.weight\): embed\.reset_parameters\(\) and head\.reset_parameters\(\) reset it diff"
    )
    refused(on_meta(Tied), message, reset=True)
    refused(on_meta(lambda: nn.Sequential(Tied())), r"'0\.embed\.weight'", reset=True)
    model = fastinit.materialize(on_meta(lambda: Tied(std=0.001)), seed=0, reset=True)  # a module around both decides
    assert model.head.weight is model.embed.weight
    assert float(model.head.weight.detach().abs().max()) < 0.01


def test_a_tied_weight_that_a_module_around_both_resets_in_part():
    class Padded(Tied):
        def init_weights(self):
            self.embed.weight.data[0] = 0

    refused(on_meta(Padded), "reset it differently", reset=True)


def test_a_tied_weight_that_its_owners_reset_in_the_same_way():
    def build():
        a, b = nn.Linear(4, 4), nn.Linear(4, 4)
        b.weight = a.weight
        return nn.Sequential(a, b)

    model = on_meta(build)
    assert fastinit.plan(model, reset=True).rows[0].tied == ("1.weight",)
    fastinit.materialize(model, seed=0, reset=True)
    assert model[0].weight is model[1].weight
    assert 0.3 < float(model[0].weight.detach().abs().max()) < 0.5


@pytest.mark.parametrize(
    "write",
    [
        lambda m: None,
        lambda m: m.w[:3].fill_(1),
        lambda m: m.w[::2].fill_(1),
        lambda m: m.w.mul_(2),
        lambda m: m.w.copy_(m.other),  # before that has a value
        lambda m: m.w.copy_(torch.stack([m.other, m.other]).mean(0)),
        lambda m: m.w.view(3, 2)[:, 0].fill_(1),
    ],
)
def test_a_tensor_that_nothing_resets_as_a_whole(write):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("w", torch.empty(6))
            self.register_buffer("other", torch.empty(6))

        def reset_parameters(self):
            write(self)
            self.other.zero_()

    refused(on_meta(Net), r"^'w': on the meta device, and no reset_parameters.*fastinit\.deferred\(\)", reset=True)


def test_a_tensor_that_is_reset_piece_by_piece():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.empty(5, 6))
            self.register_buffer("none", torch.empty(0))
            self.register_buffer("count", torch.tensor(0))

        def reset_buffers(self):
            angle = torch.arange(5.0)[:, None] * torch.exp(torch.arange(3.0) * -math.log(100.0))
            self.table[:, 0::2] = angle.sin()
            self.table[:, 1::2] = angle.cos()
            self.count.zero_()

    model = fastinit.materialize(on_meta(Positions), reset=True)
    eager = Positions()
    eager.reset_buffers()
    assert torch.equal(model.table, eager.table)


def test_lists_of_names_end_somewhere():
    model = on_meta(lambda: nn.Sequential(*(nn.Linear(2, 2) for _ in range(40))))
    refused(model, r"'4\.bias' and 70 more: ")


def test_wrappers():
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        model = on_meta(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
        fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))
        with pytest.raises(RuntimeError, match=r"'0\.weight', '0\.bias', '1\.weight', '1\.bias': on the meta device"):
            fastinit.materialize(model)
        assert all(p.is_meta for p in model.parameters())
        fastinit.materialize(model, seed=0, reset=True)
        whole = fastinit.materialize(on_meta(lambda: nn.Linear(8, 8)), seed=0, reset=True, names=lambda n: f"0.{n}")
        assert torch.equal(model[0].weight.to_local(), whole.weight[:4])
    finally:
        destroy_process_group()


def test_a_module_that_was_refused_can_be_reset_and_a_copy_too():
    model = on_meta(Wrapped)
    refused(model, "reset=True")
    other = copy.deepcopy(model)
    a = fastinit.materialize(model, seed=0, reset=True)
    b = fastinit.materialize(other, seed=0, reset=True)
    assert torch.equal(a.a.weight, b.a.weight)
    assert fastinit.materialize(a, reset=True) is a  # nothing on meta: nothing runs
    assert torch.equal(a.a.weight, b.a.weight)
