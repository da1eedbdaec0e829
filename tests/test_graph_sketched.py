"""Norms of graphs estimated from random sketches of the factors."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from networks import graph_hessians, labels, seeded
from test_graph_hessians import ResNet, normal, prepare
from torch import Tensor, nn

from hessinit_lib.hessians.numerics.estimates import Estimate, combine, sketch_of
from hessinit_lib.hessians.options import Options


def jacobian_rows(batch: int, classes: int, seed: int) -> Tensor:
    """Give rows of factors of a small convolution, shape (B, r, P), by plain autograd."""
    generator = seeded(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, classes)
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    inputs = torch.randn(batch, 1, 6, 6, generator=generator, dtype=torch.float64)
    state = {name: value.detach() for name, value in model.named_parameters()}

    def outputs(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {**state, "0.weight": weight}, (inputs,))

    jacobian = torch.func.jacrev(outputs)(state["0.weight"]).flatten(2)
    root = outputs(state["0.weight"]).softmax(1).sqrt()
    spread = torch.diag_embed(root) - root.square()[:, :, None] * root[:, None]
    return torch.einsum("bci,bcp->bip", spread, jacobian)


def draw(rows: Tensor, sketches: int, generator: torch.Generator) -> Estimate:
    signs = torch.randint(2, (sketches, *rows.shape[:2]), generator=generator) * 2.0 - 1
    mixed = torch.einsum("mbr,brp->mbp", signs.double(), rows)
    pairs = {(a, c): mixed[a] @ mixed[c].mT for a, c in combinations(range(sketches), 2)}
    return sketch_of(pairs, [each.square().sum(1) for each in mixed]).square


@pytest.mark.parametrize("sketches", [4, 8])
@pytest.mark.parametrize(("batch", "classes"), [(32, 10), (64, 10), (32, 4), (128, 5)])
def test_intervals_cover(batch: int, classes: int, sketches: int) -> None:
    rows = jacobian_rows(batch, classes, seed=batch)
    exact = float((rows.flatten(0, 1) @ rows.flatten(0, 1).mT).square().sum())
    generator, draws = seeded(1), 400
    found = [draw(rows, sketches, generator) for _ in range(draws)]
    covered = sum(
        abs(math.sqrt(each.mean) - math.sqrt(exact))
        <= 1.96 * each.error / (2 * math.sqrt(each.mean))
        for each in found
    )
    assert 0.90 <= covered / draws <= 0.99
    mean = sum(each.mean for each in found) / draws
    spread = math.sqrt(sum((each.mean - mean) ** 2 for each in found) / draws)
    assert abs(mean - exact) < 4 * spread / math.sqrt(draws)  # no bias


def test_rounds_are_averaged() -> None:
    rows, generator = jacobian_rows(32, 10, seed=3), seeded(2)
    exact = float((rows.flatten(0, 1) @ rows.flatten(0, 1).mT).square().sum())
    both = combine([(4, draw(rows, 4, generator)), (6, draw(rows, 6, generator))])
    assert abs(both.mean - exact) < 3 * both.error
    assert both.error < draw(rows, 4, generator).error


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_estimates_of_a_network(seed: int) -> None:
    model, inputs = prepare(ResNet(), 5), normal(40, 2, 4, 4)
    model.head = nn.Linear(5, 30).double()
    targets = labels(40, 30)
    exact = graph_hessians(prepare(model, 5), nn.CrossEntropyLoss(), inputs, targets)
    options = Options(
        method="estimate", norms=("frobenius",), tolerance=0.12, generator=seeded(seed)
    )
    found = graph_hessians(model, nn.CrossEntropyLoss(), inputs, targets, options)
    for name, layer in found.items():
        assert not layer.exact
        assert 0 < layer.stderr <= 0.12 * layer.frobenius
        assert abs(layer.frobenius - exact[name].frobenius) < 3.5 * layer.stderr
        assert abs(layer.trace - exact[name].trace) < 3.5 * layer.trace_stderr + 1e-12
        assert math.isnan(layer.spectral)


def test_exact_where_that_costs_less_or_is_asked_for() -> None:
    model, inputs, targets = prepare(ResNet(), 5), normal(32, 2, 4, 4), labels(32)
    exact = graph_hessians(model, nn.CrossEntropyLoss(), inputs, targets)
    for norms in (("frobenius",), ("frobenius", "spectral")):
        options = Options(method="estimate", norms=norms, tolerance=1e-3)
        found = graph_hessians(model, nn.CrossEntropyLoss(), inputs, targets, options)
        for name, layer in found.items():
            assert layer.exact
            assert layer.frobenius == exact[name].frobenius
            assert math.isnan(layer.spectral) != ("spectral" in norms)
