"""`cross_layer`: norms of the blocks of all pairs of layers, against dense matrices in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessinit_lib import cross_layer, layer_hessians
from tests.networks import seeded

CE = F.cross_entropy


def dense(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Give the norms of all blocks of H, G and R, from whole matrices."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    weights = {name: p for name, p in state.items() if p.ndim > 1}

    def outputs(ws: dict[str, Tensor]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            return torch.func.functional_call(model, {**state, **ws}, (x,))

    hessian: Any = torch.func.hessian(lambda ws: loss_fn(outputs(ws), y))(weights)
    jacobian: Any = torch.func.jacrev(outputs)(weights)
    z = outputs(weights)
    middle = torch.func.hessian(lambda z: loss_fn(z, y))(z).reshape(z.numel(), z.numel())
    found = torch.zeros(3, len(weights), len(weights), dtype=torch.float64)
    for j, left in enumerate(weights):
        for k, right in enumerate(weights):
            h = hessian[left][right].reshape(weights[left].numel(), -1)
            a, b = (jacobian[name].reshape(z.numel(), -1) for name in (left, right))
            g = a.T @ middle @ b
            found[:, j, k] = torch.stack([h.norm(), g.norm(), (h - g).norm()])
    return list(found)


def batch(samples: int, *shape: int, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    drawn = seeded(seed)
    x = torch.randn(samples, *shape, generator=drawn, dtype=torch.float64)
    return x, torch.randint(classes, (samples,), generator=drawn)


@settings(max_examples=12)
@given(
    widths=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    activation=st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.Identity]),
    twice=st.booleans(),
    frozen=st.booleans(),
    memory=st.sampled_from([None, 10**5, 10**6]),
    seed=st.integers(0, 10**6),
)
def test_exact_norms_are_those_of_dense_matrices(
    widths: list[int],
    activation: type[nn.Module],
    twice: bool,
    frozen: bool,
    memory: int | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip([4, *widths], widths, strict=False):
        layers += [nn.Linear(fan_in, fan_out), *[activation() for _ in range(1 + twice)]]
    model = nn.Sequential(*layers, nn.Linear(widths[-1], 3)).double()
    x, y = batch(6, 4, seed=seed)
    if frozen and len(widths) > 1:
        model.get_parameter(f"{(1 + 1 + twice) * 1}.weight").requires_grad_(False)
    report = cross_layer(model, CE, x, y, method="exact", max_memory=memory)
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    kept = [names.index(name) for name in report.names]
    whole = dense(model, CE, x, y)
    expected = [each[kept][:, kept] for each in whole]
    found = (report.frobenius, report.linearization, report.residual)
    for norms, true in zip(found, expected, strict=True):
        assert torch.allclose(norms, true, rtol=1e-8, atol=1e-9)
    assert report.exact
    assert not report.stderr.any()


def test_the_diagonal_is_what_layer_hessians_gives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = batch(8, 4)
    report, layers = cross_layer(model, CE, x, y), layer_hessians(model, CE, x, y)
    own = [layer.frobenius for layer in layers.values()]
    assert report.frobenius.diagonal().tolist() == pytest.approx(own, rel=1e-9)
    assert torch.equal(report.frobenius, report.frobenius.mT)
    linear = cross_layer(model, CE, x, y, curvature="ggn")
    assert torch.equal(linear.frobenius, report.linearization)
    assert linear.residual.isnan().all()
    assert (linear.coupling <= 1 + 1e-9).all()  # Cauchy and Schwarz


class Attentive(nn.Module):
    """Small, and on no exact route."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.embed(x))
        return self.head((z + self.attention(z, z, z, need_weights=False)[0]).mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(32, 4), nn.Linear(4, 3)
    )


@pytest.mark.parametrize(
    ("make", "shape", "curvature", "tolerance"),
    [
        (Attentive, (5, 3), "hessian", 0.15),
        (Attentive, (5, 3), "ggn", 0.05),
        (convolutional, (1, 4, 4), "hessian", 0.15),
        (convolutional, (1, 4, 4), "ggn", 0.05),
    ],
)
def test_estimates_are_within_their_errors(
    make: Callable[[], nn.Module], shape: tuple[int, ...], curvature: str, tolerance: float
) -> None:
    torch.manual_seed(0)
    model = make().double()
    x, y = batch(16, *shape)
    report = cross_layer(
        model, CE, x, y, curvature=curvature, tolerance=tolerance, budget=None, generator=seeded(1)
    )
    true = dense(model, CE, x, y)
    off = (report.frobenius - true[0 if curvature == "hessian" else 1]) / report.stderr
    assert off.abs().max() < 4.5
    assert 0.4 < off.square().mean().sqrt() < 2
    own = report.frobenius.diagonal().sqrt()
    assert (report.stderr / own.outer(own)).max() <= tolerance
    assert not report.exact
    assert report.note


def test_a_budget_ends_the_work_and_says_so() -> None:
    torch.manual_seed(0)
    x, y = batch(16, 5, 3)
    report = cross_layer(Attentive().double(), CE, x, y, tolerance=1e-4, budget=60.0)
    assert "stopped at the budget of 60 training steps" in report.note
    assert str(report).splitlines()[0] == "Frobenius norms of the blocks of the Hessian, estimated"


def test_samples_that_mix_are_estimated_by_products() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = batch(12, 3)

    def coupled(z: Tensor, y: Tensor) -> Tensor:
        return CE(z - z.mean(0), y)

    report = cross_layer(model.eval(), coupled, x, y, tolerance=0.1, budget=None)
    off = (report.frobenius - dense(model, coupled, x, y)[0]) / report.stderr
    assert off.abs().max() < 4.5


def test_report_prints_and_draws_itself() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    report = cross_layer(
        model, CE, *[t.float() if t.is_floating_point() else t for t in batch(8, 4)]
    )
    head, titles, *rows = str(report).splitlines()
    assert head == "Frobenius norms of the blocks of the Hessian, exact"
    assert titles.split() == ["layer", "0", "1"]
    assert [row.split()[:2] for row in rows] == [["0", "0.weight"], ["1", "2.weight"]]
    frame = report.to_frame("coupling")
    assert list(frame.columns) == list(frame.index) == ["0.weight", "2.weight"]
    assert frame.loc["0.weight", "0.weight"] == pytest.approx(1)
    with pytest.raises(ValueError, match="norms='size': expected one of frobenius, linearization"):
        report.to_frame("size")
    assert report.plot().axes[0].get_title() == "Which layers interact"


def test_exact_norms_that_would_take_long_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 3))
    x, y = torch.randn(128, 3), torch.randint(3, (128,))
    assert cross_layer(model, CE, x, y, budget=10.0).exact  # that is a moment
    monkeypatch.setattr(sys.modules[cross_layer.__module__], "_SECONDS", 1e6)
    report = cross_layer(model, CE, x, y, tolerance=1.0, budget=10.0)
    assert not report.exact
    assert "exact norms would take about" in report.note
    assert 'method="exact" gives them' in report.note


def test_refusals() -> None:
    x, y = batch(8, 4)
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)).double()
    with pytest.raises(NotImplementedError, match=r"[dD]ropout"):
        cross_layer(model, CE, x, y)
    with pytest.raises(NotImplementedError, match="exact norms across layers are those of fully"):
        cross_layer(convolutional().double(), CE, *batch(4, 1, 4, 4), method="exact")
    infinite = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match="not finite: not all inputs are finite"):
        cross_layer(infinite, CE, x * torch.inf, y)
    with pytest.raises(ValueError, match="curvature='fisher': expected one of hessian, ggn"):
        cross_layer(model.eval(), CE, x, y, curvature="fisher")
