"""The Python in README.md and docs/ runs.

A fenced ``python`` block with ``>>>`` in it is a doctest; any other is executed as it stands. The blocks of one file
share their names, in order. A block fenced as ``python no-run`` is only compiled: for hardware or time that the tests
do not have.
"""

from __future__ import annotations

import doctest
import os
import re
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```python(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def run_page(text: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """Run every block of a page; the number of blocks."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        code, line = block["code"], text[: block.start("code")].count("\n")
        if "no-run" in block["options"]:
            compile("\n" * line + code, name, "exec")
        elif ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, names, name, name, line)
            report: list[str] = []
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            failed = runner.run(test, out=report.append, clear_globs=False).failed
            assert not failed, "".join(report)
            names = test.globs
        else:
            exec(compile("\n" * line + code, name, "exec"), names)
    return len(blocks)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch.distributed")  # loading a checkpoint asks for a backend
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:lightning")
@pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning")  # Lightning's
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_snippets_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    before = torch.get_num_threads()
    with mock.patch.dict(os.environ):  # launchers of processes set ranks, ports and threads
        blocks = run_page(text, str(page), monkeypatch, tmp_path)
    torch.set_num_threads(before)
    assert blocks == text.count("```python")


@pytest.mark.parametrize(
    "page", ["```python\n>>> 1 + 1\n3\n```\n", "```python\nassert False\n```\n", "```python no-run\n1 +\n```\n"]
)
def test_a_wrong_snippet_is_found(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, SyntaxError)):
        run_page(page, "page", monkeypatch, tmp_path)


def test_names_are_shared_between_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_page("```python\nx = 1\n```\n\n```python\n>>> x\n1\n```\n", "page", monkeypatch, tmp_path) == 2


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(
        r"^```.*?^```$|^    .*?$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    links = re.findall(r"\]\((?!https?://|mailto:|#)([^)#\s]+)", prose)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("**/*.svg")), ids=lambda p: p.name)
def test_pictures_are_small(picture: Path) -> None:
    assert picture.stat().st_size <= 30_000
