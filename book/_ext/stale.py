"""A notice on pages whose notebook ran with other code or records than there are now.

The build runs such notebooks again, so the notice is seen where that was passed by. It is
part of the page, not a warning of the build: what it says is for the reader. `make verify`
fails for the same reasons.
"""

from __future__ import annotations

from pathlib import Path

from book_records import repository_root
from docutils import nodes
from sphinx.application import Sphinx

from hessinit_book.records.freshness import page_problems


def notice(text: str) -> nodes.warning:
    """Make a notice of one sentence in bold, marked as one about staleness."""
    node = nodes.warning("", classes=["stale-notice"])
    node += nodes.paragraph("", "", nodes.strong("", text))
    return node


def _mark(app: Sphinx, doctree: nodes.document) -> None:
    assert app.env is not None
    page = Path(app.env.doc2path(app.env.docname))
    if page.suffix != ".ipynb":
        return
    source = repository_root(app.srcdir) / "notebooks" / page.name
    problems = page_problems(source, page)
    section = next(iter(doctree.findall(nodes.section)), None)
    if problems and section is not None:
        text = f"This page is out of date: {'; '.join(problems)}."
        section.insert(1, notice(text))


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.connect("doctree-read", _mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
