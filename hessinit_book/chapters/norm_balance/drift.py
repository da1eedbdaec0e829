"""How far norms drift from layer to layer: the records of `norm_balance`, summed up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hessinit_book.chapters.norm_balance.run import RULES, units
from hessinit_book.records.records import Record, look_up

UNITS = {
    "one": "literal norm",
    "input": "per input",
    "root": "per root of the number of weights",
}


def layer_means(records: Sequence[Record], rule: str, shape: str, norm: str) -> np.ndarray:
    """Average a norm over networks and seeds, layer by layer."""
    return np.mean(look_up(records, f"values.{rule}.{shape}.{norm}"), axis=0)


def drift(
    records: Sequence[Record], rule: str, shape: str, norm: str, unit: str | None = None
) -> float:
    """Divide the largest by the smallest norm of the layers of a network.

    Args:
        records: of the experiment.
        rule: a key of `RULES`.
        shape: name of the network.
        norm: "trace", "b1", ..., see `norm_balance.run.measure`.
        unit: what norms are divided by, a key of `UNITS`; that of the rule if None.

    Returns:
        At least 1, which is perfect balance.
    """
    widths = records[0].values["shapes"][shape]
    found = layer_means(records, rule, shape, norm) / units(unit or RULES[rule].unit, widths)
    return float(found.max() / found.min())


def names_of_norms(records: Sequence[Record]) -> dict[str, str]:
    """Name what is measured of linearizations, for readers."""
    sizes = sorted(records[0].parameters["batch_sizes"])
    batches = {f"b{size}": "one sample" if size == 1 else f"batch of {size}" for size in sizes}
    return {"trace": "trace", **batches, "large_batch": "large batches"}


def table(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the drifts of all networks, in the unit that each rule balances."""
    norms = names_of_norms(records)
    whole = f"whole Hessian, {norms[f'b{second_size(records)}']}"
    rows = {}
    for name, rule in RULES.items():
        for shape in records[0].values["shapes"]:
            row = {title: f"{drift(records, name, shape, key):.1f}" for key, title in norms.items()}
            has_whole = "whole" in records[0].values[name][shape]
            row[whole] = f"{drift(records, name, shape, 'whole'):.1f}" if has_whole else ""
            rows[f"{rule.title}: {UNITS[rule.unit]}", shape_title(shape)] = row
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.rename_axis(["rule: what it balances", "hidden units, layers"])


def second_size(records: Sequence[Record]) -> int:
    """Give the batch size at which whole Hessians are measured."""
    return sorted(records[0].parameters["batch_sizes"])[1]


def shape_title(shape: str) -> str:
    """Name a network for readers.

    Example:
        >>> shape_title("w128_d20"), shape_title("tapered_d5")
        ('128, 20', 'tapered, 5')
    """
    width, depth = shape.split("_d")
    return f"{width.removeprefix('w')}, {depth}"
