"""The documentation's site, as `make docs` builds it: links, and pages in a browser.

The browser is the Chromium that `make test` fetches (tools/chromium.sh), or one on PATH.
"""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from support.browser import Browser, browsing, find

import torch_fastinit as fastinit

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted(path.name for path in (ROOT / "docs").glob("*.svg"))
WIDTHS = (400, 1400)
CHROMIUM = find()

pytest.importorskip("mkdocs", reason="mkdocs is not installed: `make docs` installs it")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium: `make test` fetches one where there is apt-get, `make test BROWSER=0` does not",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    with browsing(CHROMIUM, tmp_path_factory.mktemp("profile")) as opened:
        yield opened


class Page(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = {""}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a":
            self.links += [found["href"]] if "href" in found else []
        else:
            self.loaded += [found[name] for name in ("src", "href") if name in found]


def broken(pages: dict[str, Page], exists: Callable[[str], bool]) -> list[str]:
    """The links of pages, by address, that lead nowhere; a page is at its folder's address or at its file's."""
    found = []
    for page, content in pages.items():
        for link in content.links + content.loaded:
            to = urlsplit(urljoin(f"site:///{page}".replace("site", "http", 1), link))
            if urlsplit(link).scheme in ("https", "mailto"):
                continue
            path = unquote(to.path).lstrip("/")
            path = path + "index.html" if path.endswith("/") or not path else path
            if not exists(path) or (path in pages and unquote(to.fragment) not in pages[path].anchors):
                found.append(f"{page}: {link}")
    return found


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {str(path.relative_to(site)): Page(path.read_text()) for path in sorted(site.rglob("*.html"))}


def test_links_lead_somewhere(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 20
    assert not broken(pages, lambda path: (site / path).is_file())


def test_a_broken_link_is_found() -> None:
    pages = {
        "index.html": Page('<a href="a/">right</a><a href="a/#there">right</a><a href="b/">wrong</a>'),
        "a/index.html": Page('<p id="there"><a href="..">right</a><a href="../#no">wrong</a><img src="c.svg">'),
    }
    assert broken(pages, pages.__contains__) == ["index.html: b/", "a/index.html: ../#no", "a/index.html: c.svg"]


def test_every_public_name_is_in_the_reference(pages: dict[str, Page]) -> None:
    modules, torchs_own = {"init", "like"}, {"calculate_gain"}
    wanted = {f"torch_fastinit.{name}" for name in set(fastinit.__all__) - modules}
    wanted |= {f"torch_fastinit.init.{name}" for name in set(fastinit.init.__all__) - torchs_own}
    found = {anchor for name, page in pages.items() if name.startswith("reference/") for anchor in page.anchors}
    assert wanted <= found, wanted - found


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, Page]) -> None:
    assert not [link for page in pages.values() for link in page.loaded if urlsplit(link).netloc]


def test_the_site_is_small(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 10e6


def becomes(browser: Browser, expression: str, seconds: float = 20.0) -> bool:
    """Whether JavaScript becomes true: the theme goes on working after a page's load event."""
    until = time.monotonic() + seconds
    while not (is_so := browser.evaluate(f"Boolean({expression})")) and time.monotonic() < until:
        time.sleep(0.02)
    return bool(is_so)


@needs_browser
def test_no_page_scrolls_sideways(browser: Browser, address: str, pages: dict[str, Page]) -> None:
    fits = "document.documentElement.scrollWidth <= innerWidth"
    wide, elsewhere = [], set()
    browser("Network.setBlockedURLs", urls=["*/search/*"])  # half of the time of a page
    for page in pages:
        browser.resize(WIDTHS[0])
        browser.open(address + page)
        for width in WIDTHS:
            browser.resize(width)
            if not becomes(browser, f"innerWidth === {width} && {fits}"):
                wide.append(f"{page} at {width}")
        elsewhere |= {asked for asked in browser.requested() if not asked.startswith((address, "data:"))}
    browser("Network.setBlockedURLs", urls=[])
    assert not wide
    assert not elsewhere
    browser.evaluate("document.body.insertAdjacentHTML('beforeend', '<div style=\"width: 2000px\">-</div>')")
    assert not browser.evaluate(fits)


@needs_browser
def test_search_finds_a_function(browser: Browser, address: str) -> None:
    browser.resize(WIDTHS[1])
    browser.open(address)
    browser.evaluate("document.querySelector('[data-md-component=search-query]').focus()")
    browser("Input.insertText", text="trunc_normal_")
    assert becomes(browser, "document.querySelector('.md-search-result__link[href*=\"reference/init\"]')")
    assert "trunc_normal_" in browser.evaluate("document.querySelector('.md-search-result__list').textContent")


#: Of a picture on its own page: is it opaque, and how much of it has a contrast of 4.5 (WCAG 2.2) to its background?
LEGIBLE = """(async () => {
    const picture = new Image();
    picture.src = %r;
    await picture.decode();
    const size = {width: picture.naturalWidth, height: picture.naturalHeight};
    const canvas = Object.assign(document.createElement("canvas"), size);
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const linear = value => value <= 10.31 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = at => 0.2126 * linear(data[at]) + 0.7152 * linear(data[at + 1]) + 0.0722 * linear(data[at + 2]);
    let opaque = true, contrasting = 0;
    const background = luminance(0);
    for (let at = 0; at < data.length; at += 4) {
        opaque &&= data[at + 3] > 127; // the last row of pixels may be covered in part
        const [low, high] = [luminance(at), background].sort((x, y) => x - y);
        contrasting += data[at + 3] > 127 && (high + 0.05) / (low + 0.05) >= 4.5;
    }
    return [opaque, 4 * contrasting / data.length];
})()"""


@needs_browser
def test_the_first_page_begins_with_one_screen(browser: Browser, address: str) -> None:
    """What, why, install, ten lines, one picture: on a laptop's 1400 x 900 with the bars around it."""
    browser.open(address)
    browser.resize(1400)
    assert becomes(browser, "innerWidth === 1400")
    assert becomes(browser, "document.querySelector('.md-content img').complete")
    bottom = browser.evaluate("document.querySelector('.md-content img').getBoundingClientRect().bottom + scrollY")
    headings = browser.evaluate(
        "[...document.querySelectorAll('h2')].map(h => h.getBoundingClientRect().top + scrollY)"
    )
    assert bottom < 950 and bottom < min(headings)


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_legible(browser: Browser, address: str, scheme: str) -> None:
    browser.prefer(scheme)
    browser.open(address + "docs/" + PICTURES[0])  # which has no script that could note the scheme again
    browser.evaluate("localStorage.clear()")  # the scheme of the visit before
    browser.open(address + "docs/performance/")
    assert browser.evaluate("document.body.dataset.mdColorScheme") == {"light": "default", "dark": "slate"}[scheme]
    for width in WIDTHS:  # text of 10 points is 8 pixels high or more
        browser.resize(width)
        assert becomes(browser, f"innerWidth === {width}")
        scales = browser.evaluate(
            "[...document.querySelectorAll('.md-content img')].map(i => i.width / i.naturalWidth)"
        )
        assert len(scales) > 5 and min(scales) > 0.6
    for name in PICTURES:
        opaque, share = browser.evaluate(LEGIBLE % (address + "docs/" + name))
        assert opaque and share > 0.01, (name, opaque, share)
    pale = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9v4H0z" fill="%23eee"/></svg>'
    assert browser.evaluate(LEGIBLE % f"data:image/svg+xml,{pale}") == [False, 0]
