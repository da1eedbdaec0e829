"""Losses linear in the outputs: the Gauss-Newton part is zero, the Hessian all residual."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_lib import diagnose, layer_hessians, model_hessian, spectrum

Loss = Callable[[Tensor, Tensor], Tensor]

BATCH, CLASSES = 12, 4


def net(kind: str) -> nn.Sequential:
    torch.manual_seed(1)
    if kind == "tanh":
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, CLASSES))
    if kind == "relu":
        return nn.Sequential(
            nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, CLASSES)
        )
    return nn.Sequential(
        nn.Linear(5, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 4)
    )


def batch(kind: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(BATCH, 5)
    return x, torch.randint(CLASSES, (BATCH,)) if kind == "classes" else torch.randn(BATCH, CLASSES)


def policy_gradient(outputs: Tensor, advantages: Tensor) -> Tensor:
    return -(outputs.log_softmax(-1) * advantages).mean()


def hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.relu(1 - outputs.gather(1, labels[:, None]) + outputs).mean()


LINEAR: dict[str, tuple[Loss, str]] = {
    "L1": (nn.L1Loss(), "values"),
    "critic": (lambda outputs, _: outputs.mean(), "values"),
    "hinge": (hinge, "classes"),
    "policy gradient": (policy_gradient, "values"),
    "saturated": (lambda z, y: F.cross_entropy(60 * z, y), "classes"),
}


def dense(model: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Tensor:
    """The whole Hessian in float64."""
    model = copy.deepcopy(model).double()
    weights = [p for p in model.parameters() if p.ndim > 1]
    value = loss(model(x.double()), y.double() if y.is_floating_point() else y)
    grads = torch.autograd.grad(value, weights, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.autograd.grad(entry, weights, retain_graph=True) for entry in flat]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


@pytest.mark.parametrize("kind", ["tanh", "normalized", "relu"])
@pytest.mark.parametrize("label", LINEAR)
def test_spectral_norms_are_those_of_the_dense_hessian(label: str, kind: str) -> None:
    loss, targets = LINEAR[label]
    model, (x, y) = net(kind), batch(targets)
    whole = dense(model, loss, x, y)
    top = float(torch.linalg.matrix_norm(whole, 2))
    found = model_hessian(model, loss, x, y, norms=("spectral",), parts=False, tolerance=0.1)
    assert found.spectral == pytest.approx(top, rel=0.05)
    values = spectrum(model, loss, x, y, steps=40).values
    assert abs(values).max() == pytest.approx(top, rel=0.05)
    at = 0
    for name, layer in layer_hessians(model, loss, x, y, method="estimate", tolerance=0.02).items():
        size = layer.shape[0] * layer.shape[1]
        block, at = whole[at : at + size, at : at + size], at + size
        norms = torch.linalg.matrix_norm(block), torch.linalg.matrix_norm(block, 2)
        assert layer.frobenius == pytest.approx(float(norms[0]), rel=0.06, abs=1e-6), name
        assert layer.spectral == pytest.approx(float(norms[1]), rel=0.01, abs=1e-6), name


def test_a_rate_is_finite_where_the_gauss_newton_part_is_zero() -> None:
    loss, targets = LINEAR["critic"]
    model, (x, y) = net("normalized"), batch(targets)
    top = float(torch.linalg.matrix_norm(dense(model, loss, x, y), 2))
    found = diagnose(model, loss, x, y).largest_stable_rate
    assert found == pytest.approx(2 / top, rel=0.1)
