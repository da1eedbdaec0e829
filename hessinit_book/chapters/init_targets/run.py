"""Which target? Plain deep networks on MNIST from every initialization that was tried.

784-100-...-100-10, ReLU and tanh, SGD, each initialization with its best learning rate of one
grid. Within a seed all see the same batches, and those that rescale He's weights share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.init_targets.gauss_newton_norms import gauss_newton_norms
from hessinit_book.chapters.init_targets.initializers import STARTS, Start, inverse_norms
from hessinit_book.networks.dense import dense_network
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Layers, Loss, Rates, Several, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.batches import independent_batches
from hessinit_book.training.image_data import load_images
from hessinit_book.training.rate_grid import summarize, train_dense
from hessinit_lib.init import apply

CLASSES = 10


class InitTargetsParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        activations: of the networks, "relu" and "tanh".
        depths: numbers of layers.
        width: units of a hidden layer.
        starts: names in `STARTS`.
        rates: learning rates; each initialization is judged at its best one.
        steps: SGD steps.
        batch_size: samples a step.
        probe_size: samples on which initializations are set and norms are measured.
        level: a loss [nat], well below guessing (log 10 = 2.3); the steps to it are counted.
        final_steps: the last steps, over which the final loss is averaged; all if there are fewer.
    """

    EXPERIMENT: ClassVar[str] = "init_targets"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "activations": ("relu",),
            "depths": (4,),
            "width": 16,
            "rates": (0.02,),
            "steps": 12,
        },
        "quick": {
            "seeds": (0,),
            "activations": ("relu",),
            "depths": (12,),
            "width": 32,
            "rates": (0.01, 0.06),
            "steps": 60,
        },
        "paper": {
            "seeds": tuple(range(5)),
            "activations": ("relu", "tanh"),
            "depths": (10, 30),
            "width": 100,
            "rates": (0.0013, 0.004, 0.012, 0.036, 0.11, 0.33),
            "steps": 80,
        },
    }

    activations: Annotated[tuple[Literal["relu", "tanh"], ...], Field(min_length=1)]
    depths: Annotated[tuple[Annotated[Layers, Field(ge=3)], ...], Field(min_length=1)]
    width: Annotated[Units, Field(ge=8, multiple_of=2)]
    starts: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(STARTS)
    rates: Rates
    steps: Annotated[Count, Field(ge=10)]
    batch_size: Count = 64
    probe_size: Several = 64
    level: Loss = 0.8
    final_steps: Count = 20

    @field_validator("starts")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not set(value) <= set(STARTS):
            raise ValueError(f"some of {', '.join(STARTS)}")
        return value


def run(parameters: InitTargetsParameters) -> list[Record]:
    """Train all initializations for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist")

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        return {
            f"{activation}_{depth}": race(
                parameters, activation, depth, seed, images.flatten(1), labels, bar
            )
            for activation, depth in networks(parameters)
        }

    ticks = len(list(networks(parameters))) * len(parameters.starts)
    return run_seeds(parameters, data.info, run_one, ticks=ticks)


def networks(parameters: InitTargetsParameters) -> Iterator[tuple[str, int]]:
    """Give the activation and the depth of each network.

    Example:
        >>> list(networks(InitTargetsParameters.check(profile="smoke")))
        [('relu', 4)]
    """
    for activation in parameters.activations:
        for depth in parameters.depths:
            yield activation, depth


def race(
    parameters: InitTargetsParameters,
    activation: str,
    depth: int,
    seed: int,
    inputs: Tensor,
    labels: Tensor,
    bar: tqdm,
) -> dict[str, Any]:
    """Set and train one network from every initialization.

    Args:
        parameters: of the experiment.
        activation: of the network.
        depth: number of layers.
        seed: of the run; it fixes He's weights, the probe and the batches.
        inputs: images, shape (n, 784).
        labels: their classes, shape (n,).
        bar: updated once a start.

    Returns:
        For each initialization what `summarize` gives, its first loss, the root mean square of its
        logits, and the Frobenius norm of its first, middle and last Gauss-Newton block.
    """
    size = len(inputs)
    batches = independent_batches(
        size, parameters.batch_size, parameters.steps, generator(seed, "batches")
    )
    probe = torch.randperm(size, generator=generator(seed, "probe"))[: parameters.probe_size]
    probe = probe.to(inputs.device)
    found = {}
    for name in parameters.starts:
        model = dense_network((784, *[parameters.width] * (depth - 1), CLASSES), activation)
        apply(model, "he", generator=generator(seed, "weights"))
        model.to(inputs.device)
        start = Start(model, inputs[probe], labels[probe], generator(seed, "start"))
        STARTS[name](start)
        multipliers = inverse_norms(start) if name == "layer_rates" else [1.0] * depth
        curve = train_dense(model, parameters.rates, multipliers, inputs, labels, batches)
        found[name] = {
            **summarize(curve, parameters.level, CLASSES, parameters.final_steps),
            **_look(model, start),
        }
        bar.update()
    return found


def _look(model: nn.Sequential, start: Start) -> dict[str, Any]:
    """Describe an initialization on the probe."""
    with torch.no_grad():
        logits = model(start.inputs)
    frobenius = gauss_newton_norms(model, start.inputs, start.labels, "frobenius")
    chosen = [frobenius[0], frobenius[len(frobenius) // 2], frobenius[-1]]
    return {
        "first_loss": rounded(F.cross_entropy(logits, start.labels).item(), 4),
        "logits": rounded(logits.square().mean().sqrt().item(), 4),
        "frobenius": [rounded(norm, 4) for norm in chosen],
    }
