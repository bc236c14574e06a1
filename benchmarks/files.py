"""Results as JSON that people can read and compare: eight digits, and a line for what fits in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, report: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(report), parse_float=lambda digits: float(f"{float(digits):.8g}"))
    path.write_text(_text(rounded) + "\n")


def _text(value: Any, indent: str = "") -> str:
    line = json.dumps(value)
    if not isinstance(value, (dict, list)) or len(indent) + len(line) <= 118:
        return line
    further = indent + " "
    if isinstance(value, dict):
        items = [f"{further}{json.dumps(key)}: {_text(item, further)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    return "[\n" + ",\n".join(further + _text(item, further) for item in value) + f"\n{indent}]"
