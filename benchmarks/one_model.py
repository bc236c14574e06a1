"""Builds one model one way in this process, and prints what it cost and what came out: a line of JSON, the last one.

    python -m benchmarks.one_model gpt2 fastinit float32 --describe

``startup.py`` and ``bench.py`` run this module once for every measurement, so that no run inherits another's memory.
Time starts where the parent says (``--started``, on the monotonic clock that processes share), or at the first line.
"""

from __future__ import annotations

import time

FIRST_LINE = time.monotonic()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    import torch

    from benchmarks.observe import Phases

# torch, transformers and torch_fastinit are imported where the clock is running.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

WAYS = ("eager", "from_config", "reset_parameters", "init_weights", "fastinit")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def default_device(device: str) -> contextlib.AbstractContextManager[Any]:
    import torch

    return contextlib.nullcontext() if device == "cpu" else torch.device(device)


def build_eager(cls: Any, auto: Any, config: Any, dtype: Any, device: str, seed: int, phases: Phases) -> Any:
    """The model's class, called with the configuration: torch's modules, then the model's own initial values."""
    with phases.watched(), default_dtype(dtype), default_device(device):
        return cls(config)


def build_from_config(cls: Any, auto: Any, config: Any, dtype: Any, device: str, seed: int, phases: Phases) -> Any:
    with phases.watched(), default_device(device):
        return auto.from_config(config, dtype=dtype)


def build_reset_parameters(cls: Any, auto: Any, config: Any, dtype: Any, device: str, seed: int, phases: Phases) -> Any:
    """On the meta device, then ``to_empty``, then each module's own ``reset_parameters``: all that torch offers."""
    model = build_on_meta(cls, config, dtype)
    with phases.watched(), default_dtype(dtype):
        model.to_empty(device=device)
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return model


def build_init_weights(cls: Any, auto: Any, config: Any, dtype: Any, device: str, seed: int, phases: Phases) -> Any:
    """On the meta device, then ``to_empty``, then the ``init_weights`` that models of transformers have."""
    model = build_on_meta(cls, config, dtype)
    with phases.watched(), default_dtype(dtype):
        model.to_empty(device=device)
        model.init_weights()
    return model


def build_on_meta(cls: Any, config: Any, dtype: Any) -> Any:
    import torch

    with default_dtype(dtype), torch.device("meta"):
        return cls(config)


def build_fastinit(cls: Any, auto: Any, config: Any, dtype: Any, device: str, seed: int, phases: Phases) -> Any:
    import torch_fastinit as fastinit

    with fastinit.deferred():
        model = auto.from_config(config, dtype=dtype)
    with phases.watched():
        return fastinit.materialize(model, device=device, seed=seed)


BUILDERS: dict[str, Callable[..., Any]] = {
    "eager": build_eager,
    "from_config": build_from_config,
    "reset_parameters": build_reset_parameters,
    "init_weights": build_init_weights,
    "fastinit": build_fastinit,
}


def poison(device: str) -> bool:
    """Make fresh memory hold garbage, and say whether it does.

    The GNU C library does it for all of a process that was started with MALLOC_PERTURB_=128: 0x7f in every byte. Where
    that is not so, and on a GPU, torch puts NaN into what it allocates.
    """
    import torch

    sizes = (1 << 10, 1 << 24)
    if device == "cpu" and all(bool((torch.empty(n, dtype=torch.uint8) == 0x7F).all()) for n in sizes):
        return True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return all(bool(torch.empty(n, device=device).isnan().all()) for n in sizes)


def run(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Build the model that the arguments (default: the command line's) ask for; what it cost, and what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("how", choices=WAYS)
    parser.add_argument("dtype", help="such as bfloat16")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--tiny", action="store_true", help="a small model of the same kind")
    parser.add_argument("--poison", action="store_true", help="fresh memory holds garbage: for a check, not a timing")
    parser.add_argument("--describe", action="store_true", help="also print every tensor's statistics")
    parser.add_argument("--started", type=float, default=FIRST_LINE, help="time.monotonic() of the process's start")
    args = parser.parse_args(arguments)

    # Imports, and the opening of the device: all that comes before the first line about a model.
    import torch
    import transformers

    from benchmarks.models import MODELS

    if args.how == "fastinit":
        import torch_fastinit  # noqa: F401
    recipe = MODELS[args.model]
    auto = getattr(transformers, recipe.auto)
    config = recipe.make_config(args.tiny)
    # from_config would import the model's file at its first call.
    cls = auto._model_mapping[type(config)]
    dtype = getattr(torch, args.dtype)
    if args.device != "cpu":
        torch.zeros(1, device=args.device)
        torch.accelerator.synchronize()
    imported = time.monotonic() - args.started

    from benchmarks.observe import Phases, ResidentMemory, describe

    if args.threads:
        torch.set_num_threads(args.threads)
    poisoned = poison(args.device) if args.poison else None
    torch.manual_seed(args.seed)
    memory = ResidentMemory()
    phases = Phases()
    model = BUILDERS[args.how](cls, auto, config, dtype, args.device, args.seed, phases)
    seconds = phases.stop(args.device)
    result = {
        "seconds": {"import": imported, **seconds},
        "peak": memory.peak(),
        "device peak": torch.accelerator.max_memory_allocated() if args.device != "cpu" else 0,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        "threads": torch.get_num_threads(),
    }
    if args.describe:
        result["poisoned"] = poisoned
        result["tensors"] = describe(model)
    return result


if __name__ == "__main__":
    print("\n" + json.dumps(run()))
