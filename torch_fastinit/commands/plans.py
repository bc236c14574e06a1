"""The plan of a model that is named on the command line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torch_fastinit as fastinit
from torch_fastinit.commands.errors import CommandError


def plan_of(named: str) -> str:
    """The plan of what `module:callable`, `file.py:callable` or a configuration file builds, as text."""
    build = _configured(Path(named)) if os.path.exists(named) else _called(named)
    try:
        with fastinit.deferred():
            model = build()
        if not isinstance(model, torch.nn.Module):
            raise CommandError(f"{named} returned {type(model).__name__}, and not a torch.nn.Module")
        return str(fastinit.plan(model))
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandError(f"{named} could not be built: {type(error).__name__}: {error}") from error


def _called(named: str) -> Callable[[], Any]:
    module, _, path = named.rpartition(":")
    try:
        found: Any = _file(Path(module)) if module.endswith(".py") else _module(module)
    except (Exception, SystemExit) as error:
        raise CommandError(f"{module} could not be imported: {type(error).__name__}: {error}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise CommandError(f"{module} has no {path!r}")
        found = getattr(found, name)
    if isinstance(found, torch.nn.Module):
        raise CommandError(f"{named} is a module already: name the function or the class that builds it")
    if not callable(found):
        raise CommandError(f"{named} is of type {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]


def _module(name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


def _file(path: Path) -> Any:
    """A file as a module, which finds its neighbours as a script does."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _configured(path: Path) -> Callable[[], Any]:
    """The model of a configuration, of the first architecture that it names, or else of `AutoModel`'s."""
    if path.suffix == ".py":
        raise CommandError(f"{path} is Python: name what builds the model, as in {path}:build")
    if path.is_dir() and not (path / "config.json").exists():
        raise CommandError(f"the folder {path} has no config.json")
    try:
        import transformers
    except ImportError as error:
        raise CommandError(f"{path} is for transformers, which is not installed") from error
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
    except Exception as error:
        raise CommandError(f"{path} is no configuration that transformers reads: {error}") from error
    for name in config.architectures or ():
        architecture = getattr(transformers, name, None)
        if architecture is not None:
            return lambda: architecture(config)
    auto: Any = transformers.AutoModel
    return lambda: auto.from_config(config)
