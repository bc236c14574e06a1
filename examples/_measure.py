"""Builds one model one way in this process, and prints what it cost and what came out, as JSON.

    python examples/_measure.py llama fastinit --seed 0 --describe

``demo.py`` runs this file once for every measurement, so that no run inherits another's memory.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Configurations are made in code: nothing is looked up, nothing is downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def make_config(model: str, tiny: bool) -> Any:
    """The configuration of one of the two models, and its dtype, which is for the constructor."""
    from transformers import GPT2Config, LlamaConfig

    if model == "gpt2":
        # 124,439,808 parameters; `wte` and `lm_head` are one tensor.
        return (GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=512) if tiny else GPT2Config()), torch.float32
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 512}
    large = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16, "vocab_size": 32000}
    # 852,559,872 parameters at full size.
    sizes = small if tiny else large
    return LlamaConfig(**sizes, num_attention_heads=32, num_key_value_heads=8), torch.bfloat16


class ResidentMemory:
    """Peak resident memory above the point where this object was made, in bytes."""

    def __init__(self) -> None:
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present size
            self._resets = True
        except OSError:  # not Linux, or not allowed: the peak of the whole process has to do
            self._resets = False
        self._start = self._read("VmRSS") if self._resets else self._read_peak()

    def peak(self) -> int:
        return self._read_peak() - self._start

    def _read_peak(self) -> int:
        if self._resets:
            return self._read("VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    @staticmethod
    def _read(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) * 1024


class FillTimer(TorchDispatchMode):
    """Adds up the time of the operations that write initial values, which eager constructors mix with all else.

    It costs about one hundredth of the time that GPT-2's constructor takes.
    """

    OPERATIONS = frozenset({"uniform_", "normal_", "fill_", "zero_"})

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self.OPERATIONS:
            self.seconds += time.perf_counter() - start
        return out


def build_eager(model_class: Any, config: Any, dtype: torch.dtype, seed: int) -> tuple[torch.nn.Module, float, float]:
    """The model as everyone builds it; seconds of construction and of filling."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    with FillTimer() as fills:
        model = model_class.from_config(config, dtype=dtype)
    total = time.perf_counter() - start
    return model, total - fills.seconds, fills.seconds


def build_fastinit(
    model_class: Any, config: Any, dtype: torch.dtype, seed: int
) -> tuple[torch.nn.Module, float, float]:
    """The same model, deferred and then materialised; seconds of construction and of filling."""
    import torch_fastinit as fastinit

    start = time.perf_counter()
    with fastinit.deferred():
        model = model_class.from_config(config, dtype=dtype)
    constructed = time.perf_counter()
    fastinit.materialize(model, seed=seed)
    return model, constructed - start, time.perf_counter() - constructed


def describe(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Every tensor of a model: what can be compared without keeping the tensor."""
    rows: dict[str, dict[str, Any]] = {}
    first_name: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, t in tensors:
        row: dict[str, Any] = {
            "shape": list(t.shape),
            "stride": list(t.stride()),
            "dtype": str(t.dtype),
            "requires_grad": t.requires_grad,
            "is_parameter": isinstance(t, torch.nn.Parameter),
            "tied_to": first_name.setdefault(id(t), name),
        }
        if row["tied_to"] == name:
            row |= statistics(t.detach())
        rows[name] = row
    return rows


def statistics(t: torch.Tensor) -> dict[str, Any]:
    """Mean and deviation in float64, a digest of the bits, and whether all elements are the same."""
    flat = t.reshape(-1)
    total = squares = 0.0
    for chunk in flat.split(1 << 20):  # a float64 copy that stays in the cache
        chunk = chunk.double()
        total += chunk.sum().item()
        squares += chunk.square().sum().item()
    n = max(flat.numel(), 1)
    mean = total / n
    return {
        "mean": mean,
        "std": max(squares / n - mean * mean, 0.0) ** 0.5,
        "digest": hashlib.blake2b(flat.view(torch.uint8).numpy(), digest_size=16).hexdigest(),
        "constant": bool((flat == flat[:1]).all()),
        "finite": bool(flat.isfinite().all()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["gpt2", "llama"])
    parser.add_argument("how", choices=["eager", "fastinit"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a small model of the same kind")
    parser.add_argument("--describe", action="store_true", help="also print every tensor's statistics")
    args = parser.parse_args()

    from transformers import AutoModelForCausalLM

    if args.how == "fastinit":
        import torch_fastinit  # noqa: F401  (an import, so outside the measurement like the others)

        build = build_fastinit
    else:
        build = build_eager
    config, dtype = make_config(args.model, args.tiny)
    # from_config imports the model's file at the first call; that is no part of building a model.
    _ = AutoModelForCausalLM._model_mapping[type(config)]

    memory = ResidentMemory()
    model, construct, fill = build(AutoModelForCausalLM, config, dtype, args.seed)
    result = {
        "construct": construct,
        "fill": fill,
        "peak": memory.peak(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        "threads": torch.get_num_threads(),
    }
    if args.describe:
        result["tensors"] = describe(model)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
