"""Judges of the claims on image networks: is the Hessian norm a useful diagnostic?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from hessinit_book.chapters.cifar_networks import scores as cifar_networks
from hessinit_book.chapters.mnist_depth import scores as mnist_depth
from hessinit_book.chapters.mnist_depth.predictors import FAMILIES, RIVALS
from hessinit_book.claims.findings import (
    NOT_REPRODUCED,
    PARTLY,
    REPRODUCED,
    Finding,
    verdict,
)
from hessinit_book.records.records import Record
from hessinit_book.statistics.families import Score

OURS = "Hessian"


def _tables(found: Sequence[Record]) -> dict[float, pd.DataFrame]:
    """Lay the records of `mnist_depth` out, for each learning rate."""
    rates = found[0].parameters["learning_rates"]
    return {rate: mnist_depth.networks(found, rate) for rate in rates}


def useful(tests: Mapping[str, tuple[Score, Mapping[str, Score]]]) -> Finding:
    """Judge a diagnostic in some tests, each with its rivals: it must be good and ahead in all.

    What has to hold in all tests is no likelier to do so by chance where there are more of them, so
    that these intervals are not widened.

    Args:
        tests: by name, the diagnostic's score and those of its rivals, by name.
    """
    scores, leads, texts = [], [], []
    for name, (score, rivals) in tests.items():
        scores.append(score.estimate())
        ahead = {rival: score.ahead_of(other) for rival, other in rivals.items()}
        leads += ahead.values()
        said = ", ".join(f"{rival} by {lead.signed()}" for rival, lead in ahead.items())
        texts.append(f"{name}balanced accuracy {scores[-1]}, ahead of {said}")
    if not all(score.low > 0.5 for score in scores):
        return Finding(NOT_REPRODUCED, "; ".join(texts))
    ahead_of_all = all(lead.low > 0 for lead in leads)
    return Finding(REPRODUCED if ahead_of_all else PARTLY, "; ".join(texts))


def diagnostic(found: Sequence[Record]) -> Finding:
    """Set the norm against its rivals on fully connected networks, learned on other depths."""
    tests = {}
    for rate, table in _tables(found).items():
        scores = mnist_depth.contest(table, "depth", (OURS, *RIVALS))
        rivals = {FAMILIES[family]: scores[family] for family in RIVALS}
        tests[f"rate {rate:g}: "] = scores[OURS], rivals
    return useful(tests)


def on_clothes(found: Sequence[Record], digits: Sequence[Record]) -> Finding:
    """Judge FashionMNIST as MNIST, and ask that what is learned on digits holds on clothes."""
    own, learned, tables = diagnostic(found), _tables(digits), _tables(found)
    scores = {
        rate: mnist_depth.transfer(learned[rate], table, [OURS])[OURS].estimate()
        for rate, table in tables.items()
    }
    texts = [f"learned on MNIST (rate {rate:g}): {s}" for rate, s in scores.items()]
    holds = all(s.low > 0.5 for s in scores.values())
    lowered = PARTLY if own.verdict == REPRODUCED else NOT_REPRODUCED
    return Finding(own.verdict if holds else lowered, "; ".join([own.figure, *texts]))


def beyond_variances(found: Sequence[Record]) -> Finding:
    """Set the norm against variances, at every rate and for every split.

    One lead is enough for a part of the claim, so the intervals are widened for their number.
    """
    ahead = {}
    tables = _tables(found)
    comparisons = len(tables) * len(mnist_depth.SPLITS)
    for rate, table in tables.items():
        for split, tested_on in mnist_depth.SPLITS.items():
            scores = mnist_depth.contest(table, split, (OURS, "variance"))
            lead = scores[OURS].ahead_of(scores["variance"], comparisons)
            ahead[f"{tested_on} (rate {rate:g})"] = lead
    texts = [f"{name}: {lead.signed()}" for name, lead in ahead.items()]
    return Finding(verdict([lead.low > 0 for lead in ahead.values()]), "; ".join(texts))


def on_convolutions(found: Sequence[Record]) -> Finding:
    """Set the norm against its rivals on convolutional networks, learned on other networks."""
    scores = cifar_networks.contest(cifar_networks.networks(found))
    own = scores.pop("hessian")
    rivals = {cifar_networks.FAMILIES[family]: score for family, score in scores.items()}
    return useful({"": (own, rivals)})
