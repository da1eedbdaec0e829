"""What predicts training best: the records of `mnist_depth` as a table, and its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from hessinit_book.records.records import Record
from hessinit_book.statistics.families import Contest, Folds, compare
from hessinit_book.statistics.prediction import (
    Estimate,
    balanced_accuracy,
    predict_apart,
    resampled,
    spearman_with_interval,
    with_interval,
)

OURS = "hessian"  # the name of the start by `hessian_`
LEARN_SHARE = 0.4  # of the seeds: two of five

Column = Float[np.ndarray, " n"]


def _log(values: Column) -> Column:
    """Take decimal logarithms; zeros and overflown numbers go to the ends of float32's range."""
    values = np.nan_to_num(values, nan=1e38, posinf=1e38)
    return np.log10(np.clip(values, 1e-45, 1e38))


@dataclass(frozen=True)
class Predictor:
    """A number known before the first step.

    Attributes:
        label: for readers.
        family: "Hessian" (norms alone), "gain" (gradient and Hessian), "gradient" or
            "variance" (of weights or activations).
        of: computes it from a table of `networks`, one number a row.
    """

    label: str
    family: str
    of: Callable[[pd.DataFrame], Column]


def _layers(column: str, sum_up: Callable[[Column], float]) -> Callable[[pd.DataFrame], Column]:
    return lambda table: np.array([sum_up(_log(np.array(row))) for row in table[column]])


def _spread(logs: Column) -> float:
    return float(np.ptp(logs))


def _gain(table: pd.DataFrame) -> Column:
    rate = table.rate.to_numpy()
    gain = rate * table.square.to_numpy() - rate**2 / 2 * table.curvature.to_numpy()
    return np.nan_to_num(gain, nan=-np.inf)


PREDICTORS = {
    "hessian_first": Predictor(
        "Hessian: first layer", "Hessian", _layers("frobenius", lambda v: v[0])
    ),
    "hessian_least": Predictor("Hessian: least layer", "Hessian", _layers("frobenius", np.min)),
    "hessian_largest": Predictor("Hessian: largest", "Hessian", _layers("frobenius", np.max)),
    "hessian_mean": Predictor("Hessian: geometric mean", "Hessian", _layers("frobenius", np.mean)),
    "hessian_spread": Predictor("Hessian: spread", "Hessian", _layers("frobenius", _spread)),
    "hessian_spectral": Predictor(
        "Hessian: largest spectral", "Hessian", _layers("spectral", np.max)
    ),
    "gain": Predictor("step: predicted gain", "gain", _gain),
    "best_gain": Predictor(
        "step: gain at its best rate",
        "gain",
        lambda t: _log(t.square.to_numpy() ** 2 / t.curvature.to_numpy().clip(min=1e-45)),
    ),
    "gradient_norm": Predictor(
        "gradient: all layers", "gradient", lambda table: _log(np.sqrt(table.square.to_numpy()))
    ),
    "gradient_first": Predictor(
        "gradient: first layer", "gradient", _layers("gradient", lambda v: v[0])
    ),
    "gradient_least": Predictor("gradient: least layer", "gradient", _layers("gradient", np.min)),
    "gradient_spread": Predictor("gradient: spread", "gradient", _layers("gradient", _spread)),
    "weight_variance": Predictor(
        "weights: off the variance rule",
        "variance",
        _layers("deviation", lambda v: float(np.abs(v).max())),
    ),
    "activation_last": Predictor(
        "activations: last layer", "variance", _layers("activation", lambda v: v[-1])
    ),
    "activation_spread": Predictor(
        "activations: spread", "variance", _layers("activation", _spread)
    ),
}
"""What is compared. Norms, deviations and scales count by their decimal logarithms."""

SPLITS = {
    "seeds": "other seeds",
    "depth": "another depth",
    "activation": "another activation",
}
"""On what a learned interval is tested: what it was not learned on."""


def networks(records: Sequence[Record], rate: float, *, ours: bool = False) -> pd.DataFrame:
    """Lay the records out, one row a trained network.

    Args:
        records: of `mnist_depth`.
        rate: one of the learning rates.
        ours: whether the start by `hessian_` is among them. It is set by a curvature, which
            must not be when curvatures are judged.

    Returns:
        Columns seed, shape, start, setting (shape and start, numbered), depth, function (the
        activation), rate, final_loss [nat], trains, and what was measured at the start: see
        `hessinit_book.chapters.mnist_depth.run.measure`.
    """
    rows = []
    for record in records:
        for activation, shapes in record.values["grid"].items():
            for shape, found in shapes.items():
                (trained,) = (t for t in found["trained"] if t["learning_rate"] == rate)
                at_start = found["at_start"]
                for i, start in enumerate(found["starts"].split(", ")):
                    if start == OURS and not ours:
                        continue
                    rows.append(
                        {
                            "seed": record.seed,
                            "shape": f"{activation}, {shape}",
                            "start": start,
                            "depth": int(shape.removeprefix("depth_")),
                            "function": activation,
                            "rate": rate,
                            "final_loss": trained["final_loss"][i],
                            "trains": bool(trained["trains"][i]),
                            **{name: values[i] for name, values in at_start.items()},
                        }
                    )
    table = pd.DataFrame(rows)
    table["setting"] = table.groupby(["shape", "start"]).ngroup()
    return table


def folds(table: pd.DataFrame, split: str) -> Folds:
    """Say which rows to learn on and which to test on.

    Args:
        table: of `networks`.
        split: key of `SPLITS`.
    """
    if split == "seeds":
        seeds = sorted(table.seed.unique())
        learn = table.seed.isin(seeds[: max(1, round(LEARN_SHARE * len(seeds)))]).to_numpy()
        return [(learn, ~learn)]
    column = {"depth": "depth", "activation": "function"}[split]
    return [
        ((table[column] != value).to_numpy(), (table[column] == value).to_numpy())
        for value in sorted(table[column].unique())
    ]


def scores(table: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """Score every predictor.

    Returns:
        For each, `spearman` with the final loss, and the balanced accuracy of "it trains" for
        each of `SPLITS`, with intervals over settings.
    """
    loss, truth = table.final_loss.to_numpy(), table.trains.to_numpy()
    clusters = table.setting.to_numpy()
    found: dict[str, dict[str, Estimate]] = {}
    for name, predictor in PREDICTORS.items():
        x = predictor.of(table)
        found[name] = {"spearman": spearman_with_interval(x, loss, clusters)}
        for split in SPLITS:
            predicted, rows = predict_apart(x, truth, folds(table, split))
            counts = resampled(clusters)[:, rows]
            found[name][split] = with_interval(
                float(balanced_accuracy(predicted, truth[rows])),
                balanced_accuracy(predicted, truth[rows], counts),
            )
    return found


def contest(table: pd.DataFrame, family: str, other: str, split: str) -> Contest:
    """Compare two families of predictors, see `hessinit_book.statistics.families`.

    Args:
        table: of `networks`.
        family: of `PREDICTORS`.
        other: another.
        split: key of `SPLITS`.
    """
    return _compare(table, family, other, folds(table, split))


def transfer(learn: pd.DataFrame, test: pd.DataFrame, family: str, other: str) -> Contest:
    """Compare two families of predictors learned on one data set and tested on another.

    Args:
        learn: of `networks`, from the one; shapes that the other does not have are left out.
        test: of `networks`, from the other.
        family: of `PREDICTORS`.
        other: another.
    """
    learn = learn.loc[learn["shape"].isin(test["shape"])]
    both = pd.concat([learn, test], keys=["learn", "test"], names=["data"]).reset_index("data")
    both["setting"] = both.groupby(["data", "shape", "start"]).ngroup()
    tested = (both["data"] == "test").to_numpy()
    return _compare(both, family, other, [(~tested, tested)])


def _compare(table: pd.DataFrame, family: str, other: str, rows: Folds) -> Contest:
    sides = [
        {key: p.of(table) for key, p in PREDICTORS.items() if p.family == name}
        for name in (family, other)
    ]
    truth, clusters = table.trains.to_numpy(), table.setting.to_numpy()
    return compare(sides[0], sides[1], truth, clusters, rows)
