"""Overwrites that read what they overwrite are no dead writes; operators that write only while training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torch_fastinit as fastinit

SELF_OVERWRITES = {
    "copy_": lambda t: t.copy_(t),
    "data": lambda t: t.data.copy_(t.data),
    "detach": lambda t: t.copy_(t.detach()),
    "same view": lambda t: t.copy_(t.view_as(t)),
    "slice": lambda t: t.copy_(t[:]),
    "setitem": lambda t: t.__setitem__(slice(None), t),
    "part": lambda t: t[:1].copy_(t[1:]),
    "row": lambda t: t.copy_(t[1].clone()),
    "flip": lambda t: t.copy_(t.flip(0)),
    "fill_": lambda t: t.fill_(t[0, 0]),
    "bernoulli_": lambda t: t.div_(2).bernoulli_(t),
    "mul out": lambda t: torch.mul(t, 2, out=t),
    "add out": lambda t: torch.add(t, t, out=t),
    "clamp out": lambda t: torch.clamp(t, 0, 0.4, out=t),
    "normal out": lambda t: torch.normal(t, torch.ones_like(t), out=t),
    "normalize out": lambda t: nn.functional.normalize(t, out=t),
    "cat out": lambda t: torch.cat([t[:1] * 1, t[1:] * 2], out=t),
    "where out": lambda t: torch.where(t > 0.4, t, torch.zeros_like(t), out=t),
    "cumsum out": lambda t: torch.cumsum(t, 0, out=t),
    "lerp_": lambda t: t.lerp_(t, 0.5),
    "addcmul_": lambda t: t.addcmul_(t, t),
    "masked_fill_": lambda t: t.masked_fill_(t > 0.5, 0.0),
    "foreach": lambda t: torch._foreach_copy_([t], [t]),
}


@pytest.mark.parametrize("name", SELF_OVERWRITES)
def test_an_overwrite_that_reads_itself(name, same_as_eager) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.rand(2, 3) * 0.5 + torch.arange(6.0).view(2, 3) / 12, requires_grad=False)
            SELF_OVERWRITES[name](self.w)
            self.after = nn.Parameter(torch.rand(2))

    same_as_eager(Net)


def test_an_overwrite_of_all_is_one() -> None:
    with fastinit.deferred():
        m = nn.Linear(3, 3)
        m.weight.data.copy_(torch.ones(3, 3)).mul_(1)
        nn.init.normal_(m.weight)
    assert fastinit.plan(m).rows[0].how == "one pass"


def test_batch_norm_in_evaluation_mode_leaves_its_statistics_alone(same_as_eager) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)
            self.trained = nn.BatchNorm1d(3)
            self.instance = nn.InstanceNorm1d(3, track_running_stats=True)
            with torch.no_grad():
                self.norm.eval()(torch.rand(4, 3))
                self.instance.eval()(torch.rand(4, 3, 2))
                self.trained(torch.rand(4, 3))
                self.out = self.norm(torch.ones(4, 3))

    ours = same_as_eager(Net)
    assert not torch.equal(ours.trained.running_mean, torch.zeros(3))
    with fastinit.deferred():
        ours = Net()
    how = {row.name: row.how for row in fastinit.plan(ours).rows}
    assert how["norm.running_mean"] == "one pass"
    if torch.__version__ >= (2, 11):  # before, instance_norm writes the same statistics back
        assert how["instance.running_var"] == "one pass"
    assert how["trained.running_mean"] == "replayed"
