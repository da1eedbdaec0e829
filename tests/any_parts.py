"""Parts of random networks: layers, habits of users within them, losses and targets."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus,
    nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Mish,
    nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Identity,
    lambda: nn.ReLU(inplace=True), lambda: nn.GELU("tanh"), lambda: nn.SiLU(inplace=True),
    lambda: nn.Softmax(-1), lambda: nn.ELU(inplace=True), lambda: nn.Threshold(0.1, 0.0),
]  # fmt: skip

PIECEWISE_LINEAR: list[Callable[[], nn.Module]] = [
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Identity, lambda: nn.ReLU(inplace=True),
]  # fmt: skip

# Whether the reference is computed: without checkpoints, and in float64 throughout.
STATE = SimpleNamespace(reference=False)


class Cube(torch.autograd.Function):
    """A function of one's own: right, or not differentiable twice as a user may write it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.how = how
        return x.round() if how == "straight-through" else x + 0.1 * x**3

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if ctx.how == "straight-through":
            return grads[0], None
        slope = 1 + 0.3 * (x.detach() if ctx.how == "wrong second" else x) ** 2
        return grads[0] * slope, None


class CubeOnce(Cube):
    backward = staticmethod(torch.autograd.function.once_differentiable(Cube.backward))


class Block(nn.Module):
    """A linear layer and an activation of width 4, and what is done with them: a habit."""

    def __init__(self, how: str, *layers: nn.Module) -> None:
        super().__init__()
        self.how, self.body = how, nn.Sequential(*layers)
        self.list = [nn.Linear(4, 4, dtype=torch.float64)] if "in a list" in how else []
        self.unread = nn.Linear(2, 2) if how == "unused layer" else None
        self.scale = nn.Parameter(torch.randn(4, 4)) if how in NEED_A_WEIGHT else None
        self.experts = nn.ModuleList([nn.Linear(4, 4)] * 2 + [nn.Linear(4, 4)])
        if how not in ("experts", "registered layers in a list"):
            self.experts = None
        self.register_buffer("seen", torch.zeros(4) if how == "running buffer" else None)
        self.compiled = torch.compile(self.body, backend="eager") if how == "compiled" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.how in HABITS:
            return HABITS[self.how](self, x)
        return self.body(x)


def _no_grad_part(m: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        part = m.body(x).sigmoid()
    return m.body(x) * part


def _running(m: Block, x: Tensor) -> Tensor:
    if m.training:
        m.seen.mul_(0.9).add_(x.detach().reshape(-1, 4).mean(0).to(m.seen))
    return m.body(x)


def _lora(m: Block, x: Tensor) -> Tensor:
    return m.body(x) + x @ m.scale[:2].mT @ m.scale[2:] * 0.5


def _experts(m: Block, x: Tensor) -> Tensor:
    gates = m.body(x)[..., :3].softmax(-1)
    best = gates.argmax(-1, keepdim=True)
    every = torch.stack([expert(x) for expert in m.experts], -2)
    chosen = every.gather(-2, best[..., None].expand(*best.shape, 4))[..., 0, :]
    return chosen * gates.gather(-1, best)


def _gradient_inside(m: Block, x: Tensor) -> Tensor:
    with torch.enable_grad():
        z = x if x.requires_grad else x.clone().requires_grad_()
        (force,) = torch.autograd.grad(m.body(z).square().sum(), z, create_graph=True)
    return force + m.body(x)


def _tensor_hook(m: Block, x: Tensor) -> Tensor:
    out = m.body(x)
    if out.requires_grad:
        out.register_hook(lambda grad: 1.5 * grad)
    return out


def _plain_checkpoint(reentrant: bool) -> Callable[[Block, Tensor], Tensor]:
    def call(m: Block, x: Tensor) -> Tensor:
        return m.body(x) if STATE.reference else checkpoint(m.body, x, use_reentrant=reentrant)

    return call


def _standardized(m: Block, x: Tensor) -> Tensor:
    weight = m.body[0].weight
    weight = (weight - weight.mean(1, keepdim=True)) / (weight.std(1, keepdim=True) + 0.1)
    return m.body[1](F.linear(x, weight, m.body[0].bias))


HABITS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "residual": lambda m, x: x + m.body(x),
    "tied": lambda m, x: m.body(m.body(x)),
    "checkpoint reentrant": _plain_checkpoint(True),
    "checkpoint plain": _plain_checkpoint(False),
    "detached part": lambda m, x: m.body(x) + m.body(x).detach() * x,
    "no_grad part": _no_grad_part,
    "weights in a list": lambda m, x: m.body(x) + F.linear(x, m.list[0].weight.to(x.dtype)),
    "layer in a list": lambda m, x: m.body(x) + m.list[0].to(x.dtype)(x),
    "registered layers in a list": lambda m, x: sum(e(x) for e in list(m.experts)) + m.body(x),
    "bare parameter": lambda m, x: m.body(x) @ m.scale,
    "dropout": lambda m, x: F.dropout(m.body(x), 0.5, training=True),
    "noise": lambda m, x: m.body(x) + 0.1 * torch.randn_like(x),
    "once differentiable": lambda m, x: CubeOnce.apply(m.body(x), m.how),
    "right function": lambda m, x: Cube.apply(m.body(x), m.how),
    "wrong second": lambda m, x: Cube.apply(m.body(x), m.how),
    "straight-through": lambda m, x: Cube.apply(m.body(x), m.how),
    "straight-through by detach": lambda m, x: x + (m.body(x).round() - x).detach() + 0 * m.body(x),
    "inputs in place": lambda m, x: m.body(x.sub_(0.1).mul_(1.5)),
    "couples samples": lambda m, x: m.body(x - x.mean(0)),
    "weight read elsewhere": lambda m, x: m.body(x) + F.linear(x, m.body[0].weight * 1.1),
    "standardized weight": _standardized,
    "running buffer": _running,
    "remembers": lambda m, x: vars(m).update(last=m.body(x)) or m.last,
    "training only": lambda m, x: m.body(x) * (1.3 if m.training else 1.0),
    "low rank": _lora,
    "experts": _experts,
    "gradient inside": _gradient_inside,
    "tensor hook": _tensor_hook,
    "sorted": lambda m, x: m.body(x).sort(-1).values,
    "top": lambda m, x: m.body(x.topk(2, -1).values.repeat_interleave(2, -1)),
    "where": lambda m, x: torch.where(x > 0, m.body(x), x.sin()),
    "normalized": lambda m, x: F.normalize(m.body(x), dim=-1),
    "einsum": lambda m, x: torch.einsum("...i,ij->...j", m.body(x), m.scale),
    "fourier": lambda m, x: torch.fft.fft(m.body(x)).real,
    "in float32": lambda m, x: m.body(x).float().square().to(x.dtype),
    "row by row": lambda m, x: torch.stack([m.body(row) for row in x]),
    "vmap": lambda m, x: torch.vmap(m.body)(x),
    "compiled": lambda m, x: m.body(x) if STATE.reference else m.compiled(x),
    "pairwise": lambda m, x: m.body(x) + torch.cdist(x.flatten(1), x.flatten(1)).mean() * x,
}
NEED_A_WEIGHT = {"bare parameter", "low rank", "einsum"}
HOWS = [*HABITS, "unused layer"]
# There, second derivatives by autograd are not those of what the model computes.
BY_DIFFERENCES = {
    "detached part", "no_grad part", "wrong second", "straight-through", "once differentiable",
    "weights in a list", "straight-through by detach", "tensor hook",
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.attend, self.weights = nn.MultiheadAttention(4, 2, batch_first=True), weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=self.weights)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], both: bool, layers: int) -> None:
        super().__init__()
        width = 2 if both else 4
        self.cell = kind(4, width, layers, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Cells(nn.Module):
    """A loop over steps, written by hand."""

    def __init__(self, kind: type[nn.RNNCell | nn.GRUCell]) -> None:
        super().__init__()
        self.cell = kind(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(len(x), 4)]
        for step in x.unbind(1):
            states += [self.cell(step, states[-1])]
        return torch.stack(states[1:], 1)


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Bilinear(4, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x, x)


class Tied(nn.Module):
    """Two modules with one weight, read straight and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh()) + F.linear(x, self.up.weight.mT)


class RMSNorm(nn.Module):
    """As in language models: in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        z = x if STATE.reference else x.to(torch.float32)
        return self.weight * (z * (z.square().mean(-1, keepdim=True) + 1e-3).rsqrt()).to(x.dtype)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Structured(nn.Module):
    """Takes a tuple or a dict, or gives something else than a tensor."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, *batch: Any, **named: Any) -> Any:
        if named:
            batch = (named,)
        x = batch[0]
        out = self.model(x if isinstance(x, Tensor) else x[0 if self.kind == "tuple" else "x"])
        if self.kind == "gives logits":
            return SimpleNamespace(logits=out, loss=None)
        if self.kind == "gives dict":
            return {"logits": out}
        return (out, out.detach()) if self.kind == "gives tuple" else out


def first_layers(rng: random.Random, kind: str, act: Callable[[], nn.Module]) -> list[nn.Module]:
    """Layers from the inputs of this kind to four features, or (3, 4)."""
    if kind == "conv":
        pool = rng.choice(
            [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.LPPool2d(2, 2)]
        )
        norm = rng.choice(
            [nn.Identity(), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)]
        )
        mode = rng.choice(["zeros", "reflect", "circular"])
        conv = nn.Conv2d(2, 4, 3, padding=1, groups=rng.choice([1, 2]), padding_mode=mode)
        if rng.random() < 0.3:
            conv = nn.ConvTranspose2d(2, 4, 3, padding=1, groups=rng.choice([1, 2]))
        return [conv, norm, act(), pool, nn.Flatten(), nn.Linear(16, 4)]
    if kind == "signal":
        return [nn.Conv1d(2, 3, 3, dilation=2, padding=2), act(), nn.Flatten(), nn.Linear(12, 4)]
    if kind == "recurrent":
        if rng.random() < 0.2:
            return [Cells(rng.choice([nn.RNNCell, nn.GRUCell]))]
        cell = rng.choice([nn.RNN, nn.LSTM, nn.GRU])
        return [Recurrent(cell, rng.random() < 0.3, rng.choice([1, 1, 2]))]
    if kind == "attention":
        return [Attention(rng.random() < 0.5), rng.choice([nn.LayerNorm(4), RMSNorm()])]
    if kind == "encoder":
        first = rng.random() < 0.5
        how = rng.choice(["relu", "gelu"])
        return [nn.TransformerEncoderLayer(4, 2, 5, 0.0, how, batch_first=True, norm_first=first)]
    if kind == "embedding":
        padding = rng.choice([None, 2])
        return [nn.Embedding(7, 4, padding_idx=padding), nn.Flatten(), nn.Linear(12, 4), act()]
    if kind == "bag":
        mode = rng.choice(["sum", "mean", "max"])
        return [nn.EmbeddingBag(7, 4, mode=mode, padding_idx=rng.choice([None, 2])), act()]
    middle = rng.choice(
        [
            nn.Identity,
            nn.Identity,
            nn.Identity,
            lambda: nn.BatchNorm1d(4),
            lambda: nn.LayerNorm(4),
            RMSNorm,
            nn.Dropout,
        ]
    )
    last = rng.choice(
        [lambda: nn.Linear(4, 4, bias=False), lambda: nn.Linear(4, 4), Bilinear, Tied]
    )
    return [nn.Linear(4, 4), middle(), act(), last()]


SHAPES = {"mlp": (4,), "conv": (2, 4, 4), "signal": (2, 4), "embedding": (3,), "bag": (3,)}
KINDS = [*["mlp"] * 6, "conv", "conv", "signal", "recurrent", "recurrent", "attention", "encoder",
         "embedding", "bag"]  # fmt: skip
STEPS = {"recurrent", "attention", "encoder"}  # outputs of several steps


def _decayed(weight: float, model: nn.Module, x: Any) -> Callable:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + weight * sum(p.square().sum() for p in model.parameters())

    return loss


def _penalty(weight: float, model: nn.Module, x: Any) -> Callable:
    """A gradient penalty: the loss runs the model once more."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        z = x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        again = model(z)
        if z is x:
            return F.mse_loss(out, y) + weight * again.square().mean()
        (slope,) = torch.autograd.grad(again.sum(), z, create_graph=True)
        return F.mse_loss(out, y) + weight * slope.square().mean()

    return loss


def _center(weight: float, model: nn.Module, x: Any) -> Callable:
    center = nn.Parameter(torch.randn(3, dtype=torch.float64))  # of the loss, not of the model
    return lambda out, y: (out - center.to(out.dtype)).square().mean() + F.mse_loss(out, y)


def _in_place(out: Tensor, y: Tensor) -> Tensor:
    return out.sub_(y).square().mean()


def _focal(out: Tensor, y: Tensor) -> Tensor:
    entropy = F.cross_entropy(out, y, reduction="none")
    return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()


def _dice(out: Tensor, y: Tensor) -> Tensor:
    return 1 - (out.sigmoid() * y).sum() / (1 + out.sigmoid().sum())


Loss = Callable[[float, nn.Module, Any], Callable]
_CLASSES: dict[str, Loss] = {
    "ce": lambda w, m, x: nn.CrossEntropyLoss(),
    "weighted ce": lambda w, m, x: nn.CrossEntropyLoss(torch.tensor([w, 1.0, 0.5]).double()),
    "smooth ce": lambda w, m, x: nn.CrossEntropyLoss(label_smoothing=0.1),
    "ignoring ce": lambda w, m, x: nn.CrossEntropyLoss(ignore_index=1),
    "ce sum": lambda w, m, x: nn.CrossEntropyLoss(reduction="sum"),
    "ce each": lambda w, m, x: lambda out, y: F.cross_entropy(out, y, reduction="none"),
    "nll": lambda w, m, x: nn.NLLLoss(), "focal": lambda w, m, x: _focal, "decay": _decayed,
    "margin": lambda w, m, x: nn.MultiMarginLoss(),
    "contrastive": lambda w, m, x: lambda o, y: F.cross_entropy(o @ o.T, torch.arange(len(o))),
    "logits": lambda w, m, x: lambda out, y: F.cross_entropy(out.logits, y),
}  # fmt: skip
_NUMBERS: dict[str, Loss] = {
    "mse": lambda w, m, x: nn.MSELoss(), "l1": lambda w, m, x: nn.L1Loss(),
    "smooth l1": lambda w, m, x: nn.SmoothL1Loss(), "huber": lambda w, m, x: nn.HuberLoss(delta=w),
    "hinge": lambda w, m, x: lambda out, y: F.relu(1 - out * y).mean(),
    "critic": lambda w, m, x: lambda out, y: out.mean(),
    "log cosh": lambda w, m, x: lambda out, y: (out - y).cosh().log().mean(),
    "cosine": lambda w, m, x: lambda out, y: 1 - F.cosine_similarity(out, y).mean(),
    "largest": lambda w, m, x: lambda out, y: (out - y).abs().max(),
    "distilled": lambda w, m, x: lambda out, y: F.mse_loss(out, out.detach().tanh() + y),
    "in place": lambda w, m, x: _in_place, "penalty": _penalty, "center": _center,
    "broadcast": lambda w, m, x: nn.MSELoss(),
    "a float": lambda w, m, x: lambda out, y: float((out - y).square().mean()),
}  # fmt: skip
_PROBABILITIES: dict[str, Loss] = {
    "bce logits": lambda w, m, x: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(w).double()),
    "bce": lambda w, m, x: nn.BCELoss(), "dice": lambda w, m, x: _dice,
    "kl": lambda w, m, x: nn.KLDivLoss(reduction="batchmean"),
    "soft ce": lambda w, m, x: nn.CrossEntropyLoss(),
}  # fmt: skip
LOSSES = {**_CLASSES, **_NUMBERS, **_PROBABILITIES}
FOR_STEPS = ["mse", "l1", "huber", "log cosh", "bce logits", "in place"]


def targets(loss: str, out: Tensor, how: str) -> Tensor:
    """Targets that fit the loss, or do not."""
    y = torch.randint(3, out.shape[:1])
    if loss == "broadcast":
        return torch.randn(len(out), dtype=out.dtype)
    if loss in _CLASSES:
        wrong = {
            "int32": y.int(), "uint8": y.byte(), "(B,1)": y[:, None], "float": y.double(),
            "out of range": y + 3,
        }  # fmt: skip
        return wrong.get(how, y)
    if loss in _PROBABILITIES:
        like = torch.rand_like(out)
        return like.softmax(-1) if loss in ("kl", "soft ce") else like
    return torch.randn_like(out)
