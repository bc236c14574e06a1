"""Reports as they are shown: a table, a page, a notebook."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import torch
from support.sample_report import damaged_model, save_sample
from torch import nn

import torch_fastinit as fastinit
from torch_fastinit.reporting.reports import Report


def test_one_is_not_many() -> None:
    module = nn.Module()
    module.register_buffer("one", torch.ones(1))
    assert fastinit.report(module).summary.startswith("1 tensor, 1 element; 0 with a promise, 0 flagged")


def test_it_prints_as_a_table() -> None:
    text = str(fastinit.report(damaged_model()))
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["name", "shape", "dtype", "mean"]
    assert any("deviation" in line for line in lines if line.startswith("block.linear1.weight "))
    assert lines[-1].endswith("3 flagged (a model as promised: probability at most 1e-06)")


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.names: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "td" and dict(attrs).get("data-h") == "name":
            self.names.append("")
        if tag not in ("meta", "input", "wbr", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["td"] and self.names and not self.names[-1].endswith("\n"):
            self.names[-1] += data

    def rows(self) -> int:
        return sum(tag == "tr" for tag, _ in self.tags) - 1


def test_the_page_is_whole(tmp_path: Path) -> None:
    text = save_sample(tmp_path).read_text()
    report = fastinit.report(damaged_model())
    page = Page(text)
    assert page.open == [] and page.rows() == len(report.rows)
    for row in report.rows:
        assert f">{row.name.replace('.', '.<wbr>')}<" in text
    histograms = [row.histogram for row in report.rows if row.histogram]
    assert sum(tag == "svg" for tag, _ in page.tags) == len(histograms) == len(report.rows)
    assert text.count('class="promised"') == sum(bool(one.expected) for one in histograms)
    assert sum(tag == "tr" and attrs.get("class") == "off" for tag, attrs in page.tags) == 3


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    text = save_sample(tmp_path).read_text()
    links = {"src", "href", "srcset", "action", "data", "xlink:href"}
    assert not [attrs for _, attrs in Page(text).tags if links & attrs.keys()]
    assert not [word for word in ("http:", "https:", "//", "url(", "@import", "fetch(", "import(") if word in text]


def test_names_are_escaped(tmp_path: Path) -> None:
    model = nn.Module()
    model.register_parameter("<b>&", nn.Parameter(torch.zeros(2)))
    report = fastinit.report(model)
    report.save(tmp_path / "page.html")
    for text in (report._repr_html_(), (tmp_path / "page.html").read_text()):
        assert "<b>&<" not in text and "&lt;b&gt;&amp;" in text


def test_a_notebook_shows_a_table() -> None:
    report: Report = fastinit.report(damaged_model())
    text = report._repr_html_()
    assert Page(text).open == [] and all(row.name in text for row in report.rows)
    assert "<b>block.linear1.weight</b>" in text and "<b>head.weight</b>" not in text
