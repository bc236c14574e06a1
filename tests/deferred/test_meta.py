"""Modules that were built on the plain meta device: their own initialisers, recorded."""

from __future__ import annotations

import pytest
import torch
from support.comparison import check_metadata, check_values, same_bits, tensors_of
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import torch_fastinit as fastinit


def on_meta(build):
    with torch.device("meta"):
        return build()


def network():
    return nn.Sequential(
        nn.Embedding(20, 16, padding_idx=0),
        nn.MultiheadAttention(16, 2),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.LSTM(8, 8),
        nn.Conv2d(4, 4, 3),
    )


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90}

MODELS = {
    "torch.nn": network,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
}


@pytest.mark.parametrize("name", MODELS)
def test_like_eager(name):
    build = MODELS[name]
    torch.manual_seed(0)
    eager, other, ours = build(), build(), on_meta(build)
    identities = {n: id(t) for n, t in tensors_of(ours).items()}
    assert all(row.how in ("one pass", "replayed") for row in fastinit.plan(ours, reset=True).rows)
    assert all(t.is_meta for t in tensors_of(ours).values())
    fastinit.materialize(ours, seed=0, reset=True)
    assert {n: id(t) for n, t in tensors_of(ours).items()} == identities
    check_metadata(eager, ours)
    check_values(eager, other, ours)


def test_same_values_as_deferred():
    with fastinit.deferred():
        recorded = MODELS["llama"]()
    a = tensors_of(fastinit.materialize(recorded, seed=4))
    b = tensors_of(fastinit.materialize(on_meta(MODELS["llama"]), seed=4, reset=True))
    assert all(same_bits(a[name], b[name]) for name in a)


def test_ties_that_accelerate_breaks_are_restored():
    accelerate = pytest.importorskip("accelerate")
    with accelerate.init_empty_weights():
        model = MODELS["llama"]()
    fastinit.materialize(model, seed=0, reset=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_real_tensors_beside_meta_ones_are_left_alone():
    layer = on_meta(lambda: nn.Linear(4, 4))
    layer.bias = bias = nn.Parameter(torch.full((4,), 9.0))
    fastinit.materialize(layer, seed=0, reset=True)
    assert layer.bias is bias
    assert bias.tolist() == [9.0] * 4
    assert bool(layer.weight.isfinite().all())


def test_what_no_initialiser_writes_is_an_error():
    class Rope(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))
            self.register_buffer("frequencies", torch.arange(4.0) * 2, persistent=False)

    model = on_meta(Rope)
    with pytest.raises(RuntimeError, match=r"'scale', 'frequencies': on the meta device.*fastinit.deferred\(\)"):
        fastinit.materialize(model, reset=True)
    assert all(type(t) is not type(None) and t.is_meta and not fastinit.is_deferred(t) for t in model.parameters())
    assert type(model.layer.weight) is nn.Parameter
    assert model.layer.weight.__dict__ == {}
    model.reset_buffers = lambda: model.frequencies.copy_(torch.arange(4.0) * 2)
    model.reset_parameters = lambda: nn.init.ones_(model.scale)
    fastinit.materialize(model, reset=True)
    assert model.frequencies.tolist() == [0, 2, 4, 6]
    assert model.scale.tolist() == [1] * 4


def test_an_initialiser_that_fails_leaves_the_module_as_it_was():
    model = on_meta(network)

    def fails():
        raise ValueError("reset")

    model[2].reset_parameters = fails
    with pytest.raises(ValueError, match="reset"):
        fastinit.materialize(model, reset=True)
    assert all(t.is_meta and not fastinit.is_deferred(t) for t in tensors_of(model).values())
