"""Which norms the known rules balance, measured: of a sample or of a batch, in which unit.

Fully connected networks of several shapes and depths read MNIST images. Their weights have the
variances of a known rule. Measured are the traces of the layers' Hessians, and their norms for
batches of several sizes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_book.chapters.norm_balance.batches import layer_pairs
from hessinit_book.errors import ParameterError
from hessinit_book.networks.random_networks import draw_weights, hessian_norms, make_model
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Deviation, Layers, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.theory import Masks, RandomNetwork
from hessinit_book.training.image_data import load_images
from hessinit_lib.theory import critical_variance

INPUTS, CLASSES = 784, 10
PIECEWISE_LINEAR = ("relu",)  # no residual: the linearization is the whole Hessian
GLOROT = ((784, 100), (100, 10), (784, 10))  # fans of the layers where it is compared


class Rule(NamedTuple):
    """A known rule for the variances, in a network where it is to hold.

    Attributes:
        title: for readers.
        activation: its name.
        unit: what the norms are divided by where the rule balances them: "input", "root" (the
            root of the number of weights) or "one".
        small: whether the images are scaled down, so that pre-activations are small.
        dropout: whether there is dropout that rescales what it keeps.
    """

    title: str
    activation: str
    unit: str
    small: bool = False
    dropout: bool = False


RULES = {
    "he": Rule("He, ReLU", "relu", "input"),
    "dropout": Rule("He with dropout, ReLU", "relu", "input", dropout=True),
    "lecun_small": Rule("LeCun, tanh, small inputs", "tanh", "input", small=True),
    "lecun": Rule("LeCun, tanh", "tanh", "input"),
    "glorot_small": Rule("Glorot, tanh, small inputs", "tanh", "root", small=True),
    "equal": Rule("equal deviations, ReLU", "relu", "one"),
}
"""The last one is what equal literal norms ask for, by proposition `prop-balance`."""


class NormBalanceParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        widths: units of each hidden layer, where all have the same number; a tapered network
            goes from the largest to the smallest.
        depths: layers of weights.
        batch_sizes: images in whose mean loss norms are measured; each divides the largest.
            Where there is a residual, the whole Hessian is measured for the second of them.
        keep: probability that dropout keeps a unit.
        small_scale: factor of the images where pre-activations are to be small.
        draws: networks of each kind.
    """

    EXPERIMENT: ClassVar[str] = "norm_balance"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "widths": (16, 32),
            "depths": (3,),
            "batch_sizes": (1, 4, 16),
            "draws": 1,
        },
        "quick": {
            "seeds": (0, 1, 2),
            "widths": (64, 128),
            "depths": (5, 10),
            "batch_sizes": (1, 16, 64),
            "draws": 2,
        },
        "paper": {
            "seeds": tuple(range(5)),
            "widths": (128, 512),
            "depths": (5, 20),
            "batch_sizes": (1, 16, 128),
            "draws": 4,
        },
    }

    widths: Annotated[tuple[Units, ...], Field(min_length=2)]
    depths: Annotated[tuple[Layers, ...], Field(min_length=1)]
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=2)]
    keep: Annotated[float, Field(ge=0.01, lt=1)] = 0.5
    small_scale: Deviation = 0.1
    draws: Count


def run(parameters: NormBalanceParameters) -> list[Record]:
    """Measure all networks for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: batch sizes that do not fit into one another or into the training set.
        RecordError: a record that is in the way is damaged.
    """
    largest = max(parameters.batch_sizes)
    for size in parameters.batch_sizes:
        if largest % size:
            raise ParameterError(f"batch_sizes: got {size}, expected a divisor of {largest}")
    data = load_images(parameters, "mnist", "batch_sizes")
    networks, some = shapes(parameters), sorted(parameters.batch_sizes)[1]

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        order = torch.randperm(len(images), generator=generator(seed, "images"))[:largest]
        images, labels = images[order.to(device)].flatten(1), labels[order.to(device)]
        norms: dict[str, dict[str, Any]] = {name: {} for name in RULES}
        for name, rule in RULES.items():
            inputs = images * (parameters.small_scale if rule.small else 1)
            for shape, widths in networks.items():
                network = make_network(name, widths, parameters.keep)
                stream = generator(seed, f"{name}/{shape}")
                drawn = [
                    [weight.to(device) for weight in draw_weights(network, stream)]
                    for _ in range(parameters.draws)
                ]
                found = [
                    measure(network, weights, inputs, parameters.batch_sizes, stream)
                    for weights in drawn
                ]
                means = {key: _mean([one[key] for one in found]) for key in found[0]}
                if rule.activation not in PIECEWISE_LINEAR:
                    model = make_model(network, drawn[0])
                    means["whole"] = hessian_norms(model, inputs[:some], labels[:some])
                norms[name][shape] = {
                    **{key: all_rounded(mean, 4) for key, mean in means.items()},
                    "last_over_first": last_over_first(means, units(rule.unit, widths)),
                }
                bar.update()
        return {
            "shapes": networks,
            "glorot": glorot_over_balanced(),
            **norms,
        }

    return run_seeds(parameters, data.info, run_one, ticks=len(RULES) * len(networks))


def shapes(parameters: NormBalanceParameters) -> dict[str, list[int]]:
    """Name the networks by their widths, 784 to 10.

    Example:
        >>> shapes(NormBalanceParameters.check(profile="smoke", widths=[8, 32], depths=[4]))[
        ...     "tapered_d4"
        ... ]
        [784, 32, 16, 8, 10]
    """
    found = {}
    for depth in parameters.depths:
        for width in parameters.widths:
            found[f"w{width}_d{depth}"] = [INPUTS, *[width] * (depth - 1), CLASSES]
        small, large = min(parameters.widths), max(parameters.widths)
        steps = max(depth - 2, 1)
        tapered = [round(large * (small / large) ** (k / steps)) for k in range(depth - 1)]
        found[f"tapered_d{depth}"] = [INPUTS, *tapered, CLASSES]
    return found


def make_network(name: str, widths: list[int], keep: float) -> RandomNetwork:
    """Describe a network with the variances of a rule, the first layer's too.

    Equal deviations are those of the geometric mean of He's variances.

    Example:
        >>> variances = make_network("dropout", [784, 100, 50, 10], keep=0.5).variances
        >>> [round(1 / variance) for variance in variances]
        [784, 100, 50]
    """
    rule = RULES[name]
    masks = Masks(keep) if rule.dropout else Masks()
    mode = "fan_avg" if rule.unit == "root" else "fan_in"
    variances = [
        critical_variance(rule.activation, fan_in, fan_out, mode, dropout=1 - masks.keep)
        for fan_in, fan_out in pairwise(widths)
    ]
    if rule.unit == "one":
        mean = math.exp(sum(map(math.log, variances)) / len(variances))
        variances = [mean] * len(variances)
    return RandomNetwork.make(widths, variances, rule.activation, masks)


def units(unit: str, widths: list[int]) -> list[float]:
    """Give what each layer's norm is divided by.

    Example:
        >>> units("input", [9, 4, 1]), units("root", [9, 4, 1]), units("one", [9, 4, 1])
        ([9.0, 4.0], [6.0, 2.0], [1.0, 1.0])
    """
    powers = {"input": (1, 0), "root": (0.5, 0.5), "one": (0, 0)}[unit]
    return [float(m ** powers[0] * n ** powers[1]) for m, n in pairwise(widths)]


def measure(
    network: RandomNetwork,
    weights: list[Tensor],
    inputs: Float[Tensor, "b i"],
    sizes: tuple[int, ...],
    masks: torch.Generator,
) -> dict[str, list[float]]:
    r"""Give norms of the layers' linearized Hessians, one a layer.

    Returns:
        trace: the mean over samples.
        b1, ...: $\|\hat H_k\|_F$ of a batch of so many, the mean over batches.
        large_batch: the same in the limit of large batches, estimated.
    """
    layers = layer_pairs(network, weights, inputs, masks)
    found = {"trace": [float(layer.traces.mean()) for layer in layers]}
    found |= {f"b{size}": [layer.frobenius(size) for layer in layers] for size in sizes}
    return found | {"large_batch": [layer.large_batch() for layer in layers]}


def last_over_first(norms: dict[str, list[float]], unit: list[float]) -> dict[str, float]:
    """Compare the last layer's norms with the first layer's, in the rule's own unit."""
    ratio = unit[0] / unit[-1]
    return {key: rounded(layers[-1] / layers[0] * ratio, 4) for key, layers in norms.items()}


def glorot_over_balanced() -> dict[str, float]:
    """Divide Glorot's variance by the one that balances norms per root of the weights."""
    return {
        f"{m}_{n}": rounded(critical_variance("tanh", m, n, "fan_avg") * math.sqrt(m * n))
        for m, n in GLOROT
    }


def _mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]
