"""The directive {provenance}: a table that says where the numbers of an experiment come from.

Syntax::

    ```{provenance} paper/mnist_tracking
    :name: mnist-tracking-provenance
    ```

The argument is `<profile>/<experiment>`; `name` is optional, for `{numref}`. A run on a
sample is announced above the table and in it, and so are records that an earlier version of
the code made; where these are confirmed to hold still, the table says by what. Records that do
not belong together (seeds that saw different data, or ran with different code that is not
confirmed to give the same) give a warning, which fails a build with -W, as does a missing
record.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import book_records
from address import read_address
from book_records import complain, read_followed, repository_root
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import OptionSpec
from stale import notice

from hessinit_book.errors import RecordError
from hessinit_book.records import confirmations
from hessinit_book.records.comparison import in_words
from hessinit_book.records.confirmations import Confirmation
from hessinit_book.records.freshness import is_current
from hessinit_book.records.records import Record, source_of

_SHORT = 12  # characters of a checksum: enough to compare by eye
_COLUMNS = (30, 70)  # widths in percent


def seeds_in_words(seeds: Iterable[int]) -> str:
    """Write seeds with runs of neighbors shortened.

    Example:
        >>> seeds_in_words([0, 1, 2, 3, 7])
        '0 to 3, 7'
    """
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts)


def duration_in_words(seconds: float) -> str:
    """Write a duration with the two units that matter.

    Example:
        >>> duration_in_words(7384.2), duration_in_words(12.34)
        ('2 h 3 min', '12 s')
    """
    total = round(seconds)
    hours, minutes = divmod(total // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {total % 60} s"
    return f"{total} s" if seconds >= 10 else f"{seconds:.1f} s"


def describe(
    found: list[Record], confirmation: Confirmation | None = None
) -> list[tuple[str, list[nodes.Node]]]:
    """Make the table's rows: a heading and what stands beside it.

    Args:
        found: the records of one experiment and profile, at least one.
        confirmation: the one that lies beside them, if any.

    Raises:
        RecordError: the seeds saw different data, or ran with different code.
    """
    # Codes that were confirmed to give the same count as one, also when the code moves on: then
    # the records are old, which the page says, and not at odds, which would stop the build.
    alike = [confirmation.code, *confirmation.codes] if confirmation else []
    made_by = {"confirmed" if record.code in alike else record.code for record in found}
    for what, seen in (("dataset", {repr(record.dataset) for record in found}), ("code", made_by)):
        if len(seen) > 1:
            raise RecordError(f"the seeds differ in {what!r}: run them again with one and the same")
    data = found[0].dataset
    name: list[nodes.Node] = [nodes.Text(f"{data.name}, full data set")]
    if data.kind == "sample":
        name = [nodes.strong("", f"a sample of {data.name}, not the full data set")]
    versions = _distinct(
        ", ".join(f"{library} {version}" for library, version in record.versions.items())
        for record in found
    )
    days = sorted(record.finished[:10] for record in found)  # ISO 8601: the date comes first
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    commits = _distinct(_commit(record.commit) for record in found)
    codes = ", ".join(_distinct(record.code[:_SHORT] for record in found))
    runs = "1 run" if len(found) == 1 else f"{len(found)} runs"
    total = duration_in_words(sum(record.duration_s for record in found))
    return [
        ("Data", name),
        ("Examples", _text(f"{data.train_size:,} for training, {data.test_size:,} for testing")),
        ("Data checksum", [nodes.literal("", data.sha256[:_SHORT]), nodes.Text(" (SHA-256)")]),
        ("Profile", _text(found[0].profile)),
        ("Parameters", _parameters(found[0].parameters)),
        ("Seeds", _text(f"{seeds_in_words(record.seed for record in found)} ({runs})")),
        ("Device", _text("; ".join(_distinct(record.device for record in found)))),
        ("Software", _text("; ".join(versions))),
        ("Commit", _text("; ".join(commits))),
        ("Code checksum", [nodes.literal("", codes), nodes.Text(" (SHA-256)")]),
        *_confirmed(found, confirmation),
        ("Duration", _text(f"{total} in all")),
        ("Finished", _text(f"{span} (UTC)")),
    ]


class ProvenanceDirective(SphinxDirective):
    """The directive itself."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "name": directives.unchanged
    }

    def run(self) -> list[nodes.Node]:
        """Give the table, or a visible mark and a warning."""
        source = self.arguments[0]
        try:
            found = read_followed(self.env, source)
            confirmation = confirmations.read(repository_root(self.env.srcdir) / "results" / source)
            rows = [*describe(found, confirmation), *self._sources(found[0])]
        except RecordError as error:
            complain(self.env, self.get_location(), f"{{provenance}} {source}", error)
            return [nodes.paragraph("", "", nodes.problematic("", f"{{provenance}} {source}"))]
        table = _table(f"Provenance of {found[0].experiment}, profile {found[0].profile}", rows)
        book_records.number(self, table, f"provenance-{source}")
        above: list[nodes.Node] = []
        if not all(is_current(record, confirmation) for record in found):
            above.append(notice("These records were made by an earlier version of the code."))
        if found[0].dataset.kind == "sample":
            sample = nodes.warning("", classes=["sample-notice"])
            text = f"Computed on a sample of {found[0].dataset.name}, not on the full data set."
            sample += nodes.paragraph("", "", nodes.strong("", text))
            above.append(sample)
        return [*above, table]

    def _sources(self, record: Record) -> list[tuple[str, list[nodes.Node]]]:
        """Make the rows that link to the notebook and to the records themselves."""
        root = repository_root(self.env.srcdir)
        notebook = f"notebooks/{record.experiment}.ipynb"
        folder = f"results/{record.profile}/{source_of(record)}"
        rows = []
        if (root / notebook).is_file():
            rows.append(("Notebook", [repository_link(root, notebook)]))
        if record.profile == "paper":  # the others are not kept in the repository
            rows.append(("Records", [repository_link(root, folder)]))
        return rows


def repository_link(root: Path, path: str, text: str | None = None) -> nodes.reference:
    """Link to a file or folder in the public repository, under a text or under its path."""
    kind = "blob" if Path(path).suffix else "tree"
    address = f"{read_address(root)}/{kind}/main/{path}"
    return nodes.reference("", text or path, refuri=address)


def _table(title: str, rows: list[tuple[str, list[nodes.Node]]]) -> nodes.table:
    body = nodes.tbody()
    for heading, content in rows:
        row = nodes.row()
        row += nodes.entry("", nodes.paragraph("", heading))
        row += nodes.entry("", nodes.paragraph("", "", *content))
        body += row
    group = nodes.tgroup(cols=2)
    group += nodes.colspec(colwidth=_COLUMNS[0], stub=1)
    group += nodes.colspec(colwidth=_COLUMNS[1])
    group += body
    table = nodes.table("", nodes.title("", title), group, classes=["provenance"])
    return table


def _parameters(parameters: dict[str, Any]) -> list[nodes.Node]:
    shown = (f"{name} = {value}" for name, value in parameters.items() if name != "profile")
    return [nodes.literal("", "; ".join(shown))]


def _confirmed(
    found: list[Record], confirmation: Confirmation | None
) -> list[tuple[str, list[nodes.Node]]]:
    """Make the row that says why records of earlier code hold, if there are such."""
    if confirmation is None or not any(confirmation.covers(r, confirmation.code) for r in found):
        return []
    if not all(is_current(record, confirmation) for record in found):
        return []  # the code has changed once more
    day, again = confirmation.finished[:10], confirmation.repetition
    said = "Made by earlier code"
    if again is not None:
        by = "the present code" if confirmation.source is None else "later code"
        part = f" ({', '.join(again.networks)} alone)" if again.networks else ""
        said += (
            f". Seed {again.seed}{part} computed again by {by} on {day} "
            f"({again.device}): the same, {in_words(again.compared, again.tolerance)}"
        )
        if again.where is not None:
            said += f"; the largest difference among the first: {100 * again.largest:.1g}%"
    if confirmation.source is not None:
        said += (
            f". Since commit {_commit(confirmation.source)} only comments, places and what "
            f"computes nothing have changed (compared {day})"
        )
    return [("Confirmed", _text(f"{said}."))]


def _text(text: str) -> list[nodes.Node]:
    return [nodes.Text(text)]


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _commit(commit: str | None) -> str:
    if commit is None:
        return "not recorded"
    name, dash, dirty = commit.partition("-")
    return name[:_SHORT] + dash + dirty


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.setup_extension("book_records")
    app.add_directive("provenance", ProvenanceDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
