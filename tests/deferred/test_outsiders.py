"""Real tensors and tensors on meta in the operations of a context: the real ones stay real and whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import torch_fastinit as fastinit


def linear() -> nn.Linear:
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).view(3, 2))
        layer.bias.fill_(0.5)
    return layer


def check_real(*tensors: torch.Tensor) -> None:
    for t in tensors:
        assert type(t) in (torch.Tensor, nn.Parameter) and not t.is_meta
        assert t.untyped_storage().nbytes() >= t.numel() * t.element_size()
        t.detach().clone()  # reads all of it


@pytest.mark.parametrize("cast", ["half", "double", "bfloat16"])
def test_a_cast_of_a_real_module_is_real(cast: str) -> None:
    eager, ours = linear(), linear()
    weight = ours.weight
    getattr(eager, cast)()
    with fastinit.deferred():
        getattr(ours, cast)()
        inside = ours(torch.ones(1, 2, dtype=ours.weight.dtype)).detach()
        m = nn.Module()
        m.register_buffer("y", inside)
    assert ours.weight is weight
    check_real(*ours.parameters())
    assert all(torch.equal(a, b) for a, b in zip(eager.parameters(), ours.parameters(), strict=True))
    fastinit.materialize(m, seed=0)
    assert torch.equal(m.y, eager(torch.ones(1, 2, dtype=eager.weight.dtype)))


def test_assigning_deferred_contents_to_real_data(same_as_eager) -> None:
    real = linear()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            noise = torch.rand(3, 2)
            real.weight.data = noise
            noise.mul_(2)  # the memory is shared
            check_real(real.weight)
            self.w = nn.Parameter(real.weight.detach() + noise)
            self.after = nn.Parameter(torch.rand(3))

    same_as_eager(Net)


def test_assigning_outside_a_context_needs_values() -> None:
    real = linear()
    before = real.weight.detach().clone()
    with fastinit.deferred():
        noise, zeros = torch.rand(3, 2), torch.zeros(3, 2)
        with pytest.raises(RuntimeError, match="incompatible tensor type"):
            torch.empty(3, 2, device="meta").data = zeros
    with pytest.raises(RuntimeError, match=r"\(3, 2\).*materialize\(module\) first"):
        real.weight.data = noise
    assert torch.equal(real.weight, before)
    real.weight.data = zeros
    assert torch.equal(real.weight, torch.zeros(3, 2))


def test_data_detach_and_copies_of_real_tensors(same_as_eager) -> None:
    source = linear()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = copy.deepcopy(source)
            self.b = nn.Linear(2, 3)
            self.b.weight.data.copy_(source.weight.data)
            self.b.bias.data = source.bias.data.clone()
            self.c = nn.Parameter(source.weight.data * 2)
            self.d = nn.Parameter(copy.copy(source.weight).detach().clone())
            self.e = nn.Linear(2, 3)
            self.e.load_state_dict(source.state_dict())
            self.f = nn.Parameter(torch.empty(0).set_(source.weight.detach()).clone())
            assert type(source.weight.data) is torch.Tensor and not source.weight.data.is_meta

    before = copy.deepcopy(source)
    same_as_eager(Net)
    check_real(*source.parameters())
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), before.parameters(), strict=True))


def test_set_shares_memory_with_a_real_tensor() -> None:
    real = torch.zeros(3)
    with fastinit.deferred():
        m = nn.Module()
        m.register_buffer("x", torch.arange(3.0))
        real.set_(m.x)
        m.x.add_(1)
    check_real(real)
    assert real.tolist() == [1, 2, 3]
    fastinit.materialize(m, seed=0)
    assert m.x.tolist() == [1, 2, 3]


def test_copy_of_a_deferred_tensor_shares_its_memory() -> None:
    with fastinit.deferred():
        m = nn.Module()
        m.a = nn.Parameter(torch.rand(3))
        m.a.note = "kept"
        m.b = copy.copy(m.a)
        m.b.data.mul_(2)
    assert m.b is not m.a
    fastinit.materialize(m, seed=0)
    assert type(m.b) is nn.Parameter and m.b.note == "kept" and m.a.data_ptr() == m.b.data_ptr()


def test_type_of_an_old_parameter_makes_a_new_one() -> None:
    class Marked(nn.Parameter):
        pass

    with fastinit.deferred():
        m = nn.Module()
        m.w, m.v = nn.Parameter(torch.rand(3)), Marked(torch.rand(3))
        inside = type(m.w)(torch.zeros(2), requires_grad=False)
        assert fastinit.is_deferred(inside) and isinstance(inside, nn.Parameter) and not inside.requires_grad
    new = type(m.w)(torch.ones(2), requires_grad=False)
    assert type(new) is nn.Parameter and not new.requires_grad
    new = type(m.w)(torch.ones(2), **m.w.__dict__)
    assert type(new) is nn.Parameter and new.requires_grad and not vars(new)
    assert type(type(m.v)(torch.ones(2), requires_grad=True)) is Marked


# --- meta -------------------------------------------------------------------------------------------------------------


class Template(nn.Module):
    """A constructor that keeps some of it on meta."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.template = copy.deepcopy(self.body).to("meta")
        with torch.device("meta"):
            self.made = nn.Linear(2, 2)
        self.bare = nn.Parameter(torch.empty(3, device="meta"))
        self.register_buffer("like", torch.empty_like(self.body.weight, device="meta"))
        self.register_buffer("new", self.body.weight.new_zeros(4, device="meta"))
        self.register_buffer("sum", self.made.weight.data + 1)
        self.emptied = nn.Linear(2, 2).to_empty(device="meta")
        self.detached = nn.Parameter(self.made.weight.detach())
        self.template.load_state_dict(self.body.state_dict(), assign=False)
        self.real = nn.Parameter(torch.rand_like(self.bare, device="cpu"))
        self.filled = nn.Linear(2, 2, device="meta").to_empty(device="cpu")
        for p in self.filled.parameters():
            nn.init.normal_(p)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
def test_what_a_constructor_puts_on_meta_stays_there(same_as_eager) -> None:
    torch.manual_seed(0)
    eager = Template()
    torch.manual_seed(0)
    with fastinit.deferred():
        ours = Template()
    with fastinit.deferred():
        later = copy.deepcopy(Template())
    for model, how in ((ours, {"replay": "torch"}), (later, {"seed": 0})):
        for (name, a), b in zip(eager.state_dict().items(), model.state_dict().values(), strict=True):
            if a.is_meta:
                assert type(b) in (torch.Tensor, nn.Parameter), name
        fastinit.materialize(model, **how)
        assert [t.device for t in model.state_dict().values()] == [t.device for t in eager.state_dict().values()]
    for a, b in zip(eager.state_dict().values(), ours.state_dict().values(), strict=True):
        assert a.is_meta or torch.equal(a, b)


def test_writes_between_meta_and_deferred_tensors() -> None:
    with fastinit.deferred():
        m = nn.Linear(2, 2)
        meta = torch.empty(2, 2, device="meta")
        meta.copy_(m.weight.detach())  # as in eager code, nothing
        for write in (torch.Tensor.copy_, torch.Tensor.add_):
            with pytest.raises(NotImplementedError, match=r"\(2, 2\).*meta"):
                write(m.weight.data, meta)
    with pytest.raises(NotImplementedError, match=r"\(2, 2\).*values would be lost.*inside fastinit.deferred"):
        meta.copy_(m.weight.detach())


def test_a_deferred_module_goes_to_meta() -> None:
    with fastinit.deferred():
        m = nn.Linear(2, 2)
    m.to("meta")
    assert type(m.weight) is nn.Parameter and m.weight.is_meta
