"""The authors' experiment, done right: an MNIST network's first layer, too small to too large.

784-30-30-10, ReLU, softmax cross-entropy, SGD with batches of 32. The first layer is drawn
with a tiny, a moderate and a large deviation; He and Glorot initialization are the
references. Fresh batches each step, all layers' Hessians tracked on a fixed probe batch.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.networks.dense import dense_network, linear_layers
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Loss, Overflowing, Rate
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.batches import batch_indices
from hessinit_book.training.image_data import load_images
from hessinit_lib.hessians import HessianReport, HessianTracker

WIDTHS = (784, 30, 30, 10)
LOSS_INTERVAL = 10  # steps summed up in one point of the recorded loss curve


class MnistTrackingParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        deviations: standard deviations of the first layer's weights.
        steps: SGD steps.
        batch_size: samples a step.
        learning_rate: of SGD.
        every: steps from one Hessian record to the next.
        probe_size: samples of the fixed probe batch.
        level: a loss [nat] clearly below that of guessing (log 10 = 2.3); the steps it
            takes to get there are counted.
        final_steps: the last steps, over which the final loss is averaged; all if there are fewer.
    """

    EXPERIMENT: ClassVar[str] = "mnist_tracking"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {"seeds": (0,), "steps": 20, "every": 10, "probe_size": 32},
        "quick": {"seeds": (0, 1), "steps": 1000, "every": 50, "probe_size": 256},
        "paper": {"seeds": tuple(range(10)), "steps": 1000, "every": 20, "probe_size": 1024},
    }

    deviations: Annotated[tuple[Overflowing, ...], Field(min_length=1)] = (1e-5, 1e-2, 1.0)
    steps: Count
    batch_size: Count = 32
    learning_rate: Rate = 0.01
    every: Count
    probe_size: Count
    level: Loss = 1.5
    final_steps: Count = 100


def run(parameters: MnistTrackingParameters) -> list[Record]:
    """Train every variant for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist", "batch_size", "probe_size")

    starts = variants(parameters)

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        train = _flat(*data.tensors("train", device))
        test = _flat(*data.tensors("test", device))
        return {
            name: train_variant(parameters, start, seed, train, test, bar)
            for name, start in starts.items()
        }

    return run_seeds(parameters, data.info, run_one, ticks=len(starts) * parameters.steps)


def variants(parameters: MnistTrackingParameters) -> dict[str, float | str]:
    """Name the variants: each deviation of the first layer, then the reference schemes.

    Example:
        >>> list(variants(MnistTrackingParameters.check(profile="smoke")))
        ['std_1e-5', 'std_1e-2', 'std_1e+0', 'he', 'glorot']
    """
    named: dict[str, float | str] = {}
    for std in parameters.deviations:
        short = np.format_float_scientific(std, trim="-", exp_digits=1)
        named[f"std_{short.replace('.', '_')}"] = std  # a dot would split a record's key
    return {**named, "he": "he", "glorot": "glorot"}


def train_variant(
    parameters: MnistTrackingParameters,
    start: float | str,
    seed: int,
    train: tuple[Float[Tensor, "n 784"], Int64[Tensor, " n"]],
    test: tuple[Float[Tensor, "m 784"], Int64[Tensor, " m"]],
    bar: tqdm,
) -> dict[str, Any]:
    """Train one network and track it.

    The seed fixes weights, batches and probe alike for all variants, so that they differ
    in nothing but the scale of their initial weights.

    Args:
        parameters: of the experiment.
        start: deviation of the first layer (the others He), or "he" or "glorot".
        seed: of the run.
        train: images and labels.
        test: images and labels.
        bar: updated once a step.

    Returns:
        Curves and final figures, plain numbers, see the code.
    """
    inputs, labels = train
    device = inputs.device
    model = make_network(start, generator(seed, "weights")).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=parameters.learning_rate)

    chosen = torch.randperm(len(inputs), generator=generator(seed, "probe"))
    probe = chosen[: parameters.probe_size].to(device)
    probe_inputs, probe_labels = inputs[probe], labels[probe]
    tracker = HessianTracker(
        model, F.cross_entropy, probe_inputs, probe_labels, every=parameters.every
    )
    layers = _layers(model)
    gradients: dict[str, list[float]] = {layer: [] for layer in layers}
    probe_losses: list[float] = []

    def look() -> None:
        loss = F.cross_entropy(model(probe_inputs), probe_labels)
        found = torch.autograd.grad(loss, [model.get_parameter(n) for n in layers.values()])
        for layer, gradient in zip(layers, found, strict=True):
            gradients[layer].append(rounded(gradient.norm().item()))
        probe_losses.append(rounded(loss.item()))

    losses = torch.empty(parameters.steps, device=device)
    order = batch_indices(
        len(inputs), parameters.batch_size, parameters.steps, generator(seed, "batches")
    ).to(device)
    for step, batch in enumerate(order):
        if tracker.step() is not None:
            look()
        loss = F.cross_entropy(model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
        bar.update()
    tracker.record()
    look()

    with torch.no_grad():
        logits = model(test[0])
    curve = losses.cpu().double().numpy()
    final = curve[-parameters.final_steps :]
    return {
        "start": start,
        "final_loss": rounded(final.mean()),
        "final_loss_spread": rounded(final.std()),
        "largest_loss": rounded(curve.max()),
        "first_loss": rounded(curve[0]),
        "steps_to_level": _steps_to_level(curve, parameters.level),
        "test_loss": rounded(F.cross_entropy(logits, test[1]).item()),
        "test_accuracy": rounded((logits.argmax(1) == test[1]).double().mean().item()),
        "diverged": not bool(np.isfinite(curve).all()),
        "loss_curve": _summarize_curve(curve),
        "tracked": {
            "steps": list(tracker.history),
            "probe_loss": probe_losses,
            "layers": {
                layer: {**_norms(tracker.history, name), "gradient": gradients[layer]}
                for layer, name in layers.items()
            },
        },
    }


def make_network(start: float | str, weights: torch.Generator) -> nn.Sequential:
    """Make the network 784-30-30-10 with ReLU, zero biases and normal weights.

    Deviations: He, sqrt(2/fan_in), in every layer but the first if `start` is a number,
    which then is the first layer's; in all layers for "he"; Glorot,
    sqrt(2/(fan_in + fan_out)), in all layers for "glorot".

    Args:
        start: a deviation, "he" or "glorot".
        weights: the same state gives the same draws, whatever the scale.
    """
    network = dense_network(WIDTHS, "relu")
    for index, linear in enumerate(linear_layers(network)):
        fan_out, fan_in = linear.weight.shape
        std = math.sqrt(2 / (fan_in + fan_out) if start == "glorot" else 2 / fan_in)
        if index == 0 and isinstance(start, float):
            std = start
        with torch.no_grad():
            # Standard normal numbers, then scaled: all variants share the directions.
            linear.weight.copy_(std * torch.randn(fan_out, fan_in, generator=weights))
            linear.bias.zero_()
    return network


def _flat(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images.flatten(1), labels


def _layers(model: nn.Module) -> dict[str, str]:
    """Map "layer_1", ... to the names of the weights."""
    weights = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    return {f"layer_{k}": name for k, name in enumerate(weights, start=1)}


def _norms(history: dict[int, HessianReport], name: str) -> dict[str, list[float]]:
    """Take one layer's norms out of the tracker's history."""
    layers = [report[name] for report in history.values()]
    return {
        "frobenius": [rounded(layer.frobenius) for layer in layers],
        "spectral": [rounded(layer.spectral) for layer in layers],
        "residual_ratio": [rounded(layer.residual_ratio) for layer in layers],
    }


def _summarize_curve(curve: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Sum up the minibatch losses of each interval: enough to see level and oscillation."""
    starts = range(0, len(curve), LOSS_INTERVAL)
    parts = [curve[i : i + LOSS_INTERVAL] for i in starts]
    return {
        "step": list(starts),
        "mean": [rounded(part.mean()) for part in parts],
        "min": [rounded(part.min()) for part in parts],
        "max": [rounded(part.max()) for part in parts],
    }


def _steps_to_level(curve: np.ndarray, level: float) -> float:
    """Count the steps until the mean loss of `LOSS_INTERVAL` steps is below `level`; inf: never."""
    if len(curve) < LOSS_INTERVAL:
        return math.inf
    means = np.convolve(curve, np.full(LOSS_INTERVAL, 1 / LOSS_INTERVAL), mode="valid")
    below = np.flatnonzero(means < level)
    return float(below[0] + LOSS_INTERVAL) if len(below) else math.inf
