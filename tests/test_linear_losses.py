"""Losses linear in the outputs, whose Hessian is all residual, and losses of log-probabilities."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_lib import diagnose, layer_hessians, model_hessian, spectrum
from hessinit_lib.diagnosis.curvature import layer_curvatures
from hessinit_lib.hessians.case import Case

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
    loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
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
    found = diagnose(model, loss, x, y, curvature="all").largest_stable_rate
    assert found == pytest.approx(2 / top, rel=0.1)


WEIGHTS = torch.tensor([1.0, 3.0, 0.5, 2.0])

LOG_LOSSES: dict[str, tuple[Loss, Loss]] = {
    "nll": (F.nll_loss, F.cross_entropy),
    "weighted": (nn.NLLLoss(WEIGHTS), nn.CrossEntropyLoss(WEIGHTS)),
    "ignored": (
        partial(F.nll_loss, ignore_index=1, reduction="sum"),
        nn.CrossEntropyLoss(ignore_index=1, reduction="sum"),
    ),
    "KL": (
        lambda z, y: F.kl_div(z, F.one_hot(y, 4) * 0.7 + 0.1, reduction="batchmean"),
        lambda z, y: F.kl_div(z.log_softmax(1), F.one_hot(y, 4) * 0.7 + 0.1, reduction="batchmean"),
    ),
    "smoothed": (
        lambda z, y: 0.9 * F.nll_loss(z, y) - 0.1 * z.mean(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
    ),
}


class LogProbabilities(nn.Module):
    """A network with a log-softmax that is no module."""

    def __init__(self, net: nn.Module, axis: int = 1) -> None:
        super().__init__()
        self.net, self.axis = net, axis

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.net(x), self.axis)


@pytest.mark.parametrize("kind", ["tanh", "normalized", "relu"])
@pytest.mark.parametrize("label", LOG_LOSSES)
def test_losses_of_log_probabilities_are_those_of_logits(label: str, kind: str) -> None:
    loss, of_logits = LOG_LOSSES[label]
    model, (x, y) = net(kind), batch("classes")
    chain = nn.Sequential(*model, nn.LogSoftmax(-1))
    expected = layer_hessians(model, of_logits, x, y)
    for found in (
        layer_hessians(chain, loss, x, y),
        *([layer_hessians(LogProbabilities(model), loss, x, y)] if kind == "relu" else []),
    ):
        for ours, theirs in zip(found.values(), expected.values(), strict=True):
            assert ours.exact == theirs.exact
            for part in ("linearization", "residual"):
                a, b = getattr(ours, part), getattr(theirs, part)
                assert a.frobenius == pytest.approx(b.frobenius, rel=1e-4, abs=1e-6)
                assert a.spectral == pytest.approx(b.spectral, rel=1e-4, abs=1e-6)
    ours, theirs = (
        model_hessian(m, f, x, y, norms=("spectral",), tolerance=0.1, max_memory=memory)
        for m, f, memory in (
            (LogProbabilities(model), loss, 60_000 if label == "nll" else None),
            (model, of_logits, None),
        )
    )
    assert ours.linearization.spectral == pytest.approx(theirs.linearization.spectral, rel=1e-2)
    assert ours.spectral == pytest.approx(theirs.spectral, rel=1e-2)
    top = float(torch.linalg.matrix_norm(dense(chain, loss, x, y), 2))
    assert ours.spectral == pytest.approx(top, rel=1e-2)
    values = [
        spectrum(m, f, x, y, matrix="linearization").values
        for m, f in ((chain, loss), (model, of_logits))
    ]
    assert abs(values[0]).max() == pytest.approx(abs(values[1]).max(), rel=1e-3)
    gradients = {name: torch.randn_like(p) for name, p in model.named_parameters() if p.ndim > 1}
    along = layer_curvatures(Case(model, of_logits, x, y), gradients)
    for name, value in layer_curvatures(Case(chain, loss, x, y), gradients).items():
        assert value == pytest.approx(along[name], rel=1e-4, abs=1e-6)


def test_negative_log_likelihood_of_tokens_costs_what_the_cross_entropy_does() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Embedding(6, 4), nn.LayerNorm(4), nn.Linear(4, 6))
    x, y = torch.randint(6, (5, 3)), torch.randint(6, (5, 3))
    ours, theirs = (
        layer_hessians(m, f, x, y, tolerance=0.02)
        for m, f in (
            (LogProbabilities(model, -1), lambda z, y: F.nll_loss(z.flatten(0, 1), y.flatten())),
            (model, lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten())),
        )
    )
    for a, b in zip(ours.values(), theirs.values(), strict=True):
        assert a.products == b.products
        assert a.linearization.spectral == pytest.approx(b.linearization.spectral, rel=1e-4)
        assert a.residual.frobenius == pytest.approx(b.residual.frobenius, rel=1e-3, abs=1e-6)
