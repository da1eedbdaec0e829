"""The claims of the paper's abstracts and of the authors' notebook, judged by stated rules.

A verdict is computed from the full-scale records, never typed. A claim whose records are not
there is "not tested".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hessinit_book.claims import images, initialization, theory
from hessinit_book.claims.findings import NOT_TESTED, Finding
from hessinit_book.records import records


@dataclass(frozen=True)
class Claim:
    """A claim, and how it is judged.

    Attributes:
        source: where it is made: "preprint" or "conference" (their abstracts), or "notebook".
        text: what is claimed, in our words.
        experiment: whose records judge it, and whose notebook shows more; empty: there is none.
        rule: the rule of the verdict, in words; `judge` is the same in code.
        judge: computes the finding; None while there is no experiment.
        beside: other experiments whose records the judge takes as well, in this order.
    """

    source: str
    text: str
    experiment: str
    rule: str
    judge: Callable[..., Finding] | None = None
    beside: tuple[str, ...] = ()

    def finding(self, results: Path | str) -> Finding:
        """Judge the claim by the full-scale records in a folder of results.

        Raises:
            RecordError: a record is not valid.
        """
        needed = (self.experiment, *self.beside)
        folders = [records.record_path(results, "paper", name, 0).parent for name in needed]
        there = all(any(folder.glob("seed-*.json")) for folder in folders)
        if self.judge is None or not there:
            return Finding(NOT_TESTED)
        return self.judge(*(records.read_all(results, "paper", name) for name in needed))


_USEFUL = (
    "Learnt on all {others} but one, an interval of a norm says which networks of that one "
    "train; which norm is chosen there, too. Not reproduced if its balanced accuracy may be that "
    "of guessing; reproduced if it is ahead of gradient norms, variances, the loss at the start, "
    "the correlation of samples and the loss after ten steps{rates} (difference above 0); else "
    "partly. By 95 % intervals over {units}, with all learned anew in each sample; as all have to "
    "hold, they are not widened for their number. {left_out} are left out."
)

CLAIMS = (
    Claim(
        "preprint",
        "Controlling the Hessian norm recovers the known rules for smooth activations, dropout "
        "and ReLU.",
        "norm_propagation",
        "Every check of statement 7 is within what it allows: reproduced; some: partly.",
        theory.recovered,
    ),
    Claim(
        "preprint",
        "Balancing variances is blind to dependencies across layers; the Hessian norm sees them.",
        "mnist_depth",
        "Hessian norms predict better than variances of weights and activations who trains "
        "(interval of the difference of balanced accuracies above 0; over shapes, and all hold "
        "together with 95 %): at both learning rates on another depth and another activation: "
        "reproduced; in some of these: partly.",
        images.beyond_variances,
    ),
    Claim(
        "preprint",
        "The Hessian norm is a useful diagnostic: MNIST.",
        "mnist_depth",
        _USEFUL.format(
            others="depths",
            rates=", at both learning rates",
            units="shapes",
            left_out="Depths at which nearly all networks end alike",
        ),
        images.diagnostic,
    ),
    Claim(
        "preprint",
        "The Hessian norm is a useful diagnostic: CIFAR-10, with simplified GoogleNet and ResNet.",
        "cifar_networks",
        _USEFUL.format(
            others="networks",
            rates="",
            units="networks",
            left_out="Networks that end alike from nearly all starts",
        ),
        images.on_convolutions,
    ),
    Claim(
        "preprint",
        "Controlling the Hessian norm helps to initialize weights rigorously: image networks.",
        "init_targets",
        "He's weights, layers scaled so that Hessian norms are equal, one, or set by a level: "
        "of these, the one that is best on the other networks ends with a lower loss than "
        "He's (95 % interval of the difference over seeds above 0; each at its best rate): on all "
        "networks: reproduced; on some: partly. Starts that change directions as well do not "
        "count.",
        initialization.control_helps,
    ),
    Claim(
        "preprint",
        "Controlling the Hessian norm helps to initialize weights rigorously: Word2Vec.",
        "word2vec",
        "The start whose input and output blocks have matched norms ends better than gensim's "
        "own (95 % interval of the difference): in all measures: reproduced; in some: partly.",
        initialization.control_helps_words,
    ),
    Claim(
        "conference",
        "The approximated chain rule for Hessians is accurate.",
        "linearization_error",
        "Of the first layer's Hessian at the critical deviation, the rule leaves out at most a "
        "tenth (Frobenius norm of the residual, median over seeds): for all activations: "
        "reproduced; for some: partly.",
        theory.chain_rule,
    ),
    Claim(
        "conference",
        "The Hessian norm is a useful diagnostic: FashionMNIST.",
        "fashion_depth",
        "By the rule of MNIST; one verdict lower if an interval learned on all MNIST networks of "
        "the same shapes may do no better here than guessing (95 % interval), at some rate.",
        images.on_clothes,
        beside=("mnist_depth",),
    ),
    Claim(
        "conference",
        "The Hessian norm is a useful diagnostic: SVHN and Flowers.",
        "",
        "There is no experiment on these data here.",
    ),
    Claim(
        "conference",
        "The Hessian norm is a useful diagnostic: simplified EfficientNet.",
        "",
        "EfficientNet-B0 is trained here, from two schemes, with norms of three "
        "layers: too little to learn from.",
    ),
    Claim(
        "notebook",
        "At initialization, the linearization dominates the Hessian.",
        "linearization_error",
        "The residual is less than half of the first layer's Hessian (median over seeds): for "
        "ReLU and in the authors' network with tanh: reproduced; for one: partly.",
        theory.authors_linearization,
    ),
    Claim(
        "notebook",
        "A large first-layer deviation makes the Hessian explode and the loss oscillate.",
        "mnist_tracking",
        "Deviation 1 against 0.01, medians over seeds: the Hessians of layers 1 and 3 are more "
        "than ten times as large, the final loss scatters more than twice as much: all: "
        "reproduced; some: partly.",
        theory.explodes,
    ),
    Claim(
        "notebook",
        "A tiny first-layer deviation makes Hessian and gradient vanish, so that little is gained.",
        "mnist_tracking",
        "Deviation 0.00001 against 0.01, medians over seeds: the Hessians of layers 1 and 3 and "
        "the gradient of layer 3 are less than a tenth, the final loss is more than twice as "
        "high: all: reproduced; some: partly.",
        theory.vanishes,
    ),
)
"""All of them, in the order of the page."""
