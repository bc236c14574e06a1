"""Real models as their libraries build them, unmodified: equal to eager in all but the random bits."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    CLIPConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
)

import torch_fastinit as fastinit

BODY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = dict(BODY, vocab_size=200)
IMAGE = dict(BODY, image_size=32, patch_size=8)
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

MODELS = {
    "GPT2LMHeadModel": GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=200, n_positions=64, **IDS),
    "LlamaForCausalLM": LlamaConfig(**TEXT, **IDS, num_key_value_heads=2),
    "MixtralForCausalLM": MixtralConfig(**TEXT, **IDS, num_key_value_heads=2, num_local_experts=4),
    "BertForMaskedLM": BertConfig(**TEXT),
    "T5ForConditionalGeneration": T5Config(d_model=64, d_ff=96, num_layers=2, num_heads=4, d_kv=16, vocab_size=200),
    "ViTForImageClassification": ViTConfig(**IMAGE),
    "WhisperForConditionalGeneration": WhisperConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        vocab_size=200,
        max_source_positions=50,
        max_target_positions=50,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
        **IDS,
    ),
    "CLIPModel": CLIPConfig(text_config=dict(TEXT, **IDS), vision_config=dict(IMAGE)),
    "MambaForCausalLM": MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=200, **IDS),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_transformers(name, dtype, same_as_eager):
    cls, config = getattr(transformers, name), MODELS[name]
    if dtype is torch.bfloat16 and name != "LlamaForCausalLM":
        config = config.__class__(**config.to_dict())
    same_as_eager(lambda: cls._from_config(config, dtype=dtype))


@pytest.mark.parametrize("name", MODELS)
def test_random_bytes_of_transformers_are_filled_in_one_pass(name):
    with fastinit.deferred():
        model = getattr(transformers, name)(MODELS[name])
    assert fastinit.plan(model).share("one pass") >= 0.99


LAYERS = {
    "Linear": lambda: nn.Linear(32, 16),
    "Bilinear": lambda: nn.Bilinear(8, 9, 10),
    "Conv1d": lambda: nn.Conv1d(8, 8, 3),
    "Conv2d": lambda: nn.Conv2d(8, 8, 3, groups=2),
    "Conv3d": lambda: nn.Conv3d(4, 4, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(8, 8, 3),
    "Embedding": lambda: nn.Embedding(50, 16, padding_idx=3),
    "EmbeddingBag": lambda: nn.EmbeddingBag(50, 16),
    "MultiheadAttention": lambda: nn.MultiheadAttention(32, 4),
    "MultiheadAttention, own sizes": lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=8, add_bias_kv=True),
    "LSTM": lambda: nn.LSTM(16, 16, 2, bidirectional=True, proj_size=8),
    "GRU": lambda: nn.GRU(16, 16, 2),
    "RNNCell": lambda: nn.RNNCell(16, 16),
    "BatchNorm2d": lambda: nn.BatchNorm2d(8),
    "LayerNorm": lambda: nn.LayerNorm((4, 8)),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "RMSNorm": lambda: nn.RMSNorm(8),
    "PReLU": lambda: nn.PReLU(4),
    "Transformer": lambda: nn.Transformer(32, 4, 2, 2, 64, batch_first=True),
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 100, [10, 50]),
    "CrossEntropyLoss": lambda: nn.CrossEntropyLoss(weight=torch.linspace(0, 1, 5)),
    "float64": lambda: nn.Linear(32, 16, dtype=torch.float64),
    "float16": lambda: nn.Linear(32, 16, dtype=torch.float16),
    "cast": lambda: nn.Linear(32, 16).to(torch.bfloat16),
}


@pytest.mark.parametrize("name", LAYERS)
def test_torch_layers(name, same_as_eager):
    same_as_eager(LAYERS[name])


class Model(nn.Module):
    """A module of one's own, with most of what modules do in their constructors."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 32, padding_idx=0)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.full((32,), 0.5) * torch.arange(32))
        self.noise = nn.Parameter(torch.randn(32, 32) * 0.02 + 1)
        self.register_buffer("table", torch.outer(torch.arange(8.0), torch.tensor([1.0, 2.0, 3.0])).sin())
        self.register_buffer("mask", torch.ones(8, 8, dtype=torch.bool).tril(), persistent=False)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(len(torch.linspace(0, 1, 3).tolist())))
        for i, block in enumerate(self.blocks):
            nn.init.trunc_normal_(block.weight, std=0.02)
            block.weight.data.div_(i + 1)
            with torch.no_grad():
                block.bias[:16] = 1.0
                block.bias[16:].zero_()
        with torch.no_grad():
            self.blocks[0].weight.copy_(torch.eye(32))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.eval()


def test_a_module_of_ones_own(same_as_eager):
    ours = same_as_eager(Model)
    assert ours.head.weight is ours.embed.weight
