"""The built book is accessible, light, without dead links, and its figures are not blank.

Needs the book at `_build/html` (run `make book`); the checks in a browser need a Chromium too.
Else skipped, with the reason.
"""

from __future__ import annotations

import html.parser
import io
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image
from test_book_ext import Project
from test_book_pages import HTML, ROOT, pages

AXE = ROOT / "tests" / "vendor" / "axe-core" / "axe.min.js"
# What others' templates do. The theme: its sidebar is outside of any landmark, its search button
# shows the keys that open it. docutils: the roles in a bibliography. Sphinx: a signature of
# several lines is a list without terms.
NOT_OURS = {
    "region",
    "label-content-name-mismatch",
    "aria-allowed-role",
    "aria-deprecated-role",
    "aria-required-children",
    "definition-list",
}
RUN_AXE = """async (only) => {
  const options = {resultTypes: ['violations'], ...(only && {runOnly: only})};
  const {violations} = await axe.run(document, options);
  const describe = (v, n) =>
    `${v.id}: ${n.html.slice(0, 120)} (${n.failureSummary.split('\\n')[1]})`;
  return violations.flatMap(v => v.nodes.map(n => describe(v, n)));
}"""
PAGE_LIMIT = 6e6  # bytes of a page and its images: half a minute on a slow line
BOOK_LIMIT = 150e6  # bytes of all files


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages(HTML) or ["index.html"])


def violations(browser: Any, address: str) -> list[str]:
    """Give what axe-core objects to on a page, but for what is not ours.

    All rules in the light; in the dark, where colors alone differ, the contrast of text.
    """
    # Colors must not be caught in transition.
    context = browser.new_context(reduced_motion="reduce")
    try:
        sheet = context.new_page()
        # MathJax has its own way to tell formulas to screen readers, and very many elements.
        sheet.route("**/mathjax/**", lambda route: route.abort())
        sheet.goto(address)
        sheet.add_style_tag(content="* { transition: none !important; }")
        sheet.evaluate(AXE.read_text(encoding="utf-8"))
        found = []
        for theme, only in (("light", None), ("dark", ["color-contrast"])):
            sheet.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
            found += [f"{theme}: {text}" for text in sheet.evaluate(RUN_AXE, only)]
    finally:
        context.close()
    return [text for text in found if text.split(": ")[1] not in NOT_OURS]


def test_page_is_accessible(browser: Any, page: str) -> None:
    assert violations(browser, (HTML / page).as_uri()) == []


def test_inaccessible_pages_are_seen(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<html lang="en"><title>t</title><main style="background: white"><h1>t</h1>'
        '<p style="color: #bbb">pale</p><img src="x.png"><input></main></html>'
    )
    found = [text.split(": ")[:2] for text in violations(browser, page.as_uri())]
    assert sorted(found) == [
        ["dark", "color-contrast"],
        ["light", "color-contrast"],
        ["light", "image-alt"],
        ["light", "label"],
    ]


# What needs no browser


class Links(html.parser.HTMLParser):
    """The targets, images and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.files: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := given.get(name))}
        if tag == "a" and (link := given.get("href")):
            self.links.append(link)
        if tag in ("img", "script") and (source := given.get("src")):
            self.files.append(source)


def dead_links(root: Path, page: str, parsed: dict[str, Links]) -> list[str]:
    """List the links of a page into the book that lead nowhere."""
    dead = []
    for link in [*parsed[page].links, *parsed[page].files]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (root / page).parent / unquote(parts.path) if parts.path else root / page
        name = target.resolve().relative_to(root.resolve()).as_posix()
        if not target.is_file() or (
            parts.fragment and name in parsed and unquote(parts.fragment) not in parsed[name].ids
        ):
            dead.append(link)
    return dead


def parse(root: Path) -> dict[str, Links]:
    return {page: Links((root / page).read_text(encoding="utf-8")) for page in pages(root)}


@pytest.fixture(scope="module")
def parsed() -> dict[str, Links]:
    if not (HTML / "index.html").is_file():
        pytest.skip("no built book at _build/html: run `make book` first")
    return parse(HTML)


def test_no_link_is_dead(parsed: dict[str, Links]) -> None:
    found = {page: dead_links(HTML, page, parsed) for page in parsed}
    assert {page: links for page, links in found.items() if links} == {}


def test_dead_links_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="x"></h1><a href="#x"></a><a href="b.html#y"></a><a href="https://z.org"></a>'
        '<a href="#no"></a><a href="b.html#no"></a><a href="c.html"></a><img src="no.svg">'
    )
    (tmp_path / "b.html").write_text('<h1 id="y"></h1>')
    found = dead_links(tmp_path, "a.html", parse(tmp_path))
    assert found == ["#no", "b.html#no", "c.html", "no.svg"]


def test_pages_are_light(parsed: dict[str, Links]) -> None:
    heavy = {}
    for page, found in parsed.items():
        files = {(HTML / page).parent / source for source in found.files if ":" not in source}
        images = [file for file in files if file.suffix in (".svg", ".png") and file.is_file()]
        weight = sum(file.stat().st_size for file in [HTML / page, *images])
        if weight > PAGE_LIMIT:
            heavy[page] = weight
    assert heavy == {}
    total = sum(file.stat().st_size for file in HTML.rglob("*") if file.is_file())
    assert total < BOOK_LIMIT


def blank(picture: bytes) -> bool:
    """Tell whether a picture shows nothing: nearly all of one color."""
    gray = np.asarray(Image.open(io.BytesIO(picture)).convert("L"), dtype=float)
    return bool((np.abs(gray - np.median(gray)) > 24).mean() < 0.002)


def test_no_figure_is_blank(browser: Any) -> None:
    images = sorted((HTML / "_images").glob("*.*"))
    assert images
    context = browser.new_context(viewport={"width": 700, "height": 500})
    try:
        sheet = context.new_page()
        seen = []
        for image in images:
            sheet.goto(image.as_uri())
            if blank(sheet.screenshot()):
                seen.append(image.name)
        assert seen == []
    finally:
        context.close()


def test_blank_figures_are_seen() -> None:
    def png(image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "png")
        return buffer.getvalue()

    white = Image.new("RGB", (400, 300), "white")
    assert blank(png(white))
    white.paste("black", (50, 50, 350, 54))
    assert not blank(png(white))


def test_broken_references_and_numbers_fail_the_build(tmp_path: Path) -> None:
    """The gate of the build itself, with the options that the Snakefile gives it."""
    assert "jupyter-book build _build/src --path-output . --all -W --keep-going -n" in (
        ROOT / "Snakefile"
    ).read_text(encoding="utf-8")
    project = Project(tmp_path)
    project.record(0)
    project.write("index.md", "# Page\n\n{num}`paper/trial values.loss`\n")
    assert project.build()[0] == 0
    breaks = {
        "{ref}`nowhere`": "undefined label: 'nowhere'",
        "{numref}`nowhere`": "undefined label: 'nowhere'",
        "[a page](nowhere.md)": "cross-reference target not found: 'nowhere.md'",
        "{num}`paper/trial values.dropped`": "no 'dropped' in values",
    }
    project.write("index.md", "# Page\n\n" + "\n\n".join(breaks))
    status, printed = project.build()
    assert status != 0
    for line, reason in enumerate(breaks.values()):
        assert any(
            f"index.md:{3 + 2 * line}:" in said and reason in said for said in printed.splitlines()
        ), (reason, printed)
