"""The directive {claims}: each claim with its verdict, computed from the full-scale records.

Syntax::

    ```{claims-summary}
    ```

    ```{claims}
    :name: claims-table
    ```

The first is one line, how many claims have which verdict, and may stand on other pages, too.
Claims and rules stand in `hessinit_book/claims`; the figures and the verdicts are computed when
the page is built. The page is read again by every build: any record may turn a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from book_records import complain, read_followed, repository_root
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import OptionSpec

from hessinit_book.claims import CLAIMS, NOT_TESTED, Claim, Finding
from hessinit_book.claims.findings import counted
from hessinit_book.errors import RecordError

_HEADINGS = {"claim": 35, "what we find": 65}
_FOUND = "hessinit_claims"  # what the page's directives found
SOURCES = {
    "preprint": "abstract of the preprint",
    "conference": "abstract of the conference version",
    "notebook": "the authors' notebook",
}


class _OfClaims(SphinxDirective):
    """What both directives do: judge all claims."""

    def findings(self) -> list[Finding]:
        """Judge all claims, once a page; warn of records that are not valid."""
        self.env.note_reread()
        if _FOUND not in self.env.temp_data:
            self.env.temp_data[_FOUND] = [self._judged(claim) for claim in CLAIMS]
        return self.env.temp_data[_FOUND]

    def _judged(self, claim: Claim) -> Finding:
        try:
            finding = claim.finding(repository_root(self.env.srcdir) / "results")
            if finding.verdict != NOT_TESTED:
                for name in (claim.experiment, *claim.beside):
                    read_followed(self.env, f"paper/{name}")
        except RecordError as error:
            complain(self.env, self.get_location(), f"{{claims}} {claim.experiment}", error)
            return Finding(NOT_TESTED)
        return finding


class SummaryDirective(_OfClaims):
    """The line that counts verdicts."""

    def run(self) -> list[nodes.Node]:
        """Give the line."""
        text = counted(finding.verdict for finding in self.findings())
        return [nodes.paragraph("", "", nodes.strong("", f"{text}."))]


class ClaimsDirective(_OfClaims):
    """The table of all claims."""

    option_spec: ClassVar[OptionSpec] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "name": directives.unchanged
    }

    def run(self) -> list[nodes.Node]:
        """Give the table."""
        head, body = nodes.thead(), nodes.tbody()
        head += _row([nodes.paragraph("", heading)] for heading in _HEADINGS)
        for claim, finding in zip(CLAIMS, self.findings(), strict=True):
            body += self._claim(claim, finding)
        columns = [nodes.colspec(colwidth=width) for width in _HEADINGS.values()]
        group = nodes.tgroup("", *columns, head, body, cols=len(_HEADINGS))
        title = nodes.title("", "Claims, and what comes of them here.")
        table = nodes.table("", title, group, classes=["claims"])
        self.set_source_info(table)
        self.add_name(table)
        if not table["ids"]:
            table["ids"].append("claims-table")  # a caption is numbered, which needs an id
        return [table]

    def _claim(self, claim: Claim, finding: Finding) -> nodes.row:
        claimed = nodes.paragraph("", claim.text + " ")
        claimed += nodes.emphasis("", SOURCES[claim.source].capitalize() + ".")
        verdict = nodes.paragraph("", "", nodes.strong("", finding.verdict.capitalize()))
        if (Path(self.env.srcdir) / "notebooks" / f"{claim.experiment}.ipynb").is_file():
            verdict += nodes.Text(" by ")
            verdict += pending_xref(
                "",
                nodes.literal("", claim.experiment),
                refdoc=self.env.docname,
                refdomain="std",
                reftype="doc",
                reftarget=f"/notebooks/{claim.experiment}",
                refexplicit=True,
                refwarn=True,
            )
        found: list[nodes.Node] = [verdict]
        if finding.figure:
            items = [
                nodes.list_item("", nodes.paragraph("", t)) for t in finding.figure.split("; ")
            ]
            found.append(nodes.bullet_list("", *items))
        meant = [self._labelled("Meant here: ", claim.form)] if claim.form else []
        return _row([[claimed, *meant], [*found, self._labelled("Rule: ", claim.rule)]])

    def _labelled(self, label: str, markdown: str) -> nodes.paragraph:
        inline, messages = self.state.inline_text(markdown, self.lineno)
        return nodes.paragraph("", "", nodes.emphasis("", label), *inline, *messages)


def _row(cells: Iterable[Iterable[nodes.Node]]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", *cell) for cell in cells))


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.setup_extension("book_records")
    app.add_directive("claims", ClaimsDirective)
    app.add_directive("claims-summary", SummaryDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
