"""What a step of gradient descent gains: predicted by gradient and Hessian, and realized.

784-30-30-10 on MNIST without biases, ReLU and tanh. Stochastic training on the cross-entropy
with several rates, where recorded steps are compared with the quadratic model of their own
batch; and training on all of a small set and the squared distance, whose curvature does not
fall as the fit gets better, where the largest eigenvalue of the Hessian is followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.chapters.step_gain.step_curvature import step_curvature
from hessinit_book.networks.dense import dense_network, linear_layers
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Rates
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.training.batches import batch_indices
from hessinit_book.training.image_data import load_images
from hessinit_book.training.losses import half_square
from hessinit_lib.hessians import model_hessian
from hessinit_lib.theory import best_rate, critical_variance, predicted_gain

WIDTHS = (784, 30, 30, 10)
ACTIVATIONS = ("relu", "tanh")
MULTIPLES = tuple(k / 8 for k in range(25))  # of the best rate, for the line searches

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Float[Tensor, "n i"], Int64[Tensor, " n"]]


class StepGainParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        rates: learning rates of stochastic training.
        steps: its steps.
        batch_size: its samples a step.
        every: steps from one recorded step to the next, of both kinds of training.
        full_rates: learning rates of training on the whole set.
        full_steps: its steps.
        full_size: samples of the set.
    """

    EXPERIMENT: ClassVar[str] = "step_gain"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {"seeds": (0,), "steps": 20, "every": 10, "full_steps": 20, "full_size": 64},
        "quick": {"seeds": (0, 1), "steps": 300, "every": 30, "full_steps": 300, "full_size": 256},
        "paper": {
            "seeds": (0, 1, 2, 3, 4),
            "steps": 1000,
            "every": 25,
            "full_steps": 1000,
            "full_size": 512,
        },
    }

    rates: Rates = (0.01, 0.1, 0.3)
    steps: Count
    batch_size: Count = 32
    every: Count
    full_rates: Rates = (0.02, 0.05, 0.1)
    full_steps: Count
    full_size: Count


def run(parameters: StepGainParameters) -> list[Record]:
    """Train all networks for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist", "batch_size", "full_size")
    steps = parameters.steps * len(parameters.rates)
    full_steps = parameters.full_steps * len(parameters.full_rates)

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        train = images.flatten(1), labels
        values: dict[str, Any] = {}
        for name in ACTIVATIONS:
            values[name] = {
                "stochastic": {
                    rate_name(rate): train_stochastic(parameters, name, rate, seed, train, bar)
                    for rate in parameters.rates
                },
                "full": {
                    rate_name(rate): train_full(parameters, name, rate, seed, train, bar)
                    for rate in parameters.full_rates
                },
            }
        defect = identity_defect(images[:16], labels[:16], generator(seed, "check"))
        return {
            "checks": {
                "statement_08": {
                    "what": "loss after a step minus its quadratic model, against the integral "
                    "of dense Hessians along the step (tanh), relative to the predicted gain",
                    "value": rounded(defect),
                    "allowed": 1e-9,
                },
            },
            **values,
        }

    return run_seeds(parameters, data.info, run_one, ticks=len(ACTIVATIONS) * (steps + full_steps))


def rate_name(rate: float) -> str:
    """Name a rate in a record's keys, where a dot would split them.

    Example:
        >>> rate_name(0.01)
        'rate_0_01'
    """
    return f"rate_{rate:g}".replace(".", "_")


def make_network(
    activation: str, weights: torch.Generator, widths: tuple[int, ...] = WIDTHS
) -> nn.Sequential:
    """Make a network without biases, its weights of critical variance (He's, LeCun's)."""
    network = dense_network(widths, activation, bias=False)
    for linear in linear_layers(network):
        fan_out, fan_in = linear.weight.shape
        std = critical_variance(activation, fan_in, fan_out) ** 0.5
        with torch.no_grad():
            linear.weight.copy_(std * torch.randn(fan_out, fan_in, generator=weights))
    return network


def train_stochastic(
    parameters: StepGainParameters, activation: str, rate: float, seed: int, train: Batch, bar: tqdm
) -> dict[str, Any]:
    """Train with small batches; compare recorded steps with the model of their batch.

    Returns:
        By recorded step: the batch's loss before, predicted and realized gain [nat], the
        same predicted from layer blocks alone, the best rate, and the share of the curvature
        that lies in layer blocks; line searches at the first, middle and last of them; and
        medians over the recorded steps.
    """
    inputs, labels = train
    model = make_network(activation, generator(seed, "weights")).to(inputs.device)
    order = batch_indices(
        len(inputs), parameters.batch_size, parameters.steps, generator(seed, "batches")
    ).to(inputs.device)
    recorded = range(0, parameters.steps, parameters.every)
    searched = {recorded[0], recorded[len(recorded) // 2], recorded[-1]}
    rows: list[dict[str, float]] = []
    searches: list[dict[str, Any]] = []
    for step, chosen in enumerate(order):
        batch = inputs[chosen], labels[chosen]
        if step in recorded:
            rows.append({"step": float(step), **compared_step(model, F.cross_entropy, batch, rate)})
            if step in searched:
                searches.append({"step": step, "gains": line_search(model, batch)})
        else:
            plain_step(model, F.cross_entropy, batch, rate)
        bar.update()
    return {**_columns(rows), "searches": searches, "median": _medians(rows)}


def train_full(
    parameters: StepGainParameters, activation: str, rate: float, seed: int, train: Batch, bar: tqdm
) -> dict[str, Any]:
    """Train on all of a small set at once, and follow the largest eigenvalue of the Hessian.

    Returns:
        As of `train_stochastic`, and by recorded step the largest eigenvalue, in absolute
        value, as "sharpness", and `rate` times half of it, 1 at the edge of stability.
    """
    chosen = torch.randperm(len(train[0]), generator=generator(seed, "set"))
    chosen = chosen[: parameters.full_size].to(train[0].device)
    batch = train[0][chosen], train[1][chosen]
    model = make_network(activation, generator(seed, "weights")).to(train[0].device)
    rows: list[dict[str, float]] = []
    for step in range(parameters.full_steps):
        if step % parameters.every == 0:
            sharpness = largest_eigenvalue(model, batch)
            row = {"step": float(step), "sharpness": sharpness, "stability": rate * sharpness / 2}
            rows.append({**row, **compared_step(model, half_square, batch, rate)})
        else:
            plain_step(model, half_square, batch, rate)
        bar.update()
    late = [row["stability"] for row in rows[-max(1, len(rows) // 4) :]]
    return {**_columns(rows), "median": _medians(rows), "late_stability": _median(late)}


def largest_eigenvalue(model: nn.Module, batch: Batch) -> float:
    """Compute the largest eigenvalue of the whole Hessian, in absolute value.

    Returns:
        The eigenvalue; NaN where training has diverged.
    """
    with torch.no_grad():
        if not half_square(model(batch[0]), batch[1]).isfinite():
            return math.nan
    return model_hessian(model, half_square, *batch, norms=("spectral",), parts=False).spectral


def plain_step(model: nn.Module, loss_fn: Loss, batch: Batch, rate: float) -> None:
    """Take one step against the gradient of the batch's loss."""
    weights = list(model.parameters())
    loss = loss_fn(model(batch[0]), batch[1])
    with torch.no_grad():
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight -= rate * gradient


def compared_step(model: nn.Module, loss_fn: Loss, batch: Batch, rate: float) -> dict[str, float]:
    """Take one step, and compare what it gains with what was predicted."""
    found = step_curvature(model, loss_fn, *batch)
    plain_step(model, loss_fn, batch, rate)
    with torch.no_grad():
        after = loss_fn(model(batch[0]), batch[1]).item()
    predicted = predicted_gain(found.gradient_square, found.curvature, rate)
    blocks = predicted_gain(found.gradient_square, found.block_curvature, rate)
    realized = found.loss - after
    return {
        "loss": found.loss,
        "realized": realized,
        "predicted": predicted,
        "predicted_blocks": blocks,
        "ratio": _over(realized, predicted),
        "ratio_blocks": _over(realized, blocks),
        "best_rate": best_rate(found.gradient_square, found.curvature),
        "block_share": _over(found.block_curvature, found.curvature),
    }


def line_search(model: nn.Module, batch: Batch) -> list[float]:
    r"""Evaluate the gain at multiples of the best rate, over the predicted best gain.

    Returns:
        One value for each of `MULTIPLES`; the quadratic model predicts $2 m - m^2$. NaN if
        the loss does not curve upward along the gradient.
    """
    found = step_curvature(model, F.cross_entropy, *batch)
    rate = best_rate(found.gradient_square, found.curvature)
    best = predicted_gain(found.gradient_square, found.curvature, rate)
    names = [name for name, _ in model.named_parameters()]
    weights = dict(model.named_parameters())
    loss = F.cross_entropy(model(batch[0]), batch[1])
    gradients = torch.autograd.grad(loss, list(weights.values()))
    gains = []
    with torch.no_grad():
        for multiple in MULTIPLES:
            moved = {
                name: weights[name] - multiple * rate * gradient
                for name, gradient in zip(names, gradients, strict=True)
            }
            outputs = torch.func.functional_call(model, moved, (batch[0],))
            gains.append((found.loss - F.cross_entropy(outputs, batch[1]).item()) / best)
    return all_rounded(gains, 4)


def identity_defect(
    images: Float[Tensor, "n 1 28 28"], labels: Int64[Tensor, " n"], weights: torch.Generator
) -> float:
    r"""Check part 1 of statement 8 on a small tanh network, with dense Hessians in float64.

    $$L(w - \gamma G) - m(\gamma) = \gamma^2 \int_0^1 (1 - t) \,
      G^\top (H(w - t \gamma G) - H(w)) G \, dt$$

    at twice the best rate, the integral by 32 Gauss-Legendre nodes.

    Returns:
        The difference of both sides over the predicted gain at the best rate.
    """
    inputs = F.avg_pool2d(images.cpu().double(), 7).flatten(1)
    model = make_network("tanh", weights, (16, 6, 6, 10)).double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [weight.shape for weight in model.parameters()]
    sizes = [shape.numel() for shape in shapes]

    def loss(flat: Float[Tensor, " p"]) -> Float[Tensor, ""]:
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        named = dict(zip(names, parts, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, named, (inputs,)), labels.cpu())

    start = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    gradient, hessian = torch.func.grad(loss)(start), torch.func.hessian(loss)(start)
    square, curvature = float(gradient @ gradient), float(gradient @ hessian @ gradient)
    rate = 2 * best_rate(square, curvature)
    left = float(loss(start - rate * gradient)) - (
        float(loss(start)) - predicted_gain(square, curvature, rate)
    )
    right = 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(32), strict=True):
        t = (node + 1) / 2
        change = torch.func.hessian(loss)(start - t * rate * gradient) - hessian
        right += weight / 2 * (1 - t) * rate**2 * float(gradient @ change @ gradient)
    return abs(left - right) / abs(predicted_gain(square, curvature, rate / 2))


def _over(part: float, whole: float) -> float:
    """Divide; NaN where nothing is predicted, as at a point without gradient."""
    return part / whole if whole else math.nan


def _columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: all_rounded((row[key] for row in rows), 5) for key in rows[0]}


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    keys = ("ratio", "ratio_blocks", "best_rate", "block_share")
    return {key: _median([row[key] for row in rows]) for key in keys}


def _median(values: list[float]) -> float:
    return rounded(float(np.median(values)), 5)
