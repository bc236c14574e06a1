"""The models that are built: configurations made in code, so nothing is looked up and nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Model:
    """One architecture of transformers at one size."""

    title: str
    #: Of transformers: the configuration, and the Auto class that builds a model from it.
    config: str
    auto: str
    sizes: dict[str, Any] = field(default_factory=dict)
    #: The same kind of model with few and small layers, for tests.
    tiny: dict[str, Any] = field(default_factory=dict)

    def make_config(self, tiny: bool = False) -> Any:
        import transformers

        return getattr(transformers, self.config)(**(self.sizes | (self.tiny if tiny else {})))


_TINY_BERT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_TINY_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_TINY_GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0}

MODELS: dict[str, Model] = {
    "gpt2": Model("GPT-2 124M", "GPT2Config", "AutoModelForCausalLM", {}, _TINY_GPT2),
    "gpt2-xl": Model(
        "GPT-2 1.5B", "GPT2Config", "AutoModelForCausalLM", {"n_embd": 1600, "n_layer": 48, "n_head": 25}, _TINY_GPT2
    ),
    # Llama 3.2 1B, with its tied embedding.
    "llama-1b": Model(
        "Llama 1B",
        "LlamaConfig",
        "AutoModelForCausalLM",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
        },
        _TINY_LLAMA,
    ),
    "vit-l": Model(
        "ViT-L",
        "ViTConfig",
        "AutoModelForImageClassification",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        _TINY_BERT,
    ),
    "swin-l": Model(
        "Swin-L",
        "SwinConfig",
        "AutoModelForImageClassification",
        {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48]},
        {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]},
    ),
    "bert-l": Model(
        "BERT-large",
        "BertConfig",
        "AutoModelForMaskedLM",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
        _TINY_BERT | {"vocab_size": 512},
    ),
    "mamba": Model(
        "Mamba-130M",
        "MambaConfig",
        "AutoModelForCausalLM",
        {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280},
        {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512},
    ),
    "t5": Model(
        "T5-base",
        "T5Config",
        "AutoModelForSeq2SeqLM",
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
        {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 512},
    ),
    # 852,559,872 parameters; not in `make startup`.
    "llama": Model(
        "Llama 0.85B",
        "LlamaConfig",
        "AutoModelForCausalLM",
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 16,
            "vocab_size": 32000,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        _TINY_LLAMA,
    ),
}

#: What ``make startup`` builds.
STARTUP = tuple(name for name in MODELS if name != "llama")
