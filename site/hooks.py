"""What `mkdocs build` does beside what mkdocs.yml says: formulas as MathML, and what docstrings mean."""

import html
import re

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(text: str, **_: object) -> str:
    """`no-run` is for tests/repo/test_docs.py."""
    return text.replace("```python no-run\n", "```python\n")


def on_page_content(text: str, **_: object) -> str:
    """Browsers draw MathML by themselves: no script, no font, nothing from another server."""
    return FORMULA.sub(lambda m: convert(html.unescape(m[2]), display="inline" if m[1] == "span" else "block"), text)


class Docstrings(griffe.Extension):
    """Griffe knows the section "Examples:" alone, and one example is an "Example:". Pages that are named are links."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"\b(docs/[\w-]+)\.md\b", r"[\1.md](../../\1/)", text)
