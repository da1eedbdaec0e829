"""Judges of the claims on initializing: does controlling the Hessian norm help?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hessinit_book.chapters.word2vec.verdict import MEASURES, final_difference
from hessinit_book.claims.findings import Finding, verdict
from hessinit_book.records.records import Record
from hessinit_book.statistics.best_rate import at_best_rate
from hessinit_book.statistics.intervals import Interval

# Those of `init_targets` that differ from He's in the scale of layers alone, set by the norms of
# Hessians of weights.
CONTROLLED = ("equal_frobenius", "equal_spectral", "equal_rows", "all_one")


def control_helps(found: Sequence[Record]) -> Finding:
    """Compare He's weights with the same weights scaled to control Hessian norms.

    The start that stands for the others is chosen on all networks but the one it is judged on:
    the best of several on the very network would look better than it is.
    """
    gains = {network: _gains(found, network) for network in found[0].values}
    ahead, texts = [], []
    for network, own in gains.items():
        others = [gain for name, gain in gains.items() if name != network] or [own]
        chosen = max(own, key=lambda start: sum(gain[start].mean for gain in others))
        gain = own[chosen]
        ahead.append(gain.low > 0)
        texts.append(f"{network}: {chosen}, {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]")
    return Finding(
        verdict(ahead), "final loss of He less that of one of these [nat]; " + "; ".join(texts)
    )


def _gains(found: Sequence[Record], network: str) -> dict[str, Interval]:
    """Give how much lower the final loss of each of `CONTROLLED` is; -inf: a seed diverged."""
    he = at_best_rate(found, network, "he", "final")
    gains = {}
    for start in CONTROLLED:
        losses = at_best_rate(found, network, start, "final")
        diverged = not np.isfinite(losses).all()
        gains[start] = Interval(-np.inf) if diverged else Interval.of((he - losses).tolist())
    return gains


def control_helps_words(found: Sequence[Record]) -> Finding:
    """Compare matched blocks with gensim's own initialization."""
    differences = {name: final_difference(found, "matched", name) for name in MEASURES}
    texts = [
        f"{MEASURES[name]} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        for name, d in differences.items()
    ]
    # A loss is better if lower, a correlation or a share if higher.
    better = [d.high < 0 if name == "held_out" else d.low > 0 for name, d in differences.items()]
    return Finding(verdict(better), "matched blocks less gensim's start: " + "; ".join(texts))
