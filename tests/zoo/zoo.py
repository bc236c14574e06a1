"""Every architecture that the installed transformers can build small, compared with eager construction.

``python tests/zoo/zoo.py`` runs them all, with a progress bar and a table; names as arguments run those alone.
Nothing is downloaded: configurations are made in code and shrunk until a model has at most 40 million parameters.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import math
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison import check_like_eager

import torch_fastinit as fastinit

LIMIT = 40_000_000

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
    {
        name: lambda n: max(n // 4, 8) if n >= 256 else n
        for name in (
            "hidden_size intermediate_size ffn_dim d_model d_ff n_embd n_inner encoder_ffn_dim decoder_ffn_dim "
            "moe_intermediate_size shared_expert_intermediate_size hidden_dim dim ffn_hidden_size mlp_dim embed_dim "
            "encoder_hidden_size decoder_hidden_size projection_dim d_inner emb_dim"
        ).split()
    },
    {
        name: lambda n: max(n // 4, 8) if n >= 64 else n
        for name in (
            "hidden_size intermediate_size ffn_dim d_model d_ff n_embd n_inner encoder_ffn_dim decoder_ffn_dim "
            "moe_intermediate_size shared_expert_intermediate_size hidden_dim dim ffn_hidden_size mlp_dim embed_dim "
            "encoder_hidden_size decoder_hidden_size projection_dim d_inner emb_dim"
        ).split()
    },
]


def configs(names: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Name, model class and configuration class of every architecture (of these names) that has both."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for key in sorted(CONFIG_MAPPING_NAMES):
        found = MODEL_MAPPING_NAMES.get(key)
        if found is None or (names and key not in names):
            continue
        for name in found if isinstance(found, (tuple, list)) else (found,):
            with contextlib.suppress(Exception):
                yield (
                    key if found is name else f"{key}:{name}",
                    getattr(transformers, name),
                    getattr(transformers, CONFIG_MAPPING_NAMES[key]),
                )


def _shrink(config: Any, steps: int, seen: set[int] | None = None) -> None:
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
        if hasattr(value, "model_type") and hasattr(value, "to_dict"):
            _shrink(value, steps, seen)


def builder(model_class: Any, config_class: Any) -> Callable[[], torch.nn.Module] | None:
    """A function that builds the model as small as its configuration can be shrunk, or None if that is too big."""
    from transformers.initialization import no_init_weights

    for steps in reversed(range(len(SHRINKS))):
        try:
            config = config_class()
            _shrink(config, steps)
            with torch.device("meta"), no_init_weights():
                module = model_class(copy.deepcopy(config))
            if sum(p.numel() for p in module.parameters()) <= LIMIT:
                return lambda config=config: model_class(copy.deepcopy(config))
        except Exception:
            continue
    return None


@dataclass
class Result:
    name: str
    tensors: int = 0
    random_bytes: int = 0
    one_pass: int = 0
    seconds: float = 0.0
    error: str = ""


def run(name: str, build: Callable[[], torch.nn.Module]) -> Result:
    """Compare one architecture, and count what is filled in one pass."""
    start = time.perf_counter()
    result = Result(name)
    try:
        with quiet():
            with fastinit.deferred():
                module = build()
            plan = fastinit.plan(module)
            del module
            rows = [row for row in plan.rows if row.random]
            result.tensors = len(plan.rows)
            result.random_bytes = sum(row.nbytes for row in rows)
            result.one_pass = sum(row.nbytes for row in rows if row.how == "one pass")
            check_like_eager(build)
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    result.seconds = time.perf_counter() - start
    return result


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--verbose", action="store_true", help="print the traceback of each failure")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    with quiet():
        known = list(configs(arguments.names))
    results, skipped = [], []
    start = time.perf_counter()
    for i, (name, model_class, config_class) in enumerate(known):
        with quiet():
            build = builder(model_class, config_class)
        if build is None:
            skipped.append(name)
            continue
        result = run(name, build)
        results.append(result)
        if not sys.stderr.isatty():
            print(f"{i + 1}/{len(known)} {name} {result.seconds:.1f} s", file=sys.stderr)
        else:
            bar = "#" * (40 * (i + 1) // len(known))
            print(f"\r[{bar:40}] {i + 1}/{len(known)} {name:40}", end="", file=sys.stderr)
        if result.error:
            text = result.error if arguments.verbose else result.error.splitlines()[0]
            print(f"FAILED {name}: {text}", flush=True)
    random = sum(r.random_bytes for r in results)
    passed = sum(not r.error for r in results)
    share = sum(r.one_pass for r in results) / random if random else math.nan
    print(
        f"\narchitectures compared  {len(results)}\n"
        f"equal to eager          {passed}\n"
        f"not buildable here      {len(skipped)} ({', '.join(skipped)})\n"
        f"tensors                 {sum(r.tensors for r in results):,}\n"
        f"random bytes            {random:,}\n"
        f"filled in one pass      {share:.3%}\n"
        f"replayed                {1 - share:.3%}\n"
        f"seconds                 {time.perf_counter() - start:.0f}"
    )
    for r in sorted(results, key=lambda r: r.one_pass - r.random_bytes)[:10]:
        if r.one_pass < r.random_bytes:
            print(f"  replayed in {r.name}: {r.random_bytes - r.one_pass:,} bytes of {r.random_bytes:,}")
    return int(passed < len(results))


if __name__ == "__main__":
    sys.exit(main())
