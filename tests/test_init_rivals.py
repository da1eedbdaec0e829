"""LSUV, MetaInit, GradInit and Fixup do what their papers state."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.rivals.descent import ParameterLoss
from hessinit_book.rivals.fixup import fixup_
from hessinit_book.rivals.gradinit import gradinit_
from hessinit_book.rivals.metainit import gradient_quotient, metainit_
from hessinit_lib.init import apply, lsuv_
from tests.networks import labels, seeded

CE = nn.CrossEntropyLoss()


def chain(depth: int, width: int = 20, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    widths = [12, *[width] * (depth - 1), 3]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Blocks of m layers between a stem and a head."""

    def __init__(self, blocks: int, m: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(16, 16) for _ in range(m)) for _ in range(blocks)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            z = x
            for layer in block:  # pyright: ignore
                z = layer(z.relu())
            x = x + z
        return self.head(x)


def data(batch: int = 64) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 12, generator=seeded(1)), labels(batch, seed=2)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    drawn = seeded(7)
    return [
        (torch.randn(32, 12, generator=drawn), torch.randint(3, (32,), generator=drawn))
        for _ in range(count)
    ]


# LSUV


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_lsuv_gives_every_layer_unit_variance(activation: type[nn.Module]) -> None:
    model = chain(6, activation=activation)
    x, _ = data()
    lsuv_(model, x, generator=seeded(0))
    z = x
    for module in model:
        z = module(z)
        if isinstance(module, nn.Linear):
            assert z.var().item() == pytest.approx(1, rel=1e-3)


def test_lsuv_on_images_embeddings_and_several_calls() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3, padding=1)
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            z = self.conv(self.embed(x).mT)
            self.seen = [z.detach()]
            return self.conv(z.relu())

    model = Net()
    x = torch.randint(9, (16, 5), generator=seeded(0))
    lsuv_(model, x, generator=seeded(0))
    model(x)
    assert model.seen[0].var().item() == pytest.approx(1, rel=1e-3)


def test_lsuv_keeps_orthogonal_rows_and_finds_about_he_for_relu() -> None:
    model = chain(4, width=200)
    x, _ = data(512)
    lsuv_(model, x, generator=seeded(0))
    weight = model[2].weight.detach()
    gram = weight @ weight.T
    assert torch.allclose(gram / gram[0, 0], torch.eye(200), atol=1e-5)
    # Mean square 1 of its outputs, with a mean of almost zero: He's variance.
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.1)


def test_lsuv_refuses_outputs_that_do_not_vary() -> None:
    with pytest.raises(ValueError, match=r"0\.weight: its outputs do not vary"):
        lsuv_(chain(2), torch.zeros(4, 12))


# MetaInit


def test_gradient_quotient_against_dense_derivatives() -> None:
    model = chain(2, width=4, activation=nn.Tanh).double()
    x, y = data(8)
    loss = ParameterLoss(model, CE)
    start = {name: value.clone().requires_grad_() for name, value in loss.start.items()}
    found = gradient_quotient(loss(start, x.double(), y), start, eps=1e-5)

    sizes = [value.numel() for value in start.values()]

    def flat_loss(theta: Tensor) -> Tensor:
        parts = theta.split(sizes)
        shaped = {name: part.view_as(start[name]) for name, part in zip(start, parts, strict=True)}
        return loss(shaped, x.double(), y)

    theta = torch.cat([value.detach().flatten() for value in start.values()])
    g = torch.func.grad(flat_loss)(theta)
    h = torch.func.hessian(flat_loss)(theta)
    expected = ((g - h @ g) / (g + 1e-5 * torch.where(g >= 0, 1.0, -1.0)) - 1).abs().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("std", [1.5, 2.5])
def test_metainit_mends_a_bad_scale(std: float) -> None:
    """The quotient falls, and the norms go towards those of a fitting start."""
    model = chain(5, activation=nn.Tanh)
    apply(model, "normal", std=std, generator=seeded(0))
    before = [p.detach().clone() for p in model.parameters() if p.ndim > 1]
    quotients = metainit_(model, CE, batches(80), rate=0.05)
    assert sum(quotients[-10:]) < 0.7 * sum(quotients[:10])
    good = apply(chain(5, activation=nn.Tanh), "lecun", generator=seeded(0))
    for old, now, fit in zip(before, model[::2], good[::2], strict=True):
        weight = now.weight.detach()
        # Directions stay.
        same = F.cosine_similarity(old.flatten(), weight.flatten(), dim=0)
        assert same.item() == pytest.approx(1, rel=1e-5)
        ratio = [w.norm().log().item() - fit.weight.norm().log().item() for w in (old, weight)]
        assert abs(ratio[1]) < abs(ratio[0]) + 0.3


def test_metainit_steps_by_signs_with_momentum() -> None:
    model = chain(3, activation=nn.Tanh)
    apply(model, "lecun", generator=seeded(0))
    norms = [p.norm().item() for p in model.parameters() if p.ndim > 1]
    metainit_(model, CE, batches(1), rate=0.01)
    moved = [p.norm().item() for p in model.parameters() if p.ndim > 1]
    assert [abs(a - b) for a, b in zip(norms, moved, strict=True)] == pytest.approx(
        [0.01] * 3, rel=1e-2
    )


# GradInit


def after_one_step(model: nn.Module, rate: float, x: Tensor, y: Tensor) -> float:
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(CE(model(x), y), list(parameters.values()))
    moved = {name: p - rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    return CE(torch.func.functional_call(model, moved, (x,)), y).item()


def test_gradinit_lowers_the_loss_after_a_step() -> None:
    model = chain(5)
    apply(model, "lecun", generator=seeded(0))
    x, y = data()
    before = after_one_step(model, 0.1, x, y)
    gradinit_(model, CE, [(x, y)] * 120, step_size=0.1, bound=1.0)
    assert after_one_step(model, 0.1, x, y) < before - 0.01


def test_gradinit_brings_the_gradient_within_the_bound() -> None:
    model = chain(5)
    apply(model, "normal", std=0.8, generator=seeded(0))
    norms = gradinit_(model, CE, batches(150), bound=1.0, rate=2e-2)
    assert norms[0] > 5
    assert norms[-1] < 1.5


@pytest.mark.parametrize("adaptive", [False, True])
def test_gradinit_scales_whole_tensors_within_limits(adaptive: bool) -> None:
    model = chain(3)
    apply(model, "torch", generator=seeded(0))
    before = {name: p.clone() for name, p in model.named_parameters()}
    norms = gradinit_(model, CE, batches(6), rate=0.5, bound=0.05, adaptive=adaptive)
    assert len(norms) == 5
    for name, p in model.named_parameters():
        scale = (p / before[name]).flatten()
        assert torch.allclose(scale, scale[0].expand_as(scale), rtol=1e-4)
        assert scale[0] >= (0.01 if p.ndim > 1 else 0) - 1e-6


def test_gradinit_needs_batches() -> None:
    with pytest.raises(ValueError, match="fewer than two batches"):
        gradinit_(chain(2), CE, batches(1))


# Fixup


@pytest.mark.parametrize(("blocks", "m"), [(1, 2), (4, 2), (9, 3)])
def test_fixup_scales(blocks: int, m: int) -> None:
    model, reference = Residual(blocks, m), Residual(blocks, m)
    x, _ = data(4)
    found = fixup_(model, x, generator=seeded(0))
    assert [len(branch) for branch in found] == [m] * blocks
    apply(reference, "he", generator=seeded(0))
    assert torch.equal(model.stem.weight, reference.stem.weight)
    for block, plain in zip(model.blocks, reference.blocks, strict=True):
        *inner, last = block  # pyright: ignore
        assert not last.weight.any()
        for layer, he in zip(inner, plain, strict=False):  # pyright: ignore
            expected = he.weight * blocks ** (-1 / (2 * m - 2))
            assert torch.allclose(layer.weight, expected)
    assert not model.head.weight.any()


def test_fixup_starts_from_guessing_and_its_updates_do_not_grow_with_depth() -> None:
    """Section 3 of the paper: a step changes the outputs by as much in a network of any depth."""

    def change(blocks: int, start: Callable[[nn.Module], Any]) -> float:
        model = Residual(blocks)
        start(model)
        x, y = data()
        with torch.no_grad():
            model.head.weight.normal_(0, 0.3, generator=seeded(3))  # zero: no step below it
        outputs = model(x)
        model.zero_grad()
        CE(outputs, y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.01 * p.grad  # pyright: ignore
            return (model(x) - outputs).norm().item()

    def he(model: nn.Module) -> None:
        apply(model, "he", generator=seeded(0))

    def fixup(model: nn.Module) -> None:
        fixup_(model, data(4)[0], generator=seeded(0))

    assert change(12, fixup) < 2.5 * change(3, fixup)
    assert change(12, he) > 10 * change(3, he)
    model = Residual(3)
    fixup(model)
    x, y = data()
    assert CE(model(x), y).item() == pytest.approx(math.log(3), rel=1e-6)


def test_fixup_needs_branches() -> None:
    with pytest.raises(ValueError, match="no residual branches were found"):
        fixup_(chain(3), data(4)[0])


# All


def run_lsuv(model: nn.Module) -> None:
    lsuv_(model, data()[0], generator=seeded(0))


def run_metainit(model: nn.Module) -> None:
    metainit_(model, CE, batches(2))


def run_gradinit(model: nn.Module) -> None:
    gradinit_(model, CE, batches(3))


@pytest.mark.parametrize("rival", [run_lsuv, run_metainit, run_gradinit])
def test_rivals_leave_the_rest_as_found(rival: Callable[[nn.Module], None]) -> None:
    model = nn.Sequential(
        nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model[1].eval()
    model[0].weight.requires_grad_(False)
    frozen, mean = model[0].weight.clone(), model[1].running_mean.clone()
    before = torch.get_rng_state()
    rival(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model[0].weight, frozen)
    assert torch.equal(model[1].running_mean, mean)
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
