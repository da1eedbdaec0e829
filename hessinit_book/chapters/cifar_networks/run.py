"""Convolutional networks on CIFAR-10: does the initialization decide, and do norms tell?

Plain networks of growing depth, a simplified GoogleNet, ResNet-20 with and without batch
normalization, EfficientNet-B0; each from several named schemes, each scheme at several rates.
The norms of all layers' Hessians are followed on a fixed probe batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.cifar_networks.signal_sizes import probe_loss, signals
from hessinit_book.errors import ParameterError
from hessinit_book.networks import NETWORKS, build
from hessinit_book.networks.starts import SCHEMES, weight_layers
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Loss, Rates, Several
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.image_data import load_images
from hessinit_book.training.images import (
    Images,
    Precision,
    Progress,
    Recipe,
    Schedule,
    evaluate,
    train,
)
from hessinit_book.training.layer_norms import layer_norms
from hessinit_lib.hessians.isolation import random_state_kept

EARLY_STEPS = 10  # after which the loss on the probe is taken
WINDOW = 10  # steps over which a loss curve is averaged
# Its activations are smooth, so that norms are estimated: of some layers, on a smaller probe.
ESTIMATED = ("efficientnet",)
ESTIMATED_LAYERS, ESTIMATED_PROBE = 3, 16
# Normalization takes the scale of most layers out of the network: two schemes, and for the
# ResNet one rate, the last, must do.
NORMALIZED = ("resnet20_norm", "efficientnet")
NORMALIZED_SCHEMES = ("torch", "he")
# Of 32 x 32 pixels its last stages normalize over one a sample: at larger rates the loss climbs.
SMALL_RATES = {"efficientnet": (0.001, 0.005)}

Network = Literal["cnn4", "cnn8", "cnn16", "googlenet", "resnet20", "resnet20_norm", "efficientnet"]
Scheme = Literal["torch", "lecun", "glorot", "he", "orthogonal"]


class CifarNetworksParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        networks: keys of `hessinit_book.networks.NETWORKS`.
        schemes: keys of `hessinit_book.networks.starts.SCHEMES`, for the networks without
            normalization; the others take "torch" and "he".
        learning_rates: each scheme is trained at each; ResNet-20 with normalization at the
            last, EfficientNet-B0 at rates of its own, `SMALL_RATES`.
        momentum: of SGD, Nesterov's.
        steps: SGD steps of a training.
        batch_size: images a step.
        every: steps from one record of the norms to the next.
        probe_size: images of the fixed probe batch; for EfficientNet the first 16 of it.
        test_size: test images, the first ones, for the accuracy.
        level: a loss [nat] below that of guessing (log 10 = 2.3), to which steps are counted.
        schedule: of the rates, see `Recipe`.
        augment: whether images are shifted and mirrored: useful where they come more than once.
    """

    EXPERIMENT: ClassVar[str] = "cifar_networks"
    IMAGES: ClassVar[tuple[str, ...]] = ("cifar10",)
    LATER: ClassVar[Mapping[str, Any]] = {"schedule": "constant", "augment": False}
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "networks": ("cnn4", "resnet20_norm"),
            "schemes": ("torch", "he"),
            "learning_rates": (0.01,),
            "steps": 4,
            "batch_size": 8,
            "every": 2,
            "probe_size": 8,
            "test_size": 20,
        },
        "quick": {
            "seeds": (0, 1),
            "networks": ("cnn4", "cnn8", "googlenet"),
            "learning_rates": (0.05,),
            "steps": 40,
            "every": 20,
            "probe_size": 16,
            "test_size": 200,
        },
        "paper": {
            "seeds": (0, 1, 2, 3, 4),
            "learning_rates": (0.01, 0.05),
            "steps": 120,
            "every": 60,
            "probe_size": 32,
            "test_size": 1000,
        },
    }

    networks: Annotated[tuple[Network, ...], Field(min_length=1)] = tuple(NETWORKS)  # pyright: ignore[reportAssignmentType]
    schemes: Annotated[tuple[Scheme, ...], Field(min_length=1)] = tuple(SCHEMES)  # pyright: ignore[reportAssignmentType]
    learning_rates: Rates
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    steps: Count
    batch_size: Several = 32
    every: Count
    probe_size: Several
    test_size: Count
    level: Loss = 2.0
    schedule: Schedule = "constant"
    augment: bool = False

    def starts(self, network: str) -> tuple[str, ...]:
        """List the schemes that a network is trained from."""
        return NORMALIZED_SCHEMES if network in NORMALIZED else self.schemes

    def rates(self, network: str) -> tuple[float, ...]:
        """List the rates at which a network is trained from each of them."""
        rates = self.learning_rates[-1:] if network in NORMALIZED else self.learning_rates
        return SMALL_RATES.get(network, rates)


def run(parameters: CifarNetworksParameters) -> list[Record]:
    """Train every network from every initialization at every rate for every seed.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch, probe or test larger than the data.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "cifar10", "batch_size", "probe_size")
    most = data.info.test_size
    if parameters.test_size > most:
        raise ParameterError(
            f"test_size: got {parameters.test_size}, expected at most {most}, the test set"
        )

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        training = Images(data.train_images, data.train_labels, device)
        first = slice(parameters.test_size)
        test = Images(data.test_images[first], data.test_labels[first], device)
        return {
            network: {
                scheme: try_start(parameters, network, scheme, seed, training, test, bar)
                for scheme in parameters.starts(network)
            }
            for network in parameters.networks
        }

    trainings = sum(
        len(parameters.starts(n)) * len(parameters.rates(n)) for n in parameters.networks
    )
    return run_seeds(parameters, data.info, run_one, ticks=trainings * parameters.steps)


def try_start(
    parameters: CifarNetworksParameters,
    network: str,
    scheme: str,
    seed: int,
    training: Images,
    test: Images,
    bar: tqdm,
) -> dict[str, Any]:
    """Train one network from one initialization at every rate, and keep the best.

    The seed fixes weights, batches and probe: rates differ in nothing else.

    Args:
        parameters: of the experiment.
        network: key of `NETWORKS`.
        scheme: key of `SCHEMES`.
        seed: of the run.
        training: images to train on, and to take the probe from.
        test: images for the accuracy.
        bar: updated once a step.

    Returns:
        Outcomes, a list over the rates each; `at_start`, see `signals`; norms of the run with
        the lowest final loss.
    """
    device = training.padded.device
    precision = precision_of(device)
    at_start: dict[str, Any] = {}
    outcomes: list[dict[str, Any]] = []
    tracks: list[dict[int, dict[str, Any]]] = []
    for rate in parameters.rates(network):
        model = build(NETWORKS[network], scheme, generator(seed, "weights"))
        model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        recipe = Recipe(
            parameters.steps,
            parameters.batch_size,
            rate,
            parameters.momentum,
            augment=parameters.augment,
            precision=precision,
            schedule=parameters.schedule,
        )
        probe = probe_of(parameters, network, model, training, seed)
        at_start = signals(model, probe.inputs, probe.labels, probe.names)  # at each rate the same
        early = early_loss(model, training, recipe, generator(seed, "batches", device), probe)
        observe = partial(probe.observe, model)
        stream = generator(seed, "batches", device)
        progress = train(
            model, training, recipe, stream, observe=observe, every=parameters.every, bar=bar
        )
        loss, accuracy = evaluate(model, test, recipe.precision)
        outcomes.append(
            {
                **summarize(progress, parameters.level),
                "test_loss": loss,
                "test_accuracy": accuracy,
                "early_loss": early,
            }
        )
        tracks.append(progress.observations)
    best = int(np.argmin([outcome["final_loss"] for outcome in outcomes]))
    return {
        "precision": precision,
        "learning_rate": list(parameters.rates(network)),
        **{name: [rounded(o[name]) for o in outcomes] for name in outcomes[0] if name != "curve"},
        "curves": [[rounded(value) for value in outcome["curve"]] for outcome in outcomes],
        "best": {
            "learning_rate": parameters.rates(network)[best],
            **{n: rounded(value) for n, value in outcomes[best].items() if n != "curve"},
        },
        "at_start": at_start,
        "tracked": _transposed(tracks[best]),
    }


def precision_of(device: torch.device) -> Precision:
    """Choose the precision of training: on a processor the one in which all processors are fast.

    Some take ten times as long for a convolution in bfloat16 as in float32.
    """
    return "float32" if device.type == "cpu" else "bfloat16"


class Probe(NamedTuple):
    """What norms are computed on.

    Attributes:
        inputs: images of a fixed batch.
        labels: their classes.
        names: weights of the layers that are looked at.
    """

    inputs: Tensor
    labels: Tensor
    names: list[str]

    def observe(self, model: nn.Module) -> dict[str, Any]:
        """Compute the layers' norms."""
        return {"layers": self.names, **layer_norms(model, self.inputs, self.labels, self.names)}


def probe_of(
    parameters: CifarNetworksParameters,
    network: str,
    model: nn.Module,
    training: Images,
    seed: int,
) -> Probe:
    """Choose the images of the probe and the layers."""
    chosen = torch.randperm(len(training), generator=generator(seed, "probe"))
    chosen = chosen[: parameters.probe_size]
    names = list(weight_layers(model))
    if network in ESTIMATED:
        chosen = chosen[:ESTIMATED_PROBE]
        names = [names[round(k)] for k in np.linspace(0, len(names) - 1, ESTIMATED_LAYERS)]
    return Probe(training.batch(chosen), training.labels[chosen.to(training.labels.device)], names)


def early_loss(
    model: nn.Module, training: Images, recipe: Recipe, stream: torch.Generator, probe: Probe
) -> float:
    """Train a copy for `EARLY_STEPS` steps, at a constant rate those of the whole training.

    Returns:
        The loss on the probe then [nat]; NaN if it diverged.
    """
    tried = deepcopy(model)
    short = replace(recipe, steps=min(EARLY_STEPS, recipe.steps))
    with random_state_kept(model.parameters()):  # of which dropout takes
        train(tried, training, short, stream)
    return probe_loss(tried, probe.inputs, probe.labels)


def summarize(progress: Progress, level: float) -> dict[str, Any]:
    """Sum up a training's losses.

    Args:
        progress: of the training.
        level: loss [nat] to which steps are counted.

    Returns:
        `final_loss`: mean of the last `WINDOW` steps, inf if it diverged; `steps_to_level`:
        steps until the mean of `WINDOW` steps is below the level, inf if it never is;
        `diverged_at`: the step whose loss was not finite, or NaN; `curve`: means of
        `WINDOW` steps each.
    """
    losses = progress.losses.double().cpu().numpy()
    window = min(WINDOW, len(losses))
    means = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    below = np.flatnonzero(means < level)
    broken = np.flatnonzero(~np.isfinite(losses))
    return {
        "final_loss": math.inf if progress.diverged else float(losses[-window:].mean()),
        "steps_to_level": float(below[0] + window) if len(below) else math.inf,
        "diverged_at": float(broken[0]) if progress.diverged else math.nan,
        "curve": [losses[i : i + WINDOW].mean() for i in range(0, len(losses), WINDOW)],
    }


def _transposed(track: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Turn observations by step into lists over the steps."""
    notes = list(track.values())
    return {
        "steps": list(track),
        "layers": notes[0]["layers"],
        "exact": all(note["exact"] for note in notes),
        "frobenius": [note["frobenius"] for note in notes],
        "gradient": [note["gradient"] for note in notes],
    }
