"""What predicts training in the records of `cifar_networks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hessinit_book.records.records import Record
from hessinit_book.statistics.families import Judged, Score, Trial
from hessinit_book.statistics.rounding import finite_log10
from hessinit_book.training.cosines import ALIKE

LEVEL = 2.2
"""A network trains if its final loss [nat] is below: guessing gives log 10 = 2.3."""

FAMILIES = {
    "hessian": "Hessian norms",
    "gradient": "gradient norms",
    "variance": "variances",
    "loss": "loss at the start",
    "alike": "correlation of samples",
    "trial": "ten steps of training",
}
"""What competes, with labels for readers."""


def networks(records: Sequence[Record]) -> pd.DataFrame:
    """Lay the records out, one row a network, scheme and seed, at the scheme's better rate.

    Left out are networks whose norms are estimated, of some layers only.

    Returns:
        Columns seed, network, scheme, trains, and decimal logarithms of what is known at step 0,
        named by a key of `FAMILIES` and what is taken of it; of "trial", what is known after ten
        steps, at the rate at which the loss is lower then.
    """
    rows = []
    for record in records:
        for network, schemes in record.values.items():
            for scheme, found in schemes.items():
                if not found["tracked"]["exact"]:
                    continue
                row = {"seed": record.seed, "network": network, "scheme": scheme}
                row["trains"] = found["best"]["final_loss"] < LEVEL
                for name, key in (("hessian", "frobenius"), ("gradient", "gradient")):
                    logs = finite_log10(found["tracked"][key][0])
                    row[f"{name}_largest"] = logs.max()
                    row[f"{name}_mean"] = logs.mean()
                    row[f"{name}_least"] = logs.min()
                outputs = finite_log10(found["at_start"]["activation"])
                row["variance_weights"] = np.abs(finite_log10(found["at_start"]["deviation"])).max()
                row["variance_last"] = outputs[-1]
                row["variance_spread"] = np.ptp(outputs)
                rows.append(row | _baselines(found))
    return pd.DataFrame(rows)


def _baselines(found: Mapping[str, Any]) -> dict[str, float]:
    at_start = found["at_start"]
    hidden, outputs = finite_log10(np.maximum(at_start["cosine_distance"], ALIKE))[-2:]
    loss, *early = finite_log10([at_start["loss"], *found["early_loss"]])
    return {
        "loss_start": loss,
        "alike_hidden": hidden,
        "alike_outputs": outputs,
        "trial_loss": min(early),
        "trial_fall": loss - min(early),
    }


def networks_apart(table: pd.DataFrame) -> Trial:
    """Say what predictors are put to: to learn on all networks but one, and be tested on that.

    The bootstrap draws networks.
    """
    of, names = pd.factorize(table.network)
    folds = [(of != k, of == k) for k in range(len(names))]
    return Trial(table.trains.to_numpy(dtype=bool), of, folds)


def left_out(table: pd.DataFrame) -> list[str]:
    """Name the networks that tell nothing, since they end alike from nearly all starts."""
    names, telling = table.network.unique(), networks_apart(table).telling
    return [str(name) for name, tells in zip(names, telling, strict=True) if not tells]


def contest(table: pd.DataFrame) -> dict[str, Score]:
    """Score families of numbers, see `hessinit_book.statistics.families`.

    Args:
        table: of `networks`.
    """
    columns = {f: [str(c) for c in table if str(c).startswith(f"{f}_")] for f in FAMILIES}
    numbers = {name: table[name].to_numpy() for names in columns.values() for name in names}
    judged = Judged(numbers, networks_apart(table))
    return {family: judged.best(names) for family, names in columns.items() if names}
