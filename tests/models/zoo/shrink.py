"""Small configurations of transformers' architectures.

Of most architectures only the default configuration is known. It is shrunk by well-known attributes and, where these do
not suffice, by any integer in it, as long as the model still builds on the meta device.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

LIMIT = 40_000_000
GOAL = 10_000_000  # what the search goes on to, to save time

_WIDTHS = (
    "hidden_size intermediate_size ffn_dim d_model d_ff n_embd n_inner encoder_ffn_dim decoder_ffn_dim "
    "moe_intermediate_size shared_expert_intermediate_size hidden_dim dim ffn_hidden_size mlp_dim embed_dim "
    "encoder_hidden_size decoder_hidden_size projection_dim d_inner emb_dim"
).split()

#: What makes a model small, one step at a time, until it is small enough: an attribute and what it becomes.
SHRINKS: list[dict[str, Callable[[int], int]]] = [
    {},
    {
        name: lambda n: min(n, 2)
        for name in (
            "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers "
            "num_decoder_layers depth num_local_experts n_routed_experts num_experts moe_num_experts "
            "encoder_num_hidden_layers decoder_num_hidden_layers num_block_layers"
        ).split()
    },
    {
        name: lambda n: min(n, 1024)
        for name in "vocab_size text_vocab_size n_words vocab_size_per_layer_input max_position_embeddings".split()
    }
    | {name: lambda n: min(n, 1023) for name in "pad_token_id bos_token_id eos_token_id image_token_id".split()},
    {name: lambda n: max(n // 4, 8) if n >= 256 else n for name in _WIDTHS},
    {name: lambda n: max(n // 4, 8) if n >= 64 else n for name in _WIDTHS},
]


def _made(**arguments: Any) -> Callable[[Any], Any]:
    return lambda config_class: config_class(**arguments)


def _set(**values: Any) -> Callable[[Any], Any]:
    """The default configuration with these attributes; `__` stands for a dot."""

    def change(config_class: Any) -> Any:
        config = config_class()
        for path, value in values.items():
            *owners, name = path.split("__")
            place = config
            for owner in owners:
                place = getattr(place, owner)
            setattr(place, name, value)
        return config

    return change


def _resnet() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], embedding_size=8, out_indices=[1, 2, 3, 4])


def _on_resnet(config_class: Any) -> Any:
    """For a detector whose default backbone is timm's."""
    return config_class(use_timm_backbone=False, backbone_config=_resnet())


_SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def _siglip(**attributes: Any) -> Any:
    from transformers import SiglipVisionConfig

    config = SiglipVisionConfig(**_SMALL, image_size=32, patch_size=8)
    config.__dict__.update(attributes)
    return config


def _on_vit(*way: str) -> Callable[[Any], Any]:
    """The default configuration with a ViT in place of timm's image classifier."""

    def change(config_class: Any) -> Any:
        from transformers import ViTConfig

        place = config = config_class()
        for name in way:
            place = getattr(place, name)
        place.vision_config = ViTConfig(**_SMALL, image_size=32, patch_size=8)
        return config

    return change


def _gemma3n(config_class: Any) -> Any:
    config = config_class()
    config.text_config.num_kv_shared_layers = 0
    config.__dict__["vision_config"] = _siglip(vocab_size=128, vocab_offset=262_144, rms_norm_eps=1e-6)
    return config


_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2]}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_KERNELS = (
    "vertical_long_to_small_conv_longratio vertical_long_to_small_conv_midratio vertical_long_to_small_conv_shortratio "
    "horizontal_small_to_long_conv_longratio horizontal_small_to_long_conv_midratio "
    "horizontal_small_to_long_conv_shortratio symmetric_conv_long_longratio symmetric_conv_long_midratio "
    "symmetric_conv_long_shortratio"
).split()

#: Architectures whose default configuration lacks something that their constructor needs, or names a backbone of a
#: library that is not installed: a function from the configuration's class to a configuration.
COMPLETIONS: dict[str, Callable[[Any], Any]] = {
    "autoformer": _made(**_SERIES),
    "informer": _made(**_SERIES),
    "time_series_transformer": _made(**_SERIES),
    "aya_vision": _set(vision_config__num_attention_heads=16),
    "chameleon": _made(vocabulary_map={"<image>": 8}),
    "emu3": _made(vocabulary_map={"<image>": 8, "<|extra_200|>": 9}),
    "cohere_compass": _set(text_config__rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE}),
    "cohere_compass_text": _set(rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE}),
    "conditional_detr": _on_resnet,
    "dab-detr": _on_resnet,
    "deformable_detr": _on_resnet,
    "detr": _on_resnet,
    "omdet-turbo": _on_resnet,
    "table-transformer": _on_resnet,
    "dbrx": _set(attn_config__rope_theta=10000.0),
    "deepseek_ocr2": _set(text_config__mlp_layer_types=["dense"] + ["sparse"] * 100),
    "diffusion_gemma": _set(
        text_config__num_experts=4, text_config__top_k_experts=2, text_config__moe_intermediate_size=32
    ),
    "dots1": _made(n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
    "esm": _made(vocab_size=33, pad_token_id=1, mask_token_id=32),
    "edgetam": lambda config_class: config_class(vision_config={"backbone_config": _siglip()}),
    "edgetam_vision_model": lambda config_class: config_class(backbone_config=_siglip()),
    "fast_vlm": lambda config_class: config_class(vision_config=_siglip()),
    "gemma3n": _gemma3n,
    "gemma3n_text": _made(num_kv_shared_layers=0),
    "perception_lm": lambda config_class: config_class(vision_config=_siglip(model_args={"embed_dim": 32})),
    "pe_video": _on_vit("video_config"),
    "pe_video_encoder": _on_vit(),
    "pe_audio_video": _on_vit("audio_video_config", "video_config"),
    "pe_audio_video_encoder": _on_vit("video_config"),
    "granite4_vision": _made(deepstack_layer_map=[(-2, 0), (-1, 1)], downsample_rate="4/8"),
    "hunyuan_v1_dense": _made(head_dim=16),
    "hunyuan_v1_moe": _made(head_dim=16),
    "hunyuan_vl": _set(text_config__head_dim=16),
    "hunyuan_vl_text": _made(head_dim=16),
    "lfm2_moe": _made(layer_types=["conv", "full_attention"] * 16),
    "ministral": _made(head_dim=16),
    "moonshine_streaming": _set(num_key_value_heads=8),
    "musicgen": lambda config_class: config_class().decoder,
    "musicgen_melody": lambda config_class: config_class().decoder,
    "nemotron": _made(num_key_value_heads=8),
    "pp_ocrv6_medium_det": _made(
        intraclass_block_config={name: [3, 1, 1] for name in _KERNELS}
        | {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    ),
    "t5gemma2_encoder": _set(text_config__dropout_rate=0.0, text_config__attention_dropout=0.0),
}


@dataclass
class Found:
    """The configuration to build, or None and why there is none."""

    config: Any
    why: str = ""
    parameters: int = 0


def parameters_of(model_class: Any, config: Any) -> int:
    """How many parameters the model has; raises what its constructor raises."""
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        module = model_class(copy.deepcopy(config))
    return sum(p.numel() for p in module.parameters())


def find(key: str, model_class: Any, config_class: Any, seconds: float = 60.0) -> Found:
    """The most shrunk configuration that builds, if it is small enough."""
    default: Exception | None = None
    best: tuple[int, Any] | None = None
    make = COMPLETIONS.get(key, _made())
    for steps in reversed(range(len(SHRINKS))):
        try:
            config = make(config_class)
            shrink(config, steps)
            count = parameters_of(model_class, config)
        except Exception as error:
            default = error
            continue
        if count <= LIMIT:
            return Found(config, "", count)
        if best is None or count < best[0]:
            best = count, config
    if best is None:
        return Found(None, f"does not build: {type(default).__name__}: {_first_line(default)}")
    count, config = search(model_class, best[1], best[0], seconds)
    if count <= LIMIT:
        return Found(config, "", count)
    return Found(None, f"too large: {count:,} parameters after the search", count)


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else ""


def shrink(config: Any, steps: int, seen: set[int] | None = None) -> None:
    """Apply the first `steps` steps to a configuration and to those inside it."""
    seen = set() if seen is None else seen
    if id(config) in seen:
        return
    seen.add(id(config))
    for step in SHRINKS[: steps + 1]:
        for name, change in step.items():
            value = config.__dict__.get(name)
            if type(value) is int:
                with contextlib.suppress(Exception):
                    setattr(config, name, change(value))
    if steps and isinstance(config.__dict__.get("layer_types"), list):
        config.layer_types = config.layer_types[: getattr(config, "num_hidden_layers", 2)]
    for value in list(config.__dict__.values()):
        if _is_config(value):
            shrink(value, steps, seen)


def _is_config(value: Any) -> bool:
    return hasattr(value, "model_type") and hasattr(value, "to_dict")


# --- the search -------------------------------------------------------------------------------------------------------

Place = tuple[tuple[Any, ...], str]  # the way to an integer, and the name of the attribute that it belongs to


def _places(config: Any) -> Iterator[tuple[Place, int]]:
    """Every integer of a configuration, in those inside it, in dictionaries and in lists."""
    seen: set[int] = set()

    def walk(way: tuple[Any, ...], name: str, value: Any) -> Iterator[tuple[Place, int]]:
        if type(value) is int:
            yield (way, name), value
        elif isinstance(value, (list, tuple, dict)) or _is_config(value):
            if id(value) in seen:
                return
            seen.add(id(value))
            if isinstance(value, (list, tuple)):
                items: Any = enumerate(value)
            else:
                items = (value if isinstance(value, dict) else value.__dict__).items()
            for key, inner in list(items):
                own = name if isinstance(value, (list, tuple)) else str(key)
                if not own.startswith("_"):
                    yield from walk((*way, key), own, inner)

    yield from walk((), "", config)


def _assign(config: Any, way: tuple[Any, ...], new: int) -> None:
    *owners, last = way
    chain = [config]
    for key in owners:
        chain.append(_get(chain[-1], key))
    value: Any = new
    key = last
    for owner in reversed(chain):
        if isinstance(owner, tuple):  # tuples are made anew, up to what holds them
            value = (*owner[:key], value, *owner[key + 1 :])
            key = owners[chain.index(owner) - 1]
            continue
        if isinstance(owner, (list, dict)):
            owner[key] = value
        else:
            setattr(owner, key, value)
        return


def _get(owner: Any, key: Any) -> Any:
    return owner[key] if isinstance(owner, (list, tuple, dict)) else getattr(owner, key)


def _changed(config: Any, places: list[Place], old: int, new: int) -> Any:
    """A copy of `config` with `new` in these places; per-layer lists are cut, token ids kept below the vocabulary."""
    config = copy.deepcopy(config)
    for way, name in places:
        _assign(config, way, new)
        owner = config
        for key in way[:-1]:
            owner = _get(owner, key)
        if "layer" in name or "depth" in name or "block" in name:
            items = owner if isinstance(owner, dict) else getattr(owner, "__dict__", {})
            for key, value in list(items.items()):
                if isinstance(value, (list, tuple)) and len(value) == old:
                    _assign(config, (*way[:-1], key), value[:new])  # type: ignore[arg-type]
        if "vocab" in name or "codebook" in name:
            for (other, label), value in list(_places(config)):
                if label.endswith(("token_id", "token_index")) and other[:-1] == way[:-1] and value >= new:
                    _assign(config, other, new - 1)
    return config


def search(model_class: Any, config: Any, count: int, seconds: float) -> tuple[int, Any]:
    """Divide integers of `config` while the model builds and shrinks, until it is small enough.

    Equal integers mostly are the same width: they are changed together first, then one by one.
    """
    end = time.perf_counter() + seconds
    refused: set[tuple[Any, int, int]] = set()
    while count > GOAL and time.perf_counter() < end:
        values: dict[int, list[Place]] = {}
        for place, value in _places(config):
            if value >= 2 and not place[1].endswith(("_id", "_index", "_ids")):
                values.setdefault(value, []).append(place)
        moves = [(places, value) for value, places in sorted(values.items(), reverse=True)]
        names: dict[tuple[str, int], list[Place]] = {}
        for places, value in moves:
            for place in places:
                names.setdefault((place[1], value), []).append(place)
        moves += [(places, value) for (_, value), places in names.items() if places != values[value]]
        moves += [([place], value) for places, value in moves if len(places) > 1 for place in places]
        before = count
        for places, value in moves:
            if time.perf_counter() > end or count <= GOAL:
                break
            for divisor in (8, 4, 2):
                new = value // divisor
                move = (tuple(places), value, new)
                if new < 1 or move in refused:
                    continue
                try:
                    candidate = _changed(config, places, value, new)
                    smaller = parameters_of(model_class, candidate)
                except Exception:
                    refused.add(move)
                    continue
                if smaller <= 0.98 * count:
                    config, count = candidate, smaller
                    break
                refused.add(move)
        if count == before:
            break
    return count, config
