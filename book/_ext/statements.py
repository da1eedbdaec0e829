"""The directive {statements} and the role {check}: each statement, its source, proof and checks.

Syntax::

    ```{statements}
    :name: statements-table
    ```

    {check}`statement-05`

A comment `<!-- check: statement-05 -->` in a page's source stands for the role. Where the
parts come from:

- theorem and title: `{prf:theorem} Title` with `:label: statement-05`, in the book's pages;
- source, whose it is: the theorem's last paragraph, which begins with `*Source.*`;
- proof: the `{prf:proof}` that follows it on its page;
- checks: `values.checks.statement_05`, and `statement_05_<more>`, in the full-scale records:
  what was compared, the value reached (the worst over the seeds) and the value allowed;
- tests: the functions `test_statement_05_*` in tests/test_*.py.

A statement without one of them, or a value above the one allowed, gives a warning, which
fails a build with -W. The page is read again by every build: any file may add a part.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from book_records import complain, read_followed, repository_root
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from num import to_nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import OptionSpec
from sphinx_proof.nodes import proof_node

from hessinit_book.errors import RecordError
from hessinit_book.records.records import Record

NUMBERS = range(1, 15)

_HEADINGS = {
    "statement": 18,
    "source": 24,
    "proof": 7,
    "check: largest error (allowed)": 27,
    "tests": 24,
}
_THEOREM = re.compile(
    r"`{3,}\{prf:theorem\}[ \t]*(?P<title>.*)\n:label: statement-(?P<number>\d\d)\b"
)
_SOURCE = re.compile(r"^\*Source\.\* (?P<source>.+?)\n`{3,}$", re.MULTILINE | re.DOTALL)
_NEXT = re.compile(r"^`{3,}\{prf:(?P<kind>\w+)\}", re.MULTILINE)
_COMMENT = re.compile(r"<!-- check: (statement-\d\d) -->")
_CHECK = re.compile(r"statement_(\d\d)(_\w+)?")
_TEST = re.compile(r"test_statement_(\d\d)_\w+")


@dataclass(frozen=True)
class Theorem:
    """Where a statement stands: page, title, whose it is, and whether a proof follows."""

    page: str
    title: str
    proved: bool
    source: str = ""


@dataclass(frozen=True)
class Check:
    """What one experiment compared: the worst value over its seeds, and the one allowed."""

    experiment: str
    what: str
    value: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the value is allowed; NaN is not."""
        return self.value <= self.allowed


def find_theorems(source_dir: Path) -> dict[int, Theorem]:
    """Find the labeled theorems in the Markdown pages.

    Args:
        source_dir: the folder Sphinx builds from.
    """
    found = {}
    for path in sorted(source_dir.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        page = path.relative_to(source_dir).with_suffix("").as_posix()
        for match in _THEOREM.finditer(text):
            after = _NEXT.search(text, match.end())
            proved = after is not None and after["kind"] == "proof"
            said = _SOURCE.search(text, match.end(), after.start() if after else len(text))
            source = " ".join(said["source"].split()) if said else ""
            found[int(match["number"])] = Theorem(page, match["title"].strip(), proved, source)
    return found


def find_tests(folder: Path) -> dict[int, list[str]]:
    """Find the tests by the names of their functions, without running the files."""
    found: dict[int, list[str]] = {}
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and (match := _TEST.fullmatch(node.name)):
                found.setdefault(int(match[1]), []).append(node.name)
    return found


def find_checks(env: BuildEnvironment) -> dict[int, list[Check]]:
    """Collect the checks of all full-scale records, and have the current page follow these.

    Raises:
        RecordError: a record is not valid, or a check lacks a part.
    """
    folder = repository_root(env.srcdir) / "results" / "paper"
    found: dict[int, list[Check]] = {}
    for path in sorted(folder.glob("*")):
        # Most records have no checks, and reading them whole takes its time.
        if not any(_has_checks(file) for file in path.glob("seed-*.json")):
            continue
        for number, check in _checks(read_followed(env, f"paper/{path.name}")):
            found.setdefault(number, []).append(check)
    return found


def _has_checks(path: Path) -> bool:
    return '"checks"' in path.read_text(encoding="utf-8")


def _checks(records: list[Record]) -> Iterator[tuple[int, Check]]:
    stated: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for key, entry in record.values.get("checks", {}).items():
            if not key.startswith("statement"):  # an experiment may check other things, too
                continue
            if not _CHECK.fullmatch(key) or not {"what", "value", "allowed"} <= entry.keys():
                raise RecordError(
                    f"{record.experiment} seed {record.seed}: check {key!r} is "
                    f"{json.dumps(entry)}, expected statement_NN with what, value and allowed"
                )
            stated.setdefault(key, []).append(entry)
    for key, entries in stated.items():
        worst = worst_of(entries)
        number = int(key.split("_")[1])
        check = Check(records[0].experiment, worst["what"], worst["value"], worst["allowed"])
        yield number, check


def worst_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Pick the seed with the largest value, one that is not allowed (or NaN) before others."""
    return max(entries, key=lambda e: (not e["value"] <= e["allowed"], e["value"]))


def gaps(
    number: int, theorem: Theorem | None, checks: list[Check], tests: list[str]
) -> Iterator[str]:
    """Say what a statement lacks, a line each."""
    if theorem is None:
        yield f"no theorem with the label statement-{number:02d}"
    else:
        if not theorem.proved:
            yield f"no proof follows the theorem in {theorem.page}"
        if not theorem.source:
            yield f"the theorem in {theorem.page} does not end in a line *Source.*"
    if not checks:
        yield f"no full-scale record has the check statement_{number:02d}"
    if not tests:
        yield f"no test is named test_statement_{number:02d}_..."
    for check in checks:
        if not check.holds:
            yield (
                f"{check.experiment}: {check.what}: {check.value:.3g} is above {check.allowed:.3g}"
            )


class StatementsDirective(SphinxDirective):
    """The table of all statements."""

    option_spec: ClassVar[OptionSpec] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "name": directives.unchanged
    }

    def run(self) -> list[nodes.Node]:
        """Give the table; warn of every gap."""
        self.env.note_reread()
        theorems = find_theorems(Path(self.env.srcdir))
        tests = find_tests(repository_root(self.env.srcdir) / "tests")
        try:
            checks = find_checks(self.env)
        except RecordError as error:
            complain(self.env, self.get_location(), "{statements}", error)
            checks = {}
        rows = []
        for number in NUMBERS:
            row = theorems.get(number), checks.get(number, []), tests.get(number, [])
            for gap in gaps(number, *row):
                subject = f"{{statements}} statement-{number:02d}"
                complain(self.env, self.get_location(), subject, RecordError(gap))
            rows.append(self._row(number, *row))
        table = _table(rows)
        self.set_source_info(table)
        self.add_name(table)
        if not table["ids"]:
            table["ids"].append("statements-table")  # a caption is numbered, which needs an id
        return [table]

    def _row(
        self, number: int, theorem: Theorem | None, checks: list[Check], tests: list[str]
    ) -> list[list[nodes.Node]]:
        label = f"statement-{number:02d}"
        missing = nodes.problematic("", "missing")
        statement, proof = [missing.deepcopy()], [missing.deepcopy()]
        source = nodes.container()
        if theorem is not None:
            lines = StringList([theorem.source], source=theorem.page)
            self.state.nested_parse(lines, 0, source)
            statement = [nodes.Text(f"{number}. "), _link(self.env, theorem, label, theorem.title)]
            if theorem.proved:
                proof = [_link(self.env, theorem, f"{label}-proof", "proof")]
        items = nodes.bullet_list()
        for check in checks:
            link = _notebook_link(self.env, check.experiment)
            items += nodes.list_item("", nodes.paragraph("", "", *check_nodes(check), link))
        names = nodes.bullet_list()
        for name in tests:
            names += nodes.list_item("", nodes.paragraph("", "", nodes.literal("", name)))
        return [
            [nodes.paragraph("", "", *statement)],
            [*source.children] or [nodes.paragraph("", "", missing.deepcopy())],
            [nodes.paragraph("", "", *proof)],
            [items] if checks else [nodes.paragraph("", "", missing.deepcopy())],
            [names] if tests else [nodes.paragraph("", "", missing.deepcopy())],
        ]


class CheckRole(SphinxRole):
    """One statement's checks and tests, in a line."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Give the line, or a visible mark and a warning for each gap."""
        self.env.note_reread()
        rawtext = f"{{check}}`{self.text}`"
        try:
            if not re.fullmatch(r"statement-\d\d", self.text):
                raise RecordError("expected statement-NN")
            number = int(self.text[-2:])
            checks = find_checks(self.env).get(number, [])
            tests = find_tests(repository_root(self.env.srcdir) / "tests").get(number, [])
            for gap in gaps(number, Theorem("", "", True, "-"), checks, tests):
                raise RecordError(gap)
        except RecordError as error:
            complain(self.env, self.get_location(), rawtext, error)
            return [nodes.problematic(self.rawtext, rawtext)], []
        line: list[nodes.Node] = [nodes.strong("", "Checked. ")]
        for check in checks:
            line += [*check_nodes(check), _notebook_link(self.env, check.experiment)]
            line.append(nodes.Text("; "))
        line[-1] = nodes.Text(". Tests: ")
        for name in tests:
            line += [nodes.literal("", name), nodes.Text(", ")]
        line[-1] = nodes.Text(".")
        return [nodes.inline("", "", *line, classes=["checked"])], []


def check_nodes(check: Check) -> list[nodes.Node]:
    """Write a check: what, value (allowed)."""
    return [
        nodes.Text(f"{check.what}: "),
        *to_nodes(float(check.value), ".2g"),
        nodes.Text(" (allowed "),
        *to_nodes(float(check.allowed), ".2g"),
        nodes.Text("), "),
    ]


def _link(env: BuildEnvironment, theorem: Theorem, target: str, text: str) -> nodes.Node:
    return pending_xref(
        "",
        nodes.inline("", text),
        refdoc=env.docname,
        refdomain="std",
        reftype="ref",
        reftarget=target,
        refexplicit=True,
        refwarn=True,
    )


def _notebook_link(env: BuildEnvironment, experiment: str) -> nodes.Node:
    if not (Path(env.srcdir) / "notebooks" / f"{experiment}.ipynb").is_file():
        return nodes.literal("", experiment)
    return pending_xref(
        "",
        nodes.literal("", experiment),
        refdoc=env.docname,
        refdomain="std",
        reftype="doc",
        reftarget=f"/notebooks/{experiment}",
        refexplicit=True,
        refwarn=True,
    )


def _table(rows: list[list[list[nodes.Node]]]) -> nodes.table:
    head, body = nodes.thead(), nodes.tbody()
    head += nodes.row("", *(nodes.entry("", nodes.paragraph("", h)) for h in _HEADINGS))
    for row in rows:
        body += nodes.row("", *(nodes.entry("", *content) for content in row))
    columns = [nodes.colspec(colwidth=width) for width in _HEADINGS.values()]
    group = nodes.tgroup("", *columns, head, body, cols=len(_HEADINGS))
    title = "Statements with their sources, proofs, numeric checks and tests."
    return nodes.table("", nodes.title("", title), group, classes=["statements"])


def _fill_comments(app: Sphinx, page: str, source: list[str]) -> None:
    """Turn comments into uses of the role; lines stay where they are."""
    source[0] = _COMMENT.sub(r"{check}`\1`", source[0])


def _name_targets(app: Sphinx, doctree: nodes.document) -> None:
    """Make each statement, and the proof that follows it, a target for links."""
    labels = app.env.domaindata["std"]["anonlabels"]
    for theorem in doctree.findall(nodes.Element):
        label = theorem.get("label", "")
        if not re.fullmatch(r"statement-\d\d", label or ""):
            continue
        labels[label] = app.env.docname, label
        proof = theorem.next_node(nodes.Element, descend=False, siblings=True)
        if isinstance(proof, proof_node):
            # All proofs of a page have the id "proof", on the box inside.
            for box in proof.findall(nodes.admonition):
                box["ids"] = [f"{label}-proof"]
            labels[f"{label}-proof"] = app.env.docname, f"{label}-proof"


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.setup_extension("book_records")
    app.add_directive("statements", StatementsDirective)
    app.add_role("check", CheckRole())
    app.connect("source-read", _fill_comments)
    app.connect("doctree-read", _name_targets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
