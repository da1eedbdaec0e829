"""A plain CNN on CIFAR-10: three regimes, and the largest rate at which training is stable.

The regimes are an eight-layer network's whose He weights are scaled down, kept or scaled up. The
stable rates are a four-layer network's from named schemes, set against 2 / lambda_max, the bound
that the Hessian of all weights gives at the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hessinit_book.networks import NETWORKS, build
from hessinit_book.networks.starts import SCHEMES
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Rate
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.image_data import load_images
from hessinit_book.training.images import Images, Order, Progress, Recipe, train
from hessinit_book.training.regimes import FACTORS, follow, scale_weights
from hessinit_lib.hessians import log_schedule, model_hessian

REGIME_NETWORK, RATE_NETWORK = "cnn8", "cnn4"
MULTIPLES = tuple(2.0**power for power in range(-2, 5))
"""Rates that are tried, over 2 / lambda_max."""
LOOKS = 10  # at a network whose regime is followed
FINAL_STEPS = 10
MARGIN = 1.1  # over the loss at the start: batches differ by a few percent


class CifarStabilityParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        learning_rate: of the regimes.
        steps: of the regimes.
        rate_steps: of each training that tries a rate.
        batch_size: images a step.
        probe_size: images of the fixed probe batch of the regimes.
        sharpness_size: images on which lambda_max is computed.
    """

    EXPERIMENT: ClassVar[str] = "cifar_stability"
    IMAGES: ClassVar[tuple[str, ...]] = ("cifar10",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "steps": 3,
            "rate_steps": 2,
            "batch_size": 8,
            "probe_size": 8,
            "sharpness_size": 8,
        },
        "quick": {
            "seeds": (0, 1),
            "steps": 30,
            "rate_steps": 10,
            "batch_size": 32,
            "probe_size": 16,
            "sharpness_size": 64,
        },
        "paper": {
            "seeds": (0, 1, 2, 3, 4),
            "steps": 60,
            "rate_steps": 30,
            "batch_size": 32,
            "probe_size": 32,
            "sharpness_size": 256,
        },
    }

    learning_rate: Rate = 0.05
    steps: Count
    rate_steps: Count
    batch_size: Count
    probe_size: Count
    sharpness_size: Count


def run(parameters: CifarStabilityParameters) -> list[Record]:
    """Follow the regimes and find the stable rates for every seed.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch or probe larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "cifar10", "batch_size", "probe_size", "sharpness_size")

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        training = Images(data.train_images, data.train_labels, device)
        return {
            "regimes": {
                name: follow_regime(parameters, factor, seed, training, bar)
                for name, factor in FACTORS.items()
            },
            "rates": {
                scheme: find_stable_rate(parameters, scheme, seed, training, bar)
                for scheme in SCHEMES
            },
        }

    tried = len(SCHEMES) * len(MULTIPLES)
    ticks = len(FACTORS) * parameters.steps + tried * parameters.rate_steps
    return run_seeds(parameters, data.info, run_one, ticks)


def follow_regime(
    parameters: CifarStabilityParameters, factor: float, seed: int, training: Images, bar: tqdm
) -> dict[str, Any]:
    """Train the deeper network from He weights times a factor, see `follow`."""
    device = training.padded.device
    model = build(NETWORKS[REGIME_NETWORK], "he", generator(seed, "weights")).to(device)
    probe = _probe(training, parameters.probe_size, seed)
    order = Order(len(training), parameters.batch_size, generator(seed, "batches", device))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(parameters.steps):
            chosen = order.next()
            yield training.batch(chosen), training.labels[chosen]

    model, looks_at = scale_weights(model, factor), log_schedule(parameters.steps, LOOKS)
    return follow(model, batches(), probe, parameters.learning_rate, looks_at, bar.update)


def find_stable_rate(
    parameters: CifarStabilityParameters, scheme: str, seed: int, training: Images, bar: tqdm
) -> dict[str, Any]:
    """Train the cheaper network by plain SGD at rates around 2 / lambda_max.

    Returns:
        `sharpness`: lambda_max of the Hessian of all weights at the start, on a part of the
        training set; `bound`: 2 / lambda_max; `final_loss` at each of `MULTIPLES` times that
        (inf: diverged); `stable`: whether it is at most `MARGIN` times the loss at the start;
        `largest`: the largest rate below which all were stable, and `ratio`, over the bound.
    """
    device = training.padded.device
    inputs, labels = _probe(training, parameters.sharpness_size, seed)
    model = build(NETWORKS[RATE_NETWORK], scheme, generator(seed, "weights")).to(device)
    sharpness = model_hessian(
        model, F.cross_entropy, inputs, labels, norms=("spectral",), parts=False
    ).spectral
    start = F.cross_entropy(model(inputs), labels).item()
    final_losses, outcomes = [], {}
    for multiple in MULTIPLES:
        rate = multiple * 2 / sharpness
        model = build(NETWORKS[RATE_NETWORK], scheme, generator(seed, "weights")).to(device)
        recipe = Recipe(
            parameters.rate_steps, parameters.batch_size, rate, momentum=0.0, augment=False
        )
        progress = train(model, training, recipe, generator(seed, "batches", device), bar=bar)
        final_losses.append(_final_loss(progress))
        outcomes[rate] = final_losses[-1] <= MARGIN * start
    largest = largest_stable_rate(outcomes)
    return {
        "sharpness": rounded(sharpness),
        "bound": rounded(2 / sharpness),
        "first_loss": rounded(start),
        "final_loss": final_losses,
        "stable": [int(stable) for stable in outcomes.values()],
        "largest": largest,
        "ratio": rounded(largest * sharpness / 2, 4),
    }


def largest_stable_rate(outcomes: dict[float, bool]) -> float:
    """Give the largest rate below which no rate was unstable; 0 if the smallest was.

    Example:
        >>> largest_stable_rate({0.1: True, 0.2: True, 0.4: False, 0.8: True})
        0.2
    """
    stable = 0.0
    for rate in sorted(outcomes):
        if not outcomes[rate]:
            break
        stable = rate
    return rounded(stable)


def _probe(training: Images, size: int, seed: int) -> tuple[Tensor, Tensor]:
    chosen = torch.randperm(len(training), generator=generator(seed, "probe"))[:size]
    return training.batch(chosen), training.labels[chosen.to(training.labels.device)]


def _final_loss(progress: Progress) -> float:
    if progress.diverged:
        return math.inf
    return rounded(progress.losses[-FINAL_STEPS:].double().mean().item())
