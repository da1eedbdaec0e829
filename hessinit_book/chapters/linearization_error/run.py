r"""How much the approximated chain rule leaves out: statement 5, measured.

The residual $R_k = H_k - \hat H_k$ of fully connected networks on MNIST images, relative to
$H_k$, in Frobenius and spectral norm: against the activation, the deviation of the weights,
width, depth and batch size; and after training. The norms are exact, from
`hessinit_lib.layer_hessians`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, product
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.linearization_error.checks import checks
from hessinit_book.chapters.linearization_error.residual import layer_residuals
from hessinit_book.chapters.linearization_error.trained import MOMENTS, summary, train
from hessinit_book.networks.dense import critical_network, draw_network
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Deviations, Layers, Rate, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.image_data import load_images
from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.report import HessianReport, LayerHessian

Activation = Literal[
    "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "gelu", "silu", "elu", "selu"
]
PIECEWISE_LINEAR = ("relu", "leaky_relu")
PLACES = ("first", "middle", "upper")  # layers 1, n / 2 (rounded up) and n - 1 of n
PIXELS, CLASSES = 784, 10
CHECK_BATCH = 8  # samples in their batch
BOUND_BATCH = 32  # samples where Jacobians of each sample are formed
CLOSE = 0.1  # norms that differ by no more are called close


class LinearizationErrorParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    One of deviation, width, depth and batch size is varied at a time.

    Attributes:
        activations: names of the activations.
        deviations: of the weights, relative to the critical one.
        widths: units of each hidden layer.
        depths: layers of weights.
        batch_sizes: samples.
        width: where it is not varied.
        depth: where it is not varied.
        batch_size: where it is not varied.
        draws: how often labels are drawn from the network's own predictions.
        steps: of training, where networks are measured after it, too.
        rate: of training.
    """

    EXPERIMENT: ClassVar[str] = "linearization_error"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "activations": ("relu", "tanh", "gelu"),
            "widths": (16, 64),
            "depths": (2, 4),
            "batch_sizes": (1, 16, 64),
            "steps": 20,
        },
        "quick": {
            "seeds": (0, 1),
            "widths": (16, 64, 128),
            "depths": (2, 4, 8),
            "batch_sizes": (1, 16, 64, 256),
            "steps": 200,
        },
        "paper": {
            "seeds": tuple(range(5)),
            "widths": (16, 32, 64, 128, 256),
            "depths": (2, 3, 4, 8, 16),
            "batch_sizes": (1, 4, 16, 64, 256, 1024),
            "steps": 1000,
        },
    }

    activations: Annotated[tuple[Activation, ...], Field(min_length=1)] = get_args(Activation)
    deviations: Deviations = (0.25, 0.5, 1.0, 2.0, 4.0)
    widths: Annotated[tuple[Units, ...], Field(min_length=1)]
    depths: Annotated[tuple[Layers, ...], Field(min_length=1)]
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=1)]
    width: Units = 64
    depth: Layers = 4
    batch_size: Count = 128
    draws: Count = 4
    steps: Count
    rate: Rate = 0.1


@dataclass(frozen=True)
class Setting:
    """One network and batch.

    Attributes:
        activation: its name.
        deviation: of all weights, relative to the critical one.
        width: units of each hidden layer.
        depth: layers of weights.
        batch: samples.
        draws: how often labels are drawn from the network's own predictions; 0 for the
            labels of the data.
    """

    activation: str
    deviation: float
    width: int
    depth: int
    batch: int
    draws: int = 0


def sweeps(parameters: LinearizationErrorParameters) -> dict[str, list[dict[str, Any]]]:
    """Say what each sweep sets.

    Example:
        >>> sweeps(LinearizationErrorParameters.check(profile="smoke"))["width"]
        [{'width': 16}, {'width': 64}]
    """
    return {
        "deviation": [{"deviation": value} for value in parameters.deviations],
        "width": [{"width": value} for value in parameters.widths],
        "depth": [{"depth": value} for value in parameters.depths],
        "batch": [{"batch": value} for value in parameters.batch_sizes],
        "batch_drawn": [
            {"batch": value, "draws": parameters.draws} for value in parameters.batch_sizes
        ],
    }


def compared(parameters: LinearizationErrorParameters) -> dict[str, dict[str, Any]]:
    """Say where the rule is looked at both at the start and after training.

    Example:
        >>> compared(LinearizationErrorParameters.check(profile="smoke"))
        {'base': {}, 'large_batch': {'batch': 64}, 'wide': {'width': 64}}
    """
    return {
        "base": {},
        "large_batch": {"batch": max(parameters.batch_sizes)},
        "wide": {"width": max(parameters.widths)},
    }


def run(parameters: LinearizationErrorParameters) -> list[Record]:
    """Measure every setting for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist", "batch_size", "batch_sizes")
    varied = sweeps(parameters)

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        order = torch.randperm(len(images), generator=generator(seed, "batch")).to(device)

        def batch(size: int) -> tuple[Tensor, Tensor]:
            return images[order[:size]], labels[order[:size]]

        @cache  # the sweeps meet where nothing is varied
        def measured(setting: Setting) -> dict[str, dict[str, float]]:
            return measure(setting, seed, *batch(setting.batch))

        @cache
        def after_training(start: Setting) -> tuple[nn.Sequential, float]:
            model = make_network(start, seed).to(device)
            shuffle = generator(seed, "training")
            x = images.flatten(1)
            return model, train(model, x, labels, parameters.steps, parameters.rate, shuffle)

        def measured_after_training(setting: Setting) -> dict[str, dict[str, float]]:
            model, _ = after_training(replace(setting, batch=0))
            pixels, targets = batch(setting.batch)
            report = hessians(copy.deepcopy(model), pixels.flatten(1), targets)
            return {place: quantities(layer) for place, layer in _places(report).items()}

        values: dict[str, Any] = {name: {} for name in (*varied, "bound", *MOMENTS, "losses")}
        for activation in parameters.activations:
            base = Setting(
                activation, 1.0, parameters.width, parameters.depth, parameters.batch_size
            )
            for name, changes in varied.items():
                found = [measured(replace(base, **change)) for change in changes]
                values[name][activation] = _by_place(found)
                bar.update()
            if activation not in PIECEWISE_LINEAR:
                values["bound"][activation] = bound_over_residual(base, seed, *batch(BOUND_BATCH))
            for moment, look in zip(MOMENTS, (measured, measured_after_training), strict=True):
                values[moment][activation] = _by_place(
                    [look(replace(base, **change)) for change in compared(parameters).values()]
                )
            values["losses"][activation] = after_training(replace(base, batch=0))[1]
            bar.update()
        return {
            "checks": checks(parameters.activations, seed, *batch(CHECK_BATCH)),
            "slope": slopes(parameters.batch_sizes, values),
            "overview": overview(parameters.deviations, values["deviation"]),
            "accuracy": {moment: summary(smooth(values[moment])) for moment in MOMENTS},
            "authors_network": authors_network(seed, *batch(parameters.batch_size)),
            **values,
        }

    ticks = len(parameters.activations) * (len(varied) + 1)
    return run_seeds(parameters, data.info, run_one, ticks=ticks)


def make_network(setting: Setting, seed: int) -> nn.Sequential:
    """Draw the network of a setting."""
    widths = (PIXELS, *[setting.width] * (setting.depth - 1), CLASSES)
    return critical_network(
        setting.activation, widths, generator(seed, "weights"), setting.deviation
    )


def measure(
    setting: Setting, seed: int, images: Float[Tensor, "b c h w"], labels: Int64[Tensor, " b"]
) -> dict[str, dict[str, float]]:
    """Measure the residuals of one network's layers.

    Returns:
        By place, see `PLACES`, what `quantities` gives; for drawn labels its root mean
        square over the draws, without the spectral norm.
    """
    model, x = make_network(setting, seed).to(images.device), images.flatten(1)
    if not setting.draws:
        report = hessians(model, x, labels)
        return {place: quantities(layer) for place, layer in _places(report).items()}
    with torch.no_grad():
        p = model(x).softmax(1).cpu()
    stream = generator(seed, "labels")
    squares = {place: {"frobenius": 0.0, "residual": 0.0} for place in PLACES}
    for _ in range(setting.draws):
        drawn = torch.multinomial(p, 1, generator=stream)[:, 0].to(labels.device)
        report = hessians(model, x, drawn, norms=("frobenius",))
        for place, layer in _places(report).items():
            squares[place]["frobenius"] += layer.residual_ratio**2 / setting.draws
            squares[place]["residual"] += layer.residual.frobenius**2 / setting.draws
    return {
        place: {name: math.sqrt(value) for name, value in found.items()}
        for place, found in squares.items()
    }


def hessians(
    model: nn.Sequential, x: Float[Tensor, "b m"], y: Int64[Tensor, " b"], **options: Any
) -> HessianReport:
    """Compute the norms of all blocks and their parts in float32; in float64 if that fails."""
    try:
        return layer_hessians(model, F.cross_entropy, x, y, tolerance=1e-4, **options)
    except ArithmeticError:  # the curvature of a saturated softmax underflows in float32
        return layer_hessians(model.double(), F.cross_entropy, x.double(), y, **options)


def quantities(layer: LayerHessian) -> dict[str, float]:
    r"""Sum up one layer.

    Returns:
        frobenius: $\|R_k\|_F / \|H_k\|_F$.
        spectral: $\|R_k\|_2 / \|H_k\|_2$.
        norm_ratio: $\|\hat H_k\|_F / \|H_k\|_F$.
        residual: $\|R_k\|_F$.
    """
    return {
        "frobenius": layer.residual_ratio,
        "spectral": _over(layer.residual.spectral, layer.spectral),
        "norm_ratio": _over(layer.linearization.frobenius, layer.frobenius),
        "residual": layer.residual.frobenius,
    }


def authors_network(seed: int, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure the first layer of the authors' architecture, with tanh and Glorot's deviations."""
    widths = (PIXELS, 30, 30, CLASSES)
    stds = [math.sqrt(2 / (m + n)) for m, n in pairwise(widths)]
    model = draw_network(widths, stds, "tanh", generator(seed, "weights")).to(images.device)
    report = hessians(model, images.flatten(1), labels)
    return _rounded(quantities(report["0.weight"]))


def bound_over_residual(
    setting: Setting, seed: int, images: Tensor, labels: Tensor
) -> dict[str, dict[str, float]]:
    """Divide statement 5's bounds on the batch's residual by its norms."""
    model, x = make_network(setting, seed).to(images.device), images.flatten(1)
    report = hessians(model, x, labels)
    bounds = {layer.name: layer for layer in layer_residuals(model, F.cross_entropy, x, labels)}
    found = {}
    for place, layer in _places(report).items():
        frobenius, spectral = bounds[layer.name].bounds()
        found[place] = _rounded(
            {
                "frobenius": _over(frobenius, layer.residual.frobenius),
                "spectral": _over(spectral, layer.residual.spectral),
            }
        )
    return found


def slopes(sizes: tuple[int, ...], values: dict[str, Any]) -> dict[str, dict[str, float]]:
    r"""Fit the slope of $\log \|R_1\|_F$ against $\log B$, for the data's labels and drawn ones.

    From B = 16 on: below, it matters which samples they are.
    """
    large = [i for i, size in enumerate(sizes) if size >= 16]
    if len(large) < 2:
        return {}
    found: dict[str, dict[str, float]] = {}
    for sweep, name in product(("batch", "batch_drawn"), values["batch"]):
        if name not in PIECEWISE_LINEAR:
            norms = np.array(values[sweep][name]["first"]["residual"])
            (slope, _) = np.polyfit(np.log(np.array(sizes)[large]), np.log(norms[large]), 1)
            found.setdefault(sweep, {})[name] = rounded(float(slope))
    return found


def smooth(found: dict[str, Any]) -> dict[str, Any]:
    """Pick the activations for which the rule is an approximation."""
    return {name: one for name, one in found.items() if name not in PIECEWISE_LINEAR}


def overview(deviations: tuple[float, ...], swept: dict[str, Any]) -> dict[str, Any]:
    """Sum up the sweep over deviations, smooth activations only.

    Returns:
        By place and norm: smallest and largest ratio at the critical deviation (over
        activations), and the share of all cells below 1/2 and below 0.1. Among the cells
        whose two norms are `CLOSE`: how many there are, and the largest ratio.
    """
    curved = [*smooth(swept)]
    if not curved:
        return {}
    found: dict[str, Any] = {}
    for place, norm in product(PLACES, ("frobenius", "spectral")):
        cells = np.array([swept[name][place][norm] for name in curved])
        found.setdefault(place, {})[norm] = {
            "below_half": float((cells < 0.5).mean()),
            "below_tenth": float((cells < 0.1).mean()),
        }
        if 1.0 in deviations:
            critical = cells[:, deviations.index(1.0)]
            found[place][norm] |= {"min": critical.min().item(), "max": critical.max().item()}
    cells = np.array([[swept[n][p]["norm_ratio"] for p in PLACES] for n in curved])
    ratios = np.array([[swept[n][p]["frobenius"] for p in PLACES] for n in curved])
    close = np.abs(cells - 1) <= CLOSE
    found["close_norms"] = {
        "count": int(close.sum()),
        "cells": close.size,
        "largest": float(ratios[close].max()) if close.any() else 0.0,
        "above_quarter": int((ratios[close] > 0.25).sum()),
    }
    return found


def _places(report: HessianReport) -> dict[str, LayerHessian]:
    """Pick the layers of the places in `PLACES`."""
    layers = list(report.values())
    n = len(layers)
    return dict(zip(PLACES, (layers[0], layers[(n - 1) // 2], layers[n - 2]), strict=True))


def _by_place(found: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Turn a list of measurements into lists by place and quantity."""
    return {
        place: {name: [_rounded(one[place])[name] for one in found] for name in found[0][place]}
        for place in PLACES
    }


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.nan  # nan: a network all of whose units give 0


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: rounded(value) for name, value in values.items()}
