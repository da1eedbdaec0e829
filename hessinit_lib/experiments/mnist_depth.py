"""Fully connected MNIST networks from many starts: which number at the start tells who trains?

Depth 2 to 20, three activations, first-layer and all-layer deviations from 1e-5 to 1 and named
schemes. At the start, everything that has been proposed as a warning sign is measured; then all
networks of a shape are trained at once.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field, field_validator
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_lib.data import load
from hessinit_lib.errors import ParameterError
from hessinit_lib.experiments.gradient_steps import gradient_and_curvature
from hessinit_lib.experiments.mnist_tracking import batch_indices
from hessinit_lib.experiments.regimes import FACTORS, follow, scale_weights
from hessinit_lib.experiments.stacked import Stack, dense_network
from hessinit_lib.hessians import layer_hessians, log_schedule
from hessinit_lib.networks.starts import SCHEMES, draw_weights
from hessinit_lib.parameters import Parameters, as_tuple
from hessinit_lib.randomness import generator
from hessinit_lib.records import Record
from hessinit_lib.rounding import all_rounded, rounded
from hessinit_lib.runs import run_seeds

INPUTS, CLASSES = 784, 10
# The scheme whose variance keeps the activation's signals: He's for ReLU, LeCun's else.
FITTING = {"relu": "he", "tanh": "lecun", "sigmoid": "lecun"}
REGIME_DEPTH = 10
LOOKS = 14  # at a network whose regime is followed
FINAL_STEPS = 20  # the last steps, over which the final loss is averaged

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Depth = Annotated[int, Field(ge=2)]
Activation = Literal["relu", "tanh", "sigmoid"]


class MnistDepthParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        depths: layers with weights.
        activations: of the hidden layers.
        width: of the hidden layers.
        deviations: standard deviations of normal weights, of the first layer alone (the
            others by the fitting scheme) and of all layers.
        learning_rates: each start is trained at each.
        regime_rate: learning rate of the three networks whose regimes are followed.
        steps: SGD steps.
        batch_size: samples a step.
        probe_size: samples on which the start is measured.
        level: a network trains if its final loss [nat] is below; half of guessing's log 10.
    """

    EXPERIMENT: ClassVar[str] = "mnist_depth"
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "depths": (2, 3),
            "deviations": (1e-3, 0.1, 1.0),
            "steps": 5,
            "probe_size": 16,
        },
        "quick": {
            "seeds": (0, 1, 2),
            "depths": (2, 5),
            "deviations": (1e-4, 1e-2, 0.1, 1.0),
            "learning_rates": (0.1,),
            "steps": 50,
            "probe_size": 32,
        },
        "paper": {
            "seeds": (0, 1, 2, 3, 4),
            "depths": (2, 5, 10, 20),
            "steps": 120,
            "probe_size": 32,
        },
    }

    depths: Annotated[tuple[Depth, ...], Field(min_length=1)]
    activations: Annotated[tuple[Activation, ...], Field(min_length=1)] = (
        "relu",
        "tanh",
        "sigmoid",
    )
    width: Count = 100
    deviations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        *(1e-5, 1e-4, 1e-3, 1e-2),
        *(0.1, 0.3, 1.0),
    )
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.02, 0.1)
    regime_rate: Positive = 0.05
    steps: Count
    batch_size: Count = 64
    probe_size: Count
    level: Positive = 1.15

    _lists = field_validator(
        "depths", "activations", "deviations", "learning_rates", mode="before"
    )(as_tuple)

    def starts(self) -> dict[str, float | str]:
        """Name the starts: first-layer deviations, all-layer deviations, schemes.

        Example:
            >>> starts = MnistDepthParameters.check(profile="smoke").starts()
            >>> [*starts][:4], starts["all_0.1"], starts["he"]
            (['first_0.001', 'first_0.1', 'first_1', 'all_0.001'], 0.1, 'he')
        """
        families = {
            f"{family}_{std:g}": std for family in ("first", "all") for std in self.deviations
        }
        return {**families, **{scheme: scheme for scheme in SCHEMES}}


def run(parameters: MnistDepthParameters) -> list[Record]:
    """Measure and train every start of every shape for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch or probe larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load("mnist", sample=parameters.profile != "paper", data_dir=parameters.data_dir)
    for name in ("batch_size", "probe_size"):
        size, most = getattr(parameters, name), data.info.train_size
        if size > most:
            raise ParameterError(f"{name}: got {size}, expected at most {most}, the training set")

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        inputs = images.flatten(1)
        return {
            "regimes": {
                name: follow_regime(parameters, factor, seed, inputs, labels, bar)
                for name, factor in FACTORS.items()
            },
            "grid": {
                activation: {
                    f"depth_{depth}": try_shape(
                        parameters, activation, depth, seed, inputs, labels, bar
                    )
                    for depth in parameters.depths
                }
                for activation in parameters.activations
            },
        }

    trainings = len(FACTORS) + len(parameters.activations) * len(parameters.depths)
    return run_seeds(parameters, data.info, run_one, ticks=trainings * parameters.steps)


def follow_regime(
    parameters: MnistDepthParameters,
    factor: float,
    seed: int,
    inputs: Float[Tensor, "n 784"],
    labels: Int64[Tensor, " n"],
    bar: tqdm,
) -> dict[str, Any]:
    """Train the ReLU network of `REGIME_DEPTH` from He weights times a factor, see `follow`."""
    widths = (INPUTS, *[parameters.width] * (REGIME_DEPTH - 1), CLASSES)
    network = draw_weights(dense_network(widths, "relu"), "he", generator(seed, "weights"))
    probe, order = _probe_and_order(parameters, seed, inputs)
    return follow(
        scale_weights(network, factor).to(inputs.device),
        ((inputs[batch], labels[batch]) for batch in order),
        (inputs[probe], labels[probe]),
        parameters.regime_rate,
        log_schedule(parameters.steps, LOOKS),
        bar.update,
    )


def _probe_and_order(
    parameters: MnistDepthParameters, seed: int, inputs: Tensor
) -> tuple[Int64[Tensor, " probe"], Int64[Tensor, "steps batch"]]:
    """Choose the samples of the probe and of all batches, the same for all starts."""
    chosen = torch.randperm(len(inputs), generator=generator(seed, "probe"))
    order = batch_indices(
        len(inputs), parameters.batch_size, parameters.steps, generator(seed, "batches")
    )
    return chosen[: parameters.probe_size].to(inputs.device), order.to(inputs.device)


def try_shape(
    parameters: MnistDepthParameters,
    activation: str,
    depth: int,
    seed: int,
    inputs: Float[Tensor, "n 784"],
    labels: Int64[Tensor, " n"],
    bar: tqdm,
) -> dict[str, Any]:
    """Measure every start of one shape, and train it at every rate.

    The seed fixes directions of the weights, batches and probe for all starts.

    Returns:
        `starts`: their names; `at_start`: lists in that order, see `measure`; for each rate,
        `final_loss` (inf: diverged) and `trains`, lists in that order.
    """
    starts = parameters.starts()
    widths = (INPUTS, *[parameters.width] * (depth - 1), CLASSES)
    networks = [
        make_network(name, start, widths, activation, generator(seed, "weights"))
        for name, start in starts.items()
    ]
    probe, order = _probe_and_order(parameters, seed, inputs)
    measured = [
        measure(network.to(inputs.device), inputs[probe], labels[probe], activation)
        for network in networks
    ]

    rates = parameters.learning_rates
    stack = Stack([network for _ in rates for network in networks], activation)
    each_rate = torch.tensor(rates, device=inputs.device).repeat_interleave(len(networks))
    losses = stack.train(inputs, labels, order, each_rate, bar.update).double().numpy()
    final = losses[:, -FINAL_STEPS:].mean(1).reshape(len(rates), len(networks))
    final = np.where(np.isfinite(final), final, math.inf)
    return {
        "starts": ", ".join(starts),
        "at_start": {name: [one[name] for one in measured] for name in measured[0]},
        "trained": [
            {
                "learning_rate": rate,
                "final_loss": all_rounded(row),
                "trains": [int(loss < parameters.level) for loss in row],
            }
            for rate, row in zip(rates, final, strict=True)
        ],
    }


def make_network(
    name: str,
    start: float | str,
    widths: tuple[int, ...],
    activation: str,
    stream: torch.Generator,
) -> nn.Sequential:
    """Make one network from one start, with zero biases (but for torch's own scheme).

    Args:
        name: of the start: "first_...", "all_..." or a scheme.
        start: the deviation, or the scheme.
        widths: of all layers.
        activation: key of `hessinit_lib.experiments.stacked.ACTIVATIONS`.
        stream: the same state gives the same directions, whatever the deviation.
    """
    network = dense_network(widths, activation)
    if isinstance(start, str):
        draw_weights(network, start, stream)
        return network
    draw_weights(network, FITTING[activation], stream)
    linears = [module for module in network if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for linear in linears[:1] if name.startswith("first") else linears:
            fan_in = linear.in_features
            linear.weight *= start * math.sqrt(fan_in / (2 if activation == "relu" else 1))
    return network


def measure(
    network: nn.Sequential,
    inputs: Float[Tensor, "b 784"],
    labels: Int64[Tensor, " b"],
    activation: str,
) -> dict[str, Any]:
    r"""Measure all that is known of a network before its first step.

    Returns:
        For each layer: `frobenius` and `spectral` norm of its Hessian, `gradient` norm,
        `activation`, the root mean square of its pre-activations, and `deviation` of its
        weights over that of the fitting scheme; for the network: `loss` [nat], `square`
        $\|G\|^2$ and `curvature` $G^\top H G$ over all parameters.
    """
    report = layer_hessians(network, F.cross_entropy, inputs, labels, parts=False)
    loss, gradients, square, curvature = gradient_and_curvature(network, inputs, labels)
    names = [name for name, _ in network.named_parameters()]
    norms = {name: g.norm().item() for name, g in zip(names, gradients, strict=True)}
    scales, deviations, z = [], [], inputs
    fitting = 2 if activation == "relu" else 1
    with torch.no_grad():
        for module in network:
            z = module(z)
            if isinstance(module, nn.Linear):
                scales.append(z.square().mean().sqrt().item())
                spread = module.weight.std().item()
                deviations.append(spread / math.sqrt(fitting / module.in_features))
    return {
        "frobenius": all_rounded((layer.frobenius for layer in report.values()), 5),
        "spectral": all_rounded((layer.spectral for layer in report.values()), 5),
        "gradient": all_rounded((norms[name] for name in report), 5),
        "activation": all_rounded(scales, 5),
        "deviation": all_rounded(deviations, 5),
        "loss": rounded(loss),
        "square": rounded(square),
        "curvature": rounded(curvature),
    }
