"""The claims of the paper's abstracts and of the authors' notebook, judged by stated rules.

A verdict is computed from the full-scale records, never typed. A claim whose records are not
there is "not tested".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hessinit_lib import records
from hessinit_lib.evaluation import cifar_networks, mnist_depth
from hessinit_lib.evaluation.contest import Contest
from hessinit_lib.evaluation.init_targets import at_best_rate
from hessinit_lib.evaluation.intervals import Interval
from hessinit_lib.evaluation.prediction import Estimate
from hessinit_lib.records import Record, look_up
from hessinit_lib.word2vec.verdict import MEASURES, final_difference

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_TESTED = (
    "reproduced",
    "partly",
    "not reproduced",
    "not tested",
)


@dataclass(frozen=True)
class Finding:
    """What the records say of a claim.

    Attributes:
        verdict: one of the four above.
        figure: the figures it rests on, with their intervals, in words.
    """

    verdict: str
    figure: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim, and how it is judged.

    Attributes:
        source: where it is made: "preprint" or "conference" (their abstracts), or "notebook".
        text: what is claimed, in our words.
        experiment: whose records judge it, and whose notebook shows more.
        rule: the rule of the verdict, in words; `judge` is the same in code.
        judge: computes the finding; None while there is no experiment.
    """

    source: str
    text: str
    experiment: str
    rule: str
    judge: Callable[[Sequence[Record]], Finding] | None = None

    def finding(self, results: Path | str) -> Finding:
        """Judge the claim by the full-scale records in a folder of results.

        Raises:
            RecordError: a record is not valid.
        """
        folder = records.record_path(results, "paper", self.experiment, 0).parent
        if self.judge is None or not any(folder.glob("seed-*.json")):
            return Finding(NOT_TESTED)
        return self.judge(records.read_all(results, "paper", self.experiment))


def verdict(holds: Sequence[bool]) -> str:
    """Sum up the parts of a claim: all hold, some do, or none.

    Example:
        >>> verdict([True, True]), verdict([True, False]), verdict([False])
        ('reproduced', 'partly', 'not reproduced')
    """
    if all(holds):
        return REPRODUCED
    return PARTLY if any(holds) else NOT_REPRODUCED


def over_seeds(values: Sequence[float], form: str = ".2g") -> str:
    """Write a median with its range over seeds.

    Example:
        >>> over_seeds([1.0, 2.0, 4.0])
        '2 (1 to 4)'
    """
    return f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _recovered(found: Sequence[Record]) -> Finding:
    checks = [
        check
        for record in found
        for key, check in record.values.get("checks", {}).items()
        if key.startswith("statement_07")
    ]
    if not checks:
        return Finding(NOT_TESTED)
    shares = [check["value"] / check["allowed"] for check in checks]
    return Finding(
        verdict([share <= 1 for share in shares]),
        f"error over the one allowed, {len(checks)} checks: {over_seeds(shares)}",
    )


def _tables(found: Sequence[Record]) -> dict[float, pd.DataFrame]:
    """Lay the records of `mnist_depth` out, for each learning rate."""
    rates = found[0].parameters["learning_rates"]
    return {rate: mnist_depth.networks(found, rate) for rate in rates}


def _useful(contests: dict[str, Contest]) -> Finding:
    """Judge a diagnostic against its rivals, by name: it must be good and ahead in all."""
    texts = [
        f"balanced accuracy {c.score.value:.2f} [{c.score.low:.2f}, {c.score.high:.2f}], "
        f"ahead of {rival} by {_signed(c.ahead)}"
        for rival, c in contests.items()
    ]
    if any(c.score.low <= 0.5 for c in contests.values()):
        return Finding(NOT_REPRODUCED, "; ".join(texts))
    ahead_of_all = all(c.ahead.low > 0 for c in contests.values())
    return Finding(REPRODUCED if ahead_of_all else PARTLY, "; ".join(texts))


def _diagnostic(found: Sequence[Record]) -> Finding:
    rivals = {"gradient norms": "gradient", "variances": "variance"}
    return _useful(
        {
            f"{name} (rate {rate:g})": mnist_depth.contest(table, "Hessian", family, "depth")
            for rate, table in _tables(found).items()
            for name, family in rivals.items()
        }
    )


def _beyond_variances(found: Sequence[Record]) -> Finding:
    ahead = {
        f"{tested_on} (rate {rate:g})": mnist_depth.contest(
            table, "Hessian", "variance", split
        ).ahead
        for rate, table in _tables(found).items()
        for split, tested_on in mnist_depth.SPLITS.items()
    }
    texts = [f"{name}: {_signed(estimate)}" for name, estimate in ahead.items()]
    return Finding(verdict([e.low > 0 for e in ahead.values()]), "; ".join(texts))


def _on_convolutions(found: Sequence[Record]) -> Finding:
    return _useful({"gradient norms": cifar_networks.contest(cifar_networks.networks(found))})


def _chain_rule(found: Sequence[Record]) -> Finding:
    deviations = found[0].parameters["deviations"]
    at = deviations.index(1.0)
    medians = {}
    for activation in found[0].parameters["activations"]:
        key = f"values.deviation.{activation}.first.frobenius.{at}"
        medians[activation] = float(np.median(look_up(found, key)))
    texts = [f"{activation} {value:.2g}" for activation, value in medians.items()]
    return Finding(
        verdict([value <= 0.1 for value in medians.values()]),
        "residual over Hessian, first layer, median over seeds: " + ", ".join(texts),
    )


def _authors_linearization(found: Sequence[Record]) -> Finding:
    ratios = {
        "ReLU": look_up(found, "values.deviation.relu.first.frobenius.0"),
        "tanh (smooth)": look_up(found, "values.authors_network.frobenius"),
    }
    texts = [f"{name}: {over_seeds(values)}" for name, values in ratios.items()]
    return Finding(
        verdict([float(np.median(values)) < 0.5 for values in ratios.values()]),
        "residual over Hessian, first layer; " + "; ".join(texts),
    )


def _ratio(found: Sequence[Record], start: str, key: str) -> list[float]:
    """Divide a start's figure by that of the deviation 0.01, seed by seed."""
    above = look_up(found, f"values.{start}.{key}")
    below = look_up(found, f"values.std_1e-2.{key}")
    return [a / b for a, b in zip(above, below, strict=True)]


_LAYER = "tracked.layers.layer_{}.{}.0"


def _explodes(found: Sequence[Record]) -> Finding:
    start = "std_1e+0"
    first = _ratio(found, start, _LAYER.format(1, "frobenius"))
    last = _ratio(found, start, _LAYER.format(3, "frobenius"))
    spread = _ratio(found, start, "final_loss_spread")
    return Finding(
        verdict(
            [
                float(np.median(ratios)) > bound
                for ratios, bound in zip((first, last, spread), (10, 10, 2), strict=True)
            ]
        ),
        f"over the deviation 0.01: Hessian of layer 1 {over_seeds(first)}, of layer 3 "
        f"{over_seeds(last)}; scatter of the final loss {over_seeds(spread)}",
    )


def _vanishes(found: Sequence[Record]) -> Finding:
    start = "std_1e-5"
    first = _ratio(found, start, _LAYER.format(1, "frobenius"))
    last = _ratio(found, start, _LAYER.format(3, "frobenius"))
    gradient = _ratio(found, start, _LAYER.format(3, "gradient"))
    loss = _ratio(found, start, "final_loss")
    small = [float(np.median(ratios)) < 0.1 for ratios in (first, last, gradient)]
    return Finding(
        verdict([*small, float(np.median(loss)) > 2]),
        f"over the deviation 0.01: Hessian of layer 1 {over_seeds(first)}, of layer 3 "
        f"{over_seeds(last)}; gradient of layer 3 {over_seeds(gradient)}; final loss "
        f"{over_seeds(loss)}",
    )


def _controls_help(found: Sequence[Record]) -> Finding:
    """Compare He's weights with the same weights scaled to control Hessian norms."""
    ahead, texts = [], []
    for network in found[0].values:
        he = at_best_rate(found, network, "he", "final")
        gains = {}
        for start in _CONTROLLED:
            losses = at_best_rate(found, network, start, "final")
            if np.isfinite(losses).all():  # else a seed was lost
                gains[start] = Interval.of((he - losses).tolist())
        best = max(gains, key=lambda start: gains[start].mean)
        gain = gains[best]
        ahead.append(gain.low > 0)
        texts.append(f"{network}: {best}, {gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]")
    return Finding(
        verdict(ahead), "final loss of He less that of the best of these [nat]; " + "; ".join(texts)
    )


def _controls_help_words(found: Sequence[Record]) -> Finding:
    differences = {name: final_difference(found, "matched", name) for name in MEASURES}
    texts = [
        f"{MEASURES[name]} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        for name, d in differences.items()
    ]
    # A loss is better if lower, a correlation or a share if higher.
    better = [d.high < 0 if name == "held_out" else d.low > 0 for name, d in differences.items()]
    return Finding(verdict(better), "matched blocks less gensim's start: " + "; ".join(texts))


# The starts of `init_targets` that differ from He's in the scale of layers alone, chosen by norms.
_CONTROLLED = ("equal_frobenius", "equal_spectral", "equal_rows", "all_one", "he_level")

_USEFUL = (
    "Learnt on all {others} but one, an interval of the norm says which networks of that one "
    "train. Not reproduced if its balanced accuracy may be that of guessing (95 % interval); "
    "reproduced if it is ahead of {rivals} (interval of the difference above 0); else partly."
)

CLAIMS = (
    Claim(
        "preprint",
        "Controlling the Hessian norm recovers the known rules for smooth activations, dropout "
        "and ReLU.",
        "norm_propagation",
        "Every check of statement 7 is within what it allows: reproduced; some: partly.",
        _recovered,
    ),
    Claim(
        "preprint",
        "Balancing variances is blind to dependencies across layers; the Hessian norm sees them.",
        "mnist_depth",
        "Hessian norms foretell better than variances of weights and activations who trains "
        "(interval of the difference of balanced accuracies above 0): at both learning rates on "
        "other seeds, another depth and another activation: reproduced; in some of these: partly.",
        _beyond_variances,
    ),
    Claim(
        "preprint",
        "The Hessian norm is a useful diagnostic: MNIST.",
        "mnist_depth",
        _USEFUL.format(
            others="depths", rivals="both gradient norms and variances at both learning rates"
        ),
        _diagnostic,
    ),
    Claim(
        "preprint",
        "The Hessian norm is a useful diagnostic: CIFAR-10, with simplified GoogleNet and ResNet.",
        "cifar_networks",
        _USEFUL.format(others="networks", rivals="gradient norms"),
        _on_convolutions,
    ),
    Claim(
        "preprint",
        "Controlling the Hessian norm helps to initialize weights rigorously: image networks.",
        "init_targets",
        "He's weights, layers scaled so that Hessian norms are equal, one, or set by a level: "
        "the best of these starts ends with a lower loss than He's (95 % interval of the "
        "difference over seeds above 0; each at its best rate): on all networks: reproduced; on "
        "some: partly. Starts that change directions as well do not count.",
        _controls_help,
    ),
    Claim(
        "preprint",
        "Controlling the Hessian norm helps to initialize weights rigorously: Word2Vec.",
        "word2vec",
        "The start whose input and output blocks have matched norms ends better than gensim's "
        "own (95 % interval of the difference): in all measures: reproduced; in some: partly.",
        _controls_help_words,
    ),
    Claim(
        "conference",
        "The approximated chain rule for Hessians is accurate.",
        "linearization_error",
        "Of the first layer's Hessian at the critical deviation, the rule leaves out at most a "
        "tenth (Frobenius norm of the residual, median over seeds): for all activations: "
        "reproduced; for some: partly.",
        _chain_rule,
    ),
    Claim(
        "conference",
        "The findings hold on FashionMNIST, SVHN and Flowers.",
        "fashion_depth",
        "No experiment yet.",
    ),
    Claim(
        "notebook",
        "At initialization, the linearization dominates the Hessian.",
        "linearization_error",
        "The residual is less than half of the first layer's Hessian (median over seeds): for "
        "ReLU and in the authors' network with tanh: reproduced; for one: partly.",
        _authors_linearization,
    ),
    Claim(
        "notebook",
        "A large first-layer deviation makes the Hessian explode and the loss oscillate.",
        "mnist_tracking",
        "Deviation 1 against 0.01, medians over seeds: the Hessians of layers 1 and 3 are more "
        "than ten times as large, the final loss scatters more than twice as much: all: "
        "reproduced; some: partly.",
        _explodes,
    ),
    Claim(
        "notebook",
        "A tiny first-layer deviation makes Hessian and gradient vanish, so that little is gained.",
        "mnist_tracking",
        "Deviation 0.00001 against 0.01, medians over seeds: the Hessians of layers 1 and 3 and "
        "the gradient of layer 3 are less than a tenth, the final loss is more than twice as "
        "high: all: reproduced; some: partly.",
        _vanishes,
    ),
)
"""All of them, in the order of the page."""
