"""Networks with a planted fault, and sound ones: half to choose the rules by, half held out.

The list was written before the thresholds of `hessinit_lib.diagnosis.rules` were chosen, on
`DEVELOPMENT`; those of `HELD_OUT` were first run when the thresholds stood.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet, squeezenet1_1

from hessinit_book.networks.gpt import Gpt
from hessinit_book.randomness import generator

SAMPLES, CLASSES, TOKENS, LENGTH = 32, 10, 17, 12


@dataclass(frozen=True)
class Planted:
    """A network by its maker, and what is wrong with it: (kind, where), or nothing."""

    make: Callable[[], nn.Module]
    kind: str = ""
    where: str = ""
    batch: str = "vectors"


def batch(kind: str) -> tuple[Tensor, Tensor]:
    stream = generator(0, kind)
    if kind == "tokens":
        tokens = torch.randint(TOKENS, (8, LENGTH + 1), generator=stream)
        return tokens[:, :-1], tokens[:, 1:]
    shape = {"vectors": (64,), "images": (3, 16, 16), "large images": (3, 32, 32)}[kind]
    x = torch.randn(SAMPLES, *shape, generator=stream)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=stream)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def start(model: nn.Module, gain: float = math.sqrt(2), seed: int = 0) -> nn.Module:
    """Draw normal weights of deviation gain / sqrt(fan_in), and set biases to zero."""
    stream = generator(seed, "weights")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, 0, gain / math.sqrt(fan_in), generator=stream)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def scaled(model: nn.Module, name: str, factor: float) -> nn.Module:
    model.get_parameter(name).data.mul_(factor)
    return model


def mlp(
    depth: int, act: Callable[[], nn.Module] = nn.ReLU, gain: float = math.sqrt(2), width: int = 64
) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(width if layers else 64, width), act()]
    return start(nn.Sequential(*layers, nn.Linear(width, CLASSES)), gain)


def torch_mlp(depth: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(64, 64), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(64, CLASSES))


def cnn(norm: bool = False, blocks: int = 4) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for index in range(blocks):
        layers.append(nn.Conv2d(channels, 16, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(16)] if norm else []
        layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if index % 2 else [])]
        channels = 16
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, CLASSES)]
    return start(nn.Sequential(*layers))


class Residual(nn.Module):
    """z + scale * f(z)."""

    def __init__(self, branch: nn.Module, scale: float) -> None:
        super().__init__()
        self.branch, self.scale = branch, scale

    def forward(self, z: Tensor) -> Tensor:
        return z + self.scale * self.branch(z)


def residual_mlp(blocks: int, scale: float, seed: int = 0) -> nn.Module:
    def branch() -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

    body = [Residual(branch(), scale) for _ in range(blocks)]
    return start(nn.Sequential(nn.Linear(64, 64), *body, nn.Linear(64, CLASSES)), seed=seed)


def residual_cnn(blocks: int, scale: float) -> nn.Module:
    def branch() -> nn.Module:
        convs = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(2)]
        return nn.Sequential(nn.ReLU(), convs[0], nn.ReLU(), convs[1])

    body = [Residual(branch(), scale) for _ in range(blocks)]
    first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2))
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    return start(nn.Sequential(first, *body, last))


def zero_ended(blocks: int) -> nn.Module:
    """Every branch starts at zero, as in Fixup."""
    model = residual_mlp(blocks, 1.0)
    for module in model.modules():
        if isinstance(module, Residual):
            nn.init.zeros_(module.branch[-1].weight)
    return model


class Mask(nn.Module):
    """Dropout with a wrong factor in training."""

    def __init__(self, p: float, factor: float) -> None:
        super().__init__()
        self.p, self.factor = p, factor

    def forward(self, z: Tensor) -> Tensor:
        if not self.training:
            return z
        return z * (torch.rand_like(z) >= self.p) * self.factor


def with_dropout(p: float, factor: float) -> nn.Module:
    return start(
        nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), Mask(p, factor), nn.Linear(64, 64), nn.ReLU(),
            nn.Dropout(0.2), nn.Linear(64, CLASSES),
        )
    )  # fmt: skip


def cnn_with_dropout(factor: float) -> nn.Module:
    model = cnn()
    model.insert(2, Mask(0.5, factor))
    return model


def dead(model: nn.Module, name: str, shift: float = -20.0) -> nn.Module:
    model.get_parameter(name).data.fill_(shift)
    return model


def gpt(depth: int = 3) -> nn.Module:
    return Gpt(TOKENS, LENGTH, 32, 4, depth, generator(0, "weights"))


def encoder() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        return nn.Sequential(nn.Embedding(TOKENS, 32), body, nn.Linear(32, TOKENS))


def vision(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return make()


def small_resnet() -> nn.Module:
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def tanh(depth: int, gain: float = 1.0) -> nn.Module:
    return mlp(depth, nn.Tanh, gain)


DEVELOPMENT = {
    "MLP, layer 2 x 100": Planted(lambda: scaled(mlp(5), "2.weight", 100), "scale", "2.weight"),
    "tanh MLP, layer 1 x 0.001": Planted(
        lambda: scaled(tanh(4), "0.weight", 0.001), "scale", "0.weight"
    ),
    "CNN, layer 3 x 100": Planted(
        lambda: scaled(cnn(), "5.weight", 100), "scale", "5.weight", "images"
    ),
    "CNN with norm, layer 1 x 0.001": Planted(
        lambda: scaled(cnn(norm=True), "0.weight", 0.001), "scale", "0.weight", "images"
    ),
    "GPT, one projection x 100": Planted(
        lambda: scaled(gpt(), "blocks.1.up.weight", 100), "scale", "blocks.1.up.weight", "tokens"
    ),
    "MLP, dead ReLUs": Planted(lambda: dead(mlp(5), "2.bias"), "dead", "2.weight"),
    "tanh MLP, saturated": Planted(lambda: tanh(5, 8.0), "saturated", "0.weight"),
    "residual MLP, no scaling": Planted(lambda: residual_mlp(20, 1.0), "residual"),
    "residual CNN, no scaling": Planted(lambda: residual_cnn(16, 1.0), "residual", "", "images"),
    "dropout, no rescaling": Planted(lambda: with_dropout(0.5, 1.0), "noise", "2"),
    "sound: He MLP": Planted(lambda: mlp(10)),
    "sound: tanh MLP": Planted(lambda: tanh(8)),
    "sound: CNN with norm": Planted(lambda: cnn(norm=True), batch="images"),
    "sound: GPT": Planted(gpt, batch="tokens"),
    "sound: PyTorch's MLP": Planted(lambda: torch_mlp(3)),
}

HELD_OUT = {
    "deep MLP, last hidden layer x 0.001": Planted(
        lambda: scaled(mlp(8), "12.weight", 0.001), "scale", "12.weight"
    ),
    "PyTorch's MLP, output layer x 100": Planted(
        lambda: scaled(torch_mlp(4), "6.weight", 100), "scale", "6.weight"
    ),
    "residual CNN, a branch x 100": Planted(
        lambda: scaled(residual_cnn(4, 0.5), "2.branch.3.weight", 100),
        "scale", "2.branch.3.weight", "images",
    ),
    "ResNet, layer x 100": Planted(
        lambda: scaled(vision(small_resnet), "layer2.0.conv1.weight", 100),
        "scale", "layer2.0.conv1.weight", "large images",
    ),
    "encoder, feed-forward x 100": Planted(
        lambda: scaled(encoder(), "1.layers.1.linear1.weight", 100),
        "scale", "1.layers.1.linear1.weight", "tokens",
    ),
    "CNN, dead ReLUs": Planted(
        lambda: dead(cnn(), "2.bias"), "dead", "2.weight", "images"
    ),
    "SqueezeNet, dead ReLUs": Planted(
        lambda: dead(vision(lambda: squeezenet1_1(num_classes=CLASSES)), "features.6.squeeze.bias"),
        "dead", "features.6.squeeze.weight", "large images",
    ),
    "wide tanh MLP, saturated": Planted(
        lambda: mlp(4, nn.Tanh, 6.0, width=128), "saturated", "0.weight"
    ),
    "deeper residual MLP, no scaling": Planted(lambda: residual_mlp(30, 1.0, seed=7), "residual"),
    "CNN, dropout rescaled twice": Planted(lambda: cnn_with_dropout(4.0), "noise", "2", "images"),
    "sound: deep He MLP": Planted(lambda: mlp(20, width=128)),
    "sound: scaled residual CNN": Planted(lambda: residual_cnn(16, 0.25), batch="images"),
    "sound: branches that start at zero": Planted(lambda: zero_ended(20)),
    "sound: ResNet": Planted(lambda: vision(small_resnet), batch="large images"),
    "sound: encoder": Planted(encoder, batch="tokens"),
}  # fmt: skip
