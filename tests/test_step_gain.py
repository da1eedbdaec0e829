"""The experiment: curvatures are those of dense Hessians, steps are plain, figures show them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from networks import Case, cases, labels, make_case, seeded
from torch import Tensor, nn

from hessinit_book.chapters.step_gain import figures
from hessinit_book.chapters.step_gain import run as step_gain
from hessinit_book.chapters.step_gain.run import (
    MULTIPLES,
    StepGainParameters,
    compared_step,
    identity_defect,
    line_search,
    make_network,
    plain_step,
)
from hessinit_book.chapters.step_gain.step_curvature import step_curvature
from hessinit_book.data import load
from hessinit_book.drawing.style import data_label
from hessinit_book.errors import ParameterError
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.training.batches import batch_indices
from hessinit_book.training.losses import half_square
from hessinit_lib.theory import best_rate

TINY = {
    "profile": "smoke",
    "device": "cpu",
    "steps": 6,
    "every": 2,
    "full_steps": 4,
    "full_size": 16,
    "rates": [0.01, 0.1],
    "full_rates": [0.05],
}


def run(folder: Path, **given: Any) -> list[Record]:
    parameters = StepGainParameters.check(**{**TINY, "results_dir": str(folder), **given})
    return step_gain.run(parameters)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


def dense(case: Case) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian in all parameters together, biases too."""
    named = dict(case.model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(named.items(), flat.split(sizes), strict=True)
        state = {name: part.view(p.shape) for (name, p), part in parts}
        return case.loss_fn(
            torch.func.functional_call(case.model, state, (case.inputs,)), case.targets
        )

    start = torch.cat([p.detach().flatten() for p in named.values()])
    return torch.func.grad(loss)(start), torch.func.hessian(loss)(start)


# What is measured


@settings(max_examples=30)
@given(cases())
def test_statement_08_curvature_of_the_whole_hessian(case: Case) -> None:
    gradient, hessian = dense(case)
    found = step_curvature(case.model, case.loss_fn, case.inputs, case.targets)
    scale = float(hessian.abs().max() * gradient.abs().sum() ** 2)
    assert found.gradient_square == pytest.approx(float(gradient @ gradient), rel=1e-9, abs=1e-30)
    expected = float(gradient @ hessian @ gradient)
    assert abs(found.curvature - expected) <= 1e-11 * scale + 1e-30
    # Part 3: no direction bends more than the largest eigenvalue.
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert found.curvature <= largest * found.gradient_square + 1e-11 * scale + 1e-30


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_statement_08_curvature_of_blocks(seed: int) -> None:
    case = make_case([4, 5, 3], ["tanh"], "cross_entropy", 6, 1.0, seed)
    found = step_curvature(case.model, case.loss_fn, case.inputs, case.targets)
    loss = case.loss_fn(case.model(case.inputs), case.targets)
    for name in ("0.weight", "2.weight"):
        (gradient,) = torch.autograd.grad(loss, case.model.get_parameter(name), retain_graph=True)
        flat = gradient.flatten()
        expected = float(flat @ case.dense_hessian(name) @ flat)
        assert found.blocks[name] == pytest.approx(expected, rel=1e-9)
    assert found.block_curvature == pytest.approx(sum(found.blocks.values()))
    assert found.block_curvature != pytest.approx(found.curvature, rel=1e-3)
    assert all(parameter.grad is None for parameter in case.model.parameters())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_statement_08_model_error_is_the_integral(seed: int) -> None:
    images = torch.rand(8, 1, 28, 28, generator=seeded(seed))
    assert identity_defect(images, labels(8, 10), seeded(seed)) < 1e-9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_statement_08_quadratic_losses_gain_what_is_predicted(seed: int) -> None:
    # One linear layer and the squared distance: at twice the best rate nothing is gained.
    model = nn.Linear(5, 10, bias=False).double()
    nn.init.normal_(model.weight, generator=seeded(seed))
    batch = torch.randn(7, 5, generator=seeded(9), dtype=torch.float64), labels(7, 10)
    found = step_curvature(model, half_square, *batch)
    best = best_rate(found.gradient_square, found.curvature)
    for rate in (0.3 * best, best, 1.7 * best):
        # From where the step before has ended.
        compared = compared_step(model, half_square, batch, rate)
        assert compared["realized"] == pytest.approx(compared["predicted"], rel=1e-9)
    now = step_curvature(model, half_square, *batch)
    plain_step(model, half_square, batch, 2 * best_rate(now.gradient_square, now.curvature))
    after = step_curvature(model, half_square, *batch).loss
    assert after == pytest.approx(now.loss, rel=1e-9)


def test_statement_08_small_steps_gain_what_is_predicted() -> None:
    model = make_network("tanh", seeded(0), (6, 5, 10)).double()
    batch = torch.randn(9, 6, generator=seeded(1), dtype=torch.float64), labels(9, 10)
    errors = []
    for rate in (0.02, 0.01):
        again = make_network("tanh", seeded(0), (6, 5, 10)).double()
        compared = compared_step(again, F.cross_entropy, batch, rate)
        errors.append(abs(compared["realized"] - compared["predicted"]))
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)  # the model's error is cubic
    gains = line_search(model, batch)
    assert gains[0] == 0
    assert gains[1] == pytest.approx(2 * MULTIPLES[1] - MULTIPLES[1] ** 2, rel=0.2)


# The run


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1, 0])
    assert [record.values for record in again] == [found[1].values, found[0].values]
    assert torch.equal(torch.get_rng_state(), before)


def test_training_is_plain_sgd(found: list[Record]) -> None:
    """The loop written down once more, by an optimizer."""
    images, targets = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    model = make_network("relu", generator(0, "weights"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for batch in batch_indices(2000, 32, 6, generator(0, "batches")):
        loss = F.cross_entropy(model(images[batch].flatten(1)), targets[batch])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    row = found[0].values["relu"]["stochastic"]["rate_0_1"]
    assert row["step"] == [0, 2, 4]
    assert row["loss"] == pytest.approx(losses[::2], rel=1e-4)


def test_stability_is_that_of_the_dense_hessian(found: list[Record]) -> None:
    images, targets = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    chosen = torch.randperm(2000, generator=generator(0, "set"))[:16]
    model = make_network("tanh", generator(0, "weights"))
    batch = images[chosen].flatten(1), targets[chosen]
    vector = [torch.randn(p.shape, generator=seeded(0)) for p in model.parameters()]
    for _ in range(60):  # power iteration
        norm = sum(float(v.square().sum()) for v in vector) ** 0.5
        vector = [v / norm for v in vector]
        gradients = torch.autograd.grad(
            half_square(model(batch[0]), batch[1]), list(model.parameters()), create_graph=True
        )
        vector = list(torch.autograd.grad(gradients, list(model.parameters()), vector))
    norm = sum(float(v.square().sum()) for v in vector) ** 0.5
    row = found[0].values["tanh"]["full"]["rate_0_05"]
    assert row["sharpness"][0] == pytest.approx(norm, rel=0.01)
    assert row["stability"][0] == pytest.approx(0.05 * row["sharpness"][0] / 2, rel=1e-4)


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="full_size: got 9999, expected at most 2000"):
        run(tmp_path, full_size=9999)


def test_divergence_is_recorded_and_drawn(tmp_path: Path) -> None:
    lost = run(tmp_path, rates=[1e6], full_rates=[1e6], every=1)
    values = lost[0].values["relu"]["full"]["rate_1e+06"]
    assert not np.isfinite(values["loss"][-1])
    for draw in (figures.realized_over_predicted, figures.edge_of_stability, figures.best_rates):
        draw(lost).savefig(io.BytesIO(), format="svg")


# Figures


@pytest.mark.parametrize(
    "draw",
    [
        figures.realized_over_predicted,
        figures.line_searches,
        figures.edge_of_stability,
        figures.best_rates,
    ],
)
def test_figures(draw: Any, found: list[Record]) -> None:
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert data_label(found) in [text.get_text() for text in figure.texts]
    assert plt.get_fignums() == []


def test_figure_shows_medians(found: list[Record]) -> None:
    panel = figures.edge_of_stability(found).axes[0]
    rows = [record.values["relu"]["full"]["rate_0_05"]["stability"] for record in found]
    np.testing.assert_allclose(np.asarray(panel.lines[0].get_ydata()), np.median(rows, 0))


def test_summary(found: list[Record]) -> None:
    table = figures.summary(found)
    assert len(table) == 2 * 3
    expected = np.median([r.values["tanh"]["full"]["rate_0_05"]["median"]["ratio"] for r in found])
    assert float(table.loc[("tanh", "full", 0.05), "realized / predicted"]) == pytest.approx(
        expected, rel=0.01
    )
