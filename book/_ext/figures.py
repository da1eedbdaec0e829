"""What is behind each figure of a notebook: a line in its caption with links.

A figure of the committed records leads to the table of provenance on its page (data,
parameters, seeds, device, code, records); a figure of the run at hand, which its caption
begins with "This run", to the parameters of that run. Both lead to the notebook.
"""

from __future__ import annotations

from pathlib import Path

from book_records import repository_root
from docutils import nodes
from provenance import repository_link
from sphinx.application import Sphinx

RUN = "This run"


def _explain(app: Sphinx, doctree: nodes.document) -> None:
    assert app.env is not None
    path = Path(app.env.doc2path(app.env.docname))
    if path.suffix != ".ipynb":
        return
    root = repository_root(app.srcdir)
    tables = [t for t in doctree.findall(nodes.table) if "provenance" in t["classes"]]
    parameters = [s for s in doctree.findall(nodes.section) if "parameters" in s["ids"]]
    for figure in doctree.findall(nodes.figure):
        caption = next(iter(figure.findall(nodes.caption)), None)
        if caption is None:
            continue
        of_run = caption.astext().startswith(RUN)
        target = (parameters if of_run else tables)[:1]
        what = "parameters of this run" if of_run else "data, parameters, seeds, device, records"
        line = nodes.inline("", "", nodes.Text(" Behind this figure: "), classes=["behind-figure"])
        if target:
            identifier = "parameters" if of_run else target[0]["ids"][0]
            line += nodes.reference("", what, internal=True, refuri=f"#{identifier}")
            line += nodes.Text("; ")
        line += repository_link(root, f"notebooks/{path.name}", "notebook")
        line += nodes.Text(".")
        caption += line


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.connect("doctree-read", _explain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
