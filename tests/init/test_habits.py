"""How people initialise, as they write it, in four forms, of which each gives eager's weights.

Drop-in: `fastinit.init` in the place of `torch.nn.init`. Deferred: built and initialised inside `deferred()`, or built
inside and initialised outside: the same bits. Parity: `replay="torch"`, bit-equal, the generator included.
The recipes are those of docs/recipes.md, and the rows of docs/porting.md in the forms that torch has.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.comparison import check_like_eager, check_values, initialised, same_bits
from torch import nn

import torch_fastinit as fastinit

#: How the model is built, and how it is initialised with a namespace of initialisers.
Habit = tuple[Callable[[], nn.Module], Callable[[nn.Module, Any], object]]
HABITS: dict[str, Habit] = {}


def habit(build: Callable[[], nn.Module]) -> Callable[[Callable[[Any, Any], object]], Callable[[Any, Any], object]]:
    def add(initialise: Callable[[Any, Any], object]) -> Callable[[Any, Any], object]:
        HABITS[initialise.__name__] = (build, initialise)
        return initialise

    return add


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 60), nn.LayerNorm(60), nn.ReLU(), nn.Linear(60, 40))


def convolutions() -> nn.Module:
    block = nn.Sequential(
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    return nn.Sequential(nn.Conv2d(3, 8, 5), block, nn.Flatten(), nn.Linear(8, 10))


class Gpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.ln = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": nn.Linear(32, 96), "c_proj": nn.Linear(32, 32)}) for _ in range(3)
        )
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.wte.weight


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(4, 64, 32))
        self.down = nn.Parameter(torch.empty(4, 32, 64))


@habit(mlp)
def uniform_by_the_square_root(model: Any, init: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            init.uniform_(layer.weight, -bound, bound)
            init.zeros_(layer.bias)


@habit(mlp)
def normal_by_the_square_root(model: Any, init: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.normal_(0.0, 1 / math.sqrt(layer.in_features))
            layer.bias.data.fill_(0)


@habit(convolutions)
def dcgan(model: Any, init: Any) -> None:
    def weights_init(m: nn.Module) -> None:
        name = m.__class__.__name__
        if name.find("Conv") != -1:
            init.normal_(m.weight.data, 0.0, 0.02)
        elif name.find("BatchNorm") != -1:
            init.normal_(m.weight.data, 1.0, 0.02)
            init.constant_(m.bias.data, 0)

    model.apply(weights_init)


@habit(mlp)
def xavier_with_a_gain(model: Any, init: Any) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            init.xavier_uniform_(parameter, gain=init.calculate_gain("tanh"))


@habit(mlp)
def by_the_number_of_dimensions(model: Any, init: Any) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        elif name.endswith("bias"):
            init.constant_(parameter, 0.01)


@habit(Gpt)
def gpt2_with_scaled_residuals(model: Any, init: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Embedding)):
            init.normal_(layer.weight, mean=0.0, std=0.02)
            if getattr(layer, "bias", None) is not None:
                init.zeros_(layer.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * len(model.blocks)))


@habit(Gpt)
def t5(model: Any, init: Any) -> None:
    init.normal_(model.wte.weight, std=1.0)
    for block in model.blocks:
        init.normal_(block["attn"].weight, std=32**-0.5)
        init.normal_(block["c_proj"].weight, std=(4 * 8) ** -0.5)
    init.ones_(model.ln.weight)


@habit(convolutions)
def last_norm_of_a_block_is_zero(model: Any, init: Any) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    init.zeros_(model[1][-1].weight)


@habit(lambda: nn.LSTM(24, 32, num_layers=2))
def forget_gate_is_open(model: Any, init: Any) -> None:
    for name, parameter in model.named_parameters():
        if "weight" in name:
            init.xavier_uniform_(parameter)
        else:
            init.zeros_(parameter)
            if "bias_ih" in name:
                n = parameter.size(0)
                parameter.data[n // 4 : n // 2].fill_(1.0)


@habit(lambda: nn.LSTM(24, 32))
def orthogonal_gate_by_gate(model: Any, init: Any) -> None:
    for name, parameter in model.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.data.chunk(4, 0):
                init.orthogonal_(gate)


@habit(Experts)
def experts_one_by_one(model: Any, init: Any) -> None:
    for parameter in model.parameters():
        for expert in parameter.data:
            init.kaiming_uniform_(expert, a=math.sqrt(5))


@habit(lambda: nn.Linear(100, 100))
def mixture_of_d2l(model: Any, init: Any) -> None:
    init.uniform_(model.weight, -10, 10)
    model.weight.data *= model.weight.data.abs() >= 5
    init.zeros_(model.bias)


@habit(lambda: nn.Conv2d(1, 2, 3, bias=False))
def known_kernel(model: Any, init: Any) -> None:
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    with torch.no_grad():
        model.weight.copy_(torch.stack([sobel, sobel.T]).unsqueeze(1))


@habit(lambda: nn.Linear(3, 3))
def known_values_from_a_state_dict(model: Any, init: Any) -> None:
    model.load_state_dict({"weight": torch.arange(9.0).view(3, 3), "bias": torch.zeros(3)})


@habit(lambda: nn.Linear(3, 2))
def known_values_by_a_new_parameter(model: Any, init: Any) -> None:
    model.weight = nn.Parameter(torch.arange(6.0).view(2, 3))


@habit(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
def tied_layers(model: Any, init: Any) -> None:
    model[1].weight = model[0].weight
    init.orthogonal_(model[0].weight, gain=2**0.5)


@habit(lambda: nn.Embedding(60, 16, padding_idx=0))
def new_tokens_have_the_mean_of_the_old(model: Any, init: Any) -> None:
    init.normal_(model.weight, std=0.02)
    with torch.no_grad():
        model.weight[50:] = model.weight[:50].mean(0)
        model.weight[0].zero_()


@habit(lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(8, 8), nn.Linear(30, 10)))
def structured(model: Any, init: Any) -> None:
    init.dirac_(model[0].weight)
    init.eye_(model[1].weight)
    init.sparse_(model[2].weight, sparsity=0.5, std=0.1)


@habit(lambda: nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30)))
def truncated(model: Any, init: Any) -> None:
    init.trunc_normal_(model[0].weight, std=0.02)
    init.trunc_normal_(model[1].weight, std=0.02, a=-0.04, b=0.04)


def backbone() -> nn.Module:
    return nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(20, 20), nn.LayerNorm(20)), "head": nn.Linear(20, 5)})


@habit(backbone)
def frozen_backbone_and_fresh_head(model: Any, init: Any) -> None:
    pretrained = {"0.weight": torch.eye(20), "0.bias": torch.zeros(20), "1.weight": torch.ones(20)}
    model.backbone.load_state_dict({**pretrained, "1.bias": torch.full((20,), 0.5)})
    model.backbone.requires_grad_(False)
    init.trunc_normal_(model.head.weight, std=0.01)
    init.zeros_(model.head.bias)


@habit(lambda: nn.Sequential(nn.LazyLinear(12), nn.ReLU(), nn.LazyLinear(3)))
def lazily_shaped_layers(model: Any, init: Any) -> None:
    for layer, width in zip((model[0], model[2]), (7, 12), strict=True):
        layer.initialize_parameters(torch.empty(2, width))
        init.xavier_normal_(layer.weight)
        init.zeros_(layer.bias)


# The rows of docs/porting.md, as who has torch alone writes them.
FI, FO = 40, 60  # of the layer: its fans
FA = (FI + FO) / 2
CUT = 0.87962566103423978
ROWS: dict[str, Callable[[Any, torch.Tensor], object]] = {
    "uniform": lambda init, w: init.uniform_(w),
    "uniform, Keras": lambda init, w: init.uniform_(w, -0.05, 0.05),
    "uniform, JAX": lambda init, w: init.uniform_(w, 0.0, 0.01),
    "uniform, MXNet": lambda init, w: init.uniform_(w, -0.07, 0.07),
    "normal": lambda init, w: init.normal_(w),
    "normal, Keras": lambda init, w: init.normal_(w, 0.0, 0.05),
    "normal, JAX and MXNet": lambda init, w: init.normal_(w, std=0.01),
    "truncated normal": lambda init, w: init.trunc_normal_(w),
    "truncated normal, Keras": lambda init, w: init.trunc_normal_(w, 0.0, 0.05, -0.1, 0.1),
    "truncated normal, JAX": lambda init, w: init.trunc_normal_(w, std=0.01, a=-0.02, b=0.02),
    "truncated normal, timm's tf": lambda init, w: init.trunc_normal_(w).mul_(0.02),
    "constant": lambda init, w: init.constant_(w, 0.3),
    "ones": lambda init, w: init.ones_(w),
    "identity": lambda init, w: init.eye_(w),
    "identity with a gain": lambda init, w: init.eye_(w).mul_(2.0),
    "glorot uniform": lambda init, w: init.xavier_uniform_(w),
    "glorot normal": lambda init, w: _truncated(init, w, 1 / FA),
    "xavier normal": lambda init, w: init.xavier_normal_(w, gain=init.calculate_gain("tanh")),
    "he uniform": lambda init, w: init.kaiming_uniform_(w),
    "he normal": lambda init, w: _truncated(init, w, 2 / FI),
    "kaiming normal": lambda init, w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "lecun uniform": lambda init, w: init.uniform_(w, -math.sqrt(3 / FI), math.sqrt(3 / FI)),
    "lecun normal": lambda init, w: _truncated(init, w, 1 / FI),
    "linear's own": lambda init, w: init.kaiming_uniform_(w, a=math.sqrt(5)),
    "variance scaling, normal": lambda init, w: init.normal_(w, std=math.sqrt(3 / FO)),
    "MXNet's Xavier, gaussian": lambda init, w: init.normal_(w, std=math.sqrt(3 / FA)),
    "MXNet's MSRAPrelu": lambda init, w: init.normal_(w, std=math.sqrt(2 / (1 + 0.25**2) / FA)),
    "Flax's Embed": lambda init, w: init.normal_(w, std=FI**-0.5),
    "orthogonal": lambda init, w: init.orthogonal_(w),
    "orthogonal, MXNet": lambda init, w: init.orthogonal_(w, gain=2**0.5),
    "a weight that is (in, out)": lambda init, w: init.kaiming_normal_(w.t()),
}


def _truncated(init: Any, w: torch.Tensor, variance: float) -> None:
    std = math.sqrt(variance) / CUT
    init.trunc_normal_(w, std=std, a=-2 * std, b=2 * std)


def row(write: Callable[[Any, torch.Tensor], object], model: Any, init: Any) -> None:
    with torch.no_grad():
        write(init, model.weight)
        init.zeros_(model.bias)


HABITS.update({name: (lambda: nn.Linear(FI, FO), functools.partial(row, write)) for name, write in ROWS.items()})


@habit(lambda: nn.LSTM(24, 32))
def bias_of_an_lstm_as_in_mxnet(model: Any, init: Any) -> None:
    init.zeros_(model.bias_hh_l0)
    init.zeros_(model.bias_ih_l0)
    init.ones_(model.bias_ih_l0.data[32:64])


@habit(lambda: nn.Conv2d(4, 8, 3, bias=False))
def delta_orthogonal_as_in_jax(model: Any, init: Any) -> None:
    init.zeros_(model.weight)
    init.orthogonal_(model.weight.data[:, :, 1, 1])


@habit(lambda: nn.ConvTranspose2d(3, 3, 4, stride=2, groups=3, bias=False))
def bilinear_as_in_mxnet(model: Any, init: Any) -> None:
    line = 1 - (torch.arange(4) / 2 - 0.75).abs()
    model.weight.data.copy_(torch.outer(line, line))


def built(name: str, init: Any = nn.init) -> nn.Module:
    build, initialise = HABITS[name]
    model = build()
    initialise(model, init)
    return model


@pytest.mark.parametrize("name", HABITS)
def test_drop_in(name: str) -> None:
    models = []
    for seed, init in ((1, nn.init), (2, nn.init), (3, fastinit.init)):
        torch.manual_seed(seed)
        models.append(built(name, init))
    check_values(*models)


@pytest.mark.parametrize("name", HABITS)
def test_deferred_and_parity(name: str, poison: None) -> None:
    """Inside: eager's distributions, and eager's bits with `replay="torch"`, from where the generator ends the same."""
    check_like_eager(functools.partial(built, name))


#: What they compute from values: between a context and `materialize` that is refused, and another context takes it.
COMPUTE = {"mixture_of_d2l": "aten.abs.default", "new_tokens_have_the_mean_of_the_old": "aten.mean.dim"}


@pytest.mark.parametrize("init", [nn.init, fastinit.init], ids=["torch", "fastinit"])
@pytest.mark.parametrize("name", HABITS)
def test_inside_and_outside(name: str, init: Any, poison: None) -> None:
    build, initialise = HABITS[name]
    with fastinit.deferred():
        inside = built(name, init)
    with fastinit.deferred():
        outside = build()
    if name in COMPUTE:
        with pytest.raises(RuntimeError, match=rf"{COMPUTE[name]} cannot run on it: .* inside fastinit.deferred\(\)"):
            initialise(outside, init)
        with fastinit.deferred():
            outside = build()
        with fastinit.deferred():
            initialise(outside, init)
    else:
        initialise(outside, init)
    a, b = (initialised(fastinit.materialize(model, seed=4)) for model in (inside, outside))
    assert list(a) == list(b)
    assert all(same_bits(a[key], b[key]) for key in a)
