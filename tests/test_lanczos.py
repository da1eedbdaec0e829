"""Spectral norms by Lanczos against dense eigenvalues."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hessinit_lib import layer_hessians
from hessinit_lib.hessians.numerics.lanczos import random_start, spectral_norms


def norm_of(eigenvalues: Tensor, seed: int = 0) -> float:
    size = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    basis = basis.to(eigenvalues)
    matrix = basis @ torch.diag(eigenvalues) @ basis.mT
    return spectral_norms(lambda v, _: v @ matrix, random_start(1, size, matrix))[0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(0, 1000))
def test_any_spectrum(eigenvalues: list[float], seed: int) -> None:
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    expected = float(values.abs().max())
    assert norm_of(values, seed) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6, 0.0])
def test_close_leading_eigenvalues(gap: float) -> None:
    values = torch.linspace(0, 0.9, 200, dtype=torch.float64)
    values[-2:] = torch.tensor([1 - gap, 1.0], dtype=torch.float64)
    assert norm_of(values) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("negative", [0.5, 0.999, 1.001, 2.0])
def test_either_end_may_lead(negative: float) -> None:
    values = torch.linspace(-negative, 1, 300, dtype=torch.float64)
    assert norm_of(values) == pytest.approx(max(1, negative), rel=1e-9)


def test_float32() -> None:
    values = torch.linspace(-0.3, 1, 300)
    assert norm_of(values) == pytest.approx(1, rel=2e-6)


def test_zero_and_non_finite() -> None:
    start = random_start(1, 50, torch.zeros(1))
    assert spectral_norms(lambda v, _: torch.zeros_like(v), start) == [0]
    assert math.isnan(spectral_norms(lambda v, _: v * math.nan, start)[0])


def test_repeats_bit_for_bit_and_leaves_the_global_stream() -> None:
    state = torch.get_rng_state()
    values = torch.linspace(-0.3, 1, 100)
    assert norm_of(values) == norm_of(values)
    assert torch.equal(state, torch.get_rng_state())


def test_several_operators_at_once() -> None:
    # One is exhausted at once (rank 1), one is zero, one has its lead at the lower end.
    size = 60
    rank_one = torch.zeros(size, dtype=torch.float64)
    rank_one[3] = 2.0
    spectra = torch.stack(
        (rank_one, torch.zeros_like(rank_one), torch.linspace(-3, 1, size, dtype=torch.float64))
    )
    found = spectral_norms(lambda v, k: spectra[k] * v, random_start(3, size, spectra))
    assert found == pytest.approx([2, 0, 3], rel=1e-9)


def test_operators_whose_norm_is_known_are_not_asked_again() -> None:
    size, asked = 300, []
    spectra = torch.stack((torch.linspace(0, 1, size), torch.linspace(0, 0.5, size)))
    spectra[1, -1] = 3.0  # far ahead: known soon

    def operators(v: Tensor, numbers: list[int]) -> Tensor:
        asked.append(tuple(numbers))
        return spectra[numbers] * v

    found = spectral_norms(operators, random_start(2, size, spectra))
    assert found == pytest.approx([1, 3], rel=2e-6)
    assert set(asked) == {(0, 1), (0,)}
    assert asked == sorted(asked, reverse=True)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-2, 1e-1])
def test_a_tolerance_saves_steps_and_is_met(tolerance: float) -> None:
    values = torch.linspace(0, 1, 2000) ** 3
    values[-1] = 1.002  # a close second
    steps = {}
    for allowed in (0.0, tolerance):
        calls: list[int] = []

        def operator(v: Tensor, _: list[int], calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return v * values

        (norm,) = spectral_norms(operator, random_start(1, 2000, values), allowed)
        assert norm == pytest.approx(1.002, rel=max(allowed / 10, 2e-6))
        steps[allowed] = len(calls)
    assert steps[tolerance] <= steps[0.0]
    assert steps[tolerance] < steps[0.0] or tolerance < 1e-3


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_few_close_eigenvalues_among_zeros_at_low_accuracy(rank: int) -> None:
    """The chain ends soon: what rounding leaves in it must not be taken for eigenvalues."""
    values = torch.zeros(1000)
    values[:rank] = torch.linspace(0.009, 0.013, rank) if rank > 1 else 0.013
    basis, _ = torch.linalg.qr(torch.randn(1000, 9, generator=torch.Generator().manual_seed(0)))
    factor = basis[:, :rank] * values[:rank].sqrt()
    found = spectral_norms(lambda v, _: v @ factor @ factor.mT, random_start(1, 1000, factor), 0.01)
    assert found[0] == pytest.approx(0.013, rel=1e-4)


@pytest.mark.parametrize("unit", [1e-30, 1e-15, 1e15, 1e30])
def test_operators_of_any_size(unit: float) -> None:
    values = torch.linspace(0.2, 1, 40)
    start = random_start(2, 40, values)
    sizes = torch.tensor([unit, 1.0])[:, None]
    found = spectral_norms(lambda v, k: v * values * sizes[k], start)
    assert found == pytest.approx([unit, 1.0], rel=1e-4)


def test_the_leading_eigenvalue_is_not_missed_at_low_accuracy() -> None:
    """Few starts are nearly orthogonal to its eigenvector: so many are drawn."""
    values = torch.linspace(0, 0.8, 200) ** 3
    values[-2:] = torch.tensor([0.93, 1.0])
    source = torch.Generator().manual_seed(0)
    starts = torch.randn(400, 200, generator=source)
    found = [spectral_norms(lambda v, _: v * values, start[None], 0.01)[0] for start in starts]
    assert found == pytest.approx([1.0] * 400, rel=1e-2)


def test_an_operator_that_is_not_finite_leaves_the_others_alone() -> None:
    matrices = torch.stack([torch.diag(torch.arange(1.0, 9.0)) * scale for scale in (1, 2, 3)])
    matrices[1, 0, 0] = math.nan

    def apply(v: Tensor, chosen: list[int]) -> Tensor:
        return torch.bmm(v[:, None], matrices[chosen])[:, 0]

    first, second, third = spectral_norms(apply, random_start(3, 8, matrices))
    assert (first, third) == pytest.approx((8.0, 24.0), rel=1e-5)
    assert math.isnan(second)


def test_norms_about_the_smallest_number_are_numbers() -> None:
    """Of a deep sigmoid network with tiny weights, in float32."""
    torch.manual_seed(0)
    sizes = [20, *[10] * 14, 3]
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), nn.Sigmoid()]
        nn.init.normal_(layers[-2].weight, std=3e-4)
        nn.init.zeros_(layers[-2].bias)
    model, x, y = nn.Sequential(*layers[:-1]), torch.rand(8, 20), torch.arange(8) % 3
    found = layer_hessians(model, nn.CrossEntropyLoss(), x, y)
    exact = layer_hessians(model.double(), nn.CrossEntropyLoss(), x.double(), y)
    assert min(layer.frobenius for layer in exact.values()) < 1e-50
    for name, layer in exact.items():
        for norm in ("frobenius", "spectral"):
            wanted = getattr(layer, norm)
            assert getattr(found[name], norm) == pytest.approx(wanted, rel=1e-2, abs=1e-41)
