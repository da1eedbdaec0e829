"""The numbers that compete in `mnist_depth`: what is known of a network before it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from hessinit_book.statistics.rounding import finite_log10
from hessinit_book.training.cosines import ALIKE

FAMILIES = {
    "Hessian": "Hessian norms",
    "gain": "gain of a step",
    "gradient": "gradient norms",
    "variance": "variances",
    "loss": "loss at the start",
    "alike": "correlation of samples",
    "trial": "ten steps of training",
}
"""What predictors are made of, with labels for readers."""

RIVALS = ("gradient", "variance", "loss", "alike", "trial")
"""Families without a Hessian."""

Column = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Predictor:
    """A number known before the first step, or (of the family "trial") after ten.

    Attributes:
        label: for readers.
        family: key of `FAMILIES`: "variance" is one of weights or activations, "gain" takes
            gradient and Hessian.
        of: computes it from a table of `networks`, one number a row.
    """

    label: str
    family: str
    of: Callable[[pd.DataFrame], Column]


def _layers(column: str, sum_up: Callable[[Column], float]) -> Callable[[pd.DataFrame], Column]:
    return lambda table: np.array([sum_up(finite_log10(np.array(row))) for row in table[column]])


def _spread(logs: Column) -> float:
    return float(np.ptp(logs))


def _floor(log: float) -> float:
    return max(log, float(np.log10(ALIKE)))


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
        lambda t: finite_log10(t.square.to_numpy() ** 2 / t.curvature.to_numpy().clip(min=1e-45)),
    ),
    "gradient_norm": Predictor(
        "gradient: all layers",
        "gradient",
        lambda table: finite_log10(np.sqrt(table.square.to_numpy())),
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
    "loss_start": Predictor(
        "loss: at the start", "loss", lambda t: finite_log10(t.loss.to_numpy())
    ),
    "alike_hidden": Predictor(
        "correlation: last hidden layer",
        "alike",
        _layers("cosine_distance", lambda v: _floor(v[-2])),
    ),
    "alike_outputs": Predictor(
        "correlation: outputs", "alike", _layers("cosine_distance", lambda v: _floor(v[-1]))
    ),
    "trial_loss": Predictor(
        "ten steps: loss after them", "trial", lambda t: finite_log10(t.early_loss.to_numpy())
    ),
    "trial_fall": Predictor(
        "ten steps: fall of the loss",
        "trial",
        lambda t: np.nan_to_num(t.loss.to_numpy() - t.early_loss.to_numpy(), nan=-np.inf),
    ),
}
"""What is compared. Norms, deviations, scales, distances and losses count by their decimal
logarithms."""


def members(family: str) -> list[str]:
    """List the predictors of a family."""
    return [name for name, predictor in PREDICTORS.items() if predictor.family == family]
