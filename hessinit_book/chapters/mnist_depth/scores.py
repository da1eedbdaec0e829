"""What predicts training best: the records of `mnist_depth` as a table, and its scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hessinit_book.chapters.mnist_depth.predictors import FAMILIES, PREDICTORS, members
from hessinit_book.records.records import Record
from hessinit_book.statistics.families import Folds, Judged, Score, Trial
from hessinit_book.statistics.prediction import Estimate, spearman_of_samples

OURS = "looks_linear"  # the name of the start by `looks_linear_`

SPLITS = {"depth": "another depth", "activation": "another activation"}
"""On what a learned interval is tested: what it was not learned on.

Not on other seeds: nearly all settings end alike in all seeds, so that to have seen one seed is to
know the others.
"""


def networks(records: Sequence[Record], rate: float, *, ours: bool = False) -> pd.DataFrame:
    """Lay the records out, one row a trained network.

    Args:
        records: of `mnist_depth`.
        rate: one of the learning rates.
        ours: whether the start by `looks_linear_` is among them. It was chosen on such
            networks because they train, so it is no trial of what tells who trains.

    Returns:
        Columns seed, shape, start, setting (shape and start, numbered), depth, function (the
        activation), rate, early_loss and final_loss [nat], trains, and what was measured at the
        start: see `hessinit_book.chapters.mnist_depth.initializations.measure`.
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
                            "early_loss": trained["early_loss"][i],
                            "final_loss": trained["final_loss"][i],
                            "trains": bool(trained["trains"][i]),
                            **{name: values[i] for name, values in at_start.items()},
                        }
                    )
    table = pd.DataFrame(rows)
    table["setting"] = table.groupby(["shape", "start"]).ngroup()
    return table


def copies(table: pd.DataFrame) -> tuple[int, int]:
    """Count the settings that end alike in all seeds, and all settings."""
    outcomes = table.groupby("setting").trains.nunique()
    return int((outcomes == 1).sum()), len(outcomes)


def folds(table: pd.DataFrame, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Say which rows to learn on and which to test on, by what is tested.

    Args:
        table: of `networks`.
        split: key of `SPLITS`.
    """
    column, name = {"depth": ("depth", "depth {}"), "activation": ("function", "{}")}[split]
    return {
        name.format(value): (
            (table[column] != value).to_numpy(),
            (table[column] == value).to_numpy(),
        )
        for value in sorted(table[column].unique())
    }


def trial(table: pd.DataFrame, split: str) -> Trial:
    """Say what predictors are put to: to tell who trains, with shapes as the bootstrap's units."""
    return _trial(table, [*folds(table, split).values()])


def left_out(table: pd.DataFrame, split: str) -> list[str]:
    """Name the folds that tell nothing, since nearly all of their networks end alike."""
    telling = trial(table, split).telling
    return [name for name, tells in zip(folds(table, split), telling, strict=True) if not tells]


def scores(table: pd.DataFrame) -> dict[str, dict[str, Estimate]]:
    """Score every predictor by itself.

    Returns:
        For each, `spearman` with the final loss, and the balanced accuracy of "it trains" for
        each of `SPLITS`, with intervals over shapes.
    """
    numbers = {name: predictor.of(table) for name, predictor in PREDICTORS.items()}
    loss = table.final_loss.to_numpy()
    tasks = {split: trial(table, split) for split in SPLITS}
    judged = {split: Judged(numbers, task) for split, task in tasks.items()}
    units, counts = tasks["depth"].units, tasks["depth"].counts
    return {
        name: {
            "spearman": Estimate.of(spearman_of_samples(x, loss, units, counts)),
            **{split: judged[split].best([name]).estimate() for split in SPLITS},
        }
        for name, x in numbers.items()
    }


def contest(
    table: pd.DataFrame, split: str, families: Sequence[str] = tuple(FAMILIES)
) -> dict[str, Score]:
    """Score families of predictors, see `hessinit_book.statistics.families`.

    Args:
        table: of `networks`.
        split: key of `SPLITS`.
        families: keys of `FAMILIES`.
    """
    return _contest(table, trial(table, split), families)


def transfer(
    learn: pd.DataFrame, test: pd.DataFrame, families: Sequence[str] = tuple(FAMILIES)
) -> dict[str, Score]:
    """Score families of predictors learned on one data set and tested on another.

    Args:
        learn: of `networks`, from the one; shapes that the other does not have are left out.
        test: of `networks`, from the other.
        families: keys of `FAMILIES`.
    """
    learn = learn.loc[learn["shape"].isin(test["shape"])]
    both = pd.concat([learn, test], ignore_index=True)
    tested = np.arange(len(both)) >= len(learn)
    return _contest(both, _trial(both, [(~tested, tested)]), families)


def _trial(table: pd.DataFrame, rows: Folds) -> Trial:
    return Trial(table.trains.to_numpy(dtype=bool), pd.factorize(table["shape"])[0], rows)


def _contest(table: pd.DataFrame, task: Trial, families: Sequence[str]) -> dict[str, Score]:
    names = {family: members(family) for family in families}
    judged = Judged({n: PREDICTORS[n].of(table) for one in names.values() for n in one}, task)
    return {family: judged.best(of_family) for family, of_family in names.items()}
