"""A small model with every kind of row that a report has, for its page."""

from __future__ import annotations

from pathlib import Path

import torch

import torch_fastinit as fastinit


def sample_model() -> torch.nn.Module:
    """All is as promised."""
    with fastinit.deferred():
        model = torch.nn.ModuleDict(
            {
                "tokens": torch.nn.Embedding(512, 128, padding_idx=0),
                "block": torch.nn.TransformerEncoderLayer(128, 4, 256, batch_first=True),
                "experts": torch.nn.ModuleList(torch.nn.Linear(128, 128) for _ in range(3)),
                "norm": torch.nn.BatchNorm1d(128),
                "head": torch.nn.Linear(128, 512, bias=False),
            }
        )
        torch.nn.init.trunc_normal_(model["head"].weight, std=0.02, a=-0.04, b=0.04)
        torch.nn.init.sparse_(model["experts"][1].weight, 0.25)
        torch.nn.init.eye_(model["experts"][2].weight)
    return fastinit.materialize(model, seed=0)


def damaged_model() -> torch.nn.Module:
    """`sample_model`, with a deviation that is off, one value that is not finite, and one that is lost."""
    model = sample_model()
    with torch.no_grad():
        model["block"].linear1.weight.mul_(1.1)
        model["experts"][0].bias[5] = float("nan")
        model["experts"][2].weight[3, 3] = 0
    model["unknown"] = torch.nn.Linear(64, 64)
    return model


def save_sample(folder: Path) -> Path:
    """A report's page, with flags."""
    path = folder / "report.html"
    fastinit.report(damaged_model()).save(path)
    return path
