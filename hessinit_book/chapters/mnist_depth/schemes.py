"""How the named schemes of `mnist_depth` train, and the variances for dropout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hessinit_book.records.records import Record
from hessinit_book.statistics.intervals import Interval


def schemes(records: Sequence[Record], named: Sequence[str]) -> pd.DataFrame:
    """Lay out how the named schemes end, each at the rate where its final loss is lowest.

    Args:
        records: of `mnist_depth`.
        named: names of initializations.

    Returns:
        One row a seed, shape and scheme: columns seed, function (the activation), depth, start,
        rate, final_loss [nat], steps_to_level, accuracy.
    """
    rows = []
    for record in records:
        for function, shapes in record.values["grid"].items():
            for shape, found in shapes.items():
                depth = int(shape.removeprefix("depth_"))
                at = {"seed": record.seed, "function": function, "depth": depth}
                rows += [{**at, **row} for row in _at_best_rate(found) if row["start"] in named]
    return pd.DataFrame(rows)


def with_dropout(records: Sequence[Record]) -> pd.DataFrame:
    """Lay out how networks with dropout end, each at the rate where its final loss is lowest.

    Returns:
        One row a seed, share dropped, depth and rule: columns seed, drop, depth, start (the
        rule), norm (of the first layer's Hessian at the start), rate, final_loss [nat],
        steps_to_level, accuracy, and diverged, the number of rates at which it did.
    """
    rows = []
    for record in records:
        for drop, shapes in record.values["dropout"].items():
            for shape, found in shapes.items():
                at = {
                    "seed": record.seed,
                    "drop": int(drop.removeprefix("drop_")) / 100,
                    "depth": int(shape.removeprefix("depth_")),
                }
                for i, row in enumerate(_at_best_rate(found)):
                    losses = [trained["final_loss"][i] for trained in found["trained"]]
                    diverged = int((~np.isfinite(losses)).sum())
                    norm = found["frobenius"][i][0]
                    rows.append({**at, **row, "norm": norm, "diverged": diverged})
    return pd.DataFrame(rows)


def lead(table: pd.DataFrame, start: str, over: str, by: Sequence[str]) -> pd.DataFrame:
    """Compare two initializations seed by seed.

    Args:
        table: of `schemes` or `with_dropout`.
        start: the one.
        over: the other.
        by: columns that name a setting.

    Returns:
        One row a setting, with the `Interval` over seeds of how much lower the final loss
        [nat] of the one is; NaN where one of them diverged at all rates in some seed.
    """
    losses = table.pivot_table(
        index=[*by, "seed"], columns="start", values="final_loss", aggfunc="first", sort=False
    )
    with np.errstate(invalid="ignore"):  # both diverged
        gains = losses[over] - losses[start]
    rows = {
        key: Interval.of(group.tolist()) if np.isfinite(group).all() else Interval(np.nan)
        for key, group in gains.groupby(level=list(by), sort=False)
    }
    return pd.DataFrame({"gain": rows}).rename_axis(list(by))


def _at_best_rate(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the outcome of each initialization at its best rate, in their order."""
    for i, start in enumerate(found["starts"].split(", ")):
        best = min(found["trained"], key=lambda trained: trained["final_loss"][i])
        yield {
            "start": start,
            "rate": best["learning_rate"],
            **{name: best[name][i] for name in ("final_loss", "steps_to_level", "accuracy")},
        }
