"""Layer Hessians and learning rates against the width; layers given chosen Hessian norms.

Two parametrizations of 784-N-N-10 with ReLU: the usual one, and one whose last layer has
variances of 1 / N^2. Their layer Hessians at initialization, and the best learning rate of a
short training, with one rate for all layers and with rates by layer. Then deep networks whose
layers are scaled until their Hessians have the norms that were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.errors import ParameterError
from hessinit_book.networks.dense import dense_network, linear_layers
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Layers, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.training.batches import batch_indices
from hessinit_book.training.image_data import load_images
from hessinit_book.training.losses import half_square
from hessinit_lib.hessians import layer_hessians
from hessinit_lib.theory import balancing_scales

INPUTS, CLASSES = 784, 10
LAYERS = ("input", "hidden", "output")
LEVELS = (1.0, 0.1, 10.0)  # targets of the norms, over their geometric mean at the start
ITERATIONS = 4

Batch = tuple[Float[Tensor, "n i"], Int64[Tensor, " n"]]
Widths = Annotated[tuple[Units, ...], Field(min_length=2)]


class Variant(NamedTuple):
    """A parametrization and its learning rates.

    Attributes:
        power: the last layer's variances are 1 / N^power, times a constant.
        by_layer: whether the rates are N / N_0, 1 and N_0 / N times the common one, for the
            input layer, the hidden and the output layer, N_0 the smallest width.
    """

    power: int
    by_layer: bool


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "half_square": half_square,
}

VARIANTS = {
    "standard": Variant(power=1, by_layer=False),
    "mu_one_rate": Variant(power=2, by_layer=False),
    "mu": Variant(power=2, by_layer=True),
}


class WidthScalingParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        widths: N of the networks whose Hessians are measured.
        batch_size: images in the mean loss that is differentiated, and in a training step.
        fit_from: slopes are fitted to the widths from here on.
        train_widths: N of the networks that are trained.
        steps: of training.
        rates: the common learning rates to choose from: 2 to the power of these.
        depths: layers of weights of the networks that are balanced.
        balanced_width: units of their hidden layers.
    """

    EXPERIMENT: ClassVar[str] = "width_scaling"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "widths": (64, 128),
            "fit_from": 64,
            "train_widths": (32, 64),
            "steps": 5,
            "rates": (-4, -2, 0),
            "depths": (5,),
        },
        "quick": {
            "seeds": (0, 1),
            "widths": (64, 128, 256, 512),
            "fit_from": 64,
            "train_widths": (32, 64, 128),
            "steps": 40,
            "rates": tuple(range(-7, 1)),
            "depths": (10, 30),
        },
        "paper": {
            "seeds": (0, 1, 2, 3, 4),
            "widths": (64, 128, 256, 512, 1024, 2048),
            "fit_from": 256,
            "train_widths": (32, 64, 128, 256, 512, 1024),
            "steps": 60,
            "rates": tuple(range(-9, 4)),
            "depths": (10, 30),
        },
    }

    widths: Widths
    batch_size: Count = 32
    fit_from: Count
    train_widths: Widths
    steps: Count
    rates: Annotated[tuple[Annotated[int, Field(ge=-30, le=19)], ...], Field(min_length=3)]
    depths: Annotated[tuple[Layers, ...], Field(min_length=1)]
    balanced_width: Annotated[Units, Field(ge=8)] = 100


def run(parameters: WidthScalingParameters) -> list[Record]:
    """Measure, train and balance for every seed, and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch larger than the training set, or too few widths to fit.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist", "batch_size")
    size = parameters.batch_size
    if sum(width >= parameters.fit_from for width in parameters.widths) < 2:
        raise ParameterError(
            f"fit_from: got {parameters.fit_from}, expected two or more of the widths from there on"
        )

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        train = images.flatten(1), labels
        chosen = torch.randperm(len(images), generator=generator(seed, "probe"))[:size].to(device)
        probe = train[0][chosen], labels[chosen]
        norms = {
            name: scaling(parameters, power, seed, probe)
            for name, power in (("standard", 1), ("mu", 2))
        }
        rates = {
            loss: {
                name: best_rates(parameters, variant, loss, seed, train, bar)
                for name, variant in VARIANTS.items()
            }
            for loss in LOSSES
        }
        balanced = {f"depth_{n}": balance(parameters, n, seed, probe) for n in parameters.depths}
        return {
            "checks": {
                "statement_09": {
                    "what": "fitted powers of the width of the layer Hessians' traces (last "
                    "layer's variances 1/N^2) against -1, 0 and 1, largest difference",
                    "value": max(
                        rounded(abs(slope - expected))
                        for slope, expected in zip(
                            norms["mu"]["slopes"]["trace"], (-1, 0, 1), strict=True
                        )
                    ),
                    "allowed": 0.2,
                },
                "statement_10": {
                    "what": "layer norms after one balancing step that keeps the outputs "
                    "(float64), largest relative difference from their geometric mean before",
                    "value": max(found["balance_defect"] for found in balanced.values()),
                    "allowed": 1e-9,
                },
            },
            "norms": norms,
            "rates": rates,
            "balanced": balanced,
        }

    ticks = len(LOSSES) * len(VARIANTS) * len(parameters.train_widths) * len(parameters.rates)
    return run_seeds(parameters, data.info, run_one, ticks=ticks)


def make_network(
    width: int, base: int, power: int, weights: torch.Generator, hidden: int = 1
) -> nn.Sequential:
    """Make 784-N-...-N-10 with ReLU, without biases.

    Variances: He's, and base^(power - 1) / N^power in the last layer, so that all
    parametrizations are the same at the base width.

    Args:
        width: N.
        base: the base width.
        power: see `Variant`.
        weights: for the draws.
        hidden: number of layers from N to N units.
    """
    widths = [INPUTS, *[width] * (hidden + 1), CLASSES]
    network = dense_network(widths, "relu", bias=False)
    for k, linear in enumerate(linear_layers(network)):
        fan_out, fan_in = linear.weight.shape
        variance = 2 / fan_in if k <= hidden else base ** (power - 1) / width**power
        with torch.no_grad():
            linear.weight.copy_(variance**0.5 * torch.randn(fan_out, fan_in, generator=weights))
    return network


def scaling(
    parameters: WidthScalingParameters, power: int, seed: int, probe: Batch
) -> dict[str, Any]:
    """Measure the layer Hessians at initialization against the width, and fit powers of it."""
    found: dict[str, list[list[float]]] = {"spectral": [], "trace": []}
    for width in parameters.widths:
        weights = generator(seed, f"scaling/{width}")
        model = make_network(width, parameters.widths[0], power, weights).to(probe[0].device)
        report = layer_hessians(model, nn.CrossEntropyLoss(), *probe, parts=False)
        for key, rows in found.items():
            rows.append(all_rounded((getattr(layer, key) for layer in report.values()), 5))
    fitted = np.array(parameters.widths) >= parameters.fit_from
    logs = np.log(np.array(parameters.widths)[fitted])
    slopes = {
        key: all_rounded(np.polyfit(logs, np.log(np.array(rows)[fitted]), 1)[0], 5)
        for key, rows in found.items()
    }
    return {**found, "slopes": slopes}


def best_rates(
    parameters: WidthScalingParameters,
    variant: Variant,
    loss: str,
    seed: int,
    train: Batch,
    bar: tqdm,
) -> dict[str, Any]:
    """Train at all rates and widths.

    Returns:
        The loss over the last quarter of the steps, a row for each width, a column for each
        rate; the rates with the smallest loss, between grid points by a parabola; the largest
        rates that did not diverge; and the power of the width that each of the two follow.
    """
    losses = []
    for width in parameters.train_widths:
        row = []
        for exponent in parameters.rates:
            row.append(trained_loss(parameters, variant, loss, width, 2.0**exponent, seed, train))
            bar.update()
        losses.append(all_rounded(row, 5))
    best = [lowest(parameters.rates, row) for row in losses]
    largest = [
        max(
            (float(x) for x, y in zip(parameters.rates, row, strict=True) if y < math.inf),
            default=math.nan,
        )
        for row in losses
    ]
    return {
        "loss": losses,
        "best": all_rounded((2.0**exponent for exponent in best), 5),
        "slope": fitted_power(parameters.train_widths, best),
        "largest": [2.0**exponent for exponent in largest],
        "largest_slope": fitted_power(parameters.train_widths, largest),
    }


def trained_loss(
    parameters: WidthScalingParameters,
    variant: Variant,
    loss: str,
    width: int,
    rate: float,
    seed: int,
    train: Batch,
) -> float:
    """Train one network by SGD; give its mean loss over the last quarter, inf if it diverged."""
    inputs, labels = train
    base = parameters.train_widths[0]
    weights = generator(seed, f"training/{width}")
    model = make_network(width, base, variant.power, weights).to(inputs.device)
    factors = (width / base, 1.0, base / width) if variant.by_layer else (1.0, 1.0, 1.0)
    groups = [
        {"params": [weight], "lr": rate * factor}
        for weight, factor in zip(model.parameters(), factors, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, lr=rate)
    losses = []
    for batch in batch_indices(
        len(inputs), parameters.batch_size, parameters.steps, generator(seed, "batches")
    ).to(inputs.device):
        value = LOSSES[loss](model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
        if not losses[-1] < 1e3:  # diverged: going on would only cost time
            return math.inf
    return float(np.mean(losses[-max(1, len(losses) // 4) :]))


def fitted_power(widths: Sequence[int], exponents: Sequence[float]) -> float:
    """Fit the power of the width that 2 to the power of the exponents follows.

    Returns:
        The power; NaN if an exponent is.

    Example:
        >>> fitted_power([64, 128, 256], [-1.0, -2.0, -3.0])
        -1.0
    """
    if not np.isfinite(exponents).all():
        return math.nan
    return rounded(float(np.polyfit(np.log2(widths), exponents, 1)[0]), 5)


def lowest(positions: tuple[int, ...], losses: list[float]) -> float:
    """Find where a row of losses is lowest, by a parabola through the lowest and its neighbors.

    Returns:
        The position; that of the lowest itself at an end or beside an infinite loss; NaN if
        all are infinite.

    Example:
        >>> lowest((-2, -1, 0), [4.0, 1.0, 2.0])
        -0.75
    """
    k = int(np.argmin(losses))
    if not losses[k] < math.inf:
        return math.nan
    if k in (0, len(losses) - 1) or not math.isfinite(losses[k - 1] + losses[k + 1]):
        return float(positions[k])
    left, middle, right = losses[k - 1 : k + 2]
    step = positions[k + 1] - positions[k]
    return positions[k] + step * (left - right) / (2 * (left - 2 * middle + right))


def balance(
    parameters: WidthScalingParameters, depth: int, seed: int, probe: Batch
) -> dict[str, Any]:
    """Scale the layers of a deep network until their Hessians have chosen norms, in float64.

    The start: He's deviations, each layer's times a random factor between 1/2 and 2.

    Returns:
        The Frobenius norms at the start; and for each of `LEVELS` the norms after each
        iteration and the largest relative deviation from the target, before and after each.
    """
    draws = generator(seed, f"balance/{depth}")
    inputs, labels = probe[0].double(), probe[1]
    width = parameters.balanced_width
    model = make_network(width, 2, 1, draws, hidden=depth - 2).double().to(inputs.device)
    factors = 2 ** (2 * torch.rand(depth, generator=draws, dtype=torch.float64) - 1)
    with torch.no_grad():
        for weight, factor in zip(model.parameters(), factors, strict=True):
            weight *= factor
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def norms() -> list[float]:
        report = layer_hessians(
            model, nn.CrossEntropyLoss(), inputs, labels, norms=("frobenius",), parts=False
        )
        return [layer.frobenius for layer in report.values()]

    before = norms()
    mean = math.exp(np.mean(np.log(before)))
    found: dict[str, Any] = {"start": all_rounded(before, 4), "mean": rounded(mean, 4)}
    for level in LEVELS:
        model.load_state_dict(start)
        target, history = level * mean, [before]
        for _ in range(ITERATIONS):
            scales = balancing_scales(history[-1], target)
            with torch.no_grad():
                for weight, t in zip(model.parameters(), scales, strict=True):
                    weight *= math.exp(t)
            history.append(norms())
            if not all(0 < norm < math.inf for norm in history[-1]):
                break  # the predictions are saturated: there is no curvature left
        deviations = [max(abs(norm / target - 1) for norm in row) for row in history]
        found[f"level_{level:g}".replace(".", "_")] = {
            "norms": [all_rounded(row, 4) for row in history],
            "deviation": all_rounded(deviations, 4),
        }
        if level == 1:
            found["balance_defect"] = rounded(deviations[1], 4)
    return found
