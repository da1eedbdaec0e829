"""The experiment: what it measures is exact, what it predicts is near, and figures show it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Case, labels, seeded
from torch import Tensor, nn

from hessinit_book.chapters.norm_propagation import figures, tables
from hessinit_book.chapters.norm_propagation import run as norm_propagation
from hessinit_book.chapters.norm_propagation.checks import exact_expectations, expectation_check
from hessinit_book.chapters.norm_propagation.known_rules import known_rules
from hessinit_book.chapters.norm_propagation.networks import (
    SCHEMES,
    make_network,
)
from hessinit_book.chapters.norm_propagation.run import NormPropagationParameters
from hessinit_book.drawing.style import data_label
from hessinit_book.errors import ParameterError
from hessinit_book.networks.linearized_norms import linearized_norms
from hessinit_book.networks.random_networks import draw_weights, make_model
from hessinit_book.records import records
from hessinit_book.records.records import Record
from hessinit_book.theory import Masks, RandomNetwork

TINY = {
    "profile": "smoke",
    "device": "cpu",
    "widths": [16],
    "depths": [2, 3],
    "batch_size": 4,
    "close_depth": 3,
    "repeats": 2,
    "draws": 200,
}
FULL_SCALE = Path(__file__).resolve().parent.parent / "results"


def run(folder: Path, **given: Any) -> list[Record]:
    parameters = NormPropagationParameters.check(**{**TINY, "results_dir": str(folder), **given})
    return norm_propagation.run(parameters)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


# What is measured


def small_network(activation: str, masks: Masks | None = None) -> RandomNetwork:
    return RandomNetwork.make([5, 6, 4, 3], [0.5, 0.7, 0.3], activation, masks)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("activation", ["linear", "relu", "tanh"])
def test_statement_06_measured_norms_equal_dense_ones(activation: str, seed: int) -> None:
    network = small_network(activation)
    weights = [weight.double() for weight in draw_weights(network, seeded(seed))]
    x = torch.randn(4, 5, generator=seeded(seed + 10), dtype=torch.float64)
    case = Case(make_model(network, weights), nn.CrossEntropyLoss(), x, labels(4))
    dense = [float(case.dense_gauss_newton(name).norm()) for name in ("0.weight", "2.weight")]
    found = linearized_norms(network, weights, x, seeded(0))
    assert found[:2] == pytest.approx(dense, rel=1e-9)


@pytest.mark.parametrize("rescale", [False, True])
def test_statement_06_masks_are_fixed_factors(rescale: bool) -> None:
    """A network written down with the same masks, and its dense Gauss-Newton blocks."""
    network = small_network("relu", Masks(0.5, rescale=rescale))
    weights = [weight.double() for weight in draw_weights(network, seeded(0))]
    x = torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
    draws = seeded(2)
    kept = [(torch.rand(3, n, generator=draws) < 0.5).double() for n in (6, 4)]

    def outputs(k: int, weight: Tensor) -> Tensor:
        used = [weight if j == k else w for j, w in enumerate(weights)]
        z = x
        for w, mask in zip(used, kept, strict=False):
            z = (z @ w.mT).relu() * mask * (2 if rescale else 1)
        return z @ used[-1].mT

    found = linearized_norms(network, weights, x, seeded(2))
    for k in range(3):
        jacobian = torch.func.jacrev(lambda w, k=k: outputs(k, w))(weights[k]).flatten(2)
        p = outputs(k, weights[k]).softmax(1)
        curvature = p.diag_embed() - p[:, :, None] * p[:, None, :]
        dense = torch.einsum("bcp,bcd,bdq->pq", jacobian, curvature, jacobian) / 3
        assert found[k] == pytest.approx(float(dense.norm()), rel=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_statement_06_expectations_are_those_of_many_networks(seed: int) -> None:
    image = torch.rand(784, generator=seeded(seed))
    assert expectation_check(image, seeded(seed), 4000) < 4.5


def test_statement_06_expectations_for_one_hidden_layer() -> None:
    # E (sum_i relu(u_i)^2)^2 for n units is n (n - 1) / 4 + 3 n / 2.
    n, power, a = 7, 3.0, torch.tensor([[2.0]], dtype=torch.float64)
    trace, square = exact_expectations((5, n, 1), 2.0, power, a, layer=1)
    scale = 2 / 5 * power
    assert trace == pytest.approx(2.0 * scale * n / 2)
    assert square == pytest.approx(4.0 * scale**2 * (n * (n - 1) / 4 + 3 * n / 2))
    # Above the layer: E (sum_i w_i^2 [on])^2 with s^2 = 2 / n is the same sum.
    trace, square = exact_expectations((5, n, 1), 2.0, power, a, layer=0)
    assert trace == pytest.approx(2.0 * power)
    assert square == pytest.approx(4.0 * power**2 * (2 / n) ** 2 * (n * (n - 1) / 4 + 3 * n / 2))


def test_statement_06_full_scale_within_a_tenth() -> None:
    """Width 512, up to 20 layers: no layer's median is off by more than a tenth for sure."""
    try:
        full = records.read_all(FULL_SCALE, "paper", "norm_propagation")
    except records.RecordError:
        pytest.skip("no full-scale records here")
    if len(full) < 20:
        pytest.skip("too few seeds to judge by")
    assert tables.close_depths(full) == [2, 5, 10, 20]
    for name in SCHEMES:
        for depth in tables.close_depths(full):
            ratios = tables.close_ratios(full, name, depth)
            assert len(ratios["seeds"]) >= 20
            assert len(ratios["all"]) >= 100
            for samples in ratios.values():
                assert tables.median_interval(samples).verdict != "off"
            # With all networks the medians themselves are within a tenth.
            assert np.abs(np.log(np.median(ratios["all"], 0))).max() < np.log(1.1)


@given(st.integers(6, 60), st.integers(0, 2**32 - 1))
def test_median_intervals_hold_the_median(count: int, seed: int) -> None:
    samples = np.random.default_rng(seed).normal(size=(count, 400))
    found = tables.median_interval(samples)
    assert (found.low <= found.value).all()
    assert (found.value <= found.high).all()
    # Of 400 intervals, each of which misses the true median 0 with a probability below 5 %.
    assert ((found.low > 0) | (found.high < 0)).sum() <= 40


def test_verdicts() -> None:
    def median(low: list[float], high: list[float]) -> tables.Median:
        return tables.Median(np.sqrt(np.multiply(low, high)), np.array(low), np.array(high))

    assert median([0.95, 0.97], [1.0, 1.09]).verdict == "within 10 %"
    assert median([0.95, 0.97], [1.0, 1.12]).verdict == "open"
    assert median([0.95, 1.11], [1.0, 1.2]).verdict == "off"
    assert median([0.8], [0.85]).worst == "0.82 [0.80, 0.85]"
    few = tables.median_interval(np.ones((5, 2)))
    assert (few.worst, few.verdict) == ("1.00", "open")


@settings(max_examples=15)
@given(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(0.0, 1.0), st.floats(0.05, 0.95))
def test_statement_07_known_rules(fan_in: int, fan_out: int, slope: float, keep: float) -> None:
    rules = known_rules(fan_in, fan_out, slope=slope, keep=keep)
    assert max(rule.difference for rule in rules.values()) < 1e-6
    assert rules["glorot"].known * (fan_in + fan_out) == pytest.approx(2)
    assert rules["dropout_relu"].found * keep * fan_in == pytest.approx(2)
    assert rules["leaky"].found * fan_in == pytest.approx(2 / (1 + slope**2))


def test_statement_07_gains_lie_on_their_curves(found: list[Record]) -> None:
    for record in found:
        assert record.values["gains"]["worst"] < 5
        assert record.values["checks"]["statement_07"]["value"] < 1e-6


# The run


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1, 0])
    assert [record.values for record in again] == [found[1].values, found[0].values]
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_share_the_prediction_and_not_the_weights(found: list[Record]) -> None:
    for name in SCHEMES:
        one, two = (record.values["schemes"][name]["w16_d3"] for record in found)
        assert one["predicted"] == two["predicted"]
        assert one["measured"] != two["measured"]
        assert ("hessian" in one) == ("tanh" in name)
        assert np.shape(one["more"]) == (2, 3)


def test_networks_have_critical_variances() -> None:
    dropped = make_network(SCHEMES["dropout_plain"], 100, 3, keep=0.5)
    assert dropped.variances == pytest.approx([1 / 784, 4 / 100, 4 / 100])
    glorot = make_network(SCHEMES["glorot_tanh"], 100, 3, keep=0.5)
    assert glorot.variances == pytest.approx([2 / 884, 2 / 200, 2 / 110])


def test_batch_size_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="batch_size: got 9999, expected at most 2000"):
        run(tmp_path, batch_size=9999)


# Figures


@pytest.mark.parametrize(
    "draw",
    [
        figures.predicted_and_measured,
        figures.finite_width,
        figures.close_up,
        figures.gain_curves,
    ],
)
def test_figures(draw: Any, found: list[Record]) -> None:
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert data_label(found) in [text.get_text() for text in figure.texts]
    assert plt.get_fignums() == []


def test_figure_shows_medians(found: list[Record]) -> None:
    panel = figures.predicted_and_measured(found).axes[3]  # He, ReLU; deep networks first
    rows = [record.values["schemes"]["he_relu"]["w16_d3"]["measured"] for record in found]
    np.testing.assert_allclose(np.asarray(panel.lines[0].get_ydata()), np.median(rows, 0))


def test_tables(found: list[Record]) -> None:
    for make in (tables.agreement, tables.scatter):
        assert len(make(found)) == 2 * len(SCHEMES)
    assert set(tables.agreement(found)["2 networks: all layers"]) == {"open"}
    assert len(tables.whole_hessians(found)) == 2 * 2  # two schemes with tanh
    assert len(tables.rules(found)) == 10
