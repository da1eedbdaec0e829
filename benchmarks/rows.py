"""The rows of the benchmark: which network, on which images, in which batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.data import load
from hessinit_book.randomness import generator
from hessinit_book.records.records import DatasetInfo


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, its loss, and one batch: what every library is given.

    Attributes:
        model: with parameters of type float32.
        loss_fn: softmax cross-entropy, batch mean.
        inputs: shape (B, ...).
        labels: class of each input; shape (B,).
        smooth: whether the network is smooth, so that its Hessian is more than Gauss-Newton.
        dataset: where the batch is from.
    """

    model: nn.Module
    loss_fn: nn.Module
    inputs: Tensor
    labels: Tensor
    smooth: bool
    dataset: DatasetInfo

    def to(self, device: torch.device) -> Problem:
        """Move the network and the batch."""
        model, loss_fn = self.model.to(device), self.loss_fn.to(device)
        moved = {"inputs": self.inputs.to(device), "labels": self.labels.to(device)}
        return replace(self, model=model, loss_fn=loss_fn, **moved)

    @property
    def layers(self) -> dict[str, nn.Parameter]:
        """The weights whose Hessian blocks are asked for, by name (biases are left out)."""
        return {name: p for name, p in self.model.named_parameters() if p.dim() > 1}


@dataclass(frozen=True)
class Row:
    """One row of the benchmark.

    Attributes:
        title: of the network, as readers see it.
        network: makes it, with torch's default initialization.
        data: "mnist" or "cifar10": the samples that ship with the package.
        batch: number of inputs.
        smooth: whether the activations are smooth.
        flat: whether the network takes vectors.
    """

    title: str
    network: Callable[[], nn.Module]
    data: str
    batch: int
    smooth: bool = False
    flat: bool = False

    def problem(self, seed: int = 0) -> Problem:
        """Draw the weights and take the first training images."""
        data = load(self.data, sample=True)
        images, labels = data.tensors("train")
        inputs = images[: self.batch].flatten(1) if self.flat else images[: self.batch]
        model = self.network()
        draw_weights(model, gain=1.0 if self.smooth else 2.0, stream=generator(seed, "weights"))
        return Problem(
            model, nn.CrossEntropyLoss(), inputs, labels[: self.batch], self.smooth, data.info
        )


def draw_weights(model: nn.Module, gain: float, stream: torch.Generator) -> None:
    """Draw weights with variance gain / fan_in; biases zero.

    In a residual network each branch is damped by the square root of the number of blocks:
    without normalization, its outputs would grow with the depth.
    """
    blocks = sum(isinstance(module, Block) for module in model.modules())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                damping = blocks if name.endswith("second.weight") else 1
                deviation = math.sqrt(gain / parameter[0].numel() / damping)
                parameter.normal_(0, deviation, generator=stream)
            else:
                parameter.zero_()


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Make a fully connected network."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Sequential:
    """Make LeNet-5 for color images with ReLU and max-pooling, 62,006 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def cifar_cnn() -> nn.Sequential:
    """Make three convolutions and two fully connected layers, 1.12 million parameters."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((3, 32, 64, 128)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 500), nn.ReLU(), nn.Linear(500, 10))


class Block(nn.Module):
    """A residual block of two convolutions; the shortcut subsamples and adds zero channels."""

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1)
        self.second = nn.Conv2d(fan_out, fan_out, 3, padding=1)
        self.stride, self.added = stride, fan_out - fan_in

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c, h, w) to (B, c', h / stride, w / stride)."""
        branch = self.second(F.relu(self.first(x)))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(branch + shortcut)


def resnet(depth: int) -> nn.Sequential:
    """Make a residual network for CIFAR without normalization, depth = 6 n + 2."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for fan_in, fan_out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers.append(Block(fan_in, fan_out, stride))
        layers += [Block(fan_out, fan_out, 1) for _ in range((depth - 2) // 6 - 1)]
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


_SMALL, _WIDE = partial(mlp, 784, 30, 30, 10), partial(mlp, 784, 512, 512, 10)
_DEEP = partial(mlp, 784, *[100] * 10, 10, activation=nn.Tanh)

ROWS = {
    "mlp30_b32": Row("784-30-30-10", _SMALL, "mnist", 32, flat=True),
    "mlp30_b1024": Row("784-30-30-10", _SMALL, "mnist", 1024, flat=True),
    "mlp512_b128": Row("784-512-512-10", _WIDE, "mnist", 128, flat=True),
    "mlp512_b1024": Row("784-512-512-10", _WIDE, "mnist", 1024, flat=True),
    "tanh_b128": Row("784-[100]×10-10, tanh", _DEEP, "mnist", 128, smooth=True, flat=True),
    "lenet_b128": Row("LeNet-5", lenet, "cifar10", 128),
    "cnn_b128": Row("CIFAR CNN", cifar_cnn, "cifar10", 128),
    "resnet8_b64": Row("ResNet-8, no norm", partial(resnet, 8), "cifar10", 64),
    "resnet20_b64": Row("ResNet-20, no norm", partial(resnet, 20), "cifar10", 64),
}
