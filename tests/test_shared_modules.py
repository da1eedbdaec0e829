"""A module that stands in several places of a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hessinit_lib import diagnose, layer_hessians
from hessinit_lib.hessians.functional import PureModel


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        return sum(part(x).tanh() for part in self.parts)


class Use(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Shared(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.shared = Inner()
        self.first, self.second, self.out = Use(self.shared), Use(self.shared), nn.Linear(4, 3)
        if tied:  # a parameter in two modules, too
            self.shared.parts[1].weight = self.shared.parts[0].weight

    def forward(self, x):
        return self.out(self.second(self.first(x)))


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_keeps_its_parameters_and_uses_those_of_the_call(tied):
    model, x = Shared(tied).double(), torch.randn(5, 4, dtype=torch.float64)
    before = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
    pure = PureModel(model, ["shared.parts.0.weight"])
    with pure.running():
        out = pure(x)
        assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == before
    (got,) = torch.autograd.grad(out.sum(), pure.state["shared.parts.0.weight"])
    (wanted,) = torch.autograd.grad(model(x).sum(), model.shared.parts[0].weight)
    torch.testing.assert_close(got, wanted)


def test_it_is_not_taken_for_a_loss_that_reaches_the_parameters():
    model, x, y = Shared().double(), torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    loss = nn.CrossEntropyLoss()
    assert diagnose(model, loss, x, y, curvature="none").loss == pytest.approx(
        loss(model(x), y).item()
    )
    found = layer_hessians(model, loss, x, y)
    weight = model.shared.parts[0].weight

    def value(changed):
        state = {n: p.detach() for n, p in model.named_parameters()}
        state["shared.parts.0.weight"] = changed
        return loss(torch.func.functional_call(Shared().double(), state, x), y)

    dense = torch.autograd.functional.hessian(value, weight.detach())
    expected = dense.reshape(weight.numel(), -1).norm().item()
    assert found["shared.parts.0.weight"].frobenius == pytest.approx(expected, rel=0.2)
