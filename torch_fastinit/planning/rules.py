"""Which parameter gets which rule of `materialize(init=)`: the first that matches, in the order written."""

from __future__ import annotations

import difflib
import fnmatch
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torch_fastinit.planning.tensors import Target

#: Fills a tensor in place; or a number or a tensor, which are copied; or None, for what is recorded.
Initialiser = Callable[[torch.Tensor], object] | complex | torch.Tensor | None
#: Keys are names, patterns or classes of modules; a class may have a mapping from its parameters' own names.
RuleSet = Mapping[str | type, "Initialiser | Mapping[str, Initialiser]"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What one parameter gets; `key` is how messages and plans show where that is written."""

    key: str
    value: Any


def match(rules: RuleSet, module: torch.nn.Module, targets: Sequence[Target]) -> dict[str, Rule]:
    """The rules of the parameters of `module` that have one, by the parameters' first names.

    Raises:
        TypeError: `rules` is not a mapping, or a key or value is of a kind that means nothing.
        ValueError: a key matches no parameter, or only what earlier keys have taken.
    """
    _check(rules)
    keys = list(rules)
    first_string = _strings(keys)
    modules = dict(module.named_modules(remove_duplicate=False))
    #: What each key that is a string says, and each that is a class of a parameter's own name, or of all (None).
    said: list[dict[str | None, Rule]] = [
        {own: Rule(f"{_text(key)}[{own!r}]", inner) for own, inner in value.items()}
        if isinstance(value, Mapping)
        else {None: Rule(_text(key), value)}
        for key, value in rules.items()
    ]
    classes = [(i, key, said[i]) for i, key in enumerate(keys) if isinstance(key, type)]
    of_owner: dict[str, list[tuple[int, dict[str | None, Rule]]]] = {}

    def first(name: str) -> tuple[int, Rule | None]:
        """The place of the first key that matches a name, and what it says."""
        place = first_string(name)
        best = (len(keys), None) if place is None else (place, said[place][None])
        path, _, own = name.rpartition(".")
        found = of_owner.get(path)
        if found is None:
            owner = modules.get(path)
            found = of_owner[path] = [(i, rules) for i, key, rules in classes if isinstance(owner, key)]
        for i, by_name in found:
            if i >= best[0]:
                break
            rule = by_name.get(None) or by_name.get(own)
            if rule is not None:
                return i, rule
        return best

    chosen: dict[str, Rule] = {}
    taken: dict[str, int] = {}  # by which key
    for target in targets:
        if target.role == "parameter":
            place, rule = first(target.name)
            for other in target.others:
                place, rule = min((place, rule), first(other), key=_place)
            if rule is not None:
                chosen[target.name], taken[target.name] = rule, place
    for i in sorted(set(range(len(keys))) - set(taken.values())):
        _refuse(i, keys, rules, modules, targets, taken)
    for key, value in rules.items():
        if isinstance(value, Mapping):
            _refuse_unknown_names(key, value, modules)
    return chosen


def _place(found: tuple[int, Rule | None]) -> int:
    return found[0]


def _text(key: str | type) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)


def _strings(keys: Sequence[str | type]) -> Callable[[str], int | None]:
    """A function that finds the first of the keys that are strings which matches a name."""
    exact = {key: i for i, key in enumerate(keys) if isinstance(key, str)}
    patterns = [(i, fnmatch.translate(key)) for i, key in enumerate(keys) if isinstance(key, str) and _is_pattern(key)]
    # One expression for all: its alternatives are tried in order, and the group that matched says which it was.
    groups: dict[int, int] = {}
    number = 1
    for i, pattern in patterns:
        groups[number] = i
        number += 1 + re.compile(pattern).groups
    together = re.compile("|".join(f"({pattern})" for _, pattern in patterns)).match if patterns else None

    def first(name: str) -> int | None:
        i = exact.get(name)
        found = None if together is None else together(name)
        if found is None:
            return i
        assert found.lastindex is not None
        j = groups[found.lastindex]
        return j if i is None else min(i, j)

    return first


def _is_pattern(key: str) -> bool:
    return any(letter in key for letter in "*?[")


def _check(rules: Any) -> None:
    """Raise for keys and values of other kinds."""
    if not isinstance(rules, Mapping):
        raise TypeError(
            "init must be a mapping from names, patterns or module classes to initialisers, not "
            f"{type(rules).__name__}; to treat all parameters alike, write {{'*': initialiser}}"
        )
    for key, value in rules.items():
        if not isinstance(key, str) and (not isinstance(key, type) or issubclass(key, torch.Tensor)):
            raise TypeError(
                f"init has a key {key!r}, but a key is a parameter's name, a pattern like '*.bias', or a module class"
            )
        if isinstance(key, type) and isinstance(value, Mapping):
            for own, inner in value.items():
                if not isinstance(own, str):
                    raise TypeError(f"init[{_text(key)}] has a key {own!r}, but its keys are parameters' own names")
                _check_value(f"{_text(key)}[{own!r}]", inner)
        else:
            _check_value(_text(key), value)


def _check_value(key: str, value: Any) -> None:
    if value is None or callable(value) or isinstance(value, (numbers.Number, torch.Tensor)):
        return
    hint = "; only a module class has a mapping" if isinstance(value, Mapping) else ""
    raise TypeError(
        f"init[{key}] is {value!r}, which is no initialiser: give a function that fills a tensor in place, a number, a "
        f"tensor, or None to keep what is recorded{hint}"
    )


def _refuse(
    i: int,
    keys: Sequence[str | type],
    rules: RuleSet,
    modules: Mapping[str, torch.nn.Module],
    targets: Sequence[Target],
    taken: Mapping[str, int],
) -> None:
    """Raise if it is a mistake that key `i` has no parameter."""
    key = keys[i]
    if key == "*":
        return
    named = [(name, target) for target in targets for name in (target.name, *target.others)]
    known = [(name, target) for name, target in named if target.role == "parameter"]
    for name, target in known:
        if _matches(key, rules[key], name, modules):
            earlier = keys[taken[target.name]]
            # A class may lose a tied parameter by another of its names: rule sets are shared between models.
            if isinstance(key, str) or _matches(earlier, rules[earlier], name, modules):
                raise ValueError(
                    f"init[{_text(key)}] comes too late: all that it matches, {name!r} for one, goes to "
                    f"init[{_text(earlier)}], which is written before it; the first rule that matches wins, so write "
                    "the narrower one first"
                )
    if not isinstance(key, str):
        return
    others = [name for name, target in named if target.role != "parameter" and _matches(key, None, name, modules)]
    if others:
        raise ValueError(f"init[{key!r}] matches no parameter: {others[0]!r} is a buffer, and rules see parameters")
    nearest = difflib.get_close_matches(key, [name for name, _ in known], n=3, cutoff=0.0)
    raise ValueError(f"init[{key!r}] matches no parameter; the nearest names are {', '.join(map(repr, nearest))}")


def _matches(key: str | type, value: Any, name: str, modules: Mapping[str, torch.nn.Module]) -> bool:
    if isinstance(key, str):
        return name == key or (_is_pattern(key) and fnmatch.fnmatchcase(name, key))
    path, _, own = name.rpartition(".")
    return isinstance(modules.get(path), key) and (not isinstance(value, Mapping) or own in value)


def _refuse_unknown_names(key: Any, value: Mapping[str, Any], modules: Mapping[str, torch.nn.Module]) -> None:
    """Raise if a class has instances, and none has heard of one of the names in its mapping."""
    instances = [module for module in modules.values() if isinstance(module, key)]
    known = dict.fromkeys(own for module in instances for own in module._parameters)
    unknown = [own for own in value if own not in known]
    if instances and unknown:
        raise ValueError(
            f"init[{_text(key)}] has the name {unknown[0]!r}, but a {type(instances[0]).__name__} has the parameters "
            f"{', '.join(map(repr, known)) or 'none'}"
        )
