"""Training of the experiment `mnist_depth`: networks of one shape, at every rate at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hessinit_book.chapters.mnist_depth.stack import Masks, Stack
from hessinit_book.data import ImageData
from hessinit_book.randomness import generator
from hessinit_book.statistics.rounding import all_rounded
from hessinit_book.training.batches import batch_indices

EARLY_STEPS = 10  # after which the loss on the probe is taken
FINAL_STEPS = 20  # the last steps, over which the final loss is averaged
WINDOW = 10  # steps over which the loss is averaged until it is below the level
TEST_IMAGES = 1000  # the first ones, for the accuracy


class Task(NamedTuple):
    """What all networks of a seed are measured and trained on.

    Attributes:
        inputs: training images, shape (n, 784).
        labels: their classes, shape (n,).
        test_inputs: test images, shape (m, 784).
        test_labels: their classes, shape (m,).
        probe: numbers of the training images on which initializations are measured.
        order: numbers of the training images of each batch.
    """

    inputs: Float[Tensor, "n 784"]
    labels: Int64[Tensor, " n"]
    test_inputs: Float[Tensor, "m 784"]
    test_labels: Int64[Tensor, " m"]
    probe: Int64[Tensor, " probe"]
    order: Int64[Tensor, "steps batch"]

    @property
    def probe_batch(self) -> tuple[Float[Tensor, "probe 784"], Int64[Tensor, " probe"]]:
        """Images of the probe and their classes."""
        return self.inputs[self.probe], self.labels[self.probe]


def make_task(
    data: ImageData, device: torch.device, seed: int, probe_size: int, batch_size: int, steps: int
) -> Task:
    """Put the data on the device and choose the samples of the probe and of all batches."""
    images, labels = data.tensors("train", device)
    test_images, test_labels = data.tensors("test", device)
    chosen = torch.randperm(len(images), generator=generator(seed, "probe"))
    order = batch_indices(len(images), batch_size, steps, generator(seed, "batches"))
    return Task(
        images.flatten(1),
        labels,
        test_images[:TEST_IMAGES].flatten(1),
        test_labels[:TEST_IMAGES],
        chosen[:probe_size].to(device),
        order.to(device),
    )


def train_all(
    networks: Sequence[nn.Sequential],
    activation: str,
    task: Task,
    rates: Sequence[float],
    level: float,
    after_step: Callable[[], object],
    masks: Masks | None = None,
) -> list[dict[str, Any]]:
    """Train copies of some networks at every rate.

    Args:
        networks: of one shape.
        activation: theirs.
        task: what to train on.
        rates: learning rates.
        level: a network trains if its final loss [nat] is below; steps are counted to it.
        after_step: called after each step, for a progress bar.
        masks: of dropout, see `Stack.train`.

    Returns:
        For each rate, lists over the networks: `early_loss`, on the probe after `EARLY_STEPS`
        steps, and `final_loss` (inf: diverged), `trains`, `steps_to_level`, until the mean of
        `WINDOW` steps is below (inf: never), and the test `accuracy`. Early loss and accuracy
        are those without dropout.
    """
    count = len(networks)
    stack = Stack([network for _ in rates for network in networks], activation)
    each_rate = torch.tensor(rates, device=task.inputs.device).repeat_interleave(count)
    early: list[float] = []
    done = itertools.count(1)

    def look() -> None:
        if next(done) == min(EARLY_STEPS, len(task.order)):
            with torch.no_grad():
                now = stack.losses(*task.probe_batch)
            early.extend(now.nan_to_num(nan=math.inf, posinf=math.inf).tolist())
        after_step()

    losses = stack.train(task.inputs, task.labels, task.order, each_rate, look, masks)
    final = losses.double()[:, -FINAL_STEPS:].mean(1).nan_to_num(nan=math.inf)
    found = {
        "early_loss": all_rounded(early),
        "final_loss": all_rounded(final.tolist()),
        "trains": [int(loss < level) for loss in final.tolist()],
        "steps_to_level": steps_below(losses, level),
        "accuracy": all_rounded(stack.accuracies(task.test_inputs, task.test_labels).tolist(), 4),
    }
    return [
        {
            "learning_rate": rate,
            **{name: values[i * count : (i + 1) * count] for name, values in found.items()},
        }
        for i, rate in enumerate(rates)
    ]


def steps_below(losses: Float[Tensor, "networks steps"], level: float) -> list[float]:
    """Count the steps until the mean loss of the last `WINDOW` is below a level; inf: never.

    Example:
        >>> steps_below(torch.tensor([[2.0, 1.0, 0.9], [2.0, 2.0, 2.0]]), level=1.4)
        [3.0, inf]
    """
    window = min(WINDOW, losses.shape[1])
    below = losses.unfold(1, window, 1).mean(-1) < level
    first = below.int().argmax(1) + window
    return torch.where(below.any(1), first.double(), math.inf).tolist()
