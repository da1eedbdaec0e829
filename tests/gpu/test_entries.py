"""What the library computes on a GPU is what it computes on the CPU, and nothing meets half way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diagnosis_networks import gpt, loss
from ggn_networks import Bare, Recurrent, Transformer, images, token_loss
from torch import Tensor, nn

from hessinit_lib import (
    HessianTracker,
    cross_layer,
    diagnose,
    layer_hessians,
    model_hessian,
    spectrum,
)
from hessinit_lib.hessians import HessianReport
from hessinit_lib.init import apply, hessian_, looks_linear_, lsuv_, mirrored_

CE = nn.CrossEntropyLoss()
Values = list[float]


def data(*shape: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=g), torch.randint(classes, shape[:1], generator=g)


def tokens() -> tuple[Tensor, Tensor]:
    drawn = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(2))
    return drawn, drawn.roll(1, 1)


def chain(act: type[nn.Module], *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), act()]
    return nn.Sequential(*layers[:-1])


def convolutions(norm: bool = True) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )


class Dropped(nn.Module):
    """A dropout that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(torch.tanh(self.a(x)), 0.5, True))


def values(report: HessianReport) -> Values:
    names = ("frobenius", "spectral", "trace")
    return [getattr(layer, name) for layer in report.values() for name in names]


def norms(**options: Any) -> Callable[..., Values]:
    def call(model: nn.Module, loss_fn: Any, x: Any, y: Tensor) -> Values:
        return values(layer_hessians(model, loss_fn, x, y, **options))

    return call


def drawn(call: Callable[..., Any], **options: Any) -> Callable[..., Values]:
    """Call with a generator that lies where the inputs do."""

    def run(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Values:
        generator = torch.Generator(x.device).manual_seed(0)
        call(model, loss_fn, x, y, generator=generator, **options)
        return []

    return run


def tracked(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Values:
    tracker = HessianTracker(model, loss_fn, x, y, every=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with tracker.attach(optimizer):
        for _ in range(4):
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()
            optimizer.step()
    return [value for report in tracker.history.values() for value in values(report)]


def diagnosed(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Values:
    found = diagnose(model, loss_fn, x, y)
    return [layer.hessian_norm for layer in found.layers] + [
        layer.gradient_norm for layer in found.layers
    ]


def with_target(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Values:
    generator = torch.Generator().manual_seed(0)  # of the CPU, also for weights on a GPU
    return [*hessian_(model, loss_fn, x, y, target=0.3, generator=generator).after.values()]


def linear(model: nn.Module, _: Any, x: Tensor, __: Tensor) -> Values:
    return [*looks_linear_(model, x, generator=torch.Generator().manual_seed(0)).values()]


def started(scheme: str) -> Callable[..., Values]:
    def run(model: nn.Sequential, *_: Any) -> Values:
        generator = torch.Generator().manual_seed(0)
        if scheme == "mirrored":
            mirrored_(model.get_parameter("0.weight"), generator=generator)
        else:
            apply(model, scheme, generator=generator)
        return torch.cat([p.flatten()[:3] for p in model.parameters()]).tolist()

    return run


def evened(model: nn.Module, _: Any, x: Tensor, __: Tensor) -> Values:
    return [*lsuv_(model, x, generator=torch.Generator().manual_seed(0)).values()]


def overall(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Values:
    found = model_hessian(model, loss_fn, x, y, tolerance=0.3)
    return [found.frobenius, found.spectral, found.trace]


def pairs(**options: Any) -> Callable[..., Values]:
    def run(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Values:
        return cross_layer(model, loss_fn, x, y, **options).frobenius.flatten().tolist()

    return run


def density(name: str) -> Callable[..., Values]:
    def run(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Values:
        return [spectrum(model, loss_fn, x, y, name=name, steps=8).spectral]

    return run


def normalized() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 4))


CASES: Mapping[str, tuple[Callable[[], nn.Module], Any, Callable[[], Any], Callable[..., Values]]]
CASES = {
    "ReLU chain": (lambda: chain(nn.ReLU, 6, 8, 8, 4), CE, lambda: data(16, 6), norms()),
    "tanh chain": (lambda: chain(nn.Tanh, 6, 8, 8, 4), CE, lambda: data(16, 6), norms()),
    "tanh chain, little memory": (
        *(lambda: chain(nn.Tanh, 6, 8, 8, 4), CE, lambda: data(16, 6)),
        norms(max_memory=1 << 20),
    ),
    "chain, MSE": (
        *(lambda: chain(nn.GELU, 6, 8, 4), nn.MSELoss()),
        *(lambda: (data(16, 6)[0], data(16, 4)[0]), norms()),
    ),
    "chain, a loss of one's own": (
        *(lambda: chain(nn.ReLU, 6, 8, 4), lambda z, y: ((z - y) ** 4).sum(1).mean()),
        *(lambda: (data(16, 6)[0], data(16, 4)[0]), norms()),
    ),
    "chain, estimated": (
        *(lambda: chain(nn.ReLU, 6, 8, 24), CE, lambda: data(64, 6, classes=24)),
        norms(method="estimate", norms=("frobenius",), tolerance=0.2),
    ),
    "chain, drawn there": (
        *(lambda: chain(nn.ReLU, 6, 8, 24), CE, lambda: data(64, 6, classes=24)),
        drawn(layer_hessians, method="estimate", norms=("frobenius",), tolerance=0.2),
    ),
    "in bfloat16": (
        *(lambda: chain(nn.ReLU, 6, 8, 4).bfloat16(), CE),
        *(lambda: (data(16, 6)[0].bfloat16(), data(16, 6)[1]), norms()),
    ),
    "convolutions": (lambda: convolutions(False), CE, lambda: data(8, 3, 8, 8), norms()),
    "convolutions, channels last": (
        *(lambda: convolutions(False).to(memory_format=torch.channels_last), CE),
        *(lambda: data(8, 3, 8, 8), norms()),
    ),
    "convolutions, little memory": (
        *(lambda: convolutions(False), CE, lambda: data(8, 3, 8, 8)),
        norms(max_memory=1 << 21),
    ),
    "batch norm, fixed": (lambda: convolutions().eval(), CE, lambda: data(8, 3, 8, 8), norms()),
    "batch norm of the batch": (
        *(convolutions, CE, lambda: data(8, 3, 8, 8)),
        norms(tolerance=0.3),
    ),
    "convolutions, drawn there": (
        *(lambda: nn.Sequential(convolutions(False), nn.ReLU(), nn.Linear(4, 24)), CE),
        lambda: data(64, 3, 8, 8, classes=24),
        drawn(layer_hessians, method="estimate", norms=("frobenius",), tolerance=0.5),
    ),
    "products": (normalized, CE, lambda: data(16, 6), norms(method="estimate", tolerance=0.3)),
    "products, drawn there": (
        *(normalized, CE, lambda: data(16, 6)),
        drawn(layer_hessians, method="estimate", tolerance=0.3),
    ),
    "ggn, transformer": (
        *(lambda: Transformer(True), token_loss, tokens),
        norms(curvature="ggn", tolerance=0.2),
    ),
    "ggn, LSTM": (
        *(lambda: Recurrent(nn.LSTM, True), CE, lambda: data(6, 4, 5)),
        norms(curvature="ggn", tolerance=0.2),
    ),
    "ggn, GRU": (
        *(lambda: Recurrent(nn.GRU, False), CE, lambda: data(6, 4, 5)),
        norms(curvature="ggn", tolerance=0.2),
    ),
    "ggn, bare parameters": (
        *(Bare, CE, lambda: data(6, 6)),
        norms(curvature="ggn", tolerance=0.2, layers="*"),
    ),
    "ggn, images": (
        *(lambda: images().eval(), CE, lambda: data(6, 3, 8, 8)),
        norms(curvature="ggn", tolerance=0.2),
    ),
    "ggn, drawn there": (
        *(lambda: images().eval(), CE, lambda: data(6, 3, 8, 8)),
        drawn(layer_hessians, curvature="ggn", tolerance=0.3),
    ),
    "ggn, spectral": (
        *(lambda: images().eval(), CE, lambda: data(6, 3, 8, 8)),
        norms(curvature="ggn", norms=("spectral",), tolerance=0.2),
    ),
    "whole model": (normalized, CE, lambda: data(16, 6), overall),
    "pairs of layers": (lambda: chain(nn.Tanh, 6, 8, 8, 4), CE, lambda: data(16, 6), pairs()),
    "pairs, estimated": (normalized, CE, lambda: data(16, 6), pairs(tolerance=0.5)),
    "pairs, drawn there": (
        *(normalized, CE, lambda: data(16, 6)),
        drawn(cross_layer, curvature="ggn", tolerance=0.5),
    ),
    "spectrum, exact": (
        *(lambda: convolutions(False), CE, lambda: data(8, 3, 8, 8)),
        density("0.weight"),
    ),
    "spectrum, Lanczos": (normalized, CE, lambda: data(16, 6), density("0.weight")),
    "spectrum, drawn there": (
        *(normalized, CE, lambda: data(16, 6)),
        drawn(spectrum, steps=6, probes=2),
    ),
    "tracker": (convolutions, CE, lambda: data(8, 3, 8, 8), tracked),
    "tracker, transformer": (lambda: Transformer(False), token_loss, tokens, tracked),
    "diagnose": (convolutions, CE, lambda: data(8, 3, 8, 8), diagnosed),
    "diagnose, GPT": (lambda: gpt(1), loss, tokens, diagnosed),
    "diagnose, drawn there": (normalized, CE, lambda: data(16, 6), drawn(diagnose)),
    "looks linear": (lambda: convolutions(False), CE, lambda: data(8, 3, 8, 8), linear),
    "looks linear, transformer": (lambda: Transformer(True), token_loss, tokens, linear),
    "norms, drawn there": (
        *(lambda: chain(nn.ReLU, 6, 8, 8, 4), CE, lambda: data(16, 6)),
        drawn(hessian_),
    ),
    "target": (lambda: chain(nn.GELU, 6, 8, 8, 4), CE, lambda: data(16, 6), with_target),
    "LSUV": (lambda: convolutions(False), CE, lambda: data(8, 3, 8, 8), evened),
    **{
        scheme: (lambda: chain(nn.ReLU, 6, 8, 8, 4), CE, lambda: data(16, 6), started(scheme))
        for scheme in ("lecun", "he", "orthogonal", "mirrored")
    },
}


def compare(name: str, default: str = "cpu") -> None:
    make, loss_fn, batch, call = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, (x, y) = make(), batch()
    expected = call(copy.deepcopy(model), loss_fn, x, y)
    torch.set_default_device(default)
    try:
        found = call(model.cuda(), loss_fn, x.cuda(), y.cuda())
    finally:
        torch.set_default_device(None)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6, nan_ok=True)


@pytest.mark.filterwarnings("ignore:batch normalization in training mode:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_as_on_the_cpu(name: str) -> None:
    compare(name)


@pytest.mark.parametrize(
    "name",
    ["convolutions", "products", "tanh chain", "ggn, LSTM", "tracker", "looks linear"],
)
def test_where_new_tensors_lie_on_the_gpu(name: str) -> None:
    compare(name, "cuda")


def test_a_dropout_that_is_no_module() -> None:
    x, y = data(64, 6)
    model = Dropped().cuda()
    with pytest.raises(NotImplementedError, match="random"):
        layer_hessians(
            model, CE, x.cuda(), y.cuda(), method="estimate", max_memory=1 << 12, budget=1
        )


@pytest.mark.parametrize("wrong", ["model", "inputs", "targets"])
def test_two_devices_are_named(wrong: str) -> None:
    model, x, y = chain(nn.ReLU, 6, 8, 4).cuda(), *(t.cuda() for t in data(16, 6))
    parts = {"model": model, "inputs": x, "targets": y}
    parts[wrong] = parts[wrong].cpu()  # pyright: ignore
    with pytest.raises(ValueError, match="expected one device for all"):
        layer_hessians(parts["model"], CE, parts["inputs"], parts["targets"])
