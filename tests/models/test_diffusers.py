"""Diffusion models as diffusers builds them."""

from __future__ import annotations

import pytest
import torch

import torch_fastinit as fastinit

diffusers = pytest.importorskip("diffusers")

MODELS = {
    "UNet2DConditionModel": {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
    },
    "AutoencoderKL": {"block_out_channels": (16, 16), "norm_num_groups": 4},
    "FluxTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_diffusers(name, same_as_eager):
    same_as_eager(lambda: getattr(diffusers, name)(**MODELS[name]))


@pytest.mark.parametrize("name", MODELS)
def test_random_bytes_are_filled_in_one_pass(name):
    with fastinit.deferred():
        model = getattr(diffusers, name)(**MODELS[name])
    assert fastinit.plan(model).share() == 1.0
    assert not torch.nn.Module.state_dict(model).keys() - {row.name for row in fastinit.plan(model).rows}
