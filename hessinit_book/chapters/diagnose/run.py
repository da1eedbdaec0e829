"""Three networks of torchvision and a small GPT at their start: which are well initialized?

And one of them broken on purpose: VGG-11 with PyTorch's own weights in place of He's, which
is then repaired by what the diagnosis says, and by `looks_linear_`; all train for some steps. Last,
how large a fault must be to be named: one layer of a plain network is scaled by factors of
all sizes.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import resnet18, squeezenet1_1
from torchvision.models.vgg import cfgs, make_layers
from tqdm.auto import tqdm

from hessinit_book.networks.gpt import Gpt
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Deviations, Rates, Several
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import all_rounded, rounded
from hessinit_book.training.image_data import load_images
from hessinit_lib.diagnosis import Diagnosis, diagnose
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.init import looks_linear_

CLASSES = 10
LEVELS = 16  # shades of gray: the tokens of the GPT
SIDE = 6  # pixels a side of the images that it reads
PLAIN = {"relu": (nn.ReLU, 2.0), "tanh": (nn.Tanh, 1.0)}  # activation, its critical variance
DEPTH, WIDTH = 8, 128  # of the plain networks

Name = Literal[
    "resnet18", "squeezenet", "gpt", "vgg11_broken", "vgg11_mended", "vgg11_looks_linear"
]
Batch = tuple[Tensor, Tensor]


class DiagnoseParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        networks: which to diagnose.
        rates_of: those of which the learning rates are computed, too.
        batch_size: images a batch, of the diagnosis and of a training step.
        trained: which to train.
        steps: of SGD.
        learning_rates: of SGD, each for a run of its own.
        factors: what one layer of a plain network is scaled by.
    """

    EXPERIMENT: ClassVar[str] = "diagnose"
    IMAGES: ClassVar[tuple[str, ...]] = ("cifar10",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {
            "seeds": (0,),
            "networks": ("squeezenet", "gpt"),
            "rates_of": (),
            "trained": ("squeezenet",),
            "batch_size": 8,
            "steps": 2,
            "learning_rates": (0.01,),
            "factors": (0.001, 1.0, 100.0),
        },
        "quick": {
            "seeds": (0,),
            "networks": ("squeezenet", "gpt", "vgg11_broken", "vgg11_mended", "vgg11_looks_linear"),
            "rates_of": ("gpt",),
            "batch_size": 8,
            "steps": 5,
            "learning_rates": (0.003,),
            "factors": (0.001, 0.01, 0.03, 0.1, 1.0, 10.0, 30.0, 100.0),
        },
        "paper": {"seeds": (0, 1, 2)},
    }

    networks: Annotated[tuple[Name, ...], Field(min_length=1)] = get_args(Name)
    rates_of: tuple[Name, ...] = ("squeezenet", "gpt")
    batch_size: Several = 16
    trained: tuple[Name, ...] = ("vgg11_broken", "vgg11_mended", "vgg11_looks_linear")
    steps: Count = 80
    learning_rates: Rates = (0.003, 0.03)
    factors: Deviations = tuple(rounded(10 ** (k / 4), 3) for k in range(-12, 9))


def run(parameters: DiagnoseParameters) -> list[Record]:
    """Diagnose every network, train some, and scale layers, for every seed.

    Raises:
        DataError: the data set cannot be had.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "cifar10")

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        order = torch.randperm(len(images), generator=generator(seed, "batches")).to(device)
        chosen = order[: parameters.batch_size]
        probe = standardized(images[chosen]), labels[chosen]

        def look(name: Name) -> dict[str, Any]:
            model = make(name, seed, probe)
            loss_fn, batch = (token_loss, tokens(images[chosen]))
            if name != "gpt":
                loss_fn, batch = (F.cross_entropy, probe)
            curvature = "all" if name in parameters.rates_of else "layers"
            bar.update()
            return summary(diagnose(model, loss_fn, *batch, curvature=curvature))

        return {
            "networks": {name: look(name) for name in parameters.networks},
            "losses": {
                name: [
                    train(parameters, rate, make(name, seed, probe), (images, labels), order, bar)
                    for rate in parameters.learning_rates
                ]
                for name in parameters.trained
            },
            "named": {
                name: share_named(name, seed, probe, parameters.factors, bar) for name in PLAIN
            },
        }

    trainings = len(parameters.trained) * len(parameters.learning_rates)
    ticks = len(parameters.networks) + trainings * parameters.steps
    return run_seeds(parameters, data.info, run_one, ticks + len(PLAIN) * len(parameters.factors))


def make(name: Name, seed: int, probe: Batch) -> nn.Module:
    """Make a network, in training mode, on the device of the probe.

    torchvision's networks draw their weights from the global stream: it is seeded for that,
    and put back.

    Args:
        name: see `Name`. VGG-11 is the one without normalization, with one layer above the
            last pooling, which of 32 x 32 pixels leaves one: "vgg11_broken" with PyTorch's
            own weights, "vgg11_mended" with He's, "vgg11_looks_linear" with those of
            `looks_linear_`.
        seed: of the weights.
        probe: images, shape (B, 3, 32, 32), and labels, for `looks_linear_`.
    """
    weights = generator(seed, f"{name} weights")
    device = probe[0].device
    if name == "gpt":
        gpt = Gpt(LEVELS, SIDE**2 - 1, width=32, heads=4, depth=3, generator=weights)
        return gpt.to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.initial_seed())
        if name == "resnet18":
            return resnet18(num_classes=CLASSES).to(device)
        if name == "squeezenet":
            return squeezenet1_1(num_classes=CLASSES).to(device)
        model = nn.Sequential(make_layers(cfgs["A"]), nn.Flatten(), nn.Linear(512, CLASSES))
    if name == "vgg11_mended":
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=weights)
                nn.init.zeros_(layer.get_parameter("bias"))
    model.to(device)
    if name == "vgg11_looks_linear":
        looks_linear_(model, probe[0], generator=weights)
    return model


def standardized(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Shift and scale all pixels to mean 0 and deviation 1."""
    return (images - images.mean()) / images.std()


def tokens(images: Float[Tensor, "b 3 32 32"]) -> tuple[Int64[Tensor, "b t"], Int64[Tensor, "b t"]]:
    """Turn images into sequences of shades of gray, row by row, and what follows each.

    Example:
        >>> read, follow = tokens(torch.ones(2, 3, 32, 32))
        >>> read.shape, int(follow.max())
        (torch.Size([2, 35]), 15)
    """
    gray = F.adaptive_avg_pool2d(images, SIDE).mean(1).flatten(1)
    sequence = (gray * LEVELS).long().clamp(max=LEVELS - 1)
    return sequence[:, :-1], sequence[:, 1:]


def token_loss(logits: Float[Tensor, "b t v"], follow: Int64[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Average the cross-entropy over all positions."""
    return F.cross_entropy(logits.flatten(0, 1), follow.flatten())


def summary(found: Diagnosis) -> dict[str, Any]:
    """Keep of a diagnosis what the page shows."""
    layers = sorted(
        (layer for layer in found.layers if layer.order is not None),
        key=lambda layer: layer.order or 0,
    )
    quantities = ("gain", "input_rms", "gradient_norm", "hessian_norm")
    return {
        "verdict": found.verdict,
        "faults": [str(fault) for fault in found.faults],
        "scheme": found.scheme,
        "loss": rounded(found.loss),
        "largest_stable_rate": rounded(found.largest_stable_rate, 4),
        "suggested_rate": rounded(found.suggested_rate, 4),
        "exact": not any(note.startswith("Hessian norms are estimated") for note in found.notes),
        "layers": [layer.name for layer in layers],
        "verdicts": [layer.verdict for layer in layers],
        **{q: all_rounded((getattr(layer, q) for layer in layers), 4) for q in quantities},
    }


def train(
    parameters: DiagnoseParameters,
    rate: float,
    model: nn.Module,
    data: Batch,
    order: Tensor,
    bar: tqdm,
) -> list[float]:
    """Train by plain SGD, without dropout, and give the loss of every step's batch [nat]."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    size = parameters.batch_size
    losses = []
    with without_noise(model, standardized(data[0][order[:size]])):
        for step in range(parameters.steps):
            batch = order[
                torch.arange(step * size, (step + 1) * size, device=order.device) % len(order)
            ]
            loss = F.cross_entropy(model(standardized(data[0][batch])), data[1][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(rounded(loss.item(), 4))
            bar.update()
    return losses


def share_named(
    name: str, seed: int, probe: Batch, factors: tuple[float, ...], bar: tqdm
) -> dict[str, list[float]]:
    """Scale each layer of a plain network by itself, and count how often it is named.

    Args:
        name: of the network, see `PLAIN`.
        seed: of the weights.
        probe: images, shape (B, 3, 32, 32), and labels.
        factors: to scale by.
        bar: updated once a factor.

    Returns:
        By factor the share of layers that the one fault names, and the share for which some
        fault is found.
    """
    activation, variance = PLAIN[name]
    stream = generator(seed, name)
    widths = [3 * 32 * 32, *[WIDTH] * (DEPTH - 1), CLASSES]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        nn.init.normal_(linear.weight, 0, (variance / fan_in) ** 0.5, generator=stream)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    model = nn.Sequential(*layers[:-1]).to(probe[0].device)
    weights = [key for key, _ in model.named_parameters() if key.endswith("weight")]

    def faults(weight: str, factor: float) -> list[str]:
        value = model.get_parameter(weight)
        before = value.detach().clone()
        with torch.no_grad():
            value.mul_(factor)
            where = _where(diagnose(model, F.cross_entropy, *probe, curvature="none"))
            value.copy_(before)
        return where

    right, any_fault = [], []
    for factor in factors:
        found = {weight: faults(weight, factor) for weight in weights}
        right.append(sum(where == [weight] for weight, where in found.items()) / DEPTH)
        any_fault.append(sum(bool(where) for where in found.values()) / DEPTH)
        bar.update()
    return {"right": right, "any": any_fault}


def _where(found: Diagnosis) -> list[str]:
    return [fault.where for fault in found.faults]
