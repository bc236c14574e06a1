"""The compiled pass against NumPy, and what goes by way of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_fastinit import _C
from torch_fastinit.codes import DTYPE_CODES
from torch_fastinit.reporting import memory
from torch_fastinit.reporting.memory import BINS, Elements, Statistics

READ = [dtype for dtype in DTYPE_CODES if dtype.is_floating_point]
#: Blocks have 4096 elements, pieces 65536, registers up to 16.
SIZES = [1, 2, 15, 16, 17, 4095, 4096, 4097, 65536, 65537 + 4096]


def readable(tensor: torch.Tensor) -> str:
    return Elements.of(tensor).why


def statistics(tensors: Sequence[torch.Tensor]) -> list[Statistics]:
    return memory.statistics([Elements.of(tensor) for tensor in tensors], [None] * len(tensors))


def histograms(tensors: Sequence[torch.Tensor], ranges: Sequence[tuple[float, float]]) -> list[tuple[int, ...]]:
    return memory.histograms([Elements.of(tensor) for tensor in tensors], ranges)


def check(found: Statistics, tensor: torch.Tensor) -> None:
    values = tensor.double().numpy().ravel()
    finite = values[np.isfinite(values)]
    assert (found.count, found.zeros, found.nonfinite) == (len(values), (finite == 0).sum(), len(values) - len(finite))
    if len(finite) == 0:
        assert math.isnan(found.mean) and math.isnan(found.std)
        return
    assert (found.min, found.max) == (finite.min(), finite.max())
    assert found.mean == pytest.approx(finite.mean(), rel=1e-13, abs=1e-16)
    assert found.std == pytest.approx(finite.std(), rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("dtype", READ, ids=str)
def test_statistics_are_those_of_numpy(dtype: torch.dtype, isa: str) -> None:
    torch.manual_seed(0)
    tensors = []
    for size in SIZES:
        tensors.append((torch.randn(size) * 0.5 + 3).to(dtype))
        if size > 16:  # zeros, and what is not finite: in a whole register, and behind the last one
            odd = tensors[-1].clone()
            odd[3], odd[5], odd[-1], odd[-2] = 0, math.nan, -math.nan, -0.0
            tensors += [odd, odd.clone()]
            tensors[-1][::7] = math.nan
    tensors.append(torch.full((100,), math.nan).to(dtype))
    for found, tensor in zip(statistics(tensors), tensors, strict=True):
        check(found, tensor)


@pytest.mark.parametrize("dtype", [dtype for dtype in READ if dtype.itemsize <= 2], ids=str)
def test_every_narrow_value_is_read(dtype: torch.dtype, isa: str) -> None:
    bits = 8 * dtype.itemsize
    values = torch.arange(1 << bits).to(torch.uint8 if bits == 8 else torch.int16).view(dtype)
    some = values[:: 1 if bits == 8 else 5]
    for value, found in zip(some.double().tolist(), statistics(list(some)), strict=True):
        finite = math.isfinite(value)
        assert (found.nonfinite, found.min, found.max) == ((0, value, value) if finite else (1, math.inf, -math.inf))
    check(statistics([values])[0], values)


def test_the_bits_depend_neither_on_threads_nor_on_the_instruction_set() -> None:
    torch.manual_seed(0)
    tensor, before, threads = torch.randn(300_001), _C.instruction_set(), torch.get_num_threads()
    found = []
    for name in _C.instruction_sets():
        for count in (1, 3):
            _C.set_instruction_set(name)
            torch.set_num_threads(count)
            try:
                found.append(statistics([tensor, tensor.bfloat16()]))
            finally:
                _C.set_instruction_set(before)
                torch.set_num_threads(threads)
    assert all(one == found[0] for one in found)


def test_a_small_deviation_beside_a_large_mean_keeps_its_digits() -> None:
    tensor = 1e6 + torch.linspace(-1e-6, 1e-6, 10_001, dtype=torch.float64)
    assert statistics([tensor])[0].std == pytest.approx(tensor.numpy().std(), rel=1e-6)


@pytest.mark.parametrize("top", [5e-324, 1e-310, 1e-200, 1e-150, 1e150, 1e200, 1.7e308])
def test_the_ends_of_double_have_statistics(top: float, isa: str) -> None:
    torch.manual_seed(0)
    tensor = (torch.rand(10_000, dtype=torch.float64) * 2 - 1) * top
    tensor[4], tensor[-2] = top, -top
    for one in (tensor, tensor[::2], torch.full((100,), top, dtype=torch.float64)):
        values, found = one.numpy().astype(np.longdouble).ravel(), statistics([one])[0]
        assert (found.min, found.max, found.zeros) == (values.min(), values.max(), (values == 0).sum())
        assert abs(found.mean - values.mean(dtype=np.longdouble)) <= max(1e-15 * top, 5e-324)
        assert abs(found.std - values.std()) <= max(1e-11 * top, 5e-324)
        counts = np.histogram(values / top, BINS, (-1, 1))[0]
        assert histograms([one], [(-top, top)]) == [tuple(counts.tolist())]


def test_what_does_not_lie_ready_goes_through_torch() -> None:
    torch.manual_seed(0)
    base = torch.randn(64, 96)
    tensors = [base[:, ::2], base.t(), base[3:5].expand(4, 2, 96), torch.arange(7), base > 0, torch.randint(9, (5, 5))]
    tensors.append(base.double()[:, ::2])
    for found, tensor in zip(statistics(tensors), tensors, strict=True):
        check(found, tensor)
    complexes = torch.view_as_complex(base.reshape(64, 48, 2))
    for tensor in (complexes, complexes.conj(), complexes[::2], torch._neg_view(complexes.conj())):
        check(statistics([tensor])[0], torch.view_as_real(tensor.resolve_conj().resolve_neg()))
    for tensor in (torch._neg_view(base), complexes.conj().imag):
        check(statistics([tensor])[0], tensor.resolve_neg())


def test_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_fastinit.reporting.memory._CHUNK", 10)
    tensor = torch.randn(50, 3)[:, 1]
    tensor[3], tensor[10:20] = 0, math.nan
    check(statistics([tensor])[0], tensor)
    far = statistics([torch.tensor([[1e200, 0], [-1e200, 0]], dtype=torch.float64).repeat(10, 1)[:, 0]])[0]
    assert (far.mean, far.std) == (0, 1e200)


def test_histograms_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    for tensor in (torch.randn(1000), torch.randn(5000).half(), torch.randn(700, 2, dtype=torch.float64)[:, 0]):
        values = tensor.double().numpy()
        counts = np.histogram(values.clip(-2, 2), BINS, (-2, 2))[0]
        assert histograms([tensor], [(-2.0, 2.0)]) == [tuple(counts.tolist())]


def test_a_histogram_in_passing_is_the_same(isa: str) -> None:
    torch.manual_seed(0)
    for size in (1, 257, 70_001, 1 << 20):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            tensor = torch.randn(size).to(dtype)
            tensor[0] = math.nan
            (found,) = memory.statistics([Elements.of(tensor)], [(-2.0, 2.0)])
            assert [found.parts] == histograms([tensor], [(-2.0, 2.0)])
            assert statistics([tensor])[0].parts == ()


def test_a_sample_is_spread_over_all_of_a_tensor() -> None:
    counts = histograms([torch.arange(1 << 20).float()], [(0.0, float(1 << 20))])[0]
    assert 1 << 15 < sum(counts) <= 1 << 16 and min(counts) > 0.7 * sum(counts) / BINS


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_what_cannot_be_read_says_why() -> None:
    assert readable(torch.empty(2, device="meta")) == "on the meta device"
    assert readable(torch.eye(2).to_sparse()) == "its layout is sparse_coo"
    assert readable(torch.empty(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)) == "its dtype is float4_e2m1fn_x2"
    assert readable(torch.empty(2, dtype=torch.uint4)) == "its dtype is uint4"
    assert readable(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)) == "its dtype is qint8"
    assert readable(FakeTensorMode().from_tensor(torch.ones(2))) == "it has no memory"
    freed = torch.ones(2)
    freed.untyped_storage().resize_(0)
    assert readable(freed) == "it has no memory"
    escaped: list[torch.Tensor] = []
    torch.func.vmap(lambda x: escaped.append(x) or x)(torch.ones(2, 2))
    assert readable(escaped[0]) == "it has no memory"
    assert not readable(torch.empty(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no floating-point dtype has the code 6"):
        _C.statistics([(0, 1, 6)], [None], 1, 1, 1)
