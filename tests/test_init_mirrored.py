"""Mirrored directions around activations other than ReLU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_lib.hessians import layer_hessians
from hessinit_lib.init import looks_linear_
from hessinit_lib.init.forward_graph import forward_graph, mirrored_slope
from tests.networks import OwnSigmoid, chain, curvature_along_weights, labels, seeded

LINEAR = [nn.ReLU, partial(nn.LeakyReLU, 0.2), nn.GELU, nn.SiLU, nn.Hardswish, nn.Softplus]
BOUNDED = [nn.Sigmoid, nn.Hardsigmoid, nn.ReLU6, nn.Mish, nn.LogSigmoid]


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(24, 12, generator=seeded(3), dtype=torch.float64), labels(24)


def started(model: nn.Module) -> dict[str, float]:
    return looks_linear_(model, batch()[0], generator=seeded(0))


@pytest.mark.parametrize("activation", [*LINEAR, *BOUNDED, nn.Hardtanh, nn.Tanh, nn.ELU])
def test_slopes_are_those_of_the_activation(activation: Callable[[], nn.Module]) -> None:
    a = torch.tensor([1e-6, -1e-6], dtype=torch.float64, requires_grad=True)
    out = activation()(a)
    (slopes,) = torch.autograd.grad(out.sum(), a)
    known = mirrored_slope(out.flatten().clone(), ())
    if activation in (nn.Hardtanh, nn.Tanh, nn.ELU):
        assert known is None
    else:
        assert known == pytest.approx(slopes.sum().item(), rel=1e-5)


@pytest.mark.parametrize("activation", LINEAR)
def test_networks_start_linear(activation: Callable[[], nn.Module]) -> None:
    model = chain(6, 16, activation).double()
    started(model)
    x, _ = batch()
    with torch.no_grad():
        zero = model(torch.zeros_like(x))
        torch.testing.assert_close(model(x) - zero, 2 * (model(x / 2) - zero))
        torch.testing.assert_close(model(-x) - zero, zero - model(x))


@pytest.mark.parametrize("activation", [*LINEAR, nn.LogSigmoid])
def test_all_layers_have_the_same_curvature_along_their_weights(
    activation: Callable[[], nn.Module],
) -> None:
    model = chain(6, 16, activation).double()
    started(model)
    x, y = batch()
    along, expected = curvature_along_weights(model, x, y)
    assert along == pytest.approx([expected] * 6, rel=1e-8)


@pytest.mark.parametrize("activation", [*LINEAR, *BOUNDED, nn.ELU])
def test_no_layer_of_a_deep_network_fades_or_explodes(
    activation: Callable[[], nn.Module],
) -> None:
    model = chain(20, 16, activation).double()
    scales = started(model)
    assert max(scales.values()) < 10
    if activation is nn.Hardsigmoid:
        return  # torch cannot differentiate it twice
    report = layer_hessians(model, F.cross_entropy, *batch(), norms=("frobenius",), parts=False)
    norms = [layer.frobenius for layer in report.values()][1:-1]
    assert max(norms) < 10 * min(norms)


def test_pooling_reshapes_and_concatenation_are_looked_through() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
            self.top = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.cat((F.silu(self.one(x)), F.silu(self.two(x))), 1)
            return self.top(F.avg_pool2d(z, 4).flatten(1))

    assert forward_graph(Net(), torch.randn(2, 1, 6, 6)).slopes == {"top.weight": 1.0}


@pytest.mark.parametrize("between", [nn.LayerNorm(16), nn.Tanh(), nn.Identity(), nn.ELU()])
def test_nothing_to_mirror(between: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16), between)
    model.append(nn.Linear(16, 3)).double()
    assert forward_graph(model, batch()[0]).slopes == {"2.weight": 1.0}


def test_signals_that_fade_are_refused() -> None:
    model = chain(12, 16, OwnSigmoid).double()
    kept = [weight.clone() for weight in model.parameters()]
    with pytest.raises(ValueError, match=r"the signals fade on the way to 22\.weight: expected"):
        started(model)
    assert all(map(torch.equal, kept, model.parameters()))
    # With two layers there is no way to fade on.
    started(chain(2, 16, OwnSigmoid).double())
