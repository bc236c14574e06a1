"""Reports: nothing is flagged that is as promised, and everything that can be off is."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.fake_ranks import on_fake_ranks
from support.sample_report import sample_model
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import torch_fastinit as fastinit
from torch_fastinit.reporting.measured import Measured
from torch_fastinit.reporting.verdict import farthest

N = 1 << 16


def layer(init: Callable[[torch.Tensor], Any], shape: tuple[int, ...] = (256, 256), **options: Any) -> nn.Module:
    """A module whose one parameter is initialised so."""
    with fastinit.deferred():
        module = nn.ParameterDict({"weight": nn.Parameter(torch.empty(shape))})
        init(module["weight"])
    return fastinit.materialize(module, **{"seed": 0, **options})


def only(module: nn.Module, **options: Any) -> Measured:
    (row,) = fastinit.report(module, **options).rows
    return row


# --- nothing that is as promised --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_correct_model_is_never_flagged(dtype: torch.dtype | None) -> None:
    """In 20 seeds: at the probability that is stated, in 1 of 50,000 runs of this test."""
    for seed in range(20):
        with fastinit.deferred():
            model = nn.Sequential(
                nn.Embedding(1000, 64, padding_idx=3),
                nn.Linear(64, 256),
                nn.LayerNorm(256),
                nn.GRU(256, 32),
                nn.Linear(5, 3),
            )
            nn.init.trunc_normal_(model[1].weight, std=0.02, a=-0.04, b=0.04)
            nn.init.sparse_(model[4].weight, 0.3)
        report = fastinit.report(fastinit.materialize(model, seed=seed, dtype=dtype))
        assert report.flagged == ()
        assert all(row.expected_std is not None for row in report.rows)


INITIALISERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "uniform": lambda w: nn.init.uniform_(w, -0.1, 0.1),
    "normal": lambda w: nn.init.normal_(w, 0.5, 0.1),
    "truncated": nn.init.trunc_normal_,
    "tail": lambda w: nn.init.trunc_normal_(w, 0.0, 1.0, 5.0, math.inf),
    "sparse": lambda w: nn.init.sparse_(w, 0.1),
    "eye": nn.init.eye_,
    "ones": nn.init.ones_,
    "scaled": lambda w: w.data.normal_().mul_(0.02).add_(1),
    "kaiming": nn.init.kaiming_normal_,
    "partly zero": lambda w: (nn.init.normal_(w), w.data[5:9].zero_()),
    "in two halves": lambda w: (w.data[:128].normal_(), w.data[128:].uniform_(-3, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("name", INITIALISERS)
def test_what_is_written_is_as_promised(name: str, dtype: torch.dtype) -> None:
    row = only(layer(INITIALISERS[name], dtype=dtype))
    assert row.faults == ()
    if row.expected_std is None:  # replayed: a draw in float32 that is scaled, then cast to float64
        assert row.promise == "recorded operations" and dtype in (torch.float64, torch.float8_e5m2)
        return
    assert row.count == N
    assert row.std == pytest.approx(row.expected_std, rel=0.03 if dtype.itemsize > 1 else 0.15)  # few values are not 1
    assert row.expected_zeros is not None and row.zeros == pytest.approx(row.expected_zeros, rel=0.1, abs=300)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-290, 1e-200, 1e-160, 1e160, 1e200, 1e306])
def test_float64_keeps_its_promises_to_both_ends(scale: float) -> None:
    """Where a fill's own steps are subnormal, nothing is promised but constants."""
    for name, init in {
        "uniform": lambda w: nn.init.uniform_(w, -scale, scale),
        "normal": lambda w: nn.init.normal_(w, 0, scale),
        "truncated": lambda w: nn.init.trunc_normal_(w, 0, scale, -2 * scale, 2 * scale),
        "constant": lambda w: nn.init.constant_(w, scale),
        "partly zero": lambda w: (nn.init.normal_(w, 0, scale), w.data[5:9].zero_()),
    }.items():
        with fastinit.deferred():
            module = nn.Embedding(256, 256, dtype=torch.float64)
            init(module.weight)
        row = only(fastinit.materialize(module, seed=0))
        assert row.faults == ()
        assert (row.expected_std is None) == (scale < 1e-300 and name != "constant")
        module.weight.data.mul_(2)
        if row.expected_std is None:
            assert only(module).faults == ()
        else:
            assert row.std == pytest.approx(row.expected_std, rel=0.03)
            assert any(fault.startswith("deviation ") for fault in only(module).faults)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-33, 1e-28, 1e36])
def test_float32_near_its_ends(scale: float) -> None:
    for init in (nn.init.uniform_, nn.init.normal_):
        row = only(layer(lambda w, init=init: init(w, -scale, scale)))  # type: ignore[misc]
        assert row.faults == () and (row.expected_std is None) == (scale < 1e-30)


def test_statistics_are_those_of_torch() -> None:
    model = sample_model()
    for row in fastinit.report(model).rows:
        tensor = model.state_dict()[row.name].double()
        assert (row.min, row.max, row.zeros) == (tensor.min(), tensor.max(), (tensor == 0).sum())
        assert row.mean == pytest.approx(float(tensor.mean()), abs=1e-12)
        assert row.std == pytest.approx(float(tensor.std(correction=0)), abs=1e-12)
        assert row.histogram is not None and sum(row.histogram.counts) == row.count == tensor.numel()


def test_a_complex_tensor_is_its_parts() -> None:
    with fastinit.deferred():
        module = nn.ParameterDict({"weight": nn.Parameter(torch.randn(100, 100, dtype=torch.complex64))})
    row = only(fastinit.materialize(module, seed=0))
    assert row.count == 20_000 and row.faults == () and row.expected_std == pytest.approx(math.sqrt(0.5), rel=1e-5)


# --- what can be off --------------------------------------------------------------------------------------------------


def changed(
    change: Callable[[torch.Tensor], Any], init: Callable[[torch.Tensor], Any] = nn.init.normal_
) -> tuple[str, ...]:
    module = layer(init)
    with torch.no_grad():
        change(module.weight)
    return only(module).faults


@pytest.mark.parametrize("factor", [0.97, 1.03])
@pytest.mark.parametrize("name", ["uniform", "truncated", "kaiming", "scaled"])
def test_a_deviation_that_is_off_by_three_hundredths(name: str, factor: float) -> None:
    about = 1 if name == "scaled" else 0
    faults = changed(lambda w: w.sub_(about).mul_(factor).add_(about), INITIALISERS[name])
    assert any(fault.startswith("deviation ") for fault in faults)


@pytest.mark.parametrize("shift", [-0.03, 0.03])
def test_a_mean_that_is_off(shift: float) -> None:
    (fault,) = changed(lambda w: w.add_(shift))
    assert fault.startswith("mean ") and fault.endswith(", not 0")


def test_a_value_beyond_the_farthest_normal() -> None:
    assert changed(lambda w: w[0, 0].fill_(6.7)) == ("maximum 6.7 above 6.66",)
    assert changed(lambda w: w[0, 0].fill_(-6.7)) == ("minimum -6.7 below -6.66",)


def test_a_value_beyond_a_bound() -> None:
    assert changed(lambda w: w[0, 0].fill_(0.1001), INITIALISERS["uniform"]) == ("maximum 0.1001 above 0.1",)


def test_extremes_that_are_too_near() -> None:
    faults = changed(lambda w: w.clamp_(-2.5, 2.5))
    assert "maximum 2.5, too near" in faults and "minimum -2.5, too near" in faults


def test_zeros_that_nothing_promised() -> None:
    assert changed(lambda w: w[0, :64].zero_()) == ("64 zeros, not 0",)
    assert "0 zeros, not 6,656" in changed(lambda w: w.masked_fill_(w == 0, 0.01), INITIALISERS["sparse"])


def test_values_that_are_not_finite() -> None:
    assert changed(lambda w: w[3, :2].fill_(math.nan)) == ("2 not finite",)
    assert changed(lambda w: w[3, 3].fill_(math.inf), nn.init.eye_) == ("1 not finite",)
    module = nn.Linear(4, 4)  # with no promise
    module.weight.data[0] = -math.inf
    assert fastinit.report(module).flagged[0].faults == ("4 not finite",)


def test_a_constant_that_is_another() -> None:
    assert changed(lambda w: w[0, 0].fill_(2.0), nn.init.ones_)[0] == "maximum 2 above 1"
    assert any("mean" in fault for fault in changed(lambda w: w.fill_(0.5), nn.init.ones_))
    assert any("zeros" in fault for fault in changed(lambda w: w[3, 3].fill_(0.0), nn.init.eye_))


def constant(
    dtype: torch.dtype, *values: complex, wrap: Callable[[torch.Tensor], torch.Tensor] = lambda w: w
) -> nn.Module:
    """A module with a buffer, of which each row is a constant."""
    with fastinit.deferred():
        module = nn.Module()
        rows = torch.empty(len(values), 8, dtype=dtype)
        for i, value in enumerate(values):
            rows[i] = value
        module.register_buffer("rows", wrap(rows))
    return fastinit.materialize(module, seed=0)


@pytest.mark.parametrize(
    "dtype, values, other",
    [
        (torch.int64, [2**53], 2**53 + 1),
        (torch.int64, [2**53 + 1, -(2**53) - 1], 2**53),
        (torch.uint64, [3], 4),
        (torch.complex64, [1 + 2j], 2 + 1j),
        (torch.complex128, [1 + 2j, 3], 2 + 1j),
    ],
)
def test_constants_that_doubles_do_not_tell_apart(dtype: torch.dtype, values: list[complex], other: complex) -> None:
    module = constant(dtype, *values)
    assert only(module).faults == ()
    module.rows[0, 3] = other
    assert only(module).faults[-1:] == ("1 element not the constant",) or dtype is torch.uint64
    assert only(module).faults
    module.rows[0] = other
    assert "8 elements not the constant" in only(module).faults


def test_nothing_is_promised_of_lazy_views() -> None:
    for wrap in (torch._neg_view, torch.conj, lambda w: torch._neg_view(w.conj())):
        row = only(constant(torch.complex64, 1 + 2j, wrap=wrap))
        assert row.faults == () and row.expected_std is None and row.promise == "Constant(value=1+2j)"


def test_another_number_of_elements() -> None:
    module = layer(nn.init.normal_)
    module["weight"] = nn.Parameter(module["weight"].data[:8])
    assert only(module).faults == ("2,048 elements, not 65,536",)


def test_the_bound_is_bernsteins() -> None:
    assert farthest(20.0, 0.0, 0.0) == 0
    assert farthest(36 / 2 / (4 + 3 * 6 / 3), 4.0, 3.0) == pytest.approx(6.0)


def test_the_probability_is_shared_among_the_tests() -> None:
    """What one model shows at a level, a probability a thousand times smaller does not."""
    module = layer(nn.init.normal_)
    module.weight.data.mul_(1.02)
    assert only(module, probability=1e-3).faults and not only(module, probability=1e-30).faults


# --- what was promised ------------------------------------------------------------------------------------------------


def test_parts_and_wholes_know_what_was_promised() -> None:
    with fastinit.deferred():
        model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8))
    fastinit.pin_names(model)
    fastinit.materialize(model[0], seed=0)
    fastinit.materialize(model, seed=0)
    for part in (model, model[0], model[0][0], nn.Sequential(nn.Identity(), model)):
        assert all(row.promise.startswith("Uniform") for row in fastinit.report(part).rows)


def test_tied_tensors_have_one_row_whatever_part_is_asked_for() -> None:
    with fastinit.deferred():
        model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 16, bias=False))
        model[1].weight = model[0].weight
    fastinit.materialize(model, seed=0)
    (row,) = fastinit.report(model).rows
    assert row.tied == ("1.weight",) and only(model[1]).promise == row.promise == "Normal(mean=0, std=1)"


def test_a_plan_promises_for_a_model_that_was_built_eagerly() -> None:
    torch.manual_seed(0)
    with fastinit.deferred():
        twin = nn.Linear(256, 256)
    plan = pickle.loads(pickle.dumps(fastinit.plan(twin)))
    model = nn.Linear(256, 256)
    assert fastinit.report(model).rows[0].expected_std is None
    report = fastinit.report(model, plan=plan)
    assert report.flagged == () and report.rows[0].expected_std == pytest.approx(1 / 16 / math.sqrt(3), rel=1e-5)
    model.weight.data.mul_(1.03)
    assert fastinit.report(model, plan=plan).flagged == fastinit.report(model, plan=plan).rows[:1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["uniform", "truncated", "small", "normal", "sparse"])
def test_torch_in_narrow_dtypes_is_not_blamed(name: str, dtype: torch.dtype) -> None:
    """Its uniforms have few values there, its bounds are rounded outwards, and torch 2.11 makes normals of these.

    A normal that is cast is a normal of the narrow dtype, so that nobody knows which it was.
    """
    init = {"small": lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04), **INITIALISERS}[name]

    def build(made: torch.dtype) -> nn.Module:
        module = nn.Embedding(256, 256, dtype=made)
        init(module.weight)
        return module.to(dtype)

    torch.manual_seed(0)
    for made in (dtype, torch.float32):
        with fastinit.deferred():
            twin = build(made)
        row = only(build(made), plan=fastinit.plan(twin))
        assert row.faults == ()
        coarse = made is dtype and name in ("uniform", "truncated", "small")
        if torch.__version__ < (2, 12):
            coarse = coarse or name in ("normal", "sparse")
        assert (row.expected_std is None) == coarse


def test_rules_and_initialize_promise_too() -> None:
    model = fastinit.materialize(fastinit.skip_init(nn.Linear, 64, 64), seed=0, init={"weight": nn.init.xavier_normal_})
    assert [row.promise for row in fastinit.report(model).rows] == [
        "Normal(mean=0, std=0.125)",
        "Uniform(a=-0.125, b=0.125)",
    ]
    fastinit.initialize(model, {"bias": 1}, seed=0)
    assert fastinit.report(model).rows[1].promise == "Constant(value=1)" and not fastinit.report(model).flagged


def test_the_normals_of_torch_reach_further() -> None:
    with fastinit.deferred():
        module = nn.ParameterDict({"weight": nn.Parameter(torch.randn(64, 64))})
    fastinit.materialize(module, replay="torch")
    module.weight.data[0, 0] = 6.7
    assert only(module).faults == ()


def test_what_is_replayed_has_no_promise() -> None:
    row = only(layer(nn.init.orthogonal_))
    assert (row.promise, row.expected_std, row.faults) == ("recorded operations", None, ())


def test_a_note_does_not_keep_a_module() -> None:
    import gc
    import weakref

    module = layer(nn.init.normal_)
    dead = weakref.ref(module)
    del module
    gc.collect()
    assert dead() is None


# --- what has no values -----------------------------------------------------------------------------------------------


def test_a_deferred_model_is_refused() -> None:
    with fastinit.deferred():
        model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"'weight', 'bias': deferred.*call fastinit.materialize"):
        fastinit.report(model)
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"'weight', 'bias': on the meta device.*materialize"):
        fastinit.report(model)


def test_the_default_device_does_not_matter() -> None:
    module = layer(nn.init.normal_)
    with torch.device("meta"):
        row = only(module)
    assert row.faults == () and row.expected_std == pytest.approx(1, rel=1e-5)


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"takes a torch\.nn\.Module, not int"):
        fastinit.report(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="plan must be"):
        fastinit.report(nn.Linear(2, 2), plan={})  # type: ignore[arg-type]
    for bad in ("0.1", None, True, 1j, torch.tensor(0.1)):
        with pytest.raises(TypeError, match="probability must be a number between 0 and 1, not "):
            fastinit.report(nn.Linear(2, 2), probability=bad)  # type: ignore[arg-type]
    assert fastinit.report(nn.Linear(2, 2), probability=5e-324).flagged == ()
    with pytest.raises(
        ValueError, match=r"plan names no tensor .*'0.weight', '0.bias'.* the model has 'weight', 'bias'"
    ):
        fastinit.report(nn.Linear(2, 2), plan=fastinit.plan(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(TypeError, match=r"path must be a str or an os\.PathLike, not int"):
        fastinit.report(nn.Linear(2, 2)).save(3)  # type: ignore[arg-type]
    for probability in (0, 1, -1.0, math.nan):
        with pytest.raises(ValueError, match="probability must be between"):
            fastinit.report(nn.Linear(2, 2), probability=probability)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_what_cannot_be_read_has_a_note() -> None:
    model = nn.ParameterDict({"empty": nn.Parameter(torch.empty(0, 3))})
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    model.register_buffer("packed", torch.empty(3, dtype=torch.uint4))
    model.lazy = nn.LazyLinear(3, bias=False)  # type: ignore[assignment]
    notes = {row.name: (row.note, row.count, row.faults) for row in fastinit.report(model).rows}
    assert notes == {
        "empty": ("", 0, ()),
        "lazy.weight": ("no shape yet", 0, ()),
        "sparse": ("not examined: its layout is sparse_coo", 0, ()),
        "nested": ("not examined: it is nested", 0, ()),
        "packed": ("not examined: its dtype is uint4", 0, ()),
    }
    assert "not examined: it is nested" in str(fastinit.report(model))


def test_a_dtensors_part_is_reported() -> None:
    def weight(mesh: DeviceMesh) -> Measured:
        with fastinit.deferred():
            model = nn.Linear(64, 256)
        parallelize_module(model, mesh, ColwiseParallel())
        fastinit.materialize(model, seed=0, check=False)
        return fastinit.report(model).rows[0]

    row = on_fake_ranks((4,), weight, ranks=[1])[1]
    assert (row.name, row.shape, row.count) == ("weight", (256, 64), 64 * 64)
    assert row.note == "this rank's part: 64x64"
    assert row.promise.startswith("Uniform") and row.faults == ()


def test_complex_tensors_and_views_of_other_dtypes() -> None:
    with fastinit.deferred():
        module = nn.ParameterDict({"weight": nn.Parameter(torch.empty(128, 128, dtype=torch.complex64))})
        fastinit.init.normal_(module["weight"])
        module.register_buffer("words", torch.empty(40, 40))
        module.words.view(torch.int32).fill_(0x3F800000)
    fastinit.materialize(module, seed=0)
    assert not fastinit.report(module).flagged
    module["weight"].data.mul_(2**-0.5)
    assert [row.name for row in fastinit.report(module).flagged] == ["weight"]


def test_nothing_is_promised_of_what_was_cast_or_repeated() -> None:
    module = layer(lambda w: torch.nn.init.uniform_(w, -0.03608, 0.03608)).bfloat16()
    assert not fastinit.report(module).flagged
    with fastinit.deferred():
        spread = nn.Module()
        spread.register_buffer("rows", torch.randn(1, 64).expand(256, 64))
    assert not fastinit.report(fastinit.materialize(spread, seed=0)).flagged
    for dtype in (torch.float32, torch.bfloat16):
        assert not fastinit.report(layer(lambda w: w.data.normal_().mul_(0), dtype=dtype)).flagged
    with fastinit.deferred():
        linear = nn.Linear(64, 64, dtype=torch.bfloat16)
    assert not fastinit.report(fastinit.materialize(linear, replay="torch")).flagged
