"""Norms of chains estimated from pairs of sketches: mean, calibration, when they are used."""

from __future__ import annotations

import math

import pytest
import torch
from networks import Case, chain_hessians, make_case, seeded

from hessinit_lib.hessians.chain.backward import LayerCurvature
from hessinit_lib.hessians.chain.frobenius import squared_norms
from hessinit_lib.hessians.chain.sketched import _sketched_loss, pair_sketches
from hessinit_lib.hessians.loss import LossCurvature
from hessinit_lib.hessians.numerics.estimates import mean_norms
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import BlockNorms, HessianReport


def curvature(batch: int, rank: int, units: int = 12) -> LayerCurvature:
    """Samples that have something in common and differ in size, as in networks."""
    generator = seeded(batch + rank)
    common = torch.randn(rank, units, generator=generator, dtype=torch.float64)
    own = torch.randn(batch, rank, units, generator=generator, dtype=torch.float64)
    sizes = torch.rand(batch, 1, 1, generator=generator, dtype=torch.float64)
    inputs = torch.rand(batch, 20, generator=generator, dtype=torch.float64)
    return LayerCurvature("weight", (units, 20), inputs, sizes * (common + own), None)


def estimates(layer: LayerCurvature, draws: int, pairs: int = 1) -> list[BlockNorms]:
    kernel, generator, loss = layer.kernel(), seeded(1), LossCurvature(layer.inputs, layer.factor)
    found = []
    for _ in range(draws):
        factor = _sketched_loss(loss, pairs, generator).factor
        sketch = LayerCurvature("weight", layer.shape, layer.inputs, factor, None)
        found.append(mean_norms(pair_sketches(sketch, kernel, 0.0), len(layer.inputs)))
    return found


def exact_norm(layer: LayerCurvature) -> float:
    return math.sqrt(squared_norms(layer, layer.kernel(), parts=True)[0]) / len(layer.inputs)


@pytest.mark.parametrize(("batch", "rank"), [(5, 3), (40, 9)])
def test_square_and_trace_are_unbiased(batch: int, rank: int) -> None:
    layer = curvature(batch, rank)
    found = estimates(layer, 2000)
    squares = torch.tensor([norms.frobenius**2 for norms in found], dtype=torch.float64)
    error = float(squares.std()) / math.sqrt(len(squares))
    assert abs(float(squares.mean()) - exact_norm(layer) ** 2) < 4 * error
    assert error < 0.03 * exact_norm(layer) ** 2
    sizes = layer.inputs.square().sum(1) * layer.factor.square().sum((1, 2))
    traces = torch.tensor([norms.trace for norms in found], dtype=torch.float64)
    assert float(traces.mean()) == pytest.approx(float(sizes.mean()), rel=0.03)


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("rank", [4, 9])
@pytest.mark.parametrize("batch", [32, 128])
def test_intervals_hold(batch: int, rank: int, pairs: int) -> None:
    layer = curvature(batch, rank)
    expected = exact_norm(layer)
    found = estimates(layer, 400, pairs)
    inside = [abs(norms.frobenius - expected) <= 1.96 * norms.stderr for norms in found]
    assert 0.90 <= sum(inside) / len(inside) <= 0.99
    expected = float((layer.inputs.square().sum(1) * layer.factor.square().sum((1, 2))).mean())
    inside = [abs(norms.trace - expected) <= 1.96 * norms.trace_stderr for norms in found]
    assert 0.90 <= sum(inside) / len(inside) <= 0.99


def report_of(case: Case, **options: object) -> HessianReport:
    return chain_hessians(
        case.model,
        case.loss_fn,
        case.inputs,
        case.targets,
        Options(**options),  # type: ignore
    )


@pytest.fixture(scope="module")
def wide() -> Case:
    return make_case([20, 40, 40, 10], ["relu"] * 2, "cross_entropy", 200, 1.0, seed=1)


def test_estimates_meet_the_tolerance(wide: Case) -> None:
    exact = report_of(wide)
    found = report_of(wide, method="estimate", tolerance=0.05)
    assert list(found) == list(exact)
    for name, layer in found.items():
        assert layer.stderr <= 0.05 * layer.frobenius
        assert layer.frobenius == pytest.approx(exact[name].frobenius, rel=0.15)
        assert layer.spectral == pytest.approx(exact[name].spectral, rel=1e-9)
        assert layer.trace == pytest.approx(exact[name].trace, rel=1e-9)
    assert [layer.exact for layer in found.values()] == [False, False, True]


def test_the_generator_decides(wide: Case) -> None:
    options = {"method": "estimate", "tolerance": 0.05, "norms": ("frobenius",)}
    first = report_of(wide, **options)["0.weight"]
    assert report_of(wide, **options)["0.weight"].frobenius == first.frobenius
    other = report_of(wide, **options, generator=seeded(5))["0.weight"]
    assert other.frobenius != first.frobenius
    assert math.isnan(first.spectral)
    assert first.trace_stderr > 0


@pytest.mark.parametrize(
    ("activation", "batch", "classes", "tolerance"),
    [
        pytest.param("tanh", 200, 10, 0.1, id="residual"),
        pytest.param("relu", 200, 10, 1e-3, id="exact is cheaper"),
        pytest.param("relu", 20, 10, 0.2, id="few samples"),
        pytest.param("relu", 200, 2, 0.1, id="one row"),
    ],
)
def test_exact_where_that_is_better(
    activation: str, batch: int, classes: int, tolerance: float
) -> None:
    case = make_case([20, 10, classes], [activation], "cross_entropy", batch, 1.0, seed=2)
    found = report_of(case, method="estimate", tolerance=tolerance)["0.weight"]
    assert found.exact
    assert found.stderr == 0
    assert found.frobenius == report_of(case)["0.weight"].frobenius
