"""The built book in a browser: every page reads offline, whole and without errors.

Needs the book at `_build/html` (run `make book`) and a Chromium; else skipped, with the reason.
"""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
MATH_WAIT_MS = 20_000
LAUNCHERS = ("mybinder.org", "colab.research.google.com")

# Waits until MathJax has drawn the page; a page without formulas does not load it.
MATH_DONE = """async () => {
  if (!document.querySelector('.math')) return true;
  if (!window.MathJax || !window.MathJax.startup || !window.MathJax.startup.promise) return false;
  await window.MathJax.startup.promise;
  return true;
}"""
PAGE_FACTS = """() => ({
  math: document.querySelectorAll('.math').length,
  drawn: document.querySelectorAll('mjx-container').length,
  faulty: document.querySelectorAll('mjx-merror').length,
  images: [...document.querySelectorAll('article img')].map(
    i => ({src: i.getAttribute('src'), width: i.naturalWidth, alt: i.getAttribute('alt')})),
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
})"""
# What sticks out of a phone's screen, and cannot be scrolled by itself.
TOO_WIDE = """() => {
  const shown = document.documentElement.clientWidth;
  const scrolls = (e) => e && (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX)
    || scrolls(e.parentElement));
  return [...document.querySelectorAll('article *')]
    .filter(e => e.getBoundingClientRect().right > shown + 1 && !scrolls(e.parentElement))
    .map(e => `${e.tagName} ${e.className}: ${e.textContent.slice(0, 40)}`);
}"""
PHONE = {"width": 390, "height": 844}
# Images below the fold may be lazy: have all loaded before their widths are read.
LOAD_IMAGES = """() => Promise.all([...document.querySelectorAll('article img')].map(
  i => { i.loading = 'eager'; return i.decode().catch(() => null); }))"""


@dataclass
class PageReport:
    """What was found on one page."""

    problems: list[str] = field(default_factory=list)
    notebooks: list[str] = field(default_factory=list)
    formulas: int = 0


def pages(html: Path) -> list[str]:
    """Name all pages of a built book, without the parts that are no pages."""
    found = (path.relative_to(html) for path in html.rglob("*.html"))
    return sorted(path.as_posix() for path in found if not path.parts[0].startswith("_"))


def poor_alt(alt: str | None) -> bool:
    """Tell whether an image's alternative text is missing, a file's name or a single word."""
    if not alt or not alt.strip():
        return True
    return bool(re.search(r"[/\\]|\.(png|svg|jpe?g|gif)$", alt.strip())) or " " not in alt.strip()


def launched_notebook(link: str) -> str | None:
    """Give the notebook that a Binder or Colab link opens, from the repository's root."""
    parts = urlsplit(link)
    if parts.hostname not in LAUNCHERS:
        return None
    if parts.hostname == "mybinder.org":
        return re.sub(r"^.*urlpath=(lab/)?tree/", "", unquote(parts.query))
    return re.sub(r"^/github/[^/]+/[^/]+/blob/[^/]+/", "", unquote(parts.path))


def inspect(browser, address: str, allowed: str) -> PageReport:
    """Open one page and list what is wrong with it.

    Args:
        browser: a started browser of playwright's.
        address: the page.
        allowed: what each request must start with; all others are recorded.
    """
    report = PageReport()
    problems = report.problems
    context = browser.new_context()
    try:
        page = context.new_page()
        page.on("request", lambda r: note_outside(r.url, allowed, problems))
        page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
        page.on(
            "console",
            lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None,
        )
        page.on("requestfailed", lambda r: problems.append(f"request failed: {r.url}"))
        page.on(
            "response",
            lambda r: problems.append(f"status {r.status}: {r.url}") if r.status >= 400 else None,
        )
        page.goto(address, wait_until="load")
        page.set_default_timeout(MATH_WAIT_MS)
        if not page.evaluate(MATH_DONE):
            problems.append("formulas: MathJax did not start")
        page.evaluate(LOAD_IMAGES)
        facts = page.evaluate(PAGE_FACTS)
        page.set_viewport_size(PHONE)
        problems += [f"too wide for a phone: {what}" for what in page.evaluate(TOO_WIDE)[:3]]
    finally:
        context.close()
    report.formulas = facts["math"]
    if facts["drawn"] != facts["math"]:
        problems.append(f"formulas: {facts['drawn']} drawn of {facts['math']}")
    if facts["faulty"]:
        problems.append(f"formulas: {facts['faulty']} with an error")
    for image in facts["images"]:
        if not image["width"]:
            problems.append(f"image not shown: {image['src']}")
        if poor_alt(image["alt"]):
            problems.append(f"image without real alt text: {image['src']} ({image['alt']!r})")
    report.notebooks = [name for name in map(launched_notebook, facts["links"]) if name]
    return report


def note_outside(url: str, allowed: str, problems: list[str]) -> None:
    if not url.startswith((allowed, "data:", "blob:")):
        problems.append(f"request outside the book: {url}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages(HTML) or ["index.html"])


def test_page_reads_offline(browser, page: str) -> None:
    report = inspect(browser, (HTML / page).as_uri(), HTML.as_uri() + "/")
    assert report.problems == []
    missing = [name for name in report.notebooks if not (ROOT / name).is_file()]
    assert missing == [], "launch buttons must open notebooks of the source tree"


def test_notebook_pages_have_launch_buttons(browser) -> None:
    found = sorted(HTML.glob("notebooks/*.html"))
    assert found, "the book has no notebook pages"
    for path in found:
        report = inspect(browser, path.as_uri(), HTML.as_uri() + "/")
        own = f"notebooks/{path.stem}.ipynb"
        assert report.notebooks.count(own) == len(LAUNCHERS), report.notebooks


def test_reads_over_http(browser) -> None:
    with serve(HTML) as address:
        report = inspect(browser, f"{address}/book/paper.html", f"{address}/")
    assert report.problems == []
    assert report.formulas > 0


def test_search_works_offline(browser) -> None:
    # Over file:// the browser refuses the excerpts under each hit; the hits are what counts.
    page = browser.new_page()
    try:
        page.goto((HTML / "search.html").as_uri() + "?q=hessian")
        hit = page.locator("#search-results li a", has_text="The paper in one page")
        hit.wait_for(timeout=MATH_WAIT_MS)
    finally:
        page.close()


def test_checker_reports_missing_mathjax(browser, tmp_path: Path) -> None:
    """The gate itself: a book without MathJax, or with a stray picture, must not pass."""
    copy = tmp_path / "html"
    shutil.copytree(HTML, copy)
    paper = copy / "book" / "paper.html"
    (copy / "_static" / "mathjax" / "tex-chtml-full.js").unlink()
    text = paper.read_text(encoding="utf-8")
    stray = '<img src="https://example.org/a.png" alt="a.png"><p style="width: 500px">wide</p>'
    paper.write_text(text.replace("</article>", f"{stray}</article>", 1), encoding="utf-8")
    problems = inspect(browser, paper.as_uri(), copy.as_uri() + "/").problems
    for part in (
        "request failed: ",
        "MathJax did not start",
        "formulas: 0 drawn of",
        "request outside the book: https://example.org/a.png",
        "image not shown: https://example.org/a.png",
        "image without real alt text: https://example.org/a.png",
        "too wide for a phone: P : wide",
    ):
        assert any(part in problem for problem in problems), (part, problems)


def test_checker_reports_missing_font(browser, tmp_path: Path) -> None:
    copy = tmp_path / "html"
    shutil.copytree(HTML, copy)
    (next(copy.rglob("MathJax_Main-Regular.woff"))).unlink()
    problems = inspect(browser, (copy / "book" / "paper.html").as_uri(), copy.as_uri()).problems
    assert any("MathJax_Main-Regular.woff" in problem for problem in problems)


def test_launched_notebook() -> None:
    binder = "https://mybinder.org/v2/gh/o/r/main?urlpath=lab/tree/notebooks/x.ipynb"
    colab = "https://colab.research.google.com/github/o/r/blob/main/notebooks/x.ipynb"
    assert launched_notebook(binder) == launched_notebook(colab) == "notebooks/x.ipynb"
    assert launched_notebook("https://github.com/o/r") is None


@pytest.mark.parametrize("alt", [None, "", " ", "../_images/a.png", "_images/ab12.svg", "figure"])
def test_poor_alt(alt: str | None) -> None:
    assert poor_alt(alt)
    assert not poor_alt("Loss over 1,000 steps for three deviations.")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class serve:
    """Serve a folder on this machine while a block runs."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(_Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *args: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
