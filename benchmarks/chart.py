"""The chart of the page "How fast": what each norm costs, ours against the other libraries.

usage: python -m benchmarks.chart OUT.svg RECORD.json ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from hessinit_book.drawing.style import COLORS, MARKERS, style, subplots
from hessinit_book.records import records
from hessinit_book.records.records import Record

LIBRARIES = {
    "pyhessian": "PyHessian",
    "curvlinops": "curvlinops",
    "backpack": "BackPACK",
    "eigenthings": "hessian-eigenthings",
    "vivit": "ViViT",
}


def chart(found: Sequence[Record]) -> Figure:
    """Draw a dot for each library's cheapest way, a panel for each norm.

    Args:
        found: the benchmark's records, one a row.
    """
    labels = [f"{record.values['title']}, B = {record.values['batch']}" for record in found]
    sides = {"hessinit": "ours", **LIBRARIES}
    with style():
        figure, panels = subplots(1, 2, figsize=(9.5, 4.2), sharey=True)
        for panel, norm in zip(panels, ("frobenius", "spectral"), strict=True):
            for index, (library, label) in enumerate(sides.items()):
                points = [(cheapest(record, library, norm), y) for y, record in enumerate(found)]
                points = [(x, y) for x, y in points if x is not None]
                panel.scatter(
                    [x for x, _ in points],
                    [y for _, y in points],
                    color=COLORS[index],
                    marker=MARKERS[index],
                    s=45 if index else 70,
                    zorder=2 if index else 3,
                    label=label if norm == "frobenius" else None,
                )
            panel.set(title=f"{norm.capitalize()} norms", xlabel="training steps", xscale="log")
        panels[0].set_yticks(range(len(found)), labels)
        panels[0].invert_yaxis()
        figure.legend(loc="outside upper center", ncols=len(sides))
    return figure


def cheapest(record: Record, library: str, norm: str) -> float | None:
    """Give the cost [steps] of a library's cheapest way to a norm within 1 %, if any."""
    if library == "hessinit":
        return record.values["best"].get(norm, {}).get("steps")
    costs = [
        value["steps"]
        for way, value in record.values["peers"].items()
        if way.startswith(library) and norm in value.get("norms", ()) and value["reached"]
    ]
    return min(costs, default=None)


def main(arguments: Sequence[str]) -> None:
    """Draw the chart from records into an SVG file."""
    mpl.use("agg")
    out, *paths = arguments
    if not paths:
        sys.exit("chart: no records of the benchmark; `make bench` makes them")
    # That of the architectures, which no other library treats, has no row.
    rows = [record for record in map(records.read_in_place, paths) if "row" in record.parameters]
    found = sorted(rows, key=lambda record: record.parameters["row"])
    figure = chart(found)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with style():  # it makes the file the same each time
        figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
