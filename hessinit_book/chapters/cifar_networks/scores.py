"""What predicts training in the records of `cifar_networks`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hessinit_book.records.records import Record
from hessinit_book.statistics.families import Contest, compare

LEVEL = 2.2
"""A network trains if its final loss [nat] is below: guessing gives log 10 = 2.3."""


def networks(records: Sequence[Record]) -> pd.DataFrame:
    """Lay the records out, one row a network, scheme and seed, at the scheme's better rate.

    Left out are networks whose norms are estimated, of some layers only.

    Returns:
        Columns seed, network, scheme, setting (network and scheme, numbered), trains, and
        decimal logarithms of what is known at step 0, over the layers: hessian_largest,
        hessian_mean, hessian_least, gradient_largest, gradient_mean, gradient_least.
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
                    logs = _log(found["tracked"][key][0])
                    row[f"{name}_largest"] = logs.max()
                    row[f"{name}_mean"] = logs.mean()
                    row[f"{name}_least"] = logs.min()
                outputs = _log(found["at_start"]["activation"])
                row["variance_weights"] = np.abs(_log(found["at_start"]["deviation"])).max()
                row["variance_last"] = outputs[-1]
                row["variance_spread"] = np.ptp(outputs)
                rows.append(row)
    table = pd.DataFrame(rows)
    table["setting"] = table.groupby(["network", "scheme"]).ngroup()
    return table


def contest(table: pd.DataFrame, rival: str) -> Contest:
    """Compare Hessian norms with a rival: learned on all networks but one, tested on that.

    Args:
        table: of `networks`.
        rival: "gradient" or "variance".
    """
    sides = [
        {column: table[column].to_numpy() for column in table if str(column).startswith(name)}
        for name in ("hessian_", f"{rival}_")
    ]
    folds = [
        ((table.network != name).to_numpy(), (table.network == name).to_numpy())
        for name in table.network.unique()
    ]
    truth, clusters = table.trains.to_numpy(dtype=bool), table.setting.to_numpy()
    return compare(sides[0], sides[1], truth, clusters, folds)


def _log(values: Sequence[float]) -> np.ndarray:
    """Take decimal logarithms; zeros and overflown numbers go to the ends of float32's range."""
    return np.log10(np.clip(np.nan_to_num(values, nan=1e38), 1e-45, 1e38))
