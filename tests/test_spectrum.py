"""Spectra against dense eigenvalues."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Case, make_case, seeded

from hessinit_lib.hessians.numerics.quadrature import lanczos_quadrature
from hessinit_lib.hessians.spectrum import Spectrum, spectrum


def case() -> Case:
    return make_case([5, 6, 4], ["tanh"], "cross_entropy", 20, 1.0, seed=3)


def eigenvalues(case: Case, name: str, matrix: str) -> np.ndarray:
    hessian, linearization = case.dense_hessian(name), case.dense_gauss_newton(name)
    dense = {
        "hessian": hessian,
        "linearization": linearization,
        "residual": hessian - linearization,
    }[matrix]
    return torch.linalg.eigvalsh((dense + dense.mT) / 2).numpy()


@pytest.mark.parametrize("matrix", ["hessian", "linearization", "residual"])
def test_small_blocks_give_all_eigenvalues(matrix: str) -> None:
    c = case()
    found = spectrum(c.model, c.loss_fn, c.inputs, c.targets, name="0.weight", matrix=matrix)
    assert found.exact
    np.testing.assert_allclose(found.values, eigenvalues(c, "0.weight", matrix), atol=1e-12)


@pytest.mark.parametrize("matrix", ["hessian", "linearization"])
def test_quadrature_finds_outliers_and_moments(matrix: str) -> None:
    c = case()
    found = spectrum(
        c.model, c.loss_fn, c.inputs, c.targets,
        name="0.weight", matrix=matrix, method="estimate", steps=20, probes=200,
    )  # fmt: skip
    truth = eigenvalues(c, "0.weight", matrix)
    assert not found.exact
    assert found.size == 30
    assert found.weights.sum() == pytest.approx(30, rel=1e-9)
    assert found.spectral == pytest.approx(np.abs(truth).max(), rel=1e-8)
    frobenius = np.sqrt((truth**2).sum())
    # Hutchinson's error of the trace has standard deviation of at most sqrt(2 / probes) |H|_F.
    assert found.trace == pytest.approx(truth.sum(), abs=4 * np.sqrt(2 / 200) * frobenius)
    assert found.frobenius == pytest.approx(frobenius, rel=0.2)
    # Half of all eigenvalues lie below the median.
    below = found.weights[found.values <= np.median(truth)].sum()
    assert below == pytest.approx(15, abs=3)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("batch", [3, 20])
def test_all_eigenvalues_of_the_linearization(activation: str, batch: int) -> None:
    c = make_case([5, 6, 4], [activation], "cross_entropy", batch, 1.0, seed=3)
    given = (c.model, c.loss_fn, c.inputs, c.targets)
    for name in ("0.weight", "2.weight"):
        found = spectrum(*given, name=name, matrix="linearization", method="exact", steps=1)
        truth = eigenvalues(c, name, "linearization")
        assert found.exact
        assert found.weights.sum() == found.size == len(truth)
        values = np.repeat(found.values, found.weights.astype(int))
        np.testing.assert_allclose(values, truth, atol=1e-12)
    # Of all weights together: an operator of its own, by products.
    found = spectrum(*given, matrix="linearization", method="exact", steps=1)
    dense = spectrum(*given, matrix="linearization", method="estimate", steps=54)
    values = np.repeat(found.values, found.weights.astype(int))
    np.testing.assert_allclose(values, dense.values, atol=1e-12)


def test_exact_hessian_only_where_it_is_the_linearization() -> None:
    for activation in ("relu", "tanh"):
        c = make_case([5, 6, 4], [activation], "cross_entropy", 20, 1.0, seed=3)
        given = (c.model, c.loss_fn, c.inputs, c.targets)
        if activation == "tanh":
            with pytest.raises(NotImplementedError, match="TanhBackward0"):
                spectrum(*given, name="0.weight", method="exact", steps=1)
            assert not spectrum(*given, name="0.weight", steps=5).exact
            continue
        found = spectrum(*given, name="0.weight", method="exact", steps=1)
        assert found.spectral == pytest.approx(eigenvalues(c, "0.weight", "hessian")[-1], rel=1e-9)


def test_the_whole_model() -> None:
    c = case()
    found = spectrum(c.model, c.loss_fn, c.inputs, c.targets, steps=54)
    assert (found.name, found.size, found.exact) == ("model", 54, True)
    blocks = sum(float(c.dense_hessian(n).trace()) for n in ("0.weight", "2.weight"))
    assert found.trace == pytest.approx(blocks, rel=1e-9)


def test_quadrature_is_exact_after_as_many_steps_as_eigenvalues() -> None:
    values = torch.tensor([-2.0, 0.5, 0.5, 3.0], dtype=torch.float64)
    start = torch.tensor([1.0, 2.0, 1.0, -1.0], dtype=torch.float64)
    nodes, weights = lanczos_quadrature(lambda v: v * values, start, 10)
    torch.testing.assert_close(nodes, torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64))
    torch.testing.assert_close(weights, torch.tensor([1.0, 5.0, 1.0], dtype=torch.float64))


def test_density_integrates_to_the_number_of_eigenvalues() -> None:
    found = Spectrum("w", 5, np.array([0.0, 2.0]), np.array([4.0, 1.0]), exact=True)
    grid = np.linspace(-5, 7, 2001)
    total = found.density(grid, 0.3).sum() * (grid[1] - grid[0])
    assert total == pytest.approx(5, rel=1e-6)
    with pytest.raises(ValueError, match=r"width=0\.0"):
        found.density(grid, 0.0)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"name": "1.weight"}, "name='1.weight': expected one of 0.weight, 2.weight"),
        ({"matrix": "fisher"}, "matrix='fisher'"),
        ({"method": "fast"}, "method='fast'"),
        ({"probes": 0}, "probes=0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_input(chosen: dict, words: str) -> None:
    c = case()
    with pytest.raises(ValueError, match=words):
        spectrum(c.model, c.loss_fn, c.inputs, c.targets, **chosen)


def test_same_generator_same_nodes() -> None:
    c = case()
    given = (c.model, c.loss_fn, c.inputs, c.targets)
    first = spectrum(*given, steps=5, generator=seeded(1))
    again = spectrum(*given, steps=5, generator=seeded(1))
    np.testing.assert_array_equal(first.values, again.values)
