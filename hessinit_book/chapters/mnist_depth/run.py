"""Fully connected MNIST networks, initialized in many ways: which number tells who trains?

Depth 2 to 20, three activations, first-layer and all-layer deviations from 1e-5 to 1 and named
schemes. At the start, everything that has been proposed as a warning sign is measured; then all
networks of a shape are trained at once. Beside them, ReLU networks with dropout, from the
variance that allows for it and from those that do not.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from tqdm.auto import tqdm

from hessinit_book.chapters.mnist_depth.dropout import try_dropout
from hessinit_book.chapters.mnist_depth.initializations import NAMED, make_network, measure
from hessinit_book.chapters.mnist_depth.training import Task, make_task, train_all
from hessinit_book.networks.dense import dense_network
from hessinit_book.networks.starts import draw_weights
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import (
    Count,
    Deviations,
    Layers,
    Loss,
    Percent,
    Rate,
    Rates,
    Units,
)
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.training.image_data import load_images
from hessinit_book.training.regimes import FACTORS, follow, scale_weights
from hessinit_lib.hessians import log_schedule

INPUTS, CLASSES = 784, 10
REGIME_DEPTH = 10
LOOKS = 14  # at a network whose regime is followed

Activation = Literal["relu", "tanh", "sigmoid"]


class MnistDepthParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        depths: layers with weights.
        activations: of the hidden layers.
        width: of the hidden layers.
        deviations: standard deviations of normal weights, of the first layer alone (the
            others by the fitting scheme) and of all layers.
        learning_rates: each initialization is trained at each.
        regime_rate: learning rate of the three networks whose regimes are followed.
        steps: SGD steps.
        batch_size: samples a step.
        probe_size: samples on which the start is measured.
        drop_percent: shares of units that are dropped, in the networks with dropout.
        drop_rates: learning rates of these.
        drop_steps: SGD steps of these, more for what dropout makes slower.
        level: a network trains if its final loss [nat] is below; half of guessing's log 10.
    """

    EXPERIMENT: ClassVar[str] = "mnist_depth"
    DATASET: ClassVar[str] = "mnist"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "depths": (2, 3),
            "deviations": (1e-3, 0.1, 1.0),
            "steps": 5,
            "drop_steps": 5,
            "probe_size": 16,
        },
        "quick": {
            "seeds": (0, 1),
            "depths": (2, 5),
            "deviations": (1e-4, 1e-2, 0.1, 1.0),
            "learning_rates": (0.1,),
            "steps": 50,
            "drop_rates": (0.1, 0.3),
            "drop_steps": 80,
            "probe_size": 32,
        },
        "paper": {
            "seeds": (0, 1, 2, 3, 4),
            "depths": (2, 5, 10, 20),
            "steps": 120,
            "drop_steps": 400,
            "probe_size": 32,
        },
    }

    depths: Annotated[tuple[Layers, ...], Field(min_length=1)]
    activations: Annotated[tuple[Activation, ...], Field(min_length=1)] = (
        "relu",
        "tanh",
        "sigmoid",
    )
    width: Units = 100
    deviations: Deviations = (
        *(1e-5, 1e-4, 1e-3, 1e-2),
        *(0.1, 0.3, 1.0),
    )
    learning_rates: Rates = (0.02, 0.1)
    regime_rate: Rate = 0.05
    steps: Count
    batch_size: Count = 64
    probe_size: Count
    drop_percent: tuple[Percent, ...] = (20, 50)
    drop_rates: Rates = (0.03, 0.1, 0.3, 1.0)
    drop_steps: Count
    level: Loss = 1.15

    def starts(self) -> dict[str, float | str]:
        """Name the initializations: first-layer deviations, all-layer deviations, schemes and ours.

        Example:
            >>> starts = MnistDepthParameters.check(profile="smoke").starts()
            >>> [*starts][:4], starts["all_0.1"], starts["he"]
            (['first_0.001', 'first_0.1', 'first_1', 'all_0.001'], 0.1, 'he')
        """
        families = {
            f"{family}_{std:g}": std for family in ("first", "all") for std in self.deviations
        }
        return {**families, **{scheme: scheme for scheme in NAMED}}


def run(parameters: MnistDepthParameters) -> list[Record]:
    """Measure and train every initialization of every shape for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch or probe larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, parameters.DATASET, "batch_size", "probe_size")

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        sizes = parameters.probe_size, parameters.batch_size
        task = make_task(data, device, seed, *sizes, parameters.steps)
        longer = make_task(data, device, seed, *sizes, parameters.drop_steps)
        return {
            "regimes": {
                name: follow_regime(parameters, factor, seed, task, bar)
                for name, factor in FACTORS.items()
            },
            "grid": {
                activation: {
                    f"depth_{depth}": try_shape(parameters, activation, depth, seed, task, bar)
                    for depth in parameters.depths
                }
                for activation in parameters.activations
            },
            "dropout": {
                f"drop_{percent}": {
                    f"depth_{depth}": try_dropout(
                        percent / 100,
                        widths_of(parameters, depth),
                        seed,
                        longer,
                        parameters.drop_rates,
                        parameters.level,
                        bar.update,
                    )
                    for depth in parameters.depths
                }
                for percent in parameters.drop_percent
            },
        }

    depths = len(parameters.depths)
    ticks = parameters.steps * (len(FACTORS) + len(parameters.activations) * depths)
    ticks += parameters.drop_steps * len(parameters.drop_percent) * depths
    return run_seeds(parameters, data.info, run_one, ticks=ticks)


def widths_of(parameters: MnistDepthParameters, depth: int) -> tuple[int, ...]:
    """List the widths of all layers, input and output included."""
    return (INPUTS, *[parameters.width] * (depth - 1), CLASSES)


def follow_regime(
    parameters: MnistDepthParameters, factor: float, seed: int, task: Task, bar: tqdm
) -> dict[str, Any]:
    """Train the ReLU network of `REGIME_DEPTH` from He weights times a factor, see `follow`."""
    network = dense_network(widths_of(parameters, REGIME_DEPTH), "relu")
    draw_weights(network, "he", generator(seed, "weights"))
    return follow(
        scale_weights(network, factor).to(task.inputs.device),
        ((task.inputs[batch], task.labels[batch]) for batch in task.order),
        task.probe_batch,
        parameters.regime_rate,
        log_schedule(parameters.steps, LOOKS),
        bar.update,
    )


def try_shape(
    parameters: MnistDepthParameters,
    activation: str,
    depth: int,
    seed: int,
    task: Task,
    bar: tqdm,
) -> dict[str, Any]:
    """Measure every initialization of one shape, and train it at every rate.

    The seed fixes directions of the weights, batches and probe for all initializations.

    Returns:
        `starts`: their names; `at_start`: lists in that order, see `measure`; `trained`: for
        each rate, lists in that order, see `train_all`.
    """
    starts = parameters.starts()
    inputs, labels = task.probe_batch
    networks = [
        make_network(
            name,
            start,
            widths_of(parameters, depth),
            activation,
            generator(seed, "weights"),
            (inputs, labels),
        ).to(inputs.device)
        for name, start in starts.items()
    ]
    measured = [measure(network, inputs, labels, activation) for network in networks]
    rates, level = parameters.learning_rates, parameters.level
    return {
        "starts": ", ".join(starts),
        "at_start": {name: [one[name] for one in measured] for name in measured[0]},
        "trained": train_all(networks, activation, task, rates, level, bar.update),
    }
