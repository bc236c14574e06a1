"""The truncated normal that model libraries write out operation by operation: one draw of the law that they mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.comparison import same_bits
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit.execution.executor import Executor
from torch_fastinit.initializers import TruncatedNormal, Uniform
from torch_fastinit.ops import Fill, fill
from torch_fastinit.planning.draws import assign_draws
from torch_fastinit.planning.planner import Planner
from torch_fastinit.planning.tensors import targets_of
from torch_fastinit.stream import draw_stream, stream_id

ROOT2 = math.sqrt(2.0)


def norm_cdf(x):
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2.0


# --- as each library writes it ----------------------------------------------------------------------------------------


def timm(t, mean=0.0, std=1.0, a=-2.0, b=2.0):
    """Also mmcv, mmengine and the vision models of transformers, with other names for the bounds."""
    low, high = norm_cdf((a - mean) / std), norm_cdf((b - mean) / std)
    t.uniform_(2 * low - 1, 2 * high - 1)
    t.erfinv_()
    t.mul_(std * math.sqrt(2.0))
    t.add_(mean)
    t.clamp_(min=a, max=b)


def timm_tf(t, mean=0.0, std=1.0, a=-2.0, b=2.0):
    """Also transformers' SigLIP and open_clip's towers of timm: bounds in deviations, then scaled and shifted."""
    timm(t, 0, 1.0, a, b)
    t.mul_(std).add_(mean)


def timm_no_grad(t, mean=0.0, std=1.0, a=-2.0, b=2.0):
    with torch.no_grad():
        timm(t.data, mean, std, a, b)


def chained(t, mean=0.0, std=1.0, a=-2.0, b=2.0):
    low, high = norm_cdf((a - mean) / std), norm_cdf((b - mean) / std)
    t.uniform_(2 * low - 1, 2 * high - 1).erfinv_().mul_(std * math.sqrt(2.0)).add_(mean).clamp_(a, b)


def deviations(t, mean=0.0, std=1.0, a=-2.0, b=2.0):
    """Clamped in deviations, before the scale and the shift."""
    a, b = (a - mean) / std, (b - mean) / std
    t.uniform_(2 * norm_cdf(a) - 1, 2 * norm_cdf(b) - 1).erfinv_().mul_(math.sqrt(2.0)).clamp_(a, b)
    t.mul_(std)
    t.add_(mean)


def unit_uniform(t, mean=0.0, std=1.0, a=-2.0, b=2.0):
    """The uniform is of probabilities, and scaled afterwards; the numbers are tensors."""
    t.uniform_(norm_cdf((a - mean) / std), norm_cdf((b - mean) / std)).mul_(2).sub_(1)
    t.erfinv_().mul_(torch.tensor(std * math.sqrt(2.0), dtype=torch.float64)).sub_(-mean).clip_(max=b, min=a)


def upside_down(t, mean=0.0, std=1.0, a=-2.0, b=2.0):
    low, high = norm_cdf((a - mean) / std), norm_cdf((b - mean) / std)
    t.uniform_(1 - 2 * high, 1 - 2 * low).erfinv_().neg_().div_(1 / (std * math.sqrt(2.0))).add_(mean).clamp_(a, b)


FORMS = {f.__name__: f for f in (timm, timm_no_grad, chained, deviations, unit_uniform, upside_down)}
LAWS = [(0.0, 0.02, -2.0, 2.0), (0.5, 2.0, -1.0, 2.0), (-1.0, 0.5, -1.5, -0.25), (0.0, 1.0, -1.0, math.inf)]


def build(write, dtype=torch.float32, shape=(40, 25)):
    with fastinit.deferred():
        module = nn.Module()
        module.w = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
        write(module.w)
    return module


def law_of(module):
    """The one fill that the plan has for `w`."""
    targets = targets_of(module)
    (one,) = Planner(assign_draws(targets)).plan(targets)
    (planned,) = one.source.fills
    return planned.initializer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_one_draw_of_its_law(form, law, dtype):
    module = build(lambda t: FORMS[form](t, *law), dtype)
    (row,) = fastinit.plan(module).rows
    assert (row.how, row.random, row.what[:15]) == ("one pass", True, "TruncatedNormal")
    found = law_of(module)
    assert found.params == pytest.approx(law, rel=1e-14, abs=1e-15)
    fastinit.materialize(module, seed=7)
    wanted = torch.empty(40, 25, dtype=dtype)
    fill([Fill(wanted, found, 7, draw_stream(stream_id("w"), 0))])
    assert same_bits(module.w, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_kind_of_tensorflow_is_scaled_and_shifted(dtype):
    module = build(lambda t: timm_tf(t, 0.25, 0.125, -2.0, 1.0), dtype)
    assert law_of(module).params == pytest.approx((0.25, 0.125, 0.0, 0.375), rel=1e-15)
    values = fastinit.materialize(module, seed=0).w.double()
    assert float(values.min()) >= 0.0
    assert float(values.max()) <= 0.375


def test_in_bfloat16_it_has_the_values_of_torch_fastinit():
    written = fastinit.materialize(build(lambda t: timm(t, std=0.02), torch.bfloat16, (500, 500)), seed=0).w
    own = fastinit.materialize(
        build(lambda t: nn.init.trunc_normal_(t, std=0.02), torch.bfloat16, (500, 500)), seed=0
    ).w
    assert same_bits(written, own)
    assert float(written.double().abs().max()) < 6 * 0.02  # operation by operation it has outliers at -2


def test_it_has_the_law():
    module = build(lambda t: timm(t, 0.5, 1.0, -0.5, 1.0), shape=(1 << 18,))
    values = np.sort(fastinit.materialize(module, seed=1).w.double().numpy())
    z = np.vectorize(norm_cdf)(values - 0.5)
    wanted = (z - norm_cdf(-1.0)) / (norm_cdf(0.5) - norm_cdf(-1.0))
    distance = np.abs(wanted - (np.arange(values.size) + 0.5) / values.size).max()
    assert distance < 3.9 / math.sqrt(values.size)  # Kolmogorov and Smirnov: 2 exp(-2 * 3.9**2) = 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("write", [*FORMS.values(), timm_tf], ids=[*FORMS, "timm_tf"])
def test_parity_keeps_the_bits_of_eager(write, dtype):
    torch.manual_seed(5)
    eager = torch.empty(40, 25, dtype=dtype)
    write(eager, 0.5, 2.0, -1.0, 2.0)
    torch.manual_seed(5)
    module = build(lambda t: write(t, 0.5, 2.0, -1.0, 2.0), dtype)
    assert same_bits(fastinit.materialize(module, replay="torch").w, eager)


# --- the same draw wherever it is used --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_does_not_depend_on_folding(dtype):
    module = build(lambda t: timm(t, std=0.02), dtype)
    module.other = build(lambda t: timm_tf(t, 1.0, 0.02), dtype).w
    targets = targets_of(module)
    draws = assign_draws(targets)
    deferred = [target.tensor for target in targets]
    runs = []
    for fold in (True, False):
        plan = Planner(draws, fold=fold).plan(targets)
        assert {one.source.how for one in plan} == {"one pass" if fold else "replayed"}
        runs.append(Executor(plan, deferred, 3, draws).run())
    assert all(same_bits(a, b) for a, b in zip(*runs, strict=True))


def test_copies_and_what_is_computed_from_it_are_of_the_same_draw():
    def write(module):
        timm(module.w, std=0.02)
        module.copy = nn.Parameter(module.w.clone())
        module.sum = nn.Parameter(module.w.cumsum(0))
        module.w.mul_(3.0)

    with fastinit.deferred():
        module = nn.Module()
        module.w = nn.Parameter(torch.empty(30, 20, dtype=torch.bfloat16), requires_grad=False)
        write(module)
    rows = {row.name: row for row in fastinit.plan(module).rows}
    assert {name: row.how for name, row in rows.items()} == {"w": "one pass", "copy": "one pass", "sum": "replayed"}
    assert "times 3" in rows["w"].what  # not part of the draw, since it was read before
    fastinit.materialize(module, seed=0)
    assert same_bits(module.w, module.copy.detach() * 3)
    assert same_bits(module.sum.detach(), module.copy.detach().cumsum(0))


def test_parts_of_a_tensor():
    def write(t):
        timm(t[:10], std=0.5)
        timm(t[10:].t(), std=0.25)
        t[5].zero_()

    module = build(write)
    (row,) = fastinit.plan(module).rows
    assert row.how == "one pass"
    assert row.what.count("TruncatedNormal") == 2
    w = fastinit.materialize(module, seed=0).w
    assert not w[5].any()
    assert float(w[:10].std()) == pytest.approx(0.5, rel=0.15)
    assert float(w[10:].std()) == pytest.approx(0.25, rel=0.15)


def test_a_dead_draw_costs_nothing():
    module = build(lambda t: (timm(t), t.zero_()))
    (row,) = fastinit.plan(module).rows
    assert row.what == "Constant(value=0)"


# --- what is not that law ---------------------------------------------------------------------------------------------


def moved(t, by):
    low, high = norm_cdf(-2) + by, norm_cdf(2)
    t.uniform_(2 * low - 1, 2 * high - 1).erfinv_().mul_(ROOT2).clamp_(-2, 2)


def without_two(t):
    """As in some repositories: a uniform of probabilities, never mapped to [-1, 1]."""
    t.uniform_(norm_cdf(-2), norm_cdf(2)).erfinv_().mul_(ROOT2).clamp_(-2, 2)


def unclamped(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_().mul_(ROOT2)


def clamped_first(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_().clamp_(-2, 2).mul_(ROOT2)


def shifted_first(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_().add_(1.0).mul_(ROOT2).clamp_(-1, 3)


def clamped_tighter(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_().mul_(ROOT2).clamp_(-1.5, 2)


def clamped_twice(t):
    timm(t)
    t.clamp_(-1, 1)


def read_between(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1)
    t.other = t.clone()
    t.erfinv_().mul_(ROOT2).clamp_(-2, 2)


def read_between_and_dropped(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_()
    t.sum()
    t.mul_(ROOT2).clamp_(-2, 2)


def written_between(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_()
    t[0] = 0
    t.mul_(ROOT2).clamp_(-2, 2)


def times_a_vector(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_().mul_(torch.arange(25.0)).mul_(ROOT2).clamp_(-2, 2)


def empty_bounds(t):
    t.uniform_(1.0, 1.0).erfinv_().mul_(ROOT2).clamp_(10, 20)


def times_zero(t):
    t.uniform_(2 * norm_cdf(-2) - 1, 2 * norm_cdf(2) - 1).erfinv_().mul_(0.0).clamp_(-2, 2)


OTHERS = {
    "bounds": lambda t: moved(t, 1e-5),
    "bounds, a little": lambda t: moved(t, -2e-6),
    **{
        f.__name__: f
        for f in (
            without_two,
            unclamped,
            clamped_first,
            shifted_first,
            clamped_tighter,
            read_between,
            read_between_and_dropped,
            written_between,
            times_a_vector,
            empty_bounds,
            times_zero,
        )
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_replayed(name):
    torch.manual_seed(2)
    eager = torch.empty(40, 25)
    OTHERS[name](eager)
    torch.manual_seed(2)
    module = build(OTHERS[name])
    row = fastinit.plan(module).rows[0]
    assert row.how == "replayed"
    assert same_bits(fastinit.materialize(module, replay="torch").w, eager)


@pytest.mark.parametrize("name", OTHERS)
def test_a_replay_takes_the_uniform_from_the_stream(name, monkeypatch):
    module = fastinit.materialize(build(OTHERS[name]), seed=4)

    def uniform_(t, a, b):
        fill([Fill(t, Uniform(a, b), 4, draw_stream(stream_id("w"), 0))])
        return t

    monkeypatch.setattr(torch.Tensor, "uniform_", uniform_)
    wanted = torch.empty(40, 25)
    OTHERS[name](wanted)
    assert same_bits(module.w, wanted)


def test_bounds_that_agree_well_enough():
    module = build(lambda t: moved(t, 5e-7))
    assert law_of(module) == TruncatedNormal(0.0, pytest.approx(1.0), -2.0, 2.0)


def test_a_second_clamp_is_no_part_of_the_draw():
    module = build(clamped_twice)
    (row,) = fastinit.plan(module).rows
    assert (row.how, row.why) == ("replayed", "clamp_")
    whole = fastinit.materialize(build(timm), seed=0).w
    assert same_bits(fastinit.materialize(module, seed=0).w, whole.clamp(-1, 1))


def test_a_draw_that_the_constructor_reads_is_replayed_as_it_was_read():
    seen = []

    def write(t):
        timm(t, std=0.02)
        seen.append(t[0].tolist())

    module = build(write)
    assert fastinit.plan(module).rows[0].how == "replayed"
    assert fastinit.materialize(module, seed=0).w[0].tolist() == seen[0]


# --- models as timm writes them ---------------------------------------------------------------------------------------


def init_vit(module):
    if isinstance(module, nn.Linear):
        timm_no_grad(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Attention(nn.Module):
    def __init__(self, dim, window=0, heads=4):
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        if window:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
            timm_no_grad(self.relative_position_bias_table, std=0.02)


class Block(nn.Module):
    def __init__(self, dim, window=0, scale=None):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, window)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.gamma = nn.Parameter(scale * torch.ones(dim)) if scale else None


class ViT(nn.Module):
    def __init__(self, dim=64, depth=2):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 16, 16)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 197, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, scale=1e-5) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)
        timm_no_grad(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(init_vit)
        fan_in = self.patch.in_channels * 16 * 16
        with torch.no_grad():
            timm_tf(self.patch.weight, std=math.sqrt(1 / fan_in) / 0.87962566103423978)  # lecun_normal_ of timm
        nn.init.zeros_(self.patch.bias)


class Swin(nn.Module):
    def __init__(self, dim=32):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 4, 4)
        self.stages = nn.ModuleList()
        for _ in range(3):
            self.stages.append(nn.Sequential(Block(dim, 7), Block(dim, 7), nn.Linear(4 * dim, 2 * dim, bias=False)))
            dim *= 2
        self.head = nn.Linear(dim, 10)
        self.apply(init_vit)


class ConvNeXt(nn.Module):
    def __init__(self, dim=32, head_init_scale=0.5):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 4, 4)
        self.blocks = nn.ModuleList()
        for _ in range(3):
            block = nn.Module()
            block.dwconv = nn.Conv2d(dim, dim, 7, groups=dim)
            block.pwconv1, block.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
            block.gamma = nn.Parameter(1e-6 * torch.ones(dim))
            block.down = nn.Conv2d(dim, 2 * dim, 2, 2)
            self.blocks.append(block)
            dim *= 2
        self.head = nn.Linear(dim, 10)
        self.apply(self._init_weights)
        self.head.weight.data.mul_(head_init_scale)
        self.head.bias.data.mul_(head_init_scale)

    def _init_weights(self, module):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            timm_no_grad(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", [ViT, Swin, ConvNeXt])
def test_models_of_timm_are_filled_in_one_pass(model, dtype):
    torch.set_default_dtype(dtype)
    try:
        with fastinit.deferred():
            built = model()
    finally:
        torch.set_default_dtype(torch.float32)
    plan = fastinit.plan(built)
    assert plan.share("one pass") >= 0.99, str(plan)
    assert "TruncatedNormal" in str(plan)
    fastinit.materialize(built, seed=0)
    head = built.head.weight.detach().double()
    assert float(head.std()) == pytest.approx(0.01 if model is ConvNeXt else 0.02, rel=0.15)
