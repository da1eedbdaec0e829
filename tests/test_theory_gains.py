"""Gains and kernel maps against closed forms and adaptive quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import seeded
from torch import Tensor, nn

from hessinit_book.theory import kernel_maps
from hessinit_lib.theory import gains
from hessinit_lib.theory.activations import differentiate
from hessinit_lib.theory.quadrature import normal_rule

STDS = st.floats(1e-3, 30.0)


@given(STDS)
def test_linear_gains(std: float) -> None:
    found = gains("linear", std=std)
    numbers = (found.c, found.c_prime, found.c_second, found.mean)
    assert numbers == pytest.approx((1.0, 1.0, 0.0, 0.0), abs=1e-12)


@given(STDS, st.floats(0.0, 2.0))
def test_leaky_relu_gains(std: float, slope: float) -> None:
    found = gains(nn.LeakyReLU(slope), std=std)
    half = (1 + slope**2) / 2
    assert found.c == pytest.approx(half, rel=1e-12)
    assert found.c_prime == pytest.approx(half, rel=1e-12)
    mean = (1 - slope) * std / math.sqrt(2 * math.pi)
    assert found.mean == pytest.approx(mean, rel=1e-12, abs=1e-13 * std)


@given(STDS)
def test_erf_gains(std: float) -> None:
    # E erf(u)^2 = (2 / pi) arcsin(2 v / (1 + 2 v)), E erf'(u)^2 = (4 / pi) / sqrt(1 + 4 v).
    v = std**2
    found = gains(torch.erf, std=std)
    assert found.c * v == pytest.approx(2 / math.pi * math.asin(2 * v / (1 + 2 * v)), rel=1e-11)
    assert found.c_prime == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * v), rel=1e-11)
    # erf'' = -2 u erf', and exp(-2 u^2) narrows the normal law to v / (1 + 4 v).
    second = 16 / math.pi * v / (1 + 4 * v) ** 1.5
    assert found.c_second == pytest.approx(second, rel=1e-11)


@given(STDS)
def test_hard_tanh_gains(std: float) -> None:
    inside = math.erf(1 / std / math.sqrt(2))
    density = math.exp(-0.5 / std**2) / math.sqrt(2 * math.pi)
    power = std**2 * (inside - 2 / std * density) + 1 - inside
    found = gains("hardtanh", std=std)
    assert found.c_prime == pytest.approx(inside, rel=1e-12)
    # Where inside is nearly the whole or nothing, the closed form above cancels.
    assert found.c * std**2 == pytest.approx(power, rel=1e-10)


def test_selu_fixed_point() -> None:
    found = gains("selu")
    assert found.c == pytest.approx(1, abs=1e-12)
    assert found.mean == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "module",
    [nn.ELU(), nn.Hardswish(), nn.ReLU6(), nn.Softshrink(0.3), nn.Threshold(0.2, 0.5), nn.Mish()],
    ids=repr,
)
def test_kinks_leave_no_error(module: nn.Module) -> None:
    # Dense midpoint sums, right of the order step^2 whatever the kinks.
    step = 1e-5
    u = torch.arange(-12 + step / 2, 12, step, dtype=torch.float64)
    density = torch.exp(-(u**2) / 2) / math.sqrt(2 * math.pi) * step
    f, first, second = differentiate(module, u)
    found = gains(module)
    for got, values in ((found.c, f**2), (found.c_prime, first**2), (found.c_second, second**2)):
        assert got == pytest.approx(float((values * density).sum()), abs=2e-5)


@pytest.mark.parametrize(("name", "slope", "bend"), [("gelu", 0.5, 0.8), ("silu", 0.5, 0.5)])
def test_small_signal_limit(name: str, slope: float, bend: float) -> None:
    found = gains(name, std=0.0)
    assert found.c == pytest.approx(slope**2, rel=1e-9)
    assert found.c_prime == pytest.approx(slope**2, rel=1e-9)
    assert math.sqrt(found.c_second) == pytest.approx(bend, abs=3e-3)


def test_value_at_zero_outgrows_small_signals() -> None:
    assert gains("sigmoid", std=0.0).c == math.inf


@given(st.floats(1e-6, 1e3))
def test_rule_integrates_polynomials(std: float) -> None:
    rule = normal_rule(torch.tensor([std, 1.0], dtype=torch.float64), kinks=[0.3])
    for power, moment in ((0, 1.0), (1, 0.0), (2, 1.0), (4, 3.0), (6, 15.0)):
        t = rule.nodes[0] / std
        assert float((rule.weights[0] * t**power).sum()) == pytest.approx(moment, abs=1e-11)


def random_covariance(size: int, seed: int) -> Tensor:
    rows = torch.randn(size, size + 2, generator=seeded(seed), dtype=torch.float64)
    return rows @ rows.mT / (size + 2)


def correlated_products(f: nn.Module, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Integrate f(u) f(v) and f'(u) f'(v) on a fine grid over the plane."""
    root = torch.linalg.cholesky(covariance)
    t = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    density = torch.exp(-(t**2) / 2)
    weights = torch.outer(density, density) / density.sum() ** 2
    u = root[0, 0] * t[:, None].expand(-1, len(t))
    v = root[1, 0] * t[:, None] + root[1, 1] * t[None, :]
    at_u, at_v = differentiate(f, u), differentiate(f, v)
    return (weights * at_u.value * at_v.value).sum(), (weights * at_u.first * at_v.first).sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("module", "values", "slopes"),
    [
        (nn.ReLU(), 1e-4, 5e-3),
        (nn.LeakyReLU(0.3), 1e-4, 5e-3),
        (nn.Tanh(), 1e-6, 1e-6),
        (nn.GELU(), 1e-6, 1e-6),
        (nn.ELU(), 1e-4, 1e-3),
    ],
)
def test_kernel_maps_equal_plane_integrals(
    module: nn.Module, values: float, slopes: float, seed: int
) -> None:
    covariance = random_covariance(2, seed)
    found = kernel_maps(module, covariance)
    value, first = correlated_products(module, covariance)
    assert float(found.value[0, 1]) == pytest.approx(float(value), abs=values)
    assert float(found.first[0, 1]) == pytest.approx(float(first), abs=slopes)


@given(st.integers(0, 1000))
def test_erf_kernel_is_the_arcsine(seed: int) -> None:
    covariance = random_covariance(4, seed)
    power = 1 + 2 * covariance.diagonal()
    arcsine = torch.asin(2 * covariance / torch.outer(power, power).sqrt()) * 2 / math.pi
    # Correlations near 1 at large deviations converge last.
    assert torch.allclose(kernel_maps(torch.erf, covariance).value, arcsine, atol=1e-5)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "elu", "hardtanh", "softplus"])
def test_kernel_diagonal_is_the_gain(name: str) -> None:
    covariance = random_covariance(3, 5)
    kernels = kernel_maps(name, covariance)
    for b in range(3):
        power = float(covariance[b, b])
        found = gains(name, std=math.sqrt(power))
        assert float(kernels.value[b, b]) == pytest.approx(found.c * power, rel=1e-10)
        assert float(kernels.first[b, b]) == pytest.approx(found.c_prime, rel=1e-10)


def test_kernel_of_a_blank_sample() -> None:
    kernels = kernel_maps("tanh", torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    assert kernels.value[0].abs().max() < 1e-12
    assert torch.isfinite(kernels.first).all()


def test_unknown_names_and_deviations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"activation 'rectifier': expected a module or one of"):
        gains("rectifier")
    with pytest.raises(ValueError, match=r"std -1\.0: expected a finite number"):
        gains("relu", std=-1.0)
