"""Arguments of kinds that mean nothing: one error that names the argument, and nothing has changed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit import init

#: What stands for an integer, and what does not.
INTEGERS = [np.int64(3), np.True_, np.array(3), np.array([3]), torch.tensor(3), torch.tensor([3]), torch.tensor(True)]
NO_INTEGERS = [3.0, np.float32(3), np.ones(1), np.array([3, 4]), torch.ones(1), torch.tensor([3, 4]), torch.Tensor]
FLAGS = ["verify", "reset", "check"]
CUBES, ARGUMENTS = ("dirac_", "delta_orthogonal_"), {"sparse_": (0.5,)}
WORDS = torch.zeros(4, dtype=torch.int32)


def deferred() -> nn.Module:
    return fastinit.skip_init(nn.Linear, 3, 2)


def materialize(**arguments: Any) -> object:
    return fastinit.materialize(deferred(), **arguments)


def plan(**arguments: Any) -> object:
    return fastinit.plan(deferred(), **arguments)


def pin_names(**arguments: Any) -> object:
    return fastinit.pin_names(deferred(), **arguments)


def initialize(**arguments: Any) -> object:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    try:
        return fastinit.initialize(layer, {"weight": init.normal_}, **arguments)
    except Exception:
        assert torch.equal(layer.weight, before)
        raise


def random_bits(**arguments: Any) -> object:
    return fastinit.random_bits_(WORDS, **({"seed": 0, "stream": 0} | arguments))


@pytest.mark.parametrize("seed", [0.5, "x", b"1", [1], 1j, *NO_INTEGERS])
@pytest.mark.parametrize("call", [materialize, initialize, random_bits])
def test_seeds(call: Callable[..., object], seed: Any) -> None:
    with pytest.raises(TypeError, match=r"^seed must be an integer, not "):
        call(seed=seed)
    assert not WORDS.any()


@pytest.mark.parametrize("seed", [-1, 2**64 - 1, True, *INTEGERS])
def test_seeds_that_are_integers(seed: Any) -> None:
    for call in (materialize, initialize, random_bits):
        call(seed=seed)
    WORDS.zero_()


@pytest.mark.parametrize("names", [3, "x", {"weight": "a"}])
@pytest.mark.parametrize(
    "call", [materialize, initialize, pin_names, lambda names: fastinit.materialize(nn.Linear(1, 1), names=names)]
)
def test_names(call: Callable[..., object], names: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^names must be a function from a tensor's name to its name in the random str"
    ):
        call(names=names)


T = torch.empty(3)
PART = fastinit.Region
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no seed": (lambda: random_bits(seed=None), TypeError, "seed must be an integer, not None"),
    "stream": (lambda: random_bits(stream="a"), TypeError, "stream must be an integer, not 'a'"),
    "offset": (lambda: random_bits(offset=1.5), TypeError, "offset must be an integer, not 1.5"),
    "no tensor": (
        lambda: fastinit.random_bits_(3, seed=0, stream=0),  # type: ignore[arg-type]
        TypeError,
        r"random_bits_\(\) takes a tensor, not int",
    ),
    "no tensor for a mixture": (
        lambda: fastinit.mixture_(3, [(1, 1)]),  # type: ignore[arg-type]
        TypeError,
        r"mixture_\(\) takes a tensor, not int",
    ),
    "stream_id": (lambda: fastinit.stream_id(3), TypeError, r"stream_id\(\) takes a string"),  # type: ignore[arg-type]
    "Region": (lambda: PART(3, 4), TypeError, "Region: shape must be integers"),  # type: ignore[arg-type]
    "offsets": (lambda: PART((3,), None), TypeError, "Region: offsets must be integers"),  # type: ignore[arg-type]
    "a size": (lambda: PART((3.5,), (0,)), TypeError, "Region: one of shape must be an integer, not 3.5"),  # type: ignore[arg-type]
    "shards": (lambda: materialize(shards=3), TypeError, "shards must be a mapping from names to fastinit.Region"),
    "shards of a plan": (lambda: plan(shards=3), TypeError, "shards must be a mapping from names to fastinit.Region"),
    "a part": (
        lambda: materialize(shards={"weight": ((4, 3), (2, 0))}),
        TypeError,
        "shards: the part for 'weight' must be a fastinit.Region",
    ),
    "device": (lambda: materialize(device="nope"), ValueError, "device is 'nope': Expected one of cpu"),
    "device of a plan": (lambda: plan(device="cuda:x"), ValueError, "device is 'cuda:x': Invalid device string"),
    "a device index": (lambda: materialize(device=-5), ValueError, "device is -5: Device index must not be neg"),
    "dtype": (
        lambda: materialize(dtype="float16"),
        TypeError,
        "dtype must be a torch.dtype such as torch.bfloat16, or",
    ),
    "a dtype of integers": (
        lambda: materialize(dtype=torch.int8),
        TypeError,
        "dtype must be a floating-point or complex dtype, as of module.to.., not torch.int8",
    ),
    "a dtype of truth values": (
        lambda: plan(dtype=lambda name, tensor: torch.bool),
        TypeError,
        "dtype for 'weight' must be a floating-point or complex dtype, .* not torch.bool",
    ),
    "dtype of a plan": (lambda: plan(dtype=3), TypeError, "dtype must be a torch.dtype such as torch.bfloat16, or a"),
    "a bound that is too large": (lambda: init.uniform_(T, 0, 10**400), OverflowError, "b is an integer that is too"),
    "no mean": (partial(init.normal_, T, None), TypeError, "mean must be a float, not NoneType"),
    "no std": (partial(init.trunc_normal_, T, std=[1]), TypeError, "std must be a float, not list"),
    "scale": (partial(init.variance_scaling_, T, "a"), TypeError, "scale must be a float, not str"),
    "axis": (
        partial(init.variance_scaling_, torch.empty(3, 3), in_axis="a"),
        TypeError,
        "in_axis must be an integer, not 'a'",
    ),
    "groups": (
        partial(init.lecun_normal_, torch.empty(4, 2), groups=2.0),
        TypeError,
        "groups must be an integer, not 2.0",
    ),
}


@pytest.mark.parametrize("argument", ["device", "dtype", "names", "shards"])
@pytest.mark.parametrize("call", [materialize, plan])
def test_a_class_is_no_function(call: Callable[..., object], argument: str) -> None:
    if (call, argument) != (plan, "names"):
        with pytest.raises(TypeError, match=rf"^{argument} must be a .*, not <class 'float'>$"):
            call(**{argument: float})


@pytest.mark.parametrize(("call", "argument"), [(materialize, name) for name in FLAGS] + [(plan, "reset")])
def test_flags(call: Callable[..., object], argument: str) -> None:
    for wrong in ("no", "", None, 2, 1.0, torch.ones(2), []):
        with pytest.raises(TypeError, match=f"^{argument} must be True or False, not "):
            call(**{argument: wrong})
    for right in (True, np.True_, 0):
        call(**({"seed": 0} if call is materialize else {}), **{argument: right})


@pytest.mark.parametrize(
    "initialiser", [init.xavier_uniform_, init.xavier_normal_, init.orthogonal_, init.delta_orthogonal_]
)
def test_gains(initialiser: Callable[..., torch.Tensor]) -> None:
    tensor, state = torch.full((3, 2, 1), 7.0), torch.get_rng_state()
    for wrong in ("x", None, [1], torch.ones(2), 1j, float):
        with pytest.raises(TypeError, match=r"^gain must be a float, not "):
            initialiser(tensor, gain=wrong)
        with fastinit.deferred(), pytest.raises(TypeError, match=r"^gain must be a float, not "):
            initialiser(torch.empty(3, 2, 1), gain=wrong)
    with pytest.raises(TypeError, match=r"^generator must be a torch\.Generator, not int"):
        initialiser(tensor, generator=3)
    assert tensor.eq(7).all() and torch.equal(state, torch.get_rng_state())
    two = [initialiser(torch.empty(3, 2, 1), gain, torch.Generator()) for gain in (2, torch.tensor(2.0))]
    assert torch.equal(*two)


def test_gains_of_torch_in_a_context() -> None:
    for wrong in ("x", None, [1]):
        with fastinit.deferred(), pytest.raises(TypeError, match="must be Tensor, not"):
            torch.nn.init.orthogonal_(torch.empty(3, 2), gain=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted({*init.__all__} - {"calculate_gain", "constant_", "ones_", "zeros_"}))
def test_sparse_tensors(name: str) -> None:
    with pytest.raises(NotImplementedError, match=r"is not implemented for a torch\.sparse_coo tensor"):
        getattr(init, name)(torch.ones((3, 3, 3) if name in CUBES else (3, 3)).to_sparse(), *ARGUMENTS.get(name, ()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_mixture_of_what_has_no_strides() -> None:
    for tensor in (torch.eye(3).to_sparse(), torch.nested.nested_tensor([torch.ones(3)])):
        with pytest.raises(NotImplementedError, match=r"^mixture fill is not implemented for a .* tensor"):
            fastinit.mixture_(tensor, [(1, 0)])


@pytest.mark.parametrize("name", WRONG)
def test_others(name: str) -> None:
    call, error, message = WRONG[name]
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_region_takes_any_sequences() -> None:
    part = fastinit.Region(torch.Size([4, 3]), np.array([2, 0]))  # type: ignore[arg-type]
    assert part == fastinit.Region((4, 3), (2, 0)) and hash(part)
    assert {type(n) for n in (*part.shape, *part.offsets)} == {int}
    assert copy.deepcopy(part) == pickle.loads(pickle.dumps(part)) == part
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.shape = "x"  # type: ignore[misc,assignment]
    lists = {"weight": fastinit.Region([4, 3], [2, 0]), "bias": fastinit.Region([4], [2])}  # type: ignore[arg-type]
    whole = fastinit.materialize(fastinit.skip_init(nn.Linear, 3, 4), seed=1)
    assert torch.equal(fastinit.materialize(deferred(), seed=1, shards=lists).weight, whole.weight[2:])
