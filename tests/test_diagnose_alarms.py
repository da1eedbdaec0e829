"""`diagnose` on starts that are sound by design, and on faults of data, loss and graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from hessinit_lib import diagnose

LOSS = nn.CrossEntropyLoss()
Loss = Callable[[Tensor, Tensor], Tensor]


def batch(samples: int = 32, features: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, features, generator=generator)
    return x, torch.randint(3, (samples,), generator=generator)


def net(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), *middle, nn.Linear(16, 3))


class Block(nn.Module):
    def __init__(self, width: int, scale: float, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.norm, self.a = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.b, self.gamma = nn.Linear(2 * width, width), nn.Parameter(scale * torch.ones(shape))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.gamma * self.b(F.gelu(self.a(self.norm(z))))


def zero_head() -> nn.Module:
    model = net(nn.ReLU())
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(1, 16), nn.Linear(16, 3)
        self.a = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.a(self.i(x[:, :, None])).mean(1))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = net(nn.ReLU())[:2], nn.Linear(16, 2), nn.Linear(16, 1)
        nn.init.orthogonal_(self.policy.weight, 0.01)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return torch.cat([self.policy(z), self.value(z)], 1)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(net(nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x) + self.experts[2](x)


class Gated(nn.Module):
    """A branch of products, whose last layer is given next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(1e-5 * self.a(x) * x)


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :6].abs().long().clamp_max(8)


class NormalizedTable(nn.Module):
    """Tiny embeddings, which a normalization with an even smaller epsilon brings to size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 16), nn.LayerNorm(16, eps=1e-12)
        nn.init.normal_(self.table.weight, std=1e-4)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.table(x)).mean(1))


class NormalizedBranch(nn.Module):
    """Branches of small weights, normalized before they are added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.LayerNorm(16, 1e-9)
        for layer in (self.a, self.b):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.b(torch.tanh(self.a(x))))


class Routed(nn.Module):
    """Gates of a sigmoid for one of eight experts; the others' are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(16, 8), nn.Linear(16, 8 * 16)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        chosen = torch.full_like(scores, -torch.inf)
        chosen = chosen.scatter(1, scores.argmax(1, True), scores.amax(1, True))
        return x + (self.up(x).view(-1, 8, 16) * torch.sigmoid(chosen)[:, :, None]).sum(1)


class Exchanging(nn.Module):
    """A network that makes a module anew when it is called, as BigBird does for short texts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.noise, self.exchanged = net(nn.ReLU()), nn.Dropout(0.1), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.exchanged:
            self.noise, self.exchanged = nn.Dropout(0.1), True
        return self.body[2](self.noise(self.body[:2](x)))


SOUND: dict[str, Callable[[], nn.Module]] = {
    "zero head": zero_head,
    "head / 10000": lambda: changed(net(nn.ReLU()), "2.weight", 1e-4),
    "tiny embeddings before a norm": lambda: nn.Sequential(Tokens(), NormalizedTable()),
    "branches normalized at their ends": lambda: net(*(NormalizedBranch() for _ in range(4))),
    "small weights in a branch": lambda: net(
        *(changed(Block(16, 1.0, (16,)), "a.weight", 1e-3) for _ in range(2))
    ),
    "masked gates": lambda: net(Routed()),
    "a module exchanged at the first call": Exchanging,
    "layer scale 1e-6": lambda: net(*(Block(16, 1e-6, (1, 16)) for _ in range(4))),
    "layer scale of one axis": lambda: net(*(Block(16, 1e-5, (16,)) for _ in range(4))),
    "attention": Encoder,
    "weight norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 3)
    ),
    "spectral norm": lambda: net(
        parametrizations.spectral_norm(changed(nn.Linear(16, 16), "weight", 100.0)), nn.ReLU()
    ),
    "zero ends of branches and a zero head": lambda: changed(
        net(*(changed(Block(16, 1.0, (16,)), "b.weight") for _ in range(2))), "3.weight"
    ),
    "a small head beside another": Heads,
    "an expert without samples": Experts,
    "gates in a branch": lambda: net(*(Gated() for _ in range(2))),
    "small positions": lambda: nn.Sequential(Tokens(), Positions(0.02)),
    "log-softmax": lambda: net(nn.ReLU()).append(nn.LogSoftmax(1)),
    **{
        f"{kind.__name__} in place": lambda kind=kind: net(kind(inplace=True))
        for kind in (nn.SiLU, nn.Hardswish, nn.ELU, nn.SELU, nn.Mish, nn.CELU, nn.ReLU6)
    },
}


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_a_sound_start_has_no_fault(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    modes = [module.training for module in model.modules()]
    found = diagnose(model, LOSS, *batch(), curvature="none")
    assert not found.faults
    assert all(
        layer.order is not None
        for layer in found.layers
        if not layer.name.endswith("gamma") and "experts.1" not in layer.name
    )
    assert [module.training for module in model.modules()] == modes


class Detached(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.how = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3), how

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.a(x))
        if self.how == "detach":
            z = z.detach()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.how != "no_grad"):
            z = torch.relu(self.b(z))
        return self.c(z)


class Recurrent(nn.Module):
    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.r, self.o = nn.RNN(1, 16, batch_first=True), nn.Linear(16, 3)
        nn.init.normal_(self.r.weight_hh_l0, std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.r(x[:, :, None])[0][:, -1])


def shifted() -> nn.Module:
    model = net(nn.ReLU())
    nn.init.constant_(model[-1].bias, 0.0)
    model[-1].bias.data[0] = 40.0
    return model


def broken(weight: float) -> nn.Module:
    model = net(nn.ReLU())
    model[0].weight.data[0, 0] = weight
    return model


def changed(model: nn.Module, name: str, factor: float = 0.0) -> nn.Module:
    model.get_parameter(name).data.mul_(factor)
    return model


def filled(model: nn.Module, name: str, value: float) -> nn.Module:
    nn.init.constant_(model.get_parameter(name), value)
    return model


def zeros() -> nn.Module:
    model = deep(3)
    for weight in model.parameters():
        nn.init.zeros_(weight)
    return model


def constants() -> nn.Module:
    model = deep(3)
    for weight in model.parameters():
        nn.init.constant_(weight, 0.1 if weight.ndim > 1 else 0.0)
    return model


def deep(depth: int, normalized: int = -1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(16 if index else 8, 16), nn.ReLU()]
        if index == normalized:
            layers.insert(-1, nn.BatchNorm1d(16))
    return nn.Sequential(*layers, nn.Linear(16, 3))


class Unused(nn.Module):
    def __init__(self, called: bool) -> None:
        super().__init__()
        self.body, self.pooler, self.called = net(nn.ReLU()), nn.Linear(3, 3), called

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if self.called:
            self.pooler(z)
        return z


class Wired(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.c = how, nn.Linear(8, 16), nn.Linear(16, 3)
        hidden = [nn.Linear(16, 16)]
        self.hidden = hidden if how == "list" else nn.ModuleList(hidden)
        self.r = nn.LSTM(4, 16, batch_first=how != "crossed")

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.hidden[0](self.a(x)))
        z = z + self.r(x.view(-1, 2, 4))[0][:, -1]
        if self.how == "root":
            z = z + (x - x).square().sum(1, keepdim=True).add(0 * z[:, :1]).sqrt()
        return self.c(z)


class Own(nn.Module):
    """A linear layer written by hand: the weight is stored as (in, out)."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_in, fan_out) / fan_in**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def own() -> nn.Module:
    model = nn.Sequential(Own(8, 40), nn.ReLU(), Own(40, 20), nn.ReLU(), Own(20, 3))
    return changed(model, "2.weight", 20.0)  # entries of 3, which would be usual in a table


class Positions(nn.Module):
    def __init__(self, std: float, gain: float = 1.0) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(9, 16), nn.Embedding(6, 16)
        self.attention, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
        self.o = nn.Linear(16, 3)
        nn.init.normal_(self.positions.weight, std=std)
        self.attention.in_proj_weight.data[:32] *= gain

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.tokens(x) + self.positions(torch.arange(6)))
        return self.o(self.norm(self.attention(z, z, z)[0]).mean(1))


X, Y = batch()
TOKENS = torch.randint(9, (32, 6), generator=torch.Generator().manual_seed(0))
ONE_HOT = F.one_hot(Y, 3).float()
ODD = torch.where(torch.arange(8) == 3, 50 * X, X)
LONG = torch.randn(16, 112, generator=torch.Generator().manual_seed(0))
FAULTS: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor, Loss, str, str]] = {
    "detach": (lambda: Detached("detach"), X, Y, LOSS, "detached", "a.weight"),
    "no_grad": (lambda: Detached("no_grad"), X, Y, LOSS, "detached", "a.weight"),
    "pixels": (lambda: net(nn.ReLU()), 100 * X, Y, LOSS, "inputs", ""),
    "alike": (lambda: net(nn.ReLU()), X[:1].expand(32, -1), Y, LOSS, "inputs", ""),
    "targets": (lambda: net(nn.ReLU()), X, 1e5 * torch.rand(32, 3), nn.MSELoss(), "targets", ""),
    "softmax": (lambda: net(nn.ReLU()).append(nn.Softmax(1)), X, Y, LOSS, "softmax", ""),
    "last bias": (shifted, X, Y, LOSS, "outputs", "2.weight"),
    "softmax, own loss": (
        lambda: net(nn.ReLU()).append(nn.Softmax(1)), X, Y, lambda z, t: F.cross_entropy(z, t),
        "softmax", "",
    ),
    "softmax, NLL": (
        lambda: net(nn.ReLU()).append(nn.Softmax(1)), X, Y, nn.NLLLoss(), "softmax", "",
    ),
    "softmax, KL": (
        lambda: net(nn.ReLU()).append(nn.Softmax(1)), X, 0.8 * ONE_HOT + 0.2 / 3,
        nn.KLDivLoss(reduction="batchmean"), "softmax", "",
    ),
    "sigmoid": (
        lambda: net(nn.ReLU()).append(nn.Sigmoid()), X, ONE_HOT, nn.BCEWithLogitsLoss(),
        "softmax", "",
    ),
    "last bias, BCE": (shifted, X, ONE_HOT, nn.BCEWithLogitsLoss(), "outputs", "2.weight"),
    "last bias, MSE": (shifted, X, ONE_HOT, nn.MSELoss(), "outputs", "2.weight"),
    "dropout at the end": (
        lambda: net(nn.ReLU()).append(nn.Dropout(0.1)), X, Y, LOSS, "noise", "3",
    ),
    "tanh at the end": (
        lambda: net(nn.ReLU()).append(nn.Tanh()), X, 9 * ONE_HOT, nn.MSELoss(), "targets", "",
    ),
    "a feature": (lambda: net(nn.ReLU()), ODD, Y, LOSS, "inputs", ""),
    "a list of modules": (lambda: Wired("list"), X, Y, LOSS, "unregistered", ""),
    "time for samples": (lambda: Wired("crossed"), X, Y, LOSS, "inputs", ""),
    "root of zero": (lambda: Wired("root"), X, Y, LOSS, "nonfinite", "a.weight"),
    "heavy dropout": (lambda: net(nn.ReLU(), nn.Dropout(0.97)), X, Y, LOSS, "noise", "2"),
    "ReLU at the end": (lambda: net(nn.ReLU()).append(nn.ReLU()), X, Y, LOSS, "softmax", ""),
    "a gate": (
        lambda: filled(Wired(""), "r.bias_ih_l0", -30.0), X, Y, LOSS, "scale", "r.bias_ih_l0",
    ),
    "small inputs": (lambda: net(nn.ReLU()), 1e-4 * X, Y, LOSS, "inputs", ""),
    "one class": (lambda: net(nn.ReLU()), X, torch.ones_like(Y), LOSS, "targets", ""),
    "sigmoid, softmax": (
        lambda: net(nn.ReLU()).append(nn.Sigmoid()), X, Y, LOSS, "softmax", "",
    ),
    "a bias inside": (lambda: filled(deep(2), "2.bias", 50.0), X, Y, LOSS, "scale", "2.bias"),
    "a scale of a norm": (
        lambda: filled(net(nn.LayerNorm(16), nn.ReLU()), "1.weight", 99.0), X, Y, LOSS,
        "scale", "1.weight",
    ),
    "first layer zero": (
        lambda: changed(net(nn.ReLU()), "0.weight"), X, Y, LOSS, "outputs", "0.weight",
    ),
    "all zero": (zeros, X, Y, LOSS, "symmetric", "0.weight"),
    "all equal": (constants, X, Y, LOSS, "symmetric", "2.weight"),
    "unused": (lambda: Unused(False), X, Y, LOSS, "unused", "pooler.weight"),
    "pooler": (lambda: Unused(True), X, Y, LOSS, "detached", "pooler.weight"),
    "before batch norm": (lambda: deep(20, 18), X, Y, LOSS, "depth", ""),
    "after batch norm": (lambda: deep(20, 1), X, Y, LOSS, "depth", ""),
    "positions": (lambda: Positions(10.0), TOKENS, Y, LOSS, "scale", "positions.weight"),
    "attention": (
        lambda: Positions(1.0, 9.0), TOKENS, Y, LOSS, "saturated", "attention.in_proj_weight",
    ),
    "layer norm zero": (
        lambda: changed(Positions(1.0), "norm.weight"), TOKENS, Y, LOSS, "outputs", "norm.weight",
    ),
    "weight norm": (
        lambda: nn.Sequential(
            nn.Linear(8, 16),
            parametrizations.weight_norm(changed(nn.Linear(16, 16), "weight", 100.0)),
            nn.Linear(16, 3),
        ),
        X, Y, LOSS, "scale", "1.parametrizations.weight.original1",
    ),
    "own layer": (own, X, Y, LOSS, "scale", "2.weight"),
    "chaos": (lambda: Recurrent(3 / 4), LONG, Y[:16], LOSS, "recurrent", "r.weight_hh_l0"),
    "fading": (lambda: Recurrent(1 / 16), LONG, Y[:16], LOSS, "recurrent", "r.weight_hh_l0"),
    "NaN in a weight": (lambda: broken(torch.nan), X, Y, LOSS, "nonfinite", ""),
    "NaN in the inputs": (lambda: net(nn.ReLU()), X / 0, Y, LOSS, "nonfinite", ""),
    "no target": (lambda: net(nn.ReLU()), X, torch.full_like(Y, -100), LOSS, "nonfinite", ""),
}  # fmt: skip


@pytest.mark.parametrize(("make", "x", "y", "loss", "kind", "where"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(
    make: Callable[[], nn.Module], x: Tensor, y: Tensor, loss: Loss, kind: str, where: str
) -> None:
    torch.manual_seed(0)
    found = diagnose(make(), loss, x, y, curvature="none")
    assert (kind, where) in [(fault.kind, fault.where) for fault in found.faults]
    assert found.verdict != "balanced"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("r.weight_ih_l0", "multiply r.weight_ih_l0 by 0.068"),
        (
            "o.weight",
            "draw its weights by hessinit_lib.init.apply(model.get_submodule('o'), 'lecun')",
        ),
    ],
)
def test_what_is_advised_was_tried(name: str, remedy: str) -> None:
    torch.manual_seed(0)
    model = Recurrent(0.2)
    model.get_parameter(name).data.mul_(100)
    fault = diagnose(model, LOSS, LONG[:, :8], Y[:16], curvature="none").faults[0]
    assert (fault.where, fault.remedy, fault.tried) == (name, remedy, True)
    assert "not tried" not in str(fault)


LINEAR_LOSSES = {
    "probabilities, squared": (nn.Softmax(1), nn.MSELoss()),
    "probabilities, expected reward": (nn.Softmax(1), lambda z, t: -(z * (t - 0.5)).sum(1).mean()),
    "sigmoids, absolute": (nn.Sigmoid(), nn.L1Loss()),
    "sigmoids, likelihood": (nn.Sigmoid(), nn.BCELoss()),
    "small outputs": (nn.Identity(), nn.MSELoss()),
}


@pytest.mark.parametrize(("last", "loss"), LINEAR_LOSSES.values(), ids=LINEAR_LOSSES)
def test_outputs_that_the_loss_expects_are_no_fault(last: nn.Module, loss: Loss) -> None:
    torch.manual_seed(0)
    assert not diagnose(net(nn.ReLU()).append(last), loss, X, ONE_HOT, curvature="none").faults
