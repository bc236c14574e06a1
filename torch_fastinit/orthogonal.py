"""Orthogonal matrices: one routine for eager fills and for replays (docs/stream.md, section 12)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torch_fastinit.initializers import Normal
from torch_fastinit.ops import RANDOM_DTYPES, fill_one, refuse_inference_update

#: The dtype that an orthogonal matrix is computed in, for every dtype that it is written to.
QR_DTYPE = dict.fromkeys(RANDOM_DTYPES, torch.float32) | {
    torch.float64: torch.float64,
    torch.complex32: torch.complex64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


def orthogonal_(tensor: torch.Tensor, gain: float = 1, generator: torch.Generator | None = None) -> torch.Tensor:
    """What `torch_fastinit.init.orthogonal_` does; the recorder redirects this one."""
    if tensor.ndimension() < 2:
        raise ValueError("Only tensors with 2 or more dimensions are supported")
    if tensor.numel() == 0 or tensor.is_meta:
        return tensor
    if tensor.dtype not in QR_DTYPE:
        raise NotImplementedError(f"orthogonal_ is not implemented for {tensor.dtype}")
    if not torch.compiler.is_compiling():
        refuse_inference_update(tensor)
    return orthogonal(tensor, gain, lambda matrix: fill_one(matrix, Normal(), generator))


def orthogonal(tensor: torch.Tensor, gain: float, normal: Callable[[torch.Tensor], object]) -> torch.Tensor:
    """Write `gain` times a uniform (semi-)orthogonal matrix; `normal` fills a matrix with N(0, 1).

    `tensor` has two dimensions or more and a dtype of `QR_DTYPE`; those behind the first are the columns.
    """
    if tensor.numel() == 0:
        return tensor
    rows = tensor.size(0)
    columns = tensor.numel() // rows
    with torch.no_grad():
        matrix = tensor.new_empty((rows, columns), dtype=QR_DTYPE[tensor.dtype])
        normal(matrix)
        q, r = torch.linalg.qr(matrix.t() if rows < columns else matrix)
        # The signs (phases) of R's diagonal make Q unique, and so uniform: Mezzadri, section 5.
        q = (q * torch.diagonal(r).sgn()).mul_(gain)
        return tensor.copy_((q.t() if rows < columns else q).reshape(tensor.shape))
