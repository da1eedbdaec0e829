"""Judges of the claims on image networks: is the Hessian norm a useful diagnostic?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from hessinit_book.chapters.cifar_networks import scores as cifar_networks
from hessinit_book.chapters.mnist_depth import scores as mnist_depth
from hessinit_book.claims.findings import (
    NOT_REPRODUCED,
    PARTLY,
    REPRODUCED,
    Finding,
    signed,
    verdict,
)
from hessinit_book.records.records import Record
from hessinit_book.statistics.families import Contest

_RIVALS = {"gradient norms": "gradient", "variances": "variance"}


def _tables(found: Sequence[Record]) -> dict[float, pd.DataFrame]:
    """Lay the records of `mnist_depth` out, for each learning rate."""
    rates = found[0].parameters["learning_rates"]
    return {rate: mnist_depth.networks(found, rate) for rate in rates}


def useful(contests: dict[str, Contest]) -> Finding:
    """Judge a diagnostic against its rivals, by name: it must be good and ahead in all."""
    texts = [
        f"balanced accuracy {c.score}, ahead of {rival} by {signed(c.ahead)}"
        for rival, c in contests.items()
    ]
    if any(c.score.low <= 0.5 for c in contests.values()):
        return Finding(NOT_REPRODUCED, "; ".join(texts))
    ahead_of_all = all(c.ahead.low > 0 for c in contests.values())
    return Finding(REPRODUCED if ahead_of_all else PARTLY, "; ".join(texts))


def diagnostic(found: Sequence[Record]) -> Finding:
    """Set the norm against its rivals on fully connected networks, learned on other depths."""
    return useful(
        {
            f"{name} (rate {rate:g})": mnist_depth.contest(table, "Hessian", family, "depth")
            for rate, table in _tables(found).items()
            for name, family in _RIVALS.items()
        }
    )


def on_clothes(found: Sequence[Record], digits: Sequence[Record]) -> Finding:
    """Judge FashionMNIST as MNIST, and ask that what is learned on digits holds on clothes."""
    own, learned = diagnostic(found), _tables(digits)
    scores = {
        rate: mnist_depth.transfer(learned[rate], table, "Hessian", "gradient").score
        for rate, table in _tables(found).items()
    }
    texts = [f"learned on MNIST (rate {rate:g}): {s}" for rate, s in scores.items()]
    holds = all(s.low > 0.5 for s in scores.values())
    lowered = PARTLY if own.verdict == REPRODUCED else NOT_REPRODUCED
    return Finding(own.verdict if holds else lowered, "; ".join([own.figure, *texts]))


def beyond_variances(found: Sequence[Record]) -> Finding:
    """Set the norm against variances, at every rate and for every split."""
    ahead = {
        f"{tested_on} (rate {rate:g})": mnist_depth.contest(
            table, "Hessian", "variance", split
        ).ahead
        for rate, table in _tables(found).items()
        for split, tested_on in mnist_depth.SPLITS.items()
    }
    texts = [f"{name}: {signed(estimate)}" for name, estimate in ahead.items()]
    return Finding(verdict([e.low > 0 for e in ahead.values()]), "; ".join(texts))


def on_convolutions(found: Sequence[Record]) -> Finding:
    """Set the norm against its rivals on convolutional networks, learned on other networks."""
    table = cifar_networks.networks(found)
    return useful({name: cifar_networks.contest(table, family) for name, family in _RIVALS.items()})
