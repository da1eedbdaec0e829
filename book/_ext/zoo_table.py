"""The directive {zoo-table}: tables of the page "The zoo", from its record.

Syntax: the argument is `alarms` (sound networks that got a fault, or an error), `misses`
(planted faults that were not named) or `advice` (losses before and after).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar

import book_records
from benchmark_table import table
from book_records import complain, read_followed
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import OptionSpec

from hessinit_book.errors import RecordError

Rows = list[list[str]]


def said(result: dict[str, Any]) -> str:
    """Write the first fault that was named, or the error."""
    if result["faults"]:
        first = result["faults"][0]
        return f"{first['kind']}, {first['where'] or 'the network'}: {first['reason']}"
    return result["error"] or "nothing"


def part(result: dict[str, Any]) -> str:
    """Say which part of the zoo a result belongs to."""
    return "known" if result["part"] == "dev" else "held out"


def alarms(values: dict[str, Any]) -> tuple[list[str], Rows]:
    """List the networks with a false alarm, once each, with how many settings had one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in values["sound"]:
        if one["alarm"]:
            found.setdefault(one["network"], []).append(one)
    rows = [[name, part(of[0]), str(len(of)), said(of[0])] for name, of in found.items()]
    return ["network", "part", "of its 4 settings", "what was said"], rows


def misses(values: dict[str, Any]) -> tuple[list[str], Rows]:
    """List the faults that were not named, with what was said instead."""
    rows = [[f["fault"], part(f), said(f)] for f in values["faults"] if not f["named"]]
    return ["planted", "part", "what was said"], rows


def advice(values: dict[str, Any]) -> tuple[list[str], Rows]:
    """List losses before and after advice, or why there are none."""
    rows = []
    for fault in values["faults"]:
        done = fault["advice"]
        losses = [f"{done[k]:.3g}" if "after" in done else "–" for k in ("before", "after")]
        # Long names of modules may break at their dots.
        how = re.sub(r"\.(?=\D)", ".\u200b", done.get("how", done.get("skipped", "")))
        named = "yes" if fault["named"] else "no"
        rows.append([fault["fault"], part(fault), named, *losses, how])
    return ["planted", "part", "named", "loss before", "after", "what was followed"], rows


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], tuple[list[str], Rows]]]] = {
    "alarms": ("False alarms: sound networks in which a fault is named.", alarms),
    "misses": ("Misses: planted faults that are not named.", misses),
    "advice": ("Loss after 300 steps at the best rate, before and after advice.", advice),
}


class ZooTable(SphinxDirective):
    """The directive itself."""

    required_arguments = 1
    option_spec: ClassVar[OptionSpec] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "name": directives.unchanged
    }

    def run(self) -> list[nodes.Node]:
        """Give the table, or a warning."""
        kind = self.arguments[0]
        try:
            if kind not in TABLES:
                raise RecordError(f"expected one of {', '.join(TABLES)}")
            title, make = TABLES[kind]
            headings, rows = make(read_followed(self.env, "paper/zoo")[0].values)
        except RecordError as error:
            complain(self.env, self.get_location(), f"{{zoo-table}} {kind}", error)
            return [nodes.problematic(self.block_text, f"{{zoo-table}} {kind}")]
        if not rows:
            return [nodes.paragraph("", f"{title} There are none.")]
        made = table(title, headings, rows)
        book_records.number(self, made, f"zoo-{kind}")
        return [made]


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.setup_extension("book_records")
    app.add_directive("zoo-table", ZooTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
