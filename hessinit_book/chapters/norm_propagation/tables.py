"""Tables of the experiment `norm_propagation`, and how sure a median over networks is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from hessinit_book.records.records import Record, look_up

TITLES = {
    "lecun_linear": "LeCun, linear",
    "lecun_tanh": "LeCun, tanh, small inputs",
    "glorot_tanh": "Glorot, tanh",
    "he_relu": "He, ReLU",
    "dropout_rescaled": "He with dropout, rescaled",
    "dropout_plain": "He with dropout, not rescaled",
}
TOLERANCE = 0.1


class Median(NamedTuple):
    """Medians with their 95 % sampling intervals, each an array over layers."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def verdict(self) -> str:
        """Whether all layers' medians are within a tenth of one, as far as can be told."""
        if (self.high < 1 - TOLERANCE).any() or (self.low > 1 + TOLERANCE).any():
            return "off"
        within = (self.low >= 1 - TOLERANCE).all() and (self.high <= 1 + TOLERANCE).all()
        return "within 10 %" if within else "open"

    @property
    def worst(self) -> str:
        """The layer farthest from one, with its interval if there is one."""
        k = int(np.abs(np.log(self.value)).argmax())
        if np.isnan(self.low[k]):
            return f"{self.value[k]:.2f}"
        return f"{self.value[k]:.2f} [{self.low[k]:.2f}, {self.high[k]:.2f}]"


def median_interval(samples: np.ndarray) -> Median:
    r"""Compute medians with distribution-free intervals that hold them in 95 % of all cases.

    The median lies below the r-th of N ordered samples with the probability
    $\sum_{i < r} \binom{N}{i} / 2^N$, and as often above the r-th largest. The interval
    lies between the two, with the largest r that leaves out at most 2.5 % on each side.

    Args:
        samples: one row a network, shape (networks, layers).

    Returns:
        Arrays of shape (layers,); NaN for the ends with fewer than six networks.

    Source: order statistics, any textbook (the sign test inverted).

    Example:
        >>> median_interval(np.arange(1.0, 21.0)[:, None])
        Median(value=array([10.5]), low=array([6.]), high=array([15.]))
    """
    count = len(samples)
    r = int(stats.binom.ppf(0.025, count, 0.5))
    value = np.median(samples, 0)
    if r == 0:
        return Median(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    ordered = np.sort(samples, 0)
    return Median(value, ordered[r - 1], ordered[count - r])


def close_ratios(records: Sequence[Record], scheme: str, depth: int) -> dict[str, np.ndarray]:
    """Give measured over predicted norms at the largest width, shape (networks, layers).

    Returns:
        "seeds": one network a seed; "all": those and the ones that seeds drew more.
    """
    key = f"values.schemes.{scheme}.w{max(records[0].parameters['widths'])}_d{depth}"
    predicted = np.array(look_up(records[:1], f"{key}.predicted")[0])
    seeds = np.array(look_up(records, f"{key}.measured")) / predicted
    more = np.concatenate(look_up(records, f"{key}.more")) / predicted
    return {"seeds": seeds, "all": np.concatenate([seeds, more])}


def close_depths(records: Sequence[Record]) -> list[int]:
    """List the depths that are looked at closely."""
    parameters = records[0].parameters
    return [depth for depth in parameters["depths"] if depth <= parameters["close_depth"]]


def agreement(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate medians of measured over predicted norms at the largest width, by network.

    The layer whose median is farthest from the prediction, with its interval; and whether all
    layers' intervals lie within a tenth of it ("off": some layer's lies outside of that).
    """
    rows = {}
    for name, title in TITLES.items():
        for depth in close_depths(records):
            ratios = close_ratios(records, name, depth)
            row = {}
            for samples in ratios.values():
                found, count = median_interval(samples), f"{len(samples)} networks"
                row |= {f"{count}: worst layer": found.worst, f"{count}: all layers": found.verdict}
            rows[title, depth] = row
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["scheme", "layers"])


def whole_hessians(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the whole Hessian's norm over the prediction, for tanh, medians over seeds."""
    rows = {}
    for name in ("lecun_tanh", "glorot_tanh"):
        for depth in close_depths(records):
            key = f"values.schemes.{name}.w{max(records[0].parameters['widths'])}_d{depth}"
            predicted, measured, whole = (
                np.array(look_up(records, f"{key}.{part}"))
                for part in ("predicted", "measured", "hessian")
            )
            found = median_interval(whole / predicted)
            rows[TITLES[name], depth] = {
                "whole / predicted: worst layer": found.worst,
                "all layers": found.verdict,
                "whole / linearized, layer 1": f"{np.median(whole / measured, 0)[0]:.3f}",
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["scheme", "layers"])


def scatter(records: Sequence[Record]) -> pd.DataFrame:
    r"""Tabulate how norms scatter from network to network, at the largest width.

    If they are log-normal with the deviation s of the logarithm, their root mean square is
    $e^{s^2}$ times their median. Of all layers the one that scatters most.
    """
    rows = {}
    for name, title in TITLES.items():
        for depth in close_depths(records):
            key = f"values.schemes.{name}.w{max(records[0].parameters['widths'])}_d{depth}"
            samples = close_ratios(records, name, depth)["all"]
            stds = np.log(samples).std(0, ddof=1)
            k = int(stds.argmax())
            skew = np.sqrt((samples[:, k] ** 2).mean()) / np.median(samples[:, k])
            rows[title, depth] = {
                "deviation of the log": f"{stds[k]:.3f}",
                "predicted": f"{look_up(records[:1], f'{key}.log_std')[0][k]:.3f}",
                "root mean square / median": f"{skew:.3f}",
                "if log-normal": f"{np.exp(stds[k] ** 2):.3f}",
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["scheme", "layers"])


def rules(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate the recovered rules, for 512 inputs and 256 outputs of the layer."""
    found = records[0].values["rules"]
    rows = {
        rule["title"]: {
            "published": rule["formula"],
            "its value": f"{rule['known']:.9f}",
            "critical variance": f"{rule['found']:.9f}",
            "relative difference": f"{rule['difference']:.0e}",
        }
        for rule in found.values()
    }
    return pd.DataFrame(rows).T.rename_axis("rule")
