"""Train a network on images that fit into memory: from top to bottom, no data loader.

The images lie on the device as bytes. One indexing operation takes a batch, crops and flips
it; nothing else stands between the data and the network. With a stream of random numbers that is
on the device, too, a step asks the host for nothing.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.errors import DataError

PAD = 4  # pixels by which a crop may shift the image
CHECK = 10  # steps from one look at the losses to the next: each waits for the device

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "one_cycle"]
Observe = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """How to train: SGD with momentum, at a constant rate or in one cycle.

    Attributes:
        steps: of SGD.
        batch_size: images a step.
        learning_rate: of SGD; the largest one of a cycle.
        momentum: Nesterov's; 0 for plain SGD.
        weight_decay: of all parameters.
        augment: whether images are shifted and flipped at random.
        precision: of convolutions and matrix products; weights and their updates are float32.
        schedule: "constant", or "one_cycle": linear warm-up, then decay towards zero.
        warm_up: share of the steps of a cycle in which the rate rises.
        decay: how it falls in the others.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    augment: bool = True
    precision: Precision = "float32"
    schedule: Schedule = "constant"
    warm_up: float = 0.2
    decay: Literal["linear", "cosine"] = "linear"

    def rate(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0; no other step bears on it.

        Example:
            >>> recipe = Recipe(steps=5, learning_rate=1.0, schedule="one_cycle", warm_up=0.4)
            >>> [round(recipe.rate(step), 2) for step in range(5)]
            [0.5, 1.0, 1.0, 0.67, 0.33]
        """
        if self.schedule == "constant":
            return self.learning_rate
        rising = round(self.warm_up * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        passed = (step - rising) / (self.steps - rising)
        left = 1 - passed if self.decay == "linear" else (1 + math.cos(math.pi * passed)) / 2
        return self.learning_rate * left


@dataclass
class Progress:
    """A training as far as it has come.

    Attributes:
        losses: of each step's batch [nat], shape (steps,); NaN from where it diverged or is
            yet to come.
        observations: by the number of steps done before.
        done: steps done.
        diverged: whether a loss was not finite, which ends the training.
    """

    losses: Float[Tensor, " steps"]
    observations: dict[int, dict[str, Any]] = field(default_factory=dict)
    done: int = 0
    diverged: bool = False


class Images:
    """Labeled images on the device, ready to be taken in batches.

    Args:
        images: shape (n, c, h, w).
        labels: shape (n,).
        device: where they shall lie.

    Example:
        >>> data = Images(torch.zeros(50, 3, 32, 32, dtype=torch.uint8), torch.zeros(50).long())
        >>> chosen = torch.arange(8)
        >>> data.batch(chosen).shape, data.batch(chosen, torch.Generator()).shape
        (torch.Size([8, 3, 32, 32]), torch.Size([8, 3, 32, 32]))
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        device: torch.device | str = "cpu",
    ) -> None:
        self.height, self.width = images.shape[2:]
        # Pixels last but for the channels, as convolutions like it: an image's row is one
        # stretch of memory, and a batch that is taken out is channels-last by itself.
        padded = F.pad(images.to(device), (PAD,) * 4)
        self.padded = padded.permute(0, 2, 3, 1).contiguous()
        self.labels = labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, chosen: Int64[Tensor, " b"], stream: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Take images, in the range -1 to 1.

        Args:
            chosen: their numbers.
            stream: shifts each by up to `PAD` pixels a side and mirrors every second one, at
                random; None: as they are.

        Returns:
            Shape (b, c, h, w), channels-last in memory.
        """
        size, device = len(chosen), self.padded.device
        drawn = device if stream is None else stream.device
        rows = torch.arange(self.height, device=drawn).expand(size, -1)
        columns = torch.arange(self.width, device=drawn).expand(size, -1)
        if stream is None:
            rows, columns = rows + PAD, columns + PAD
        else:
            shift = torch.randint(2 * PAD + 1, (2, size, 1), generator=stream, device=drawn)
            mirror = torch.randint(2, (size, 1), generator=stream, device=drawn).bool()
            columns = torch.where(mirror, columns.flip(1), columns)
            rows, columns = rows + shift[0], columns + shift[1]
        at = chosen[:, None, None], rows[:, :, None], columns[:, None, :]
        taken = self.padded[tuple(index.to(device) for index in at)]
        return (taken.permute(0, 3, 1, 2).float() - 127.5) / 127.5


def train(
    model: nn.Module,
    data: Images,
    recipe: Recipe,
    stream: torch.Generator,
    *,
    observe: Observe | None = None,
    every: int = 50,
    checkpoint: Path | None = None,
    bar: tqdm | None = None,
) -> Progress:
    """Train a network in place.

    A loss that is not finite ends the training: that is an outcome, not an error. A training
    that was interrupted goes on from its checkpoint, and ends as if it had not been.

    Args:
        model: on the data's device, channels-last or not, compiled or not.
        data: training images.
        recipe: how to train.
        stream: of the order of the images, the shifts and the mirroring; best on the data's
            device.
        observe: called before every `every`-th step and at the end, for what is to be kept:
            plain numbers and lists of them. It must leave the model as it is.
        every: steps between two observations, and between two checkpoints.
        checkpoint: file to go on from, if it is there, and to write; None for none. It is gone
            on from on a device of the kind that wrote it.
        bar: updated once a step.

    Returns:
        Losses and observations.

    Raises:
        ValueError: batches larger than the data.
        DataError: the checkpoint was written on another device.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
        >>> data = Images(torch.zeros(50, 3, 32, 32, dtype=torch.uint8), torch.zeros(50).long())
        >>> progress = train(model, data, Recipe(steps=5, batch_size=8), torch.Generator())
        >>> progress.done, bool(progress.losses[4] < progress.losses[0])
        (5, True)
    """
    if recipe.batch_size > len(data):
        raise ValueError(f"batch_size={recipe.batch_size}: expected at most {len(data)}, the data")
    device = data.padded.device
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )
    progress = Progress(torch.full((recipe.steps,), math.nan, device=device))
    order = Order(len(data), recipe.batch_size, stream)
    if checkpoint is not None and checkpoint.exists():
        _resume(checkpoint, model, optimizer, progress, order)
    if bar is not None:
        bar.update(progress.done)

    model.train()
    for step in range(progress.done, recipe.steps):
        if observe is not None and step % every == 0:
            progress.observations[step] = observe()
        chosen = order.next()
        inputs = data.batch(chosen, stream if recipe.augment else None)
        loss = F.cross_entropy(
            forward(model, inputs, recipe.precision), data.labels[chosen.to(device)]
        )
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.step()
        progress.losses[step] = loss.detach()
        progress.done = step + 1
        if bar is not None:
            bar.update()
        if progress.done % CHECK == 0 or progress.done == recipe.steps:
            progress.diverged = not bool(progress.losses[: progress.done].isfinite().all())
            if progress.diverged:
                break
        if checkpoint is not None and progress.done % every == 0:
            _save(checkpoint, model, optimizer, progress, order)
    if bar is not None:
        bar.update(recipe.steps - progress.done)
    if observe is not None:
        progress.observations[progress.done] = observe()
    return progress


class Order:
    """Which images each batch holds: epoch after epoch of shuffles, no image twice in one.

    Args:
        size: number of images.
        batch_size: images a batch; what is left of an epoch is dropped.
        stream: shuffles.
    """

    def __init__(self, size: int, batch_size: int, stream: torch.Generator) -> None:
        self.size, self.batch_size, self.stream = size, batch_size, stream
        self.left = torch.empty(0, dtype=torch.int64, device=stream.device)

    def next(self) -> Int64[Tensor, " b"]:
        """Give the numbers of the next batch's images."""
        if len(self.left) < self.batch_size:
            drawn = self.stream.device
            self.left = torch.randperm(self.size, generator=self.stream, device=drawn)
        chosen, self.left = self.left[: self.batch_size], self.left[self.batch_size :]
        return chosen


def forward(model: nn.Module, inputs: Tensor, precision: Precision) -> Float[Tensor, "b c"]:
    """Compute logits in float32 from products in the given precision."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(inputs)
    return logits.float()


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Images, precision: Precision = "float32", batch_size: int = 500
) -> tuple[float, float]:
    """Compute the mean loss [nat] and the accuracy over all images, in evaluation mode.

    Args:
        model: on the data's device.
        data: images and labels.
        precision: of convolutions and matrix products.
        batch_size: images at once.

    Returns:
        Loss and share of images classified rightly; the mode is left as found.
    """
    training = model.training
    model.eval()
    losses, right = [], []
    for chosen in torch.arange(len(data), device=data.labels.device).split(batch_size):
        labels = data.labels[chosen]
        logits = forward(model, data.batch(chosen), precision)
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        right.append((logits.argmax(1) == labels).sum())
    model.train(training)
    loss = sum(torch.stack(losses).tolist())  # the host waits but once
    return loss / len(data), sum(torch.stack(right).tolist()) / len(data)


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    order: Order,
) -> None:
    """Write a checkpoint: the file is whole or it is not there."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
        "order": {"left": order.left, "stream": order.stream.get_state()},
        "device": _devices(progress, order),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    order: Order,
) -> None:
    device = progress.losses.device
    state = torch.load(path, map_location=device, weights_only=True)
    here, there = _devices(progress, order), state["device"]
    if there != here:  # other random numbers, and other rounding: not the training that it was
        raise DataError(f"{path}: a checkpoint of {there}, expected one of {here}; delete it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    vars(progress).update(state["progress"])
    order.left = state["order"]["left"].to(order.stream.device)
    order.stream.set_state(state["order"]["stream"].cpu())


def _devices(progress: Progress, order: Order) -> str:
    """Name the kinds of devices that a training and its random numbers are on."""
    kinds = progress.losses.device.type, order.stream.device.type
    return kinds[0] if kinds[0] == kinds[1] else f"{kinds[0]} with batches from {kinds[1]}"
