"""The courses of the contest: a network with its batches, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hessinit_book.chapters.contest.data import Data
from hessinit_book.chapters.contest.networks import CharacterGpt, resnet, vgg
from hessinit_book.chapters.contest.text import LETTERS
from hessinit_book.chapters.contest.training import train_any
from hessinit_book.networks.dense import dense_network
from hessinit_book.randomness import generator
from hessinit_book.training.batches import independent_batches
from hessinit_book.training.rate_grid import train_dense

if TYPE_CHECKING:
    from hessinit_book.chapters.contest.run import ContestParameters


@dataclass(frozen=True)
class Course:
    """One network of the contest for one seed, to choose a learning rate on or to be judged on.

    Attributes:
        kind: "relu", "gelu", "tanh", "resnet", "vgg" or "gpt".
        make: makes the network, on the device of the data; its weights are not used.
        batches: gives a training step's inputs and targets.
        classes: number of classes.
        rates: learning rates that are tried first.
        train: takes a network and learning rates; gives its loss before each step at each.
    """

    kind: str
    make: Callable[[], nn.Module]
    batches: Callable[[int], tuple[Tensor, Tensor]]
    classes: int
    rates: Sequence[float]
    train: Callable[[nn.Module, Sequence[float]], Tensor]


def make_course(
    parameters: ContestParameters, network: str, seed: int, data: Data, *, tuning: bool = False
) -> Course:
    """Set up one network's data, batches and training.

    Args:
        parameters: of the experiment.
        network: its name.
        seed: of the run.
        data: to train on: one half is for choosing rates, the other for judging.
        tuning: whether the course is for choosing.
    """
    kind, _, depth = network.partition("_")
    steps = max(parameters.steps, parameters.rounds + 1)
    shuffle = generator(seed, f"{kind} {'tuning' if tuning else 'batches'}")
    if kind == "gpt":
        half = (len(data.text) - parameters.context - 1) // 2
        starts = torch.randint(half, (steps, parameters.batch_size // 4), generator=shuffle)
        starts = (starts + (half if tuning else 0)).to(data.device)

        def texts(step: int) -> tuple[Tensor, Tensor]:
            following = torch.arange(parameters.context + 1, device=data.device)
            places = starts[step][:, None] + following
            return data.text[places][:, :-1], data.text[places][:, 1:].flatten()

        def train_gpt(model: nn.Module, rates: Sequence[float]) -> Tensor:
            return train_any(model, rates, texts, parameters.steps, torch.optim.Adam)

        return Course(
            kind,
            lambda: CharacterGpt(LETTERS, parameters.layers, 32, 4, parameters.context).to(
                data.device
            ),
            texts,
            LETTERS,
            parameters.adam_rates,
            train_gpt,
        )
    inputs, labels = data.images if kind in ("resnet", "vgg") else data.flat
    half = len(inputs) // 2
    order = independent_batches(half, parameters.batch_size, steps, shuffle)
    order = (order + (half if tuning else 0)).to(data.device)

    def images(step: int) -> tuple[Tensor, Tensor]:
        return inputs[order[step]], labels[order[step]]

    if depth:  # a plain network
        widths = (784, *[parameters.width] * (int(depth) - 1), 10)

        def train_stacked(model: nn.Module, rates: Sequence[float]) -> Tensor:
            assert isinstance(model, nn.Sequential)
            chosen = order[: parameters.steps]
            return train_dense(model, rates, [1.0] * int(depth), inputs, labels, chosen)

        def make_plain() -> nn.Module:
            return dense_network(widths, kind).to(data.device)

        return Course(kind, make_plain, images, 10, parameters.rates, train_stacked)

    def make_images() -> nn.Module:
        made = resnet(parameters.blocks, 16) if kind == "resnet" else vgg(parameters.stage, 8)
        return made.to(data.device)

    def train_images(model: nn.Module, rates: Sequence[float]) -> Tensor:
        return train_any(model, rates, images, parameters.steps)

    return Course(kind, make_images, images, 10, parameters.rates, train_images)
