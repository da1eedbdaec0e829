"""An epoch of training, ours against a plain loop, and what tracking adds to it.

The network is the ResNet-20 of `hessinit_book.networks`, with batch normalization; the images are
the CIFAR-10 sample. The plain loop is the usual one: torchvision's transforms on one image at a
time, a `DataLoader` with two workers, float32. Rounds are interleaved and the least time counts.

usage: python -m benchmarks.training [--rounds N] [--device cuda]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.recording import Recording, add_recording
from benchmarks.timing import seconds
from hessinit_book.data import ImageData, load
from hessinit_book.networks import NETWORKS, build
from hessinit_book.training.images import Images, Precision, Recipe, train
from hessinit_lib import HessianTracker

THREADS, WORKERS, BATCH, RATE, MOMENTUM = 1, 2, 128, 0.05, 0.9
EVERY = 50  # the tracker's default interval
PROBES = (64, 128)
QUICK_BATCH = 8


class Pictures(Dataset[tuple[Tensor, int]]):
    """The training images as torchvision's data sets give them: transformed one by one."""

    def __init__(self, data: ImageData) -> None:
        self.images = data.train_images.permute(0, 2, 3, 1).numpy()
        self.labels = data.train_labels.tolist()
        self.transform: Callable[[Image.Image], Tensor] = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Give an image, shape (3, 32, 32), and its label."""
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def network(device: torch.device) -> nn.Module:
    """Make the network, with the same weights each time."""
    return build(NETWORKS["resnet20_norm"], "he", torch.Generator().manual_seed(0)).to(device)


def plain_epoch(data: ImageData, batch: int, device: torch.device) -> Callable[[], None]:
    """Prepare the plain loop; its workers stay alive from epoch to epoch."""
    model = network(device).train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, nesterov=True)
    loader = DataLoader(
        Pictures(data),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(0),
    )

    def epoch() -> None:
        for inputs, labels in loader:
            loss = F.cross_entropy(model(inputs.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def our_epoch(
    data: ImageData, batch: int, precision: Precision, device: torch.device
) -> Callable[[], object]:
    """Prepare ours."""
    model = network(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = Images(data.train_images, data.train_labels, device)
    recipe = Recipe(len(images) // batch, batch, RATE, MOMENTUM, precision=precision)
    return lambda: train(model, images, recipe, torch.Generator(device).manual_seed(0))


def tracking(data: ImageData, size: int, device: torch.device) -> Callable[[], object]:
    """Prepare one record of the tracker, with its default options."""
    inputs, labels = (tensor[:size] for tensor in data.tensors("train", device))
    tracker = HessianTracker(network(device).train(), F.cross_entropy, inputs, labels)
    return tracker.record


def measure(
    rounds: int, data: ImageData, batch: int, probes: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """Time all in turn, `rounds` times after a first that does not count."""
    ways: dict[str, Callable[[], object]] = {
        "plain_float32": plain_epoch(data, batch, device),
        "ours_float32": our_epoch(data, batch, "float32", device),
        "ours_bfloat16": our_epoch(data, batch, "bfloat16", device),
        **{f"record_{size}": tracking(data, size, device) for size in probes},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            took = seconds(way)
            if number:
                times[name].append(took)
    least = {name: min(found) for name, found in times.items()}
    steps = len(data.train_labels) // batch
    return {
        "seconds": least,
        "steps": steps,
        "plain_over_ours": {
            precision: least["plain_float32"] / least[f"ours_{precision}"]
            for precision in ("float32", "bfloat16")
        },
        # Of a training that records every so many steps, relative to one that does not.
        "tracking_share": {
            f"probe_{size}": least[f"record_{size}"] / (EVERY * least["ours_float32"] / steps)
            for size in probes
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training")
    parser.add_argument("--rounds", type=int, default=3)
    add_recording(parser)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    recording, data = Recording("training", chosen), load("cifar10", sample=True)
    batch, rounds, probes = BATCH, chosen.rounds, PROBES
    if chosen.quick:
        batch, rounds, probes = QUICK_BATCH, 1, (QUICK_BATCH,)
        images, labels = (t[: 2 * batch] for t in (data.train_images, data.train_labels))
        data = replace(data, train_images=images, train_labels=labels)
    values = measure(rounds, data, batch, probes, chosen.device)
    print(values)
    parameters = {
        "threads": THREADS,
        "workers": WORKERS,
        "batch": batch,
        "every": EVERY,
        "rounds": rounds,
    }
    recording.write(values, parameters, data.info)


if __name__ == "__main__":
    main()
