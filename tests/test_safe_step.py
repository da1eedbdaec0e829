"""Kernels and spectra against dense matrices, stable rates of known losses, records, figures."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Case, labels, seeded
from torch import nn

from hessinit_book.chapters.safe_step import figures
from hessinit_book.chapters.safe_step import run as safe_step
from hessinit_book.chapters.safe_step.checks import checks
from hessinit_book.chapters.safe_step.edge import follow
from hessinit_book.chapters.safe_step.kernels import coherence
from hessinit_book.chapters.safe_step.networks import Branched, Shape, dense, judged
from hessinit_book.chapters.safe_step.rates import is_stable, stable_rates
from hessinit_book.chapters.safe_step.run import SafeStepParameters
from hessinit_book.chapters.safe_step.spectra import Curvature
from hessinit_book.networks.dense import critical_network
from hessinit_book.records.records import Record
from hessinit_lib import cross_layer

CE = F.cross_entropy
TINY: dict[str, Any] = {"profile": "smoke", "device": "cpu"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    folder = tmp_path_factory.mktemp("found")
    return safe_step.run(SafeStepParameters.check(**TINY, results_dir=str(folder), seeds=[0, 1]))


def network(seed: int, activation: str = "tanh") -> tuple[nn.Sequential, torch.Tensor]:
    model = critical_network(activation, [5, 6, 4, 3], seeded(seed))
    return model, torch.randn(7, 5, generator=seeded(seed + 1))


def weight_blocks(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    double = critical_network("tanh", [5, 6, 4, 3], seeded(0), dtype=torch.float64)
    double.load_state_dict(model.state_dict())
    case = Case(double, nn.CrossEntropyLoss(), x.double(), labels(len(x)))
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    return [case.dense_gauss_newton(name) for name in names]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_statement_14_largest_eigenvalues_bound_that_of_the_whole(seed: int) -> None:
    model, x = network(seed)
    result = coherence(model, x)
    dense_values = [torch.linalg.eigvalsh(block)[-1] for block in weight_blocks(model, x)]
    assert result.layers == pytest.approx([float(v) for v in dense_values], rel=1e-4)
    assert max(result.layers) * (1 - 1e-6) <= result.whole <= sum(result.layers) * (1 + 1e-6)
    ratio = result.whole / sum(result.layers)
    mean = np.average(result.cosines, weights=result.layers)
    assert mean <= ratio * (1 + 1e-6)
    assert result.least <= ratio * (1 + 1e-6)
    assert sum(result.shares) == pytest.approx(1)


def test_statement_14_equal_samples_are_fully_coherent() -> None:
    """All samples alike and one output: each kernel is constant, and the bound is attained."""
    model = critical_network("relu", [5, 6, 4, 1], seeded(0))
    x = torch.ones(4, 5)
    result = coherence(model, x, torch.ones(4, 1, 1))
    assert result.whole == pytest.approx(sum(result.layers), rel=1e-5)
    assert result.cosines == pytest.approx([1, 1, 1], abs=1e-5)


def test_statement_13_checks_hold() -> None:
    for key, check in checks(5).items():
        assert check["value"] <= check["allowed"], key


def test_spectra_are_those_of_dense_matrices() -> None:
    model, x = network(3)
    y = labels(7)
    curvature = Curvature(model, CE, x, y)
    double = critical_network("tanh", [5, 6, 4, 3], seeded(3), dtype=torch.float64)
    names = curvature.names
    state = {n: p.detach() for n, p in double.named_parameters()}
    blocks: Any = torch.func.hessian(
        lambda w: CE(torch.func.functional_call(double, w, (x.double(),)), y)
    )(state)
    rows = [
        torch.cat([blocks[a][b].reshape(state[a].numel(), -1) for b in names], 1) for a in names
    ]
    true = torch.linalg.eigvalsh(torch.cat(rows))[-1]
    assert curvature.largest("hessian")[0] == pytest.approx(float(true), rel=1e-3)
    own = blocks["2.weight"]["2.weight"].reshape(24, 24)
    assert curvature.largest("hessian", "2.weight")[0] == pytest.approx(
        float(torch.linalg.eigvalsh(own)[-1]), rel=1e-3
    )
    twice = Curvature(model, CE, x, y, {n: torch.full_like(p, 2.0) for n, p in state.items()})
    assert twice.largest("ggn")[0] == pytest.approx(4 * curvature.largest("ggn")[0], rel=1e-2)
    assert sum(curvature.shares(torch.ones(sum(p.numel() for p in state.values()))).values()) == (
        pytest.approx(1)
    )


def test_rates_of_a_quadratic_loss() -> None:
    """Logistic regression of one output is nearly quadratic: stable up to 2 over lambda."""
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x, y = torch.randn(32, 3, generator=seeded(0)), torch.randint(2, (32,), generator=seeded(1))
    rates = stable_rates(model, x, y, 20, 0)["start"]
    assert rates["frobenius"] <= rates["sum"]
    assert rates["sum"] <= rates["ggn"] * 1.01
    assert rates["ggn"] == pytest.approx(rates["linear"], rel=0.01)  # no residual
    assert rates["stable"] >= rates["sum"]
    assert not is_stable(model, x, y, 1000 * rates["linear"], 20)
    assert not any(model.weight.flatten())  # left as it was


def test_courses_end_where_they_are_told(found: list[Record]) -> None:
    model, x = network(0)
    bar = type("Bar", (), {"update": lambda self: None})()
    course = follow(model, x, labels(7), "adam", 1e-3, [0, 1, 5], bar)  # pyright: ignore[reportArgumentType]
    assert course["steps"] == [1, 5]  # no second moments before the first step
    assert course["limit"] == pytest.approx(38000)
    for record in found:
        for name, one in record.values["trained"].items():
            assert np.all(np.array(one["ggn"]) <= np.array(one["sum"]) * 1.01), name
            assert np.all(np.array(one["largest"]) <= np.array(one["ggn"]) * 1.01), name
            assert sum(one["shares"]) == pytest.approx(1, abs=1e-2)


def test_networks_are_what_their_shapes_say() -> None:
    x = torch.randn(2, 784, generator=seeded(0))
    scaled = dense(Shape(10, 8, kind="scaled"), seeded(0))
    assert isinstance(scaled, Branched)
    assert scaled.factor == pytest.approx(8**-0.5)
    normalized = dense(Shape(3, 8, kind="normalized"), seeded(0))
    kinds = [type(m).__name__ for m in normalized.children()]
    assert kinds == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]
    before = torch.get_rng_state()
    for name, make in judged(8).items():
        assert make(seeded(0))(x).shape == (2, 10), name
    assert torch.equal(before, torch.get_rng_state())


def test_blocks_are_those_of_cross_layer(found: list[Record]) -> None:
    blocks = found[0].values["blocks"]["relu"]
    norms = np.array(blocks["hessian"])
    assert np.allclose(norms, norms.T)
    assert np.allclose(np.diagonal(blocks["residual"]), 0, atol=1e-6)  # ReLU: own blocks have none
    assert np.array(blocks["residual"])[0, 1] > 0
    model, x = network(0, "relu")
    report = cross_layer(model, CE, x, labels(7))
    assert report.residual.diagonal().abs().max() < 1e-6 < report.residual[0, 1]


def test_figures_and_words(found: list[Record]) -> None:
    for draw in (figures.ratios, figures.courses, figures.stable, figures.interactions):
        draw(found).savefig(io.BytesIO(), format="svg")
    assert not plt.get_fignums()
    for stage in figures.STAGES:
        assert list(figures.table(found, stage).index) == [
            figures.NETWORKS[name] for name in found[0].values["rates"]
        ]
        rates = [
            record.values["rates"][name][stage]
            for record in found
            for name in record.values["rates"]
        ]
        held = sum(one["stable"] >= one["sum"] for one in rates)
        text = figures.summary(found, stage)
        assert f"rate from the layers in {held} of {len(rates)} runs" in text
