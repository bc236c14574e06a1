"""Random misuse of deferred modules outside a context: what eager code gives, or one of our errors."""

from __future__ import annotations

import copy
import ctypes
import io
import operator
import pickle
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from support.comparison import same_bits, tensors_of
from torch import nn

import torch_fastinit as fastinit

CALLS = 500


def no_grad(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.no_grad()(function)


def assign(module: nn.Module, name: str, value: Any) -> None:
    path, _, last = name.rpartition(".")
    setattr(module.get_submodule(path), last, value)


def step(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[..., Any]:
    def call(m: nn.Module, n: str, t: torch.Tensor) -> None:
        optimizer = make([p for p in m.parameters() if p.requires_grad], **options)
        optimizer.step()
        optimizer.zero_grad()

    return call


def forward(m: nn.Module) -> Any:
    layer = next(m.children()).eval()  # in training, a BatchNorm counts the batch before it is refused
    if isinstance(layer, nn.Embedding):
        return layer(torch.tensor([0, 2]))
    if isinstance(layer, nn.Conv2d):
        return layer(torch.ones(1, 3, 5, 5))
    if isinstance(layer, nn.MultiheadAttention):
        return layer(*[torch.ones(2, 1, 4)] * 3)
    return layer(torch.ones(2, 4))


def real_like(t: torch.Tensor) -> torch.Tensor:
    return torch.ones(tuple(t.shape), dtype=t.dtype)


def save(m: nn.Module) -> None:
    torch.save(m.state_dict(), io.BytesIO())


def save_in_the_old_format(m: nn.Module) -> None:
    torch.save(m, io.BytesIO(), _use_new_zipfile_serialization=False)


def reload(m: nn.Module, **options: Any) -> Any:
    return str(m.load_state_dict({name: real_like(t) for name, t in m.state_dict().items()}, **options))


def into_a_real_one(m: nn.Module) -> Any:
    return build(type(next(m.children())).__name__).load_state_dict(m.state_dict())


#: Each is called with the module, the name of one of its tensors, and that tensor.
MISUSES: dict[str, Callable[[nn.Module, str, torch.Tensor], Any]] = {
    # memory
    "data_ptr": lambda m, n, t: t.data_ptr() * 0,
    "C data_ptr": lambda m, n, t: t.detach().data_ptr() * 0,
    "storage data_ptr": lambda m, n, t: t.untyped_storage().data_ptr() * 0,
    "typed storage data_ptr": lambda m, n, t: t._typed_storage().data_ptr() * 0,
    "storage contents": lambda m, n, t: t.untyped_storage().tolist(),
    "storage element": lambda m, n, t: t.untyped_storage()[0],
    "storage copy": lambda m, n, t: t.untyped_storage().clone().tolist(),
    "storage fill": lambda m, n, t: t.untyped_storage().fill_(0) and None,
    "storage size": lambda m, n, t: (t.untyped_storage().nbytes(), len(t.untyped_storage())),
    "storage pickle": lambda m, n, t: len(pickle.dumps(t.untyped_storage())) * 0,
    "ctypes": lambda m, n, t: ctypes.string_at(t.data_ptr(), t.nbytes),
    "memoryview": lambda m, n, t: memoryview(t),
    "numpy": lambda m, n, t: t.detach().numpy().tolist(),
    "numpy of a parameter": lambda m, n, t: t.numpy().tolist(),
    "numpy by force": lambda m, n, t: t.numpy(force=True).tolist(),
    "asarray": lambda m, n, t: np.asarray(t.detach()).tolist(),
    "array of a dtype": lambda m, n, t: np.array(t.detach(), dtype=np.float64, copy=True).tolist(),
    "numpy function": lambda m, n, t: float(np.sum(t.detach().numpy())),
    "dlpack": lambda m, n, t: torch.from_dlpack(t.detach()),
    "dlpack of a parameter": lambda m, n, t: torch.from_dlpack(t),
    "to_dlpack": lambda m, n, t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t.detach())),
    "dlpack to numpy": lambda m, n, t: np.from_dlpack(t.detach()).tolist(),
    "dlpack device": lambda m, n, t: tuple(map(int, t.__dlpack_device__())),
    "cuda array": lambda m, n, t: t.__cuda_array_interface__,
    "share_memory_": lambda m, n, t: t.share_memory_() and None,
    "module.share_memory": lambda m, n, t: m.share_memory() and None,
    "is_shared": lambda m, n, t: t.is_shared(),
    "pin_memory": lambda m, n, t: t.is_pinned(),
    "pickle": lambda m, n, t: len(pickle.dumps(t)) * 0,
    "pickle the module": lambda m, n, t: len(pickle.dumps(m)) * 0,
    "save": lambda m, n, t: save(m),
    "save, old format": lambda m, n, t: save_in_the_old_format(m),
    "safetensors": lambda m, n, t: len(safetensors.torch.save(m.state_dict())) * 0,
    # contents
    "item": lambda m, n, t: t.item(),
    "element": lambda m, n, t: t.flatten()[0].item(),
    "tolist": lambda m, n, t: t.tolist(),
    "bool": lambda m, n, t: bool(t),
    "int": lambda m, n, t: int(t),
    "float": lambda m, n, t: float(t.flatten()[1]),
    "index": lambda m, n, t: operator.index(t),
    "iterate": lambda m, n, t: [x.tolist() for x in t],
    "contains": lambda m, n, t: 0 in t,
    "format": lambda m, n, t: len(f"{t.flatten()[0]:.2f}") * 0,
    "repr": lambda m, n, t: len(repr(t)) * 0,
    "equal": lambda m, n, t: torch.equal(t, t.detach().clone()),
    "allclose": lambda m, n, t: torch.allclose(t, t),
    "nonzero": lambda m, n, t: t.nonzero(),
    "unique": lambda m, n, t: t.unique(),
    "mask": lambda m, n, t: t[t > 0],
    "compare": lambda m, n, t: t == 0,
    "isfinite": lambda m, n, t: t.isfinite().all().item(),
    "tensor of it": lambda m, n, t: torch.tensor(t.detach().flatten()[0].item()),
    # computing
    "forward": lambda m, n, t: forward(m),
    "forward without a gradient": lambda m, n, t: no_grad(forward)(m),
    "forward in inference mode": lambda m, n, t: torch.inference_mode()(forward)(m),
    "training step": lambda m, n, t: forward(m).sum().backward(),
    "functional_call": lambda m, n, t: torch.func.functional_call(
        next(m.children()).eval(), dict(next(m.children()).named_parameters()), (torch.ones(2, 4),)
    ),
    "vmap": lambda m, n, t: torch.vmap(lambda x: x * 2)(t.detach()),
    "grad": lambda m, n, t: torch.func.grad(lambda x: (x.float() * x).sum())(t.detach()),
    "linear": lambda m, n, t: F.linear(torch.ones(1, t.shape[-1]), t),
    "add": lambda m, n, t: t + 1,
    "radd": lambda m, n, t: 1 + t,
    "multiply without a gradient": lambda m, n, t: no_grad(operator.mul)(t, 2),
    "with a real one": lambda m, n, t: torch.ones(tuple(t.shape)) + t,
    "into a real one": lambda m, n, t: no_grad(torch.Tensor.copy_)(torch.zeros(tuple(t.shape)), t),
    "add into a real one": lambda m, n, t: torch.zeros(tuple(t.shape)).add_(t.detach()),
    "matmul": lambda m, n, t: t @ t.mT,
    "sum": lambda m, n, t: t.sum(),
    "norm": lambda m, n, t: t.norm(),
    "cat": lambda m, n, t: torch.cat([t, t]),
    "stack": lambda m, n, t: torch.stack([t, t]),
    "gather": lambda m, n, t: t[torch.tensor([0])],
    "einsum": lambda m, n, t: torch.einsum("...i,...i->...", t, t),
    "where": lambda m, n, t: torch.where(torch.ones((), dtype=torch.bool), t, 0),
    "svd": lambda m, n, t: torch.linalg.svdvals(t.detach()),
    "fft": lambda m, n, t: torch.fft.fft(t),
    "sort": lambda m, n, t: t.sort(),
    "max": lambda m, n, t: t.max(0),
    "bernoulli": lambda m, n, t: torch.bernoulli(t.detach()),
    "normal around it": lambda m, n, t: torch.normal(t.detach(), 1.0),
    "sparse": lambda m, n, t: t.detach().to_sparse().to_dense(),
    "quantize": lambda m, n, t: torch.quantize_per_tensor(t.detach(), 0.1, 0, torch.qint8).int_repr(),
    "type": lambda m, n, t: t.detach().type(torch.float64),
    "dropout": lambda m, n, t: F.dropout(t, 0.5),
    "relu in place": lambda m, n, t: F.relu_(t.detach()),
    "foreach": lambda m, n, t: torch._foreach_mul([t.detach()], 2),
    "foreach in place": lambda m, n, t: no_grad(torch._foreach_mul_)([t], 2) and None,
    "out": lambda m, n, t: no_grad(torch.mul)(t, 2, out=torch.empty(tuple(t.shape))),
    "into it": lambda m, n, t: no_grad(torch.mul)(torch.ones(tuple(t.shape)), 2, out=t) and None,
    # gradients
    "backward": lambda m, n, t: t.backward(),
    "backward with a gradient": lambda m, n, t: t.backward(real_like(t)),
    "backward of a sum": lambda m, n, t: t.sum().backward(),
    "autograd.grad": lambda m, n, t: torch.autograd.grad(t.sum(), t),
    "assign a gradient": lambda m, n, t: setattr(t, "grad", real_like(t)),
    "no gradient": lambda m, n, t: (setattr(t, "grad", None), t.grad),
    "zero_grad": lambda m, n, t: m.zero_grad(),
    "clip": lambda m, n, t: nn.utils.clip_grad_norm_(m.parameters(), 1.0),
    "SGD": step(torch.optim.SGD, lr=0.1),
    "AdamW": step(torch.optim.AdamW),
    "in-place with a gradient": lambda m, n, t: t.mul_(2) and None,
    "in-place of a view": lambda m, n, t: t[0].zero_() and None,
    "into a vector": lambda m, n, t: nn.utils.parameters_to_vector(m.parameters()),
    "from a vector": lambda m, n, t: nn.utils.vector_to_parameters(
        torch.ones(sum(p.numel() for p in m.parameters())), m.parameters()
    ),
    "weight_norm": lambda m, n, t: nn.utils.parametrizations.weight_norm(next(m.children())) and None,
    "orthogonal": lambda m, n, t: nn.utils.parametrizations.orthogonal(next(m.children())) and None,
    "prune": lambda m, n, t: nn.utils.prune.l1_unstructured(next(m.children()), "weight", 0.5) and None,
    "trace": lambda m, n, t: torch.jit.trace(next(m.children()), torch.ones(2, 4)) and None,
    "to_empty": lambda m, n, t: m.to_empty(device="cpu") and None,
    "load into a real one": lambda m, n, t: str(into_a_real_one(m)),
    # what stays recorded
    "half": lambda m, n, t: m.half() and None,
    "double": lambda m, n, t: m.to(torch.float64) and None,
    "cast": lambda m, n, t: t.detach().to(torch.bfloat16),
    "view": lambda m, n, t: t.detach().view(-1),
    "transposed": lambda m, n, t: t.detach().mT.contiguous(),
    "chunk": lambda m, n, t: t.detach().chunk(2)[0],
    "deepcopy": lambda m, n, t: assign(m, "copied", copy.deepcopy(next(m.children()))),
    "requires_grad_": lambda m, n, t: m.requires_grad_(False) and None,
    "data": lambda m, n, t: setattr(t, "data", t.data.clone()),
    "real data": lambda m, n, t: setattr(t, "data", real_like(t)),
    "fill": lambda m, n, t: no_grad(torch.Tensor.fill_)(t, 2) and None,
    "scale": lambda m, n, t: no_grad(torch.Tensor.mul_)(t, 2) and None,
    "a row": lambda m, n, t: no_grad(operator.setitem)(t, 0, 1.0),
    "data in place": lambda m, n, t: t.data.add_(1) and None,
    "normal_": lambda m, n, t: nn.init.normal_(t) and None,
    "trunc_normal_": lambda m, n, t: nn.init.trunc_normal_(t) and None,
    "xavier_uniform_": lambda m, n, t: nn.init.xavier_uniform_(t) and None,
    "zeros_": lambda m, n, t: nn.init.zeros_(t) and None,
    "load": lambda m, n, t: reload(m),
    "load by assignment": lambda m, n, t: reload(m, assign=True),
    "load the wrong one": lambda m, n, t: m.load_state_dict({"x": torch.ones(2)}),
    "zeros like it": lambda m, n, t: torch.zeros_like(t),
    "new_full": lambda m, n, t: t.new_full((2, 2), 3.0),
    "tie": lambda m, n, t: setattr(m, "tied", t),
    "metadata": lambda m, n, t: (t.shape, t.dtype, t.stride(), t.numel(), t.nbytes, t.is_contiguous(), len(t)),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(4, 4),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "Embedding": lambda: nn.Embedding(6, 4, padding_idx=0),
    "Conv2d": lambda: nn.Conv2d(3, 4, 3),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
}


def build(layer: str) -> nn.Module:
    return nn.Sequential(LAYERS[layer]())


def outcome(misuse: str, module: nn.Module, name: str) -> tuple[Any, BaseException | None]:
    try:
        return MISUSES[misuse](module, name, tensors_of(module)[name]), None
    except Exception as error:
        return None, error


def is_ours(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "fastinit." in str(error)


def is_same(error: BaseException, other: BaseException | None) -> bool:
    messages = [re.sub(r"'(Deferred|Parameter)'", "'Tensor'", str(e)) for e in (error, other)]
    return type(error) is type(other) and messages[0] == messages[1]


def structure(module: nn.Module, tape: Any) -> tuple[int, dict[str, tuple[int, int]]]:
    return len(tape.draws), {name: (id(t), t._version) for name, t in tensors_of(module).items()}


def check(misuses: list[str], layer: str, name: str) -> int:
    """`misuses`, one after another, on a deferred module, and on an eager one those that are not refused.

    Returns how many are not.
    """
    torch.manual_seed(5)
    with fastinit.deferred():
        ours = build(layer)
    tape = tensors_of(ours)[name]._value.storage.tape  # type: ignore[attr-defined]
    outcomes = []
    for misuse in misuses:
        before = structure(ours, tape)
        got, error = outcome(misuse, ours, name)
        outcomes.append((misuse, got, error))
        if error is not None and is_ours(error) and structure(ours, tape) != before:
            break  # refused half way, as torch.nn.utils.prune and dropout are
    torch.manual_seed(5)
    eager = build(layer)
    wants, gots = [], []
    for misuse, got, error in outcomes:
        if error is not None and is_ours(error):
            continue
        want, eager_error = outcome(misuse, eager, name)
        if error is not None and not is_same(error, eager_error):
            raise AssertionError(f"{misuse}: eager code got {want} {eager_error!r}") from error
        assert error is not None or eager_error is None, (misuse, eager_error, got)
        wants.append(want)
        gots.append(got)
    if tensors_of(ours).keys() != tensors_of(eager).keys():
        return 0
    ours.results = gots
    torch.manual_seed(5)
    try:
        fastinit.materialize(ours, replay="torch")
    except RuntimeError as error:
        if not is_ours(error):
            raise
        return 0
    del ours.results
    a, b = tensors_of(eager), tensors_of(ours)
    assert a.keys() == b.keys()
    for key in a:
        assert same_bits(a[key], b[key]), key
        assert a[key].requires_grad == b[key].requires_grad, key
    leaves = torch.utils._pytree.tree_leaves
    for one, other in zip(leaves(wants), leaves(gots), strict=True):
        if isinstance(one, torch.Tensor):
            assert type(other) in (torch.Tensor, nn.Parameter)
            assert same_bits(one.detach(), other.detach())
        else:
            assert one == other
    return len(gots)


#: What `load_state_dict` says of a parameter that reports the meta device.
pytestmark = pytest.mark.filterwarnings(
    "ignore:for .*copying from a non-meta parameter:UserWarning",
    "ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning",  # once a process
)
NAMES = {layer: list(tensors_of(build(layer))) for layer in LAYERS}


@pytest.mark.parametrize("misuse", MISUSES)
def test_each(misuse: str) -> None:
    check([misuse], "Linear", "0.weight")


@pytest.mark.parametrize(
    ("misuses", "layer", "name"),
    [
        (["numpy by force", "trunc_normal_"], "BatchNorm1d", "0.weight"),  # meta tensors that it leaves alone
        (["numpy by force", "normal_", "data in place"], "BatchNorm1d", "0.weight"),
        (["trunc_normal_", "item"], "BatchNorm1d", "0.num_batches_tracked"),  # torch refuses it, on shared memory
        (["forward without a gradient", "data in place"], "BatchNorm1d", "0.running_var"),
    ],
)
def test_known(misuses: list[str], layer: str, name: str) -> None:
    assert check(misuses, layer, name) > 0


@pytest.mark.parametrize("seed", range(10))
def test_in_sequence(seed: int) -> None:
    choose = random.Random(seed)
    calls = right = 0
    while calls < CALLS // 10:
        layer = choose.choice(list(LAYERS))
        misuses = choose.choices(list(MISUSES), k=choose.randint(1, 4))
        right += check(misuses, layer, choose.choice(NAMES[layer]))
        calls += len(misuses)
    assert right > 10


INDICES = torch.tensor([[0, 1], [1, 0]])
SPARSE = torch.eye(3).to_sparse()
NOT_STRIDED: dict[str, Callable[[], Any]] = {
    "from indices": lambda: torch.sparse_coo_tensor(INDICES, torch.randn(2), (2, 2)),
    "from lists": lambda: torch.sparse_coo_tensor([[0, 1], [1, 0]], [1.0, 2.0], (2, 2)),
    "from rows": lambda: torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2)),
    "to_sparse": lambda: torch.eye(3).to_sparse(),
    "to_sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "zeros": lambda: torch.zeros(2, 2, layout=torch.sparse_coo),
    "empty": lambda: torch.empty(2, 2, layout=torch.sparse_csr),
    "on meta": lambda: torch.sparse_coo_tensor(INDICES, torch.randn(2), (2, 2), device="meta"),
    "of rows, on meta": lambda: torch.empty(2, 2, layout=torch.sparse_csr, device="meta"),
    "as data": lambda: setattr(torch.randn(3, 3), "data", SPARSE),
    "of a parameter, as data": lambda: setattr(nn.Linear(3, 3).weight, "data", SPARSE.to_sparse_csr()),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)], layout=torch.jagged),
    "jagged, of one": lambda: torch.nested.nested_tensor_from_jagged(torch.randn(5), torch.tensor([0, 2, 5])),
    "jagged, by lengths": lambda: torch.nested.narrow(
        torch.randn(2, 5), 1, torch.tensor([0, 1]), torch.tensor([2, 3]), layout=torch.jagged
    ),
    "mkldnn": lambda: torch.randn(3).to_mkldnn(),
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8),
    "quantized by channels": lambda: torch.quantize_per_channel(
        torch.randn(3, 2), torch.ones(2), torch.zeros(2), 1, torch.quint8
    ),
    "a product with a real one": lambda: torch.sparse.mm(SPARSE, torch.randn(3, 3)),
    "a real one made dense": lambda: SPARSE.to_dense(),
}


@pytest.mark.filterwarnings("ignore:.*(prototype|beta state|deprecated|invariant)")
@pytest.mark.parametrize("name", NOT_STRIDED)
def test_what_is_not_strided_is_refused(name: str) -> None:
    with fastinit.deferred():
        before = torch.randn(2)
        with pytest.raises(NotImplementedError, match=r"\w+.*: a .* tensor cannot be deferred, only strided ones can"):
            NOT_STRIDED[name]()
        after = torch.randn(2)  # the context goes on
    module = nn.Module()
    module.before, module.after = before, after
    fastinit.materialize(module, seed=0)
    assert not torch.equal(module.before, module.after)


def test_jagged_tensors_outside_a_context() -> None:
    with fastinit.deferred():
        values = torch.zeros(5)
    with pytest.raises(NotImplementedError, match=r"^aten\._nested_view_from_jagged\.default: a nested tensor cannot"):
        torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 2, 5]))
    with pytest.raises(NotImplementedError, match=r"^Tensor\.data of a tensor of shape \(5,\): a torch.sparse_coo"):
        values.data = SPARSE
    real = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert (real + 1).values().eq(2).all()


def test_a_sparse_tensor_on_plain_meta() -> None:
    module = nn.Module()
    module.register_buffer("mask", torch.empty(2, 2, layout=torch.sparse_coo, device="meta"))
    for reset, message in ((False, "'mask': on the meta device"), (True, "'mask' could not be replaced .*sparse_coo")):
        with pytest.raises(RuntimeError, match=message):
            fastinit.materialize(module, seed=0, reset=reset)


def test_a_real_sparse_tensor_is_kept() -> None:
    with fastinit.deferred():
        module = nn.Linear(2, 2)
        module.register_buffer("mask", SPARSE)
    assert fastinit.materialize(module, seed=0).mask is SPARSE
