"""Orthogonal matrices: one routine for eager fills and for replays (docs/stream.md, section 12)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from torch_fastinit.arguments import number
from torch_fastinit.forks import lock_before_forks
from torch_fastinit.initializers import Normal
from torch_fastinit.ops import RANDOM_DTYPES, check_generator, check_layout, fill_fresh, refuse_inference_update

#: The dtype that an orthogonal matrix is computed in, for every dtype that it is written to.
COMPUTED_IN = dict.fromkeys(RANDOM_DTYPES, torch.float32) | {
    torch.float64: torch.float64,
    torch.complex32: torch.complex64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}
#: Matrices with a shorter side than this are factored: two calls of LAPACK's, where reflections are thirty of torch's.
REFLECTED = 96
#: How many reflections are multiplied at once: enough for large products, few enough for a core's cache.
BLOCK = 96

_library = torch.library.Library("fastinit", "FRAGMENT")
_library.define("haar(Tensor normals) -> Tensor")


def orthogonal_(tensor: torch.Tensor, gain: float = 1, generator: torch.Generator | None = None) -> torch.Tensor:
    """What `torch_fastinit.init.orthogonal_` does; the recorder redirects this one."""
    if tensor.ndimension() < 2:
        raise ValueError("Only tensors with 2 or more dimensions are supported")
    if tensor.numel() == 0 or tensor.is_meta:
        return tensor
    if tensor.dtype not in COMPUTED_IN:
        raise NotImplementedError(f"orthogonal_ is not implemented for {tensor.dtype}")
    if not torch.compiler.is_compiling():
        refuse_inference_update(tensor)
    with torch.no_grad():
        normals = tensor.new_empty(shape_of_normals(tensor), dtype=COMPUTED_IN[tensor.dtype])
        fill_fresh(normals, Normal(), generator)
        return write_orthogonal(tensor, gain, haar(normals))


def delta_orthogonal_(tensor: torch.Tensor, gain: float = 1, generator: torch.Generator | None = None) -> torch.Tensor:
    """What `torch_fastinit.init.delta_orthogonal_` does: recorded as these two writes."""
    if tensor.ndimension() not in (3, 4, 5):
        raise ValueError("Only tensors with 3, 4, or 5 dimensions are supported")
    if tensor.size(0) < tensor.size(1):
        outputs, inputs = tensor.shape[:2]
        raise ValueError(f"delta_orthogonal_ needs as many outputs as inputs or more, but found {outputs} and {inputs}")
    if tensor.dtype not in COMPUTED_IN:
        raise NotImplementedError(f"delta_orthogonal_ is not implemented for {tensor.dtype}")
    with torch.no_grad():
        tensor.zero_()
        if tensor.numel() > 0:
            middle = tensor
            for size in tensor.shape[2:]:
                middle = middle.select(2, (size - 1) // 2)
            orthogonal_(middle, gain, generator)
    return tensor


def check(tensor: torch.Tensor, gain: Any, generator: Any) -> Any:
    """The gain as a number. Raises before anything is written or recorded."""
    check_layout(tensor, "orthogonal_")
    if generator is not None:
        check_generator(generator)
    if isinstance(gain, torch.Tensor) and gain.numel() == 1:
        gain = gain.item()
    return gain if isinstance(gain, complex) and tensor.is_complex() else number(gain, "gain")


def shape_of_normals(tensor: torch.Tensor) -> tuple[int, int]:
    """The shape of the draw: the shorter and the longer side of the matrix, whose columns are all but one dimension."""
    rows = tensor.size(0)
    columns = tensor.numel() // rows
    return min(rows, columns), max(rows, columns)


def write_orthogonal(tensor: torch.Tensor, gain: float, q: torch.Tensor) -> torch.Tensor:
    """Write `gain` times `q`, whose columns are orthonormal, or its transpose; `q` is overwritten."""
    matrix = q if tensor.size(0) == q.size(0) else q.mT
    if gain != 1:
        q.mul_(gain)
    return tensor.copy_(matrix if matrix.shape == tensor.shape else matrix.reshape(tensor.shape))


def haar(normals: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns, uniform among all, from independent N(0, 1), which are overwritten.

    From shape `(n, m)` with n <= m to shape `(m, n)`, or from `(count, n, m)` to `(count, m, n)`, in a dtype of
    `COMPUTED_IN`'s values. How a matrix is made depends on `n`, `m` and the dtype alone, not on how many are made
    together.
    """
    if torch.compiler.is_compiling():  # a compiler would round otherwise than the eager call
        made: torch.Tensor = torch.ops.fastinit.haar.default(normals)
        return made
    if normals.size(-2) < REFLECTED:
        q, r = torch.linalg.qr(normals.mT)
        # The signs (phases) of R's diagonal make Q unique, and so uniform: Mezzadri, section 5.
        q.mul_(_phase(r.diagonal(dim1=-2, dim2=-1)).unsqueeze(-2))
        return q  # type: ignore[no-any-return]
    with torch.autocast(normals.device.type, enabled=False), _full_products():
        return reflections(normals)


def reflections(normals: torch.Tensor, block: int = BLOCK) -> torch.Tensor:
    """What `haar` gives, as a product of reflections of Gaussian vectors (Stewart 1980), without a factorisation.

    Householder's QR of a Gaussian matrix meets, column after column, a vector that the reflections before leave
    Gaussian: independent vectors of falling length serve as well. Row k of `normals`, from its diagonal on, is the k-th
    (as a row: conjugated). `block` of them at a time are one matrix I - V T V^H (Schreiber and Van Loan 1989), whose
    T is known by its inverse; the blocks multiply the identity in place, from the last to the first.
    """
    n, m = normals.shape[-2:]
    v = normals.triu_()
    first = v.diagonal(dim1=-2, dim2=-1)
    # (torch sums the squares of complex numbers one after the other: slowly, and with many roundings.)
    norm = torch.linalg.vector_norm(torch.view_as_real(v).flatten(-2) if v.is_complex() else v, dim=-1)
    phase = _phase(first)
    # v.v / 2 in closed form: the diagonal of V V^H is less accurate. A vector of zeros is not reflected.
    half = norm.mul(norm + first.abs()).clamp_(min=torch.finfo(v.dtype).tiny)
    first.add_(phase * norm)
    # R's diagonal, which the reflections leave, is -phase* norm; made positive, as in `haar`.
    sign = phase.conj().neg()
    product = torch.Tensor.addmm_ if v.dim() == 2 else torch.Tensor.baddbmm_
    q = v.new_zeros(*v.shape[:-2], m, n)
    q.diagonal(dim1=-2, dim2=-1).copy_(sign)
    for begin in reversed(range(0, n, block)):
        end = min(begin + block, n)
        width = end - begin
        own, rest = v[..., begin:end, begin:], q[..., begin:, begin:]
        inverse = own @ own.mH  # its upper triangle
        inverse.diagonal(dim1=-2, dim2=-1).copy_(half[..., begin:end])
        # V^H times what the later blocks have made, which in this block's columns is still diagonal.
        seen = v.new_empty(*own.shape[:-1], n - begin)
        torch.mul(own[..., :width], sign[..., None, begin:end], out=seen[..., :width])
        product(seen[..., width:], own[..., width:], rest[..., width:, width:], beta=0)
        torch.linalg.solve_triangular(inverse, seen, upper=True, out=seen)
        product(rest, own.mH, seen, alpha=-1)
    return q


def _phase(x: torch.Tensor) -> torch.Tensor:
    """The sign (phase) of each number, 1 for 0."""
    return torch.where(x == 0, 1, x.sgn()) if x.is_complex() else x.new_ones(()).copysign(x)


#: torch's settings of whole processes that let it round the factors of float32 products to fewer bits.
_SETTINGS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
_lock = lock_before_forks()
_inside = 0
_reduced: list[tuple[Any, str]] = []


@contextlib.contextmanager
def _full_products() -> Iterator[None]:
    """Products of float32 matrices in float32, whatever the process asks for, until the last thread leaves."""
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _reduced[:] = [(one, one.fp32_precision) for one in _SETTINGS if one.fp32_precision not in ("none", "ieee")]
            for setting, _ in _reduced:
                setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for setting, before in _reduced:
                    setting.fp32_precision = before


_library.impl("haar", lambda normals: haar(normals.clone()), "CompositeExplicitAutograd")
_library.impl("haar", lambda normals: normals.new_empty(*normals.shape[:-2], *normals.shape[:-3:-1]), "Meta")
