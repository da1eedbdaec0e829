"""Layers' largest eigenvalues against that of the whole: at the start, in training, as a rule.

Networks read MNIST images. At the start one property after another is changed: depth, width,
batch, activation, and how layers are joined. Then some are trained at full batch until the
curvature has risen to what the rate allows, and the largest stable rates of several networks
are set against what the layers' norms allow.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_book.chapters.safe_step.checks import checks
from hessinit_book.chapters.safe_step.edge import follow
from hessinit_book.chapters.safe_step.kernels import coherence
from hessinit_book.chapters.safe_step.networks import Shape, dense, judged
from hessinit_book.chapters.safe_step.rates import stable_rates
from hessinit_book.chapters.safe_step.spectra import Curvature
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Layers, Rate, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.training.image_data import load_images
from hessinit_lib.hessians import cross_layer, log_schedule

KINDS = ("plain", "residual", "scaled", "normalized")
ACTIVATIONS = ("relu", "tanh", "gelu")
TRAINED = ("relu_3", "tanh_10", "scaled_10")
LOOKS = 16

NetworkName = Literal[
    "relu_3", "relu_10", "relu_20", "tanh_10", "gelu_10", "residual_10", "scaled_10",
    "normalized_10", "cnn", "lstm", "transformer",
]  # fmt: skip


class SafeStepParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        depths: layers of weights; the second is that of networks in which all else is changed.
        widths: units of a hidden layer; the second is that of all other networks.
        batch_sizes: images in whose mean loss the start is measured; the second is the usual one.
        train_size: images that are trained on, at full batch.
        steps: of the trainings that are followed.
        trial_steps: of those that try a rate.
        warmup: the most of the training after which rates are tried once more.
        networks: whose stable rates are sought.
        rates: of gradient descent, of the trainings that are followed.
        adam_rates: of Adam.
    """

    EXPERIMENT: ClassVar[str] = "safe_step"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "depths": (2, 3),
            "widths": (6, 8),
            "batch_sizes": (2, 4),
            "train_size": 16,
            "steps": 4,
            "trial_steps": 2,
            "warmup": 2,
            "networks": ("relu_3", "cnn"),
            "rates": (0.1,),
            "adam_rates": (0.001,),
        },
        "quick": {
            "seeds": (0,),
            "depths": (3, 5, 10),
            "widths": (32, 64),
            "batch_sizes": (1, 16, 64),
            "train_size": 64,
            "steps": 40,
            "trial_steps": 5,
            "warmup": 40,
            "networks": ("relu_3", "relu_10", "tanh_10", "scaled_10", "cnn"),
            "rates": (0.1,),
            "adam_rates": (0.001,),
        },
        "paper": {
            "seeds": (0, 1, 2, 3, 4),
            "depths": (3, 10, 20, 40),
            "widths": (32, 64, 128, 512),
            "batch_sizes": (1, 32, 256),
            "train_size": 512,
            "steps": 500,
            "trial_steps": 30,
            "warmup": 500,
            "networks": get_args(NetworkName),
            "rates": (0.1, 0.2),
            "adam_rates": (0.002,),
        },
    }

    depths: Annotated[tuple[Layers, ...], Field(min_length=2)]
    widths: Annotated[tuple[Units, ...], Field(min_length=2)]
    batch_sizes: Annotated[tuple[Count, ...], Field(min_length=2)]
    train_size: Count
    steps: Count
    trial_steps: Count
    warmup: Count
    networks: Annotated[tuple[NetworkName, ...], Field(min_length=1)]
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)]
    adam_rates: Annotated[tuple[Rate, ...], Field(min_length=1)]


def run(parameters: SafeStepParameters) -> list[Record]:
    """Measure, train and try for every seed.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist", "batch_sizes", "train_size")
    width = parameters.widths[1]
    networks = judged(width)
    courses = _courses(parameters)

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        order = torch.randperm(len(images), generator=generator(seed, "images")).to(device)
        images, labels = images[order].flatten(1), labels[order]
        few = images[: parameters.train_size], labels[: parameters.train_size]
        start = {}
        for name, (shape, size) in _starts(parameters).items():
            stream = generator(seed, f"{shape}")
            start[name] = _at_start(shape, stream, images[:size], labels[:size], device)
            bar.update()
        trained = {}
        for name, (network, optimizer, rate) in courses.items():
            model = networks[network](generator(seed, network)).to(device)
            looks_at = log_schedule(parameters.steps, LOOKS)
            trained[name] = follow(model, *few, optimizer, rate, looks_at, bar)
        rates = {}
        for name in parameters.networks:
            model = networks[name](generator(seed, name)).to(device)
            rates[name] = stable_rates(model, *few, parameters.trial_steps, parameters.warmup)
            bar.update()
        blocks = _blocks(parameters, images, labels, generator(seed, "blocks"))
        bar.update()
        return {
            "checks": checks(seed),
            "start": start,
            "trained": trained,
            "rates": rates,
            "blocks": blocks,
        }

    ticks = len(_starts(parameters)) + len(parameters.networks) + 1
    return run_seeds(parameters, data.info, run_one, ticks + len(courses) * (parameters.steps + 1))


def _starts(parameters: SafeStepParameters) -> dict[str, tuple[Shape, int]]:
    """Name the networks that are measured at the start, with the batch sizes."""
    depth, width, size = parameters.depths[1], parameters.widths[1], parameters.batch_sizes[1]
    found = {}
    for activation in ACTIVATIONS[:2]:
        found |= {f"depth/{activation}/{d}": (Shape(d, width, activation), size)
                  for d in parameters.depths}  # fmt: skip
        found |= {f"width/{activation}/{w}": (Shape(depth, w, activation), size)
                  for w in parameters.widths}  # fmt: skip
        found |= {f"batch/{activation}/{b}": (Shape(depth, width, activation), b)
                  for b in parameters.batch_sizes}  # fmt: skip
    for d in parameters.depths:
        found |= {f"kind/{kind}/{d}": (Shape(d, width, kind=kind), size) for kind in KINDS}
    return found | {f"activation/{name}": (Shape(depth, width, name), size)
                    for name in ACTIVATIONS}  # fmt: skip


def _courses(parameters: SafeStepParameters) -> dict[str, tuple[str, str, float]]:
    """Name the trainings that are followed: network, optimizer and rate."""
    found = {f"{name}/sgd_{rate:.0e}": (name, "sgd", rate)
             for name in TRAINED for rate in parameters.rates}  # fmt: skip
    return found | {f"{name}/adam_{rate:.0e}": (name, "adam", rate)
                    for name in TRAINED[:2] for rate in parameters.adam_rates}  # fmt: skip


def _at_start(
    shape: Shape, stream: torch.Generator, inputs: Tensor, labels: Tensor, device: torch.device
) -> dict[str, Any]:
    model = dense(shape, stream).to(device)
    found = coherence(model, inputs)
    hessian, _ = Curvature(model, F.cross_entropy, inputs, labels).largest("hessian")
    total = sum(found.layers) or math.nan  # 0 where all outputs are saturated
    return {
        "ratio": rounded(found.whole / total, 4),
        "over_largest": rounded(found.whole / (max(found.layers) or math.nan), 4),
        "whole": rounded(found.whole),
        "hessian": rounded(hessian),
        "layers": all_rounded(found.layers),
        "cosines": all_rounded(found.cosines, 4),
        "shares": all_rounded(found.shares, 4),
    }


def _blocks(
    parameters: SafeStepParameters, images: Tensor, labels: Tensor, stream: torch.Generator
) -> dict[str, Any]:
    """Compute the norms of all pairs of layers' blocks, exactly."""
    found = {}
    size = parameters.batch_sizes[1]
    for activation in ACTIVATIONS[:2]:
        shape = Shape(parameters.depths[1], parameters.widths[1], activation)
        model = dense(shape, stream).to(images.device)
        report = cross_layer(model, F.cross_entropy, images[:size], labels[:size], method="exact")
        between = _between(report.frobenius)
        found[activation] = {
            "between": rounded(between / float(report.frobenius.square().sum()), 4),
            "residual_between": rounded(_between(report.residual) / between, 4),
            "hessian": [all_rounded(row, 4) for row in report.frobenius.tolist()],
            "ggn": [all_rounded(row, 4) for row in report.linearization.tolist()],
            "residual": [all_rounded(row, 4) for row in report.residual.tolist()],
        }
    return found


def _between(norms: Tensor) -> float:
    """Sum up the squares off the diagonal."""
    return float(norms.square().sum() - norms.diagonal().square().sum())
