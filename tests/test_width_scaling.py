"""The experiment: powers of the width, layers balanced exactly, rates found where they are."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Case, labels, seeded
from torch import nn

from hessinit_book.chapters.width_scaling import figures
from hessinit_book.chapters.width_scaling import run as width_scaling
from hessinit_book.chapters.width_scaling.run import (
    VARIANTS,
    WidthScalingParameters,
    fitted_power,
    lowest,
    make_network,
    scaling,
    trained_loss,
)
from hessinit_book.data import load
from hessinit_book.drawing.style import data_label
from hessinit_book.errors import ParameterError
from hessinit_book.records.records import Record
from hessinit_book.training.losses import half_square
from hessinit_lib.theory import balancing_scales

TINY = {
    "profile": "smoke",
    "device": "cpu",
    "widths": [8, 16],
    "fit_from": 8,
    "train_widths": [8, 16],
    "steps": 4,
    "batch_size": 8,
    "depths": [3, 4],
    "balanced_width": 8,
}


def check(**given: Any) -> WidthScalingParameters:
    return WidthScalingParameters.check(**{**TINY, **given})


def run(folder: Path, **given: Any) -> list[Record]:
    return width_scaling.run(check(results_dir=str(folder), **given))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


# What is measured


@pytest.mark.parametrize(("power", "expected"), [(1, (0, 1, 1)), (2, (-1, 0, 1))])
def test_statement_09_powers_of_the_width(power: int, expected: tuple[int, ...]) -> None:
    images, targets = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    probe = images[:16].flatten(1), targets[:16]
    parameters = check(widths=[128, 256, 512], fit_from=128)
    slopes = [scaling(parameters, power, seed, probe)["slopes"]["trace"] for seed in range(4)]
    # A tenth: what four draws leave open.
    np.testing.assert_allclose(np.mean(slopes, 0), expected, atol=0.1)


@pytest.mark.parametrize("power", [1, 2])
def test_statement_09_mean_traces_are_exact(power: int) -> None:
    """Half the squared distance, where the expected trace is a product of powers of N."""
    x = torch.randn(3, 784, generator=seeded(0), dtype=torch.float64) / 28
    size = float(x.square().sum(1).mean())
    for width in (8, 32):
        traces = []
        for seed in range(300):
            model = make_network(width, 8, power, seeded(seed)).double()
            first, second, last = (weight.detach() for weight in model.parameters())
            z1 = (x @ first.mT).relu()
            z2 = (z1 @ second.mT).relu()
            # tr H_k is the mean of |z|^2 |J|^2, with D^2 l the identity.
            j2 = last * (z2 > 0)[:, None, :]
            j1 = (j2 @ second) * (z1 > 0)[:, None, :]
            traces.append(
                [
                    float((z.square().sum(1) * j.square().sum((1, 2))).mean())
                    for z, j in ((x, j1), (z1, j2))
                ]
            )
        mean, spread = np.mean(traces, 0), np.std(traces, 0, ddof=1) / math.sqrt(len(traces))
        # 784-N-N-10: |z^1|^2 = |x|^2 N / 784, |J_2|^2 = 10 s^2 N / 2, He's layer between keeps.
        above = 10 * 8 ** (power - 1) / width**power * width / 2
        expected = np.array([size * above, size * width / 784 * above])
        assert (np.abs(mean - expected) < 4.5 * spread).all()


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(-1.5, 1.5), st.integers(1, 2))
def test_statement_10_rescaling_of_dense_hessians(seed: int, spread: float, hidden: int) -> None:
    case = small_case(seed, hidden, half_square)
    names = [name for name, _ in case.model.named_parameters()]
    before = {name: case.dense_hessian(name) for name in names}
    t = spread * torch.randn(len(names), generator=seeded(seed), dtype=torch.float64)
    scale(case.model, t.tolist())
    for name, own in zip(names, t.tolist(), strict=True):
        factor = math.exp(2 * (float(t.sum()) - own))
        assert torch.allclose(case.dense_hessian(name), factor * before[name], rtol=1e-9, atol=0)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_statement_10_balance_keeps_the_outputs(seed: int, hidden: int) -> None:
    case = small_case(seed, hidden, nn.functional.cross_entropy)
    names = [name for name, _ in case.model.named_parameters()]
    before = [float(case.dense_hessian(name).norm()) for name in names]
    mean = math.exp(np.mean(np.log(before)))
    outputs = case.model(case.inputs).detach()
    scale(case.model, balancing_scales(before, mean))
    assert torch.allclose(case.model(case.inputs), outputs, rtol=1e-9)
    after = [float(case.dense_hessian(name).norm()) for name in names]
    assert after == pytest.approx([mean] * len(names), rel=1e-9)


def small_case(seed: int, hidden: int, loss: Any) -> Case:
    """784 inputs are too many for dense Hessians: the first layer reads five."""
    model = make_network(6, 6, 1, seeded(seed), hidden)
    first = nn.Linear(5, 6, bias=False)
    nn.init.normal_(first.weight, generator=seeded(seed + 1))
    model[0] = first
    x = torch.randn(4, 5, generator=seeded(seed + 2), dtype=torch.float64)
    # No sample may vanish on the way, for all norms to be positive.
    return Case(model.double(), loss, torch.cat([x, -x]), labels(8, 10))


def scale(model: nn.Module, t: list[float]) -> None:
    with torch.no_grad():
        for weight, own in zip(model.parameters(), t, strict=True):
            weight *= math.exp(own)


def test_parametrizations_agree_at_the_base_width() -> None:
    standard, mu = (make_network(16, 16, power, seeded(0)) for power in (1, 2))
    for one, two in zip(standard.parameters(), mu.parameters(), strict=True):
        assert torch.equal(one, two)
    wide = make_network(64, 16, 2, seeded(0))
    assert float(wide.get_parameter("4.weight").detach().square().mean()) == pytest.approx(
        16 / 64**2, rel=0.2
    )


def test_rates_by_layer() -> None:
    """At another width the same rates move the layers N / N_0, 1 and N_0 / N times as far."""
    images, targets = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    train = images.flatten(1), targets
    parameters = check(steps=2)
    losses = {
        name: trained_loss(parameters, variant, "half_square", 16, 0.05, 0, train)
        for name, variant in VARIANTS.items()
    }
    assert len(set(losses.values())) == 3
    at_base = {
        trained_loss(parameters, variant, "half_square", 8, 0.05, 0, train)
        for variant in VARIANTS.values()
    }
    assert len(at_base) == 1
    lost = trained_loss(parameters, VARIANTS["standard"], "half_square", 16, 1e6, 0, train)
    assert lost == math.inf


def test_lowest_and_powers() -> None:
    assert lowest((-3, -2, -1), [3.0, 2.0, 1.0]) == -1
    assert lowest((-3, -2, -1), [3.0, 1.0, math.inf]) == -2
    assert math.isnan(lowest((0, 1, 2), [math.inf] * 3))
    assert fitted_power([2, 4, 8], [0.0, 0.5, 1.0]) == pytest.approx(0.5)
    assert math.isnan(fitted_power([2, 4], [0.0, math.nan]))


# The run


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1, 0])
    assert [repr(record.values) for record in again] == [
        repr(found[1].values),
        repr(found[0].values),
    ]
    assert torch.equal(torch.get_rng_state(), before)


def test_levels_are_reached(found: list[Record]) -> None:
    for record in found:
        assert record.values["checks"]["statement_10"]["value"] < 1e-9
        for depth in ("depth_3", "depth_4"):
            low = record.values["balanced"][depth]["level_0_1"]
            assert low["deviation"][0] > 1 > 1e-3 > low["deviation"][-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 9999}, "batch_size: got 9999, expected at most 2000"),
        ({"fit_from": 16}, "fit_from: got 16, expected two or more of the widths"),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=message):
        run(tmp_path, **given)


# Figures


@pytest.mark.parametrize(
    "draw",
    [
        figures.norms_against_width,
        figures.losses_against_rate,
        figures.rates_against_width,
        figures.balanced_norms,
    ],
)
def test_figures(draw: Any, found: list[Record]) -> None:
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    shown = found[:1] if draw is figures.balanced_norms else found
    assert data_label(shown) in [text.get_text() for text in figure.texts]
    assert plt.get_fignums() == []


def test_figure_shows_medians(found: list[Record]) -> None:
    panel = figures.norms_against_width(found).axes[0]
    rows = [np.array(record.values["norms"]["standard"]["spectral"])[:, 0] for record in found]
    np.testing.assert_allclose(np.asarray(panel.lines[0].get_ydata()), np.median(rows, 0))


def test_tables(found: list[Record]) -> None:
    table = figures.slopes(found)
    # Student's t with one degree of freedom.
    one, two = (record.values["norms"]["mu"]["slopes"]["trace"][0] for record in found)
    half = 12.706 * abs(one - two) / 2
    assert table.loc[("1/N²", "input"), "trace"] == f"{(one + two) / 2:.2f} ± {half:.2f}"
    assert len(figures.rate_slopes(found)) == 6
    assert len(figures.deviations(found)) == 6
    assert "±" not in figures.slopes(found[:1])["trace"].iloc[0]
