"""The networks of the experiment: plain, residual, normalized, and a few that are not dense."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hessinit_book.networks.dense import critical_network
from hessinit_lib.theory.activations import activation_function
from hessinit_lib.theory.critical import critical_variance

SIDE, CLASSES = 28, 10
INPUTS = SIDE * SIDE


class Shape(NamedTuple):
    """A fully connected network.

    Attributes:
        depth: layers of weights.
        width: units of a hidden layer.
        activation: its name.
        kind: "plain"; "residual" or "scaled", where hidden layers are branches that are added,
            as they are or over the root of their number; "normalized", with a layer norm
            before each activation.
    """

    depth: int
    width: int
    activation: str = "relu"
    kind: str = "plain"


class Branched(nn.Module):
    """A first layer, hidden layers that are added to what they read, and a last layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        widths = [INPUTS, *[shape.width] * (shape.depth - 1), CLASSES]
        first, *hidden, last = (nn.Linear(n, m, device="meta") for n, m in pairwise(widths))
        self.first, self.hidden, self.last = first, nn.ModuleList(hidden), last
        self.activation = activation_function(shape.activation)
        self.factor = 1 / math.sqrt(max(len(hidden), 1)) if shape.kind == "scaled" else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of flat images."""
        z = self.activation(self.first(x))
        for layer in self.hidden:
            z = z + self.factor * self.activation(layer(z))
        return self.last(z)


def dense(shape: Shape, stream: torch.Generator) -> nn.Module:
    """Draw a fully connected network with critical weights and zero biases.

    Example:
        >>> dense(Shape(3, 8, kind="scaled"), torch.Generator()).factor
        1.0
    """
    widths = [INPUTS, *[shape.width] * (shape.depth - 1), CLASSES]
    if shape.kind in ("residual", "scaled"):
        return _drawn(Branched(shape).to_empty(device="cpu"), shape.activation, stream)
    model = critical_network(shape.activation, widths, stream)
    if shape.kind == "plain":
        return model
    layers = []
    for module in model:
        layers.append(module)
        if isinstance(module, nn.Linear) and module.out_features != CLASSES:
            layers.append(nn.LayerNorm(module.out_features))
    return nn.Sequential(*layers)


class Rows(nn.Module):
    """Reads an image row by row: a recurrent network or a transformer, and a linear head."""

    def __init__(self, width: int, transformer: bool) -> None:
        super().__init__()
        self.read = nn.Linear(SIDE, width)
        self.place = nn.Parameter(torch.zeros(SIDE, width))
        if transformer:
            block = nn.TransformerEncoderLayer(
                width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            self.body: nn.Module = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        else:
            self.body = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Give the logits of flat images."""
        z = self.body(self.read(x.view(-1, SIDE, SIDE)) + self.place)
        z = z[0][:, -1] if isinstance(z, tuple) else z.mean(1)
        return self.head(z)


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        *[nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 5, stride=2), nn.ReLU()],
        *[nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, CLASSES)],
    )


def _torch_drawn(make: Callable[[], nn.Module]) -> Callable[[torch.Generator], nn.Module]:
    """Draw as PyTorch's modules do, with a stream of their own."""

    def draw(stream: torch.Generator) -> nn.Module:
        seed = int(torch.randint(2**31, (), generator=stream))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make()

    return draw


def judged(width: int) -> dict[str, Callable[[torch.Generator], nn.Module]]:
    """Name the networks whose stable rates are sought, each a function of a stream."""
    shapes = {
        "relu_3": Shape(3, width),
        "relu_10": Shape(10, width),
        "relu_20": Shape(20, width),
        "tanh_10": Shape(10, width, "tanh"),
        "gelu_10": Shape(10, width, "gelu"),
        "residual_10": Shape(10, width, kind="residual"),
        "scaled_10": Shape(10, width, kind="scaled"),
        "normalized_10": Shape(10, width, kind="normalized"),
    }
    found = {name: (lambda stream, s=shape: dense(s, stream)) for name, shape in shapes.items()}
    others = {
        "cnn": _convolutional,
        "lstm": lambda: Rows(width, transformer=False),
        "transformer": lambda: Rows(width, transformer=True),
    }
    return found | {name: _torch_drawn(make) for name, make in others.items()}


def _drawn(model: nn.Module, activation: str, stream: torch.Generator) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            std = critical_variance(activation, module.in_features, module.in_features) ** 0.5
            with torch.no_grad():
                module.weight.copy_(std * torch.randn(module.weight.shape, generator=stream))
                module.bias.zero_()
    return model
