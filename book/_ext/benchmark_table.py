"""The directive {benchmark-table}: tables of the page "How fast", from the benchmark's records.

Syntax, the records' names (without `benchmark_`) as content, one a line::

    ```{benchmark-table} frobenius
    :name: frobenius-table

    mlp30_b32
    lenet_b128
    ```

The argument is `ours`, `frobenius`, `spectral`, `ggn`, `memory`, `architectures` or `machine`.
Costs are given in training steps of the same network and batch. A record that is missing gives a
warning, which fails a build with -W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import book_records
from book_records import complain, read_followed
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import OptionSpec

from hessinit_book.errors import RecordError
from hessinit_book.records.records import Record

PEERS = {
    "pyhessian_power": "PyHessian, power iteration",
    "pyhessian_hutchinson": "PyHessian, Hutchinson",
    "curvlinops_eigsh": "curvlinops, eigsh",
    "curvlinops_hutchinson": "curvlinops, Hutchinson",
    "curvlinops_xtrace": "curvlinops, XTrace of the square",
    "backpack_hutchinson": "BackPACK, Hutchinson",
    "eigenthings_lanczos": "hessian-eigenthings, Lanczos",
    "eigenthings_hutchpp": "hessian-eigenthings, Hutch++ of the square",
    "vivit": "ViViT, exact",
    "backpack_batch_grad": "BackPACK, gradients of samples",
    "torch_func": "torch.func, gradients of samples",
}
"""Headings of the other libraries' ways."""

COLUMNS = {
    "frobenius": {
        "exact_frobenius": "ours, exact",
        "estimate_frobenius": "ours, estimate",
        **{way: PEERS[way] for way in PEERS if way.endswith(("hutchinson", "xtrace", "hutchpp"))},
        "vivit": PEERS["vivit"],
    },
    "spectral": {
        "spectral": "ours",
        **{way: PEERS[way] for way in PEERS if way.endswith(("power", "eigsh", "lanczos"))},
        "vivit": PEERS["vivit"],
    },
    "ggn": {
        **{"ggn": "ours", "ggn_asked": "ours, asked for 5 %"},
        **{w: PEERS[w] for w in ("curvlinops_hutchinson", "curvlinops_xtrace")},
        **{w: PEERS[w] for w in ("backpack_hutchinson", "pyhessian_hutchinson")},
        **{w: PEERS[w] for w in ("backpack_batch_grad", "torch_func")},
    },
}

Table = tuple[list[str], list[list[str]]]  # headings, and rows of cells


def number(value: float) -> str:
    """Write a number with two digits, or whole with separators.

    Example:
        >>> number(0.0123), number(4.56), number(78.9), number(12345.0)
        ('0.012', '4.6', '79', '12,000')
    """
    if value < 10:
        return f"{value:.2g}"
    digits = len(str(int(value)))
    return f"{round(value, 2 - digits):,.0f}"


def cost(values: dict[str, Any], column: str) -> str:
    """Write what a call or way costs in steps.

    Returns:
        "> 12" where it did not come to 1 %, "≈ 12" where it was measured on some of the
        layers, "12", or a dash where there is no figure; the worst layer's error, where it
        was measured, in brackets.
    """
    entry = {**values["peers"], **values["ours"]}.get(column, {})
    if "steps" not in entry:
        return "–"
    text = number(entry["steps"])
    if not entry.get("reached", True):
        return f"> {text}"
    some = entry.get("layers", values["layers"]) < values["layers"]
    worst = f" ({entry['worst']:.0%})" if "worst" in entry else ""
    return f"≈ {text}{worst}" if some else f"{text}{worst}"


def network(values: dict[str, Any]) -> str:
    """Write which network and batch a row is about."""
    return f"{values['title']}, B = {values['batch']:,}"


def networks(found: list[Record]) -> list[dict[str, Any]]:
    """List what is known of each network: a record is of one, or has a part for each."""
    parts = ([r.values] if "peers" in r.values else r.values.values() for r in found)
    return [values for part in parts for values in part]


def compared(found: list[Record], norm: str) -> Table:
    """Make the table of a norm: ours, the other libraries, and the ratio of the best of each."""
    columns = COLUMNS[norm]
    rows = []
    for values in networks(found):
        best = values["best"].get(norm, {})
        ratio = number(best["ratio"]) if "ratio" in best else "–"
        if "ratio" in best and best["at_least"] < best["ratio"]:
            ratio = f"{number(best['at_least'])} to {ratio}"
        rows.append([network(values), *(cost(values, c) for c in columns), ratio])
    return ["network, batch", *columns.values(), "best other / best of ours"], rows


def ours(found: list[Record]) -> Table:
    """Make the table of our calls, of the step they are measured in, and of the floor."""
    headings = ["network, batch", "step [ms]", "both norms and parts, exact", "Frobenius, exact"]
    headings += ["its floor", "Frobenius, estimate", "its error", "spectral"]
    rows = []
    for values in (record.values for record in found):
        calls = [cost(values, c) for c in ("exact", "exact_frobenius")]
        estimate = values["ours"]["estimate_frobenius"]
        error = f"{estimate['error']:.2%}" if "error" in estimate else "–"
        rows.append(
            [
                *(network(values), number(values["step_ms"]), *calls),
                *(number(values["floor"]["steps"]), cost(values, "estimate_frobenius"), error),
                cost(values, "spectral"),
            ]
        )
    return headings, rows


def memory(found: list[Record]) -> Table:
    """Make the table of peak memory, of the rows where it was measured [MiB]."""
    rows = []
    for values in (record.values for record in found):
        peaks = values.get("memory_mib", {})
        if "step" not in peaks:
            raise RecordError(f"{network(values)}: memory was not measured")
        texts = [f"{peaks[what]:,.0f}" for what in ("step", "exact", "bounded", "max_memory")]
        rows.append([network(values), *texts])
    return ["network, batch", "step", "exact", "exact with max_memory", "max_memory"], rows


def architectures(found: list[Record]) -> Table:
    """Make the table of one call for each architecture."""
    headings = ["network", "parameters", "layers", "cost [steps]", "time [s]", "norms"]
    headings += ["largest relative standard error", "R / H in the first layer"]
    rows = []
    for values in found[0].values.values():
        error = "–" if values["exact"] else f"{values['largest_error']:.1%}"
        rows.append(
            [
                *(values["title"], f"{values['parameters']:,}", str(values["layers"])),
                *(number(values["steps"]), number(values["seconds"])),
                *("exact" if values["exact"] else "estimated", error),
                number(values["first"]["residual_ratio"]),
            ]
        )
    return headings, rows


def machine(found: list[Record]) -> Table:
    """Make the table of where the figures are from."""

    def distinct(texts: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(texts))

    versions = (", ".join(f"{k} {v}" for k, v in record.versions.items()) for record in found)
    minutes = sum(record.duration_s for record in found) / 60
    return ["what", "value"], [
        ["Device", distinct(record.device for record in found)],
        ["Software", distinct(versions)],
        ["Data", distinct(f"{r.dataset.name} ({r.dataset.kind})" for r in found)],
        ["Commit", distinct((record.commit or "not recorded")[:12] for record in found)],
        ["Code checksum", distinct(record.code[:12] for record in found)],
        ["Duration", f"{minutes:.0f} min"],
        ["Finished", distinct(sorted(record.finished[:10] for record in found))],
    ]


def remarks(found: list[Record], norm: str) -> list[str]:
    """Say what the cells cannot: where another library leads, and why figures are missing."""
    leads = []
    notes: dict[str, list[str]] = {}
    accuracy = "5 %" if norm == "ggn" else "1 %"
    for values in networks(found):
        best = values["best"].get(norm, {})
        if best.get("ratio", math.inf) < 1:
            leads.append(f"{PEERS[best['peer']]} leads on {network(values)}.")
        for column, heading in COLUMNS[norm].items():
            entry = {**values["peers"], **values["ours"]}.get(column, {"note": "not installed"})
            if "note" in entry:
                reason = {
                    "time": f"out of time before {accuracy}: a lower bound",
                    "memory": f"more memory than allowed before {accuracy}: a lower bound",
                    "effort": f"{accuracy} not reached with the largest effort: a lower bound",
                }.get(entry["note"], entry["note"])
                notes.setdefault(f"{heading}: {reason}", []).append(network(values))
            if "changed" in entry:
                notes.setdefault(f"{heading}: {entry['changed']}", []).append(network(values))
    texts = [f"{note} ({'; '.join(where)})." for note, where in notes.items()]
    return (leads or ["No other library leads in this table."]) + texts


TABLES: dict[str, Callable[[list[Record]], Table]] = {
    "ours": ours,
    "frobenius": lambda found: compared(found, "frobenius"),
    "spectral": lambda found: compared(found, "spectral"),
    "ggn": lambda found: compared(found, "ggn"),
    "memory": memory,
    "architectures": architectures,
    "machine": machine,
}
TITLES = {
    "ours": "Our calls in training steps of the same network and batch.",
    "frobenius": "Frobenius norms of all layers to 1 %, in training steps.",
    "spectral": "Spectral norms of all layers to 1 %, in training steps.",
    "ggn": "Gauss-Newton norms of all layers to 5 %, in training steps (worst layer's error).",
    "memory": "Peak memory above what the process held before [MiB].",
    "architectures": "Frobenius and spectral norms of all layers, linearization and residual.",
    "machine": "Where the figures on this page come from.",
}


class BenchmarkTable(SphinxDirective):
    """The directive itself."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[OptionSpec] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        "name": directives.unchanged
    }

    def run(self) -> list[nodes.Node]:
        """Give the table and its remarks, or a warning."""
        kind = self.arguments[0]
        names = [line.strip() for line in self.content if line.strip()]
        try:
            if kind not in TABLES or not names:
                raise RecordError(f"expected one of {', '.join(TABLES)}, and records as content")
            found = [
                record
                for name in names
                for record in read_followed(self.env, f"paper/benchmark_{name}")
            ]
            headings, rows = TABLES[kind](found)
        except RecordError as error:
            complain(self.env, self.get_location(), f"{{benchmark-table}} {kind}", error)
            return [nodes.problematic(self.block_text, f"{{benchmark-table}} {kind}")]
        made = table(TITLES[kind], headings, rows)
        book_records.number(self, made, f"benchmark-{kind}")
        if kind not in COLUMNS:
            return [made]
        items = [nodes.list_item("", nodes.paragraph("", text)) for text in remarks(found, kind)]
        return [made, nodes.bullet_list("", *items)]


def table(title: str, headings: list[str], rows: list[list[str]]) -> nodes.table:
    """Make a table with a caption."""
    group = nodes.tgroup(cols=len(headings))
    group += [nodes.colspec(colwidth=1) for _ in headings]
    group += nodes.thead("", _row(headings))
    group += nodes.tbody("", *(_row(row) for row in rows))
    return nodes.table("", nodes.title("", title), group, classes=["benchmark"])


def _row(cells: list[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.setup_extension("book_records")
    app.add_directive("benchmark-table", BenchmarkTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
