"""Small networks of many kinds, and their Gauss-Newton blocks from dense Jacobians."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel
from hessinit_lib.hessians.loss import on_logits
from hessinit_lib.hessians.loss_value import evaluate


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def log_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Convex on small outputs, and neither of a softmax nor diagonal."""
    return (1 + outputs.square().sum(1) + (outputs - targets).sum(1).square()).sqrt().mean()


def wavy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Not convex, and outputs of a sample depend on each other."""
    return (outputs.prod(1) - targets.sum(1)).square().mean()


class Transformer(nn.Module):
    """A class token, learned positions, packed attention, a normalized weight, a tied head."""

    def __init__(self, tied: bool, batch_first: bool = True) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(7, 8, padding_idx=2), nn.Parameter(torch.randn(5, 8) / 5)
        self.c, self.n = nn.Parameter(torch.randn(1, 1, 8)), nn.LayerNorm(8)
        self.a = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.q = nn.Linear(8, 16)
        self.r = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
        self.w = nn.Parameter(torch.randn(2, 4, 8) / 3)
        self.h = nn.Linear(8, 7, bias=False)
        if tied:
            self.h.weight = self.e.weight
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([self.c.expand(len(x), 1, -1), self.e(x) + self.p], 1)
        y = self.n(z) if self.batch_first else self.n(z).transpose(0, 1)
        y = self.a(y, y, y, need_weights=False)[0]
        z = z + (y if self.batch_first else y.transpose(0, 1))
        z = z + self.r(F.gelu(self.q(z)))
        heads = z.unflatten(2, (2, 4)).transpose(1, 2)
        z = z + torch.einsum("bhtd,hdk->btk", heads, self.w)
        return self.h(z[:, 1:])


class Recurrent(nn.Module):
    """Two layers of a kind, over the first axis or the second."""

    def __init__(self, kind: type[nn.Module], batch_first: bool) -> None:
        super().__init__()
        self.r, self.o = kind(5, 6, 2, batch_first=batch_first), nn.Linear(6, 4)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return self.o(self.r(x)[0][:, -1])
        return self.o(self.r(x.transpose(0, 1))[0][-1])


class Bare(nn.Module):
    """Parameters used past any layer: by row, by column, by sample, from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.u = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(4, 5))
        self.t, self.s = nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.rand(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(x @ self.v)
        z = z + self.t[(x[:, 0].abs() * 3).long() % 9]
        z = z * self.s
        return (self.u @ z.T).T


def images() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        *(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 12, 1), nn.PReLU(12), nn.BatchNorm2d(12)),
        *(nn.ConvTranspose2d(12, 6, 3, 2, 1, groups=3), nn.Tanh(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 4)),
    )


def make(name: str) -> Case:
    """Make a network of a name, and a batch of six samples."""
    torch.manual_seed(3)
    x, y = torch.randn(6, 4, 5), torch.randint(4, (6,))
    tokens, loss = torch.randint(7, (6, 5)), nn.CrossEntropyLoss(label_smoothing=0.1)
    pictures = torch.randn(6, 3, 8, 8)
    networks = {
        "tied": lambda: (Transformer(True), token_loss, tokens, tokens.roll(1, 1)),
        "untied": lambda: (Transformer(False, False), token_loss, tokens, tokens.roll(1, 1)),
        "lstm": lambda: (Recurrent(nn.LSTM, True), loss, x, y),
        "gru": lambda: (Recurrent(nn.GRU, False), loss, x, y),
        "rnn": lambda: (Recurrent(nn.RNN, True), nn.MSELoss(), x, torch.randn(6, 4)),
        "images": lambda: (images().eval(), loss, pictures, y),
        "bce": lambda: (images().eval(), nn.BCEWithLogitsLoss(), pictures, torch.rand(6, 4)),
        "coupled outputs": lambda: (images().eval(), log_loss, pictures, torch.rand(6, 4)),
        "not convex": lambda: (images().eval(), wavy, pictures, torch.rand(6, 4)),
        "one output": lambda: (
            nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)),
            *(nn.BCEWithLogitsLoss(), torch.randn(6, 5), torch.rand(6)),
        ),
        "bare": lambda: (Bare(), loss, torch.randn(6, 6), y),
    }
    model, loss_fn, inputs, targets = networks[name]()
    inputs, targets = (t.double() if t.is_floating_point() else t for t in (inputs, targets))
    return Case.checked(model.double(), loss_fn, inputs, targets, layers="*")


NAMES = [
    *("tied", "untied", "lstm", "gru", "rnn", "images", "bce", "coupled outputs", "not convex"),
    *("one output", "bare"),
]


def jacobians(case: Case) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Compute the outputs, A, and J of each parameter, row by row."""
    pure = PureModel(case.model, case.weights)
    with pure.running(), torch.enable_grad():
        outputs, axis = pure.logits(case.inputs)
    loss_fn = on_logits(case.loss_fn, axis)
    z = outputs.detach()
    hessian: Any = torch.autograd.functional.hessian(
        lambda v: evaluate(loss_fn, v, case.targets), z
    )
    units = torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape)
    weights = [pure.state[name] for name in case.weights]
    rows = [
        torch.autograd.grad(outputs, weights, unit, retain_graph=True, materialize_grads=True)
        for unit in units
    ]
    found = [torch.stack([row.flatten() for row in column]) for column in zip(*rows, strict=True)]
    return z, hessian.reshape(z.numel(), -1), dict(zip(case.weights, found, strict=True))


def dense(case: Case) -> dict[str, Tensor]:
    """Form all Gauss-Newton blocks."""
    _, hessian, rows = jacobians(case)
    return {name: j.T @ hessian @ j for name, j in rows.items()}
