"""TAT, ZerO and the geometric mean of the fans do what their papers state."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.rivals.descent import Lowest
from hessinit_book.rivals.tailored import (
    ETA,
    TAU,
    Tailored,
    negative_slope,
    tailor_,
    tailored_constants,
)
from hessinit_book.rivals.zero import identity_or_hadamard, zero_
from hessinit_lib.init import apply
from tests.networks import chain, seeded


def cosines(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    return unit @ unit.T


def test_correlation_of_a_leaky_chain_is_eta_at_its_end() -> None:
    depth, width = 24, 1000
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    model = nn.Sequential(*layers)
    # Samples at right angles, of mean square 4: the first layer is scaled as if it were 1.
    x = 2 * torch.linalg.qr(torch.randn(width, 4, generator=seeded(0)))[0].T * math.sqrt(width)
    tailor_(model, x, generator=seeded(1))
    assert isinstance(model[1], nn.LeakyReLU)
    with torch.no_grad():
        z = model(x)
    off = cosines(z)[~torch.eye(4, dtype=torch.bool)]
    assert off.mean().item() == pytest.approx(ETA, abs=0.03)
    square = (1 + model[1].negative_slope ** 2) / 2  # of what a leaky ReLU makes of 1
    assert z.square().mean().item() == pytest.approx(square, rel=0.2)


@pytest.mark.parametrize("activation", [torch.tanh, F.gelu])
def test_conditions_of_a_smooth_activation_hold_by_another_quadrature(activation: object) -> None:
    depth = 20
    tailored = Tailored(activation, *tailored_constants(activation, depth))  # pyright: ignore
    # The trapezoidal rule in place of Gauss and Hermite's.
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64, requires_grad=True)
    density = torch.exp(-(x.detach() ** 2) / 2) / math.sqrt(2 * math.pi) * 18 / 20_000
    value = tailored(x)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert (density * value**2).sum().item() == pytest.approx(1, rel=1e-6)
    assert (density * x * value * first).sum().item() == pytest.approx(1, rel=1e-6)
    assert (density * first**2).sum().item() == pytest.approx(1, rel=1e-6)
    assert (density * second**2).sum().item() == pytest.approx(TAU / depth, rel=1e-6)


def test_a_tailored_tanh_network_keeps_mean_squares_and_correlations() -> None:
    model = chain(20, 600, nn.Tanh)
    x = torch.randn(32, 12, generator=seeded(2))
    tailor_(model, x, generator=seeded(3))
    with torch.no_grad():
        first = model[0](x)
        hidden = model[:-1](x)
    assert hidden.square().mean().item() == pytest.approx(1, rel=0.3)
    before, after = cosines(first), cosines(hidden)
    assert (after - before).abs().mean() < 0.25
    plain = chain(20, 600, nn.Tanh)
    apply(plain, "lecun", generator=seeded(3))
    with torch.no_grad():
        assert plain[:-1](x).square().mean() < 0.1


def test_slopes_of_a_shallow_and_a_deep_chain() -> None:
    assert negative_slope(3) == 0
    slopes = [negative_slope(depth) for depth in (20, 30, 100)]
    assert slopes == sorted(slopes)
    assert 0 < slopes[0] < slopes[-1] < 1


def test_only_one_known_activation_is_tailored() -> None:
    for model in (
        nn.Sequential(nn.Linear(3, 3), nn.SiLU(), nn.Linear(3, 2)),
        nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)),
    ):
        with pytest.raises(ValueError, match="expected one kind"):
            tailor_(model, torch.ones(2, 3))


@pytest.mark.parametrize(("fan_out", "fan_in"), [(4, 4), (3, 7), (8, 3), (6, 5), (16, 16)])
def test_zero_matrices_are_isometries(fan_out: int, fan_in: int) -> None:
    matrix = identity_or_hadamard(fan_out, fan_in)
    assert matrix.shape == (fan_out, fan_in)
    if fan_out <= fan_in:
        assert torch.equal(matrix @ matrix.T, torch.eye(fan_out))
    else:
        size = 2 ** (-math.ceil(math.log2(fan_out)) / 2)
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size))
        if math.log2(fan_out).is_integer():
            torch.testing.assert_close(matrix.T @ matrix, torch.eye(fan_in))


def test_zero_makes_blocks_identities() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 3, padding=1)
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (x + self.b(self.a(x).relu())).flatten(1)

    model, x = Net(), torch.rand(2, 3, 5, 5)
    zero_(model, x)
    assert torch.equal(model(x), x.flatten(1))
    assert torch.equal(model.a.weight[:, :, 1, 1], torch.eye(3))
    assert not model.b.weight.any()


def test_variance_by_the_geometric_mean_of_the_fans() -> None:
    model = nn.Sequential(nn.Linear(900, 400), nn.ReLU(), nn.Linear(400, 100))
    apply(model, "he", fan="geometric", generator=seeded(0))
    for layer in (model[0], model[2]):
        expected = 2 / math.sqrt(layer.in_features * layer.out_features)
        assert layer.weight.var().item() == pytest.approx(expected, rel=0.03)


def test_the_lowest_objective_is_kept_and_not_the_last() -> None:
    weight = {"w": torch.zeros(())}
    best, seen = Lowest(weight, patience=None), []
    for step in range(40):
        weight["w"].fill_(step)
        seen.append(abs(step - 15.0))
        assert not best.seen(seen)
    assert best.values["w"].item() in (19, 20)  # of means over ten steps
    stop = Lowest(weight, patience=None)
    assert stop.seen([math.nan])
