"""Norms of batches are exact, networks have the rules' variances, drifts come from records."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from networks import Case, labels, seeded
from torch import nn

from hessinit_book.chapters.norm_balance import drift, figures
from hessinit_book.chapters.norm_balance import run as norm_balance
from hessinit_book.chapters.norm_balance.batches import layer_pairs
from hessinit_book.chapters.norm_balance.run import (
    RULES,
    NormBalanceParameters,
    make_network,
    measure,
    units,
)
from hessinit_book.errors import ParameterError
from hessinit_book.networks.dense import dense_network, linear_layers
from hessinit_book.networks.random_networks import draw_weights, hessian_norms, make_model
from hessinit_book.records.records import Record
from hessinit_book.theory import Masks, RandomNetwork

TINY: dict[str, Any] = {"profile": "smoke", "device": "cpu", "widths": [6, 12], "draws": 2}
CPU = torch.device("cpu")


def run(folder: Path, **given: Any) -> list[Record]:
    parameters = NormBalanceParameters.check(**{**TINY, "results_dir": str(folder), **given})
    return norm_balance.run(parameters)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


def case_of(activation: str, weights: list[torch.Tensor], x: torch.Tensor) -> Case:
    """Give the network as a module, on some of the samples, for dense references."""
    model = dense_network((5, 6, 4, 3), activation, bias=False, dtype=torch.float64)
    for linear, weight in zip(linear_layers(model), weights, strict=True):
        linear.weight = nn.Parameter(weight)
    return Case(model, nn.CrossEntropyLoss(), x, labels(len(x)))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_norms_of_all_batches_are_those_of_dense_blocks(activation: str) -> None:
    network = RandomNetwork.make([5, 6, 4, 3], [0.5, 0.7, 0.3], activation)
    weights = [weight.double() for weight in draw_weights(network, seeded(0))]
    x = torch.randn(4, 5, generator=seeded(1), dtype=torch.float64)
    found = measure(network, weights, x, (1, 2, 4), seeded(0))
    for k, name in enumerate(("0.weight", "2.weight", "4.weight")):
        for size in (1, 2, 4):
            blocks = [
                case_of(activation, weights, x[i : i + size]).dense_gauss_newton(name)
                for i in range(0, 4, size)
            ]
            norms = [float(block.norm()) for block in blocks]
            assert found[f"b{size}"][k] == pytest.approx(np.mean(norms), rel=1e-9)
            assert found["trace"][k] == pytest.approx(
                np.mean([float(block.trace()) for block in blocks]), rel=1e-9
            )
        samples = [case_of(activation, weights, one[None]).dense_gauss_newton(name) for one in x]
        pairs = [float((a * b).sum()) for a in samples for b in samples if a is not b]
        assert found["large_batch"][k] == pytest.approx(np.sqrt(np.mean(pairs)), rel=1e-9)
        dense = float(case_of(activation, weights, x).dense_hessian(name).norm())
        assert hessian_norms(make_model(network, weights), x, labels(4))[k] == pytest.approx(
            dense, rel=1e-9
        )


def test_masks_differ_from_sample_to_sample() -> None:
    """Equal samples stay equal without dropout only."""
    weights = [torch.randn(30, 5, generator=seeded(0)), torch.randn(3, 30, generator=seeded(1))]
    x = torch.ones(2, 5)
    for masks, alike in ((Masks(), True), (Masks(0.5), False)):
        network = RandomNetwork.make([5, 30, 3], [1.0, 1.0], "relu", masks)
        inner = layer_pairs(network, weights, x, seeded(0))[1].inner
        assert bool((inner - inner[0, 0]).abs().max() < 1e-5 * inner[0, 0]) == alike


@pytest.mark.parametrize("name", RULES)
def test_rules_balance_what_the_theory_says(name: str) -> None:
    """The products of statement 6, per unit: equal in all layers, but for Glorot's rule."""
    widths, keep = [784, 32, 8, 64, 10], 0.5
    network = make_network(name, widths, keep)
    c = (0.5 if RULES[name].activation == "relu" else 1.0) / (keep if RULES[name].dropout else 1)
    found = []
    for k, unit in enumerate(units(RULES[name].unit, widths)):
        below = [network.variances[j] * widths[j + 1] * c for j in range(k)]
        above = [network.variances[j] * widths[j] * c for j in range(k + 1, 4)]
        found.append(np.prod(below) * np.prod(above) / unit)
    assert (max(found) / min(found) < 1 + 1e-9) == (name != "glorot_small")


def test_batch_sizes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="batch_sizes: got 6, expected a divisor of 16"):
        run(tmp_path, batch_sizes=[6, 16])
    assert not any(tmp_path.iterdir())


def test_records_hold_all_networks(found: list[Record]) -> None:
    for record in found:
        values = record.values
        assert list(values["shapes"]) == ["w6_d3", "w12_d3", "tapered_d3"]
        for name in RULES:
            for shape, widths in values["shapes"].items():
                one = values[name][shape]
                assert all(len(one[key]) == len(widths) - 1 for key in ("trace", "b1", "b16"))
                assert ("whole" in one) == (RULES[name].activation == "tanh")
                assert np.all(np.array(one["b16"]) <= np.array(one["b1"]) * (1 + 1e-6))
        unit = units("input", values["shapes"]["w6_d3"])
        norms = values["he"]["w6_d3"]["b4"]
        assert values["he"]["w6_d3"]["last_over_first"]["b4"] == pytest.approx(
            norms[-1] / unit[-1] / (norms[0] / unit[0]), rel=1e-3
        )


def test_drift_is_of_means_over_seeds(found: list[Record]) -> None:
    norms = np.mean([record.values["he"]["w6_d3"]["b4"] for record in found], 0)
    per_input = norms / np.array([784, 6, 6])
    assert drift.drift(found, "he", "w6_d3", "b4") == pytest.approx(
        per_input.max() / per_input.min()
    )
    assert drift.drift(found, "he", "w6_d3", "b4", "one") == pytest.approx(
        norms.max() / norms.min()
    )
    table = drift.table(found)
    assert len(table) == len(RULES) * 3
    assert table.loc[("He, ReLU: per input", "6, 3"), "batch of 4"] == (
        f"{drift.drift(found, 'he', 'w6_d3', 'b4'):.1f}"
    )


def test_figure(found: list[Record]) -> None:
    figure = figures.profiles(found)
    assert len(figure.axes) == 2 * len(figures.SHOWN)
    figure.savefig(io.BytesIO(), format="svg")
    assert not plt.get_fignums()
