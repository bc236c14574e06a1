"""Pictures as small SVG files: text as text, a tenth of a point, no style said twice."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def save(figure: Any, path: Path) -> None:
    """Write ``figure``; the same figure gives the same bytes."""
    import matplotlib

    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastinit"}):
        figure.savefig(path, dpi=120, metadata=metadata if path.suffix == ".svg" else None)
    if path.suffix == ".svg":
        path.write_text(smaller(path.read_text()))


def smaller(text: str) -> str:
    """An SVG file of matplotlib's that looks the same in a tenth of the bytes."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", XLINK)
    root = ET.fromstring(text)
    unwrap(root)
    classes: dict[str, str] = {}
    styles: dict[str, str] = {}  # of what has a name
    for element in root.iter():
        element.text, element.tail = (element.text or "").strip() or None, None
        for name in ("d", "x", "y", "transform"):
            if name in element.attrib:
                element.set(name, shorter(name, element.attrib[name]))
        if not element.get("transform", "-"):
            del element.attrib["transform"]
        style = re.sub(r"'[^;]*sans-serif", "sans-serif", element.attrib.pop("style", ""))
        style = style.replace(": ", ":").replace("; ", ";")
        styles["#" + element.get("id", "")] = style
        if style and style != styles.get(element.get(f"{{{XLINK}}}href", "")):
            element.set("class", classes.setdefault(style, class_name(len(classes))))
    (rules,) = root.iter(f"{{{SVG}}}style")
    rules.text = (rules.text or "") + "".join(f".{name}{{{style}}}" for style, name in classes.items())
    text = ET.tostring(root, encoding="unicode")
    # Names that something refers to, short; the others away.
    used = list(dict.fromkeys(re.findall(r'#(\w+)[")]', text)))
    short = {name: f"i{n}" for n, name in enumerate(used)}
    text = re.sub(r' id="(\w+)"', lambda m: f' id="{short[m[1]]}"' if m[1] in short else "", text)
    text = re.sub(r'#(\w+)([")])', lambda m: f"#{short[m[1]]}{m[2]}", text)
    return re.sub(r"(<(?:g|path|text|use|defs)[ >])", r"\n\1", text).replace(" />", "/>") + "\n"


def class_name(number: int) -> str:
    """a to z, then aa to az and so on."""
    letter = chr(ord("a") + number % 26)
    return letter if number < 26 else class_name(number // 26 - 1) + letter


def unwrap(parent: ET.Element) -> None:
    """Groups that only have a name give way to what they hold."""
    children: list[ET.Element] = []
    for child in parent:
        unwrap(child)
        children += child if child.tag == f"{{{SVG}}}g" and child.attrib.keys() <= {"id"} else [child]
    parent[:] = children


def shorter(attribute: str, value: str) -> str:
    """A path, a position or a transformation with coordinates to a tenth."""
    if attribute == "transform":
        value = re.sub(r"rotate\(-?0 [^)]*\)", "", value)
    if attribute != "d":
        return re.sub(r"-?\d+\.\d+", lambda m: tenth(m[0]), value).strip()
    drawn, at = "", ["", ""]
    for command, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", value):
        to = [tenth(n) for n in numbers.split()]
        if command == "L" and at[1] == to[1]:
            drawn += f"H{to[0]}"
        elif command == "L" and at[0] == to[0]:
            drawn += f"V{to[1]}"
        else:
            drawn += command + " ".join(to)
        at = to[-2:] or at
    return drawn


def tenth(number: str) -> str:
    return f"{round(float(number), 1) + 0:g}"  # + 0: no -0
