"""The claims of the paper's abstracts and of the authors' notebook, judged by stated rules.

A verdict is computed from the full-scale records, never typed. A claim whose records are not
there is "not tested".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hessinit_book.claims import authors, chain_rule, images, initialization, rules
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
        form: what the claim is taken to mean, such as which norm; Markdown, as is the rule.
    """

    source: str
    text: str
    experiment: str
    rule: str
    judge: Callable[..., Finding] | None = None
    beside: tuple[str, ...] = ()
    form: str = ""

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

_RECOVERS = (
    "Controlling the Hessian norm recovers the known rules for smooth activations, dropout and "
    "ReLU: {}."
)

_CHAIN_RULE = "The approximated chain rule for Hessians is accurate: {}."

_BALANCED = (
    "Weights have the variances of {rules}. Balanced: the largest norm of a layer is at most twice "
    "the smallest (means over networks and seeds). In all {networks}: {all}; in some: partly."
)

_THREE = "LeCun's rule (tanh, small pre-activations), He's (ReLU), and He's for dropout"

_ACCURATE = (
    "{}, of layers below an activation, in several networks and on several batches, at the start "
    "and after training: at most a tenth (medians over seeds) in all: reproduced; in some: partly."
)

_ON_BATCHES = "Norms of all layers' Hessians on a batch, as they are."
_IN_NOTEBOOK = "Frobenius norms of layers' Hessians on a batch, as they are."

CLAIMS = (
    Claim(
        "preprint",
        _RECOVERS.format("traces"),
        "norm_balance",
        "The variances of the theory are those of the published rules, and measurements are not "
        "against it. " + _BALANCED.format(rules=_THREE, networks="networks", all="derived"),
        rules.traces,
        beside=("norm_propagation",),
        form="Trace of the Hessian, divided by the layer's number of inputs: by "
        "{prf:ref}`statement-07`, for ReLU at any width, for others in wide networks.",
    ),
    Claim(
        "preprint",
        _RECOVERS.format("single samples"),
        "norm_balance",
        "Measurements are not against it. "
        + _BALANCED.format(rules=_THREE, networks="networks of the largest width", all="derived"),
        rules.one_sample,
        form="Frobenius norm of one sample's Hessian, divided by the layer's number of inputs: by "
        "{prf:ref}`statement-07`, in the limit of wide networks.",
    ),
    Claim(
        "preprint",
        _RECOVERS.format("batches"),
        "norm_balance",
        _BALANCED.format(
            rules=f"{_THREE}, and LeCun's at larger pre-activations, too",
            networks="networks and batches of more than one",
            all="reproduced",
        ),
        rules.batches,
        form="Frobenius norm of the Hessian of a batch's mean loss, divided by the layer's number "
        "of inputs; with the residual and without it.",
    ),
    Claim(
        "preprint",
        _RECOVERS.format("norms as they are"),
        "norm_balance",
        _BALANCED.format(
            rules=_THREE,
            networks="networks in which numbers of inputs differ more than fourfold",
            all="reproduced",
        ),
        rules.literal,
        form="Frobenius norm of one sample's Hessian, not divided by anything: by "
        "{prf:ref}`prop-balance`, equal norms ask for equal deviations, whatever the widths.",
    ),
    Claim(
        "preprint",
        _RECOVERS.format("Glorot's rule"),
        "norm_balance",
        _BALANCED.format(
            rules="Glorot's rule (tanh, small pre-activations)",
            networks="networks, by both norms",
            all="reproduced",
        ),
        rules.glorot,
        form="Trace, and Frobenius norm of one sample's Hessian, each divided by the root of the "
        "layer's number of weights. By {prf:ref}`statement-07`, the geometric mean of both fans "
        "balances these; Glorot's rule has the arithmetic mean.",
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
        form=_ON_BATCHES,
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
        form=_ON_BATCHES,
    ),
    Claim(
        "conference",
        "The Hessian norm is a useful diagnostic: CIFAR-10, with simplified GoogleNet and ResNet.",
        "cifar_networks",
        _USEFUL.format(
            others="networks",
            rates="",
            units="networks",
            left_out="Networks that end alike from nearly all starts",
        ),
        images.on_convolutions,
        form=_ON_BATCHES,
    ),
    Claim(
        "preprint",
        "Controlling the Hessian norm helps to initialize weights rigorously: image networks.",
        "init_targets",
        "He's weights, layers scaled so that Hessian norms are equal or one: of these, the one "
        "that is best on the other networks ends with a lower loss than He's (95 % interval of "
        "the difference over seeds above 0; each at its best rate): on all networks: "
        "reproduced; on some: partly. Starts that change directions, or only the size of the "
        "outputs, do not count: no Hessian of a weight enters those.",
        initialization.control_helps,
        form=_ON_BATCHES,
    ),
    Claim(
        "preprint",
        "Controlling the Hessian norm helps to initialize weights rigorously: Word2Vec.",
        "word2vec",
        "The start whose input and output blocks have matched norms ends better than gensim's "
        "own (95 % interval of the difference): in all measures: reproduced; in some: partly.",
        initialization.control_helps_words,
        form="Norms of the Hessian blocks of the input and of the output vectors.",
    ),
    Claim(
        "conference",
        _CHAIN_RULE.format("ReLU"),
        "linearization_error",
        "Automatic differentiation finds a residual that is a rounding error; and in networks of "
        "several widths, on several batches, at the start and after training, it is at most a "
        "tenth of the Hessian: derived.",
        chain_rule.piecewise_linear,
        form="The matrix: by {prf:ref}`statement-05`, the rule is exact where activations are "
        "piecewise linear.",
    ),
    Claim(
        "conference",
        _CHAIN_RULE.format("smooth activations, the matrix"),
        "linearization_error",
        _ACCURATE.format("Frobenius norm of the residual over the Hessian's"),
        chain_rule.matrix,
        beside=("modern_linearization",),
        form="Frobenius norm of what the rule leaves out.",
    ),
    Claim(
        "conference",
        _CHAIN_RULE.format("smooth activations, the spectral norm"),
        "linearization_error",
        _ACCURATE.format("Spectral norm of the residual over the Hessian's"),
        chain_rule.spectral,
        form="Spectral norm of what the rule leaves out; it bounds the error of each eigenvalue.",
    ),
    Claim(
        "conference",
        _CHAIN_RULE.format("smooth activations, the norm"),
        "linearization_error",
        _ACCURATE.format(
            "Difference of the Frobenius norms by the rule and of the Hessian, over the latter"
        ),
        chain_rule.norm,
        beside=("modern_linearization",),
        form="Ratio of two Frobenius norms, whatever the matrices.",
    ),
    Claim(
        "conference",
        "The Hessian norm is a useful diagnostic: FashionMNIST.",
        "fashion_depth",
        "By the rule of MNIST; one verdict lower if an interval learned on all MNIST networks of "
        "the same shapes may do no better here than guessing (95 % interval), at some rate.",
        images.on_clothes,
        beside=("mnist_depth",),
        form=_ON_BATCHES,
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
        "ReLU, and in the authors' network with tanh, in Frobenius and in spectral norm: all: "
        "reproduced; some: partly.",
        authors.linearization_dominates,
        form="The matrix, not only its norm.",
    ),
    Claim(
        "notebook",
        "A large first-layer deviation makes the Hessian explode and the loss oscillate.",
        "mnist_tracking",
        "Deviation 1 against 0.01, medians over seeds: the Hessians of layers 1 and 3 are more "
        "than ten times as large, the final loss scatters more than twice as much: all: "
        "reproduced; some: partly.",
        authors.explodes,
        form=_IN_NOTEBOOK,
    ),
    Claim(
        "notebook",
        "A tiny first-layer deviation makes Hessian and gradient vanish, so that little is gained.",
        "mnist_tracking",
        "Deviation 0.00001 against 0.01, medians over seeds: the Hessians of layers 1 and 3 and "
        "the gradient of layer 3 are less than a tenth, the final loss is more than twice as "
        "high: all: reproduced; some: partly.",
        authors.vanishes,
        form=_IN_NOTEBOOK,
    ),
)
"""All of them, in the order of the page."""
