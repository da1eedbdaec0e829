"""Modules of the faults in `held_out.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hessinit_book.zoo.networks import CLASSES, FRAMES


class Variational(nn.Module):
    """An autoencoder of vectors whose code is drawn around a mean."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(256, 64), nn.ReLU())
        self.mean, self.logvar = nn.Linear(64, 16), nn.Linear(64, 16)
        self.decode = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 256))
        nn.init.constant_(self.logvar.bias, start)

    def forward(self, x: Tensor) -> Tensor:
        """Give the vectors again."""
        z = self.encode(x)
        noise = torch.randn(len(x), 16)
        return self.decode(self.mean(z) + noise * (self.logvar(z) / 2).exp())


class StepRead(nn.Module):
    """An LSTM of which one step is read."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.body, self.out = nn.LSTM(FRAMES, 64, batch_first=True), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        return self.out(self.body(x)[0][:, self.step])


class Carried(nn.Module):
    """A GRU that starts from the mean state in which the last batch left it."""

    state: Tensor

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.detached = detached
        self.body, self.out = nn.GRU(FRAMES, 64, batch_first=True), nn.Linear(64, CLASSES)
        self.register_buffer("state", torch.zeros(1, 1, 64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        _, state = self.body(x, self.state.expand(-1, len(x), -1).contiguous())
        mean = state.mean(1, keepdim=True)
        self.state = mean.detach() if self.detached else mean
        return self.out(state[0])


class WithState(nn.Module):
    """A GRU that gives its state with its logits, or not."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both
        self.body, self.out = nn.GRU(FRAMES, 64, batch_first=True), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Give logits, shape (B, classes)."""
        z, state = self.body(x)
        logits = self.out(z[:, -1])
        return (logits, state) if self.both else logits


class Cosine(nn.Module):
    """Logits that are cosines with the classes' vectors, times a scale."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.classes = nn.Parameter(torch.randn(CLASSES, width))

    def forward(self, z: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        unit = nn.functional.normalize
        return self.scale * unit(z, dim=-1) @ unit(self.classes, dim=-1).T


class Dropping(nn.Module):
    """A residual branch that is dropped for half of the samples, or the whole stream is."""

    def __init__(self, stream: bool, width: int = 64) -> None:
        super().__init__()
        self.stream = stream
        self.f = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, z: Tensor) -> Tensor:
        """Add the branch."""
        if not self.training:
            return z + self.f(z)
        keep = 2.0 * (torch.rand(len(z), 1) < 0.5)
        return (z + self.f(z)) * keep if self.stream else z + self.f(z) * keep


class OwnNorm(nn.Module):
    """Layer normalization by hand."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, z: Tensor) -> Tensor:
        """Normalize."""
        z = z - z.mean(-1, keepdim=True)
        return z / (z.square().mean(-1, keepdim=True) + self.eps).sqrt()


class Again(nn.Module):
    """One layer, applied many times."""

    def __init__(self, gain: float, times: int = 12, width: int = 64) -> None:
        super().__init__()
        self.times, self.cell = times, nn.Linear(width, width)
        nn.init.orthogonal_(self.cell.weight, gain)

    def forward(self, z: Tensor) -> Tensor:
        """Apply it."""
        for _ in range(self.times):
            z = self.cell(z).relu()
        return z


class Neighbors(nn.Module):
    """Rounds of messages between rows near each other, of which a sum or a mean is read."""

    def __init__(self, mean: bool, rounds: int = 8) -> None:
        super().__init__()
        self.mean = mean
        self.embed, self.out = nn.Linear(FRAMES, 64), nn.Linear(64, CLASSES)
        self.rounds = nn.ModuleList(nn.Linear(64, 64) for _ in range(rounds))
        for layer in self.rounds:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        places = torch.arange(x.shape[1])
        near = ((places[:, None] - places).abs() <= 4).float()
        if self.mean:
            near = near / near.sum(1, keepdim=True)
        z = self.embed(x)
        for layer in self.rounds:
            z = layer(near @ z).relu()
        return self.out(z.mean(1))


class InPlace(nn.Module):
    """A gate whose values are changed after torch kept them for the gradient."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.embed, self.gate = nn.Linear(FRAMES, 64), nn.Linear(FRAMES, 64)
        self.out = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits, shape (B, classes)."""
        gate = self.gate(x).sigmoid()
        if self.in_place:
            gate += 0.1
        else:
            gate = gate + 0.1
        return self.out((self.embed(x) * gate).mean(1))


def pictures() -> nn.Module:
    """Stack three convolutions and ReLUs, drawn by He's formula."""
    layers: list[nn.Module] = []
    for index in range(3):
        conv = nn.Conv2d(24 if index else 3, 24, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, CLASSES))


def pooled() -> nn.Module:
    """Normalize pooled maps over the batch before the last layer."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.BatchNorm1d(32), nn.Linear(32, CLASSES),
    )  # fmt: skip


def restoring(kernel: bool) -> nn.Module:
    """Make an autoencoder of images, whose fan in counts the kernel or not."""
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(((3, 16), (16, 16), (16, 16), (16, 16), (16, 16), (16, 3))):
        conv = nn.Conv2d(a, b, 5, padding=2)
        fan = a * (25 if kernel else 1)
        nn.init.normal_(conv.weight, 0, math.sqrt((1 if index == 5 else 2) / fan))
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def stacked(blocks: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Stack blocks between a first and a last layer."""
    return nn.Sequential(
        nn.Linear(256, 64), *(make() for _ in range(blocks)), nn.Linear(64, CLASSES)
    )
