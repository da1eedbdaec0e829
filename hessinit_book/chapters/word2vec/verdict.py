"""Which initialization is better, by how much, and is it more than chance? From the records."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float64
from scipy.stats import rankdata
from torch import Tensor

from hessinit_book.chapters.word2vec.analogies import unpack
from hessinit_book.records.records import Record
from hessinit_book.statistics.intervals import Interval

REFERENCE = "gensim"
RESAMPLES = 500
MEASURES = {
    "wordsim353": "WordSim-353",
    "simlex999": "SimLex-999",
    "analogies": "analogies",
    "held_out": "held-out loss",
}


def tokens_to_level(tokens: Sequence[int | float], quality: Sequence[float], level: float) -> float:
    """Find after how many tokens a learning curve first reaches a level, between looks linearly.

    Args:
        tokens: of the looks, ascending.
        quality: the higher, the better.
        level: to reach.

    Returns:
        Tokens; infinite if the level is never reached.

    Example:
        >>> tokens_to_level([0, 100, 200], [0.0, 0.2, 0.4], 0.3)
        150.0
    """
    reached = [i for i, value in enumerate(quality) if value >= level]
    if not reached:
        return math.inf
    last = reached[0]
    if last == 0:
        return float(tokens[0])
    part = slice(last - 1, last + 1)
    return float(np.interp(level, quality[part], tokens[part]))


def token_ratios(
    records: Sequence[Record], start: str, measure: str, share: float = 1.0
) -> list[float]:
    """Compare the tokens to a level with those that gensim's initialization takes, by seed.

    Args:
        records: one a seed.
        start: its name.
        measure: one of `MEASURES`.
        share: of what gensim's own gains in the whole training, which is the level; 1 is
            its final quality.

    Returns:
        One ratio a seed, below 1 where fewer tokens do; infinite where the level is not reached.
    """
    ratios = []
    for record in records:
        sign = -1 if measure == "held_out" else 1
        curves = [record.values["starts"][name]["curve"] for name in (REFERENCE, start)]
        own, other = ([sign * x for x in curve[measure]] for curve in curves)
        level = (1 - share) * own[0] + share * own[-1]  # no rounding where the share is 1
        reference = tokens_to_level(curves[0]["tokens"], own, level)
        mine = tokens_to_level(curves[1]["tokens"], other, level)
        ratios.append(mine / reference if reference > 0 else math.nan)
    return ratios


def final_difference(records: Sequence[Record], start: str, measure: str) -> Interval:
    """Compare the final quality with that of gensim's own initialization.

    Args:
        records: one a seed.
        start: its name.
        measure: one of `MEASURES`.

    Returns:
        The mean difference over seeds. Of the test sets, with the bootstrap interval over their
        items, which are drawn alike for both and all seeds; of the held-out loss, with
        Student's over seeds.
    """
    if measure == "held_out":
        ends = [
            [record.values["starts"][name]["curve"][measure][-1] for record in records]
            for name in (start, REFERENCE)
        ]
        return Interval.of([mine - own for mine, own in zip(*ends, strict=True)])
    differences = torch.stack(
        [
            _resampled(record, start, measure) - _resampled(record, REFERENCE, measure)
            for record in records
        ]
    ).mean(0)
    return _bootstrapped(differences)


def final_quality(records: Sequence[Record], start: str, measure: str) -> Interval:
    """Give the mean final quality over seeds, with the interval as in `final_difference`."""
    if measure == "held_out":
        curves = [record.values["starts"][start]["curve"] for record in records]
        return Interval.of([curve[measure][-1] for curve in curves])
    drawn = torch.stack([_resampled(record, start, measure) for record in records]).mean(0)
    return _bootstrapped(drawn)


def _resampled(record: Record, start: str, measure: str) -> Tensor:
    """Give a final quality on the whole set, then on each resample; shape (1 + resamples,).

    A resample keeps the ranks that the items have in the whole set.
    """
    tests, final = record.values["tests"][measure], record.values["starts"][start]["final"]
    if measure == "analogies":
        right = unpack(final[measure]["right"], tests["asked"]).double()
        return _weights(len(right)) @ right
    x, y = (torch.from_numpy(rankdata(values)) for values in (final[measure], tests["human"]))
    weights = _weights(len(x))
    x, y = x - x.mean(), y - y.mean()
    mean_x, mean_y, squares_x, squares_y, products = (
        weights @ column for column in (x, y, x**2, y**2, x * y)
    )
    variances = (squares_x - mean_x**2) * (squares_y - mean_y**2)
    return (products - mean_x * mean_y) / variances.sqrt()


@lru_cache
def _weights(items: int) -> Float64[Tensor, "r items"]:
    """Weigh the items alike, then as each resample does: the same weights for all comparisons."""
    source = torch.Generator().manual_seed(0)
    drawn = torch.randint(items, (RESAMPLES, items), generator=source)
    counts = torch.zeros(RESAMPLES, items, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(counts))
    return torch.cat([torch.ones(1, items, dtype=torch.float64), counts]) / items


def _bootstrapped(values: Tensor) -> Interval:
    """Take the interval from resamples, of which small sets may have some without a rank."""
    drawn = values[1:][values[1:].isfinite()]
    if len(drawn) == 0:
        return Interval(float(values[0]))
    low, high = np.quantile(drawn.numpy(), [0.025, 0.975]).tolist()
    return Interval(float(values[0]), low, high)


def verdict(records: Sequence[Record]) -> str:
    """Say in words which start reaches gensim's default quality with the fewest tokens.

    Returns:
        Markdown: a sentence, then a line for each one and what it takes in each measure. An
        interval is Student's over seeds.
    """
    lines, clear = [], []
    for start in records[0].values["starts"]:
        if start == REFERENCE:
            continue
        changes = {measure: _change(token_ratios(records, start, measure)) for measure in MEASURES}
        said = [f"{name}: {_in_words(changes[key])}" for key, name in MEASURES.items()]
        lines.append(f"- `{html.escape(start)}`: " + "; ".join(said) + ".")
        if all(isinstance(change, Interval) and change.high < 0 for change in changes.values()):
            clear.append(f"`{html.escape(start)}`")
    head = ", ".join(clear) if clear else "No start"
    verb = "reach" if len(clear) > 1 else "reaches"
    return "\n".join(
        [
            f"**{head} {verb} the default's final quality with clearly fewer tokens in all of "
            f"{len(MEASURES)} measures** ({len(records)} seed{'s' if len(records) > 1 else ''}).",
            "",
            *lines,
        ]
    )


def _change(ratios: Sequence[float]) -> Interval | int:
    """Give the change of tokens in percent; where a seed never got there, how many did."""
    reached = [ratio for ratio in ratios if math.isfinite(ratio)]
    if len(reached) < len(ratios):
        return len(reached)
    return Interval.of([100 * (ratio - 1) for ratio in ratios])


def _in_words(change: Interval | int) -> str:
    if not isinstance(change, Interval):
        return f"reached in {change} seeds" if change else "not reached"
    words = f"{abs(change.mean):.1f} % {'more' if change.mean > 0 else 'fewer'} tokens"
    if math.isnan(change.low):
        return words
    unclear = "" if change.is_clear else ", no clear difference"
    return f"{words} ({change.low:+.1f} to {change.high:+.1f} %{unclear})"
