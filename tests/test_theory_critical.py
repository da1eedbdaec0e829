"""Critical variances, gains of a step, balancing scales."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import make_case
from torch import nn

from hessinit_book.theory import Masks, RandomNetwork, predict_layer_norms
from hessinit_lib.theory import (
    balancing_scales,
    best_rate,
    critical_variance,
    gains,
    predicted_gain,
)

WIDTHS = st.integers(1, 10_000)
SMOOTH = ["linear", "tanh", "softsign"]


@given(WIDTHS, WIDTHS, st.sampled_from(SMOOTH))
def test_statement_07_recovers_lecun_and_glorot(fan_in: int, fan_out: int, name: str) -> None:
    assert critical_variance(name, fan_in, fan_out) * fan_in == pytest.approx(1, abs=1e-6)
    backward = critical_variance(name, fan_in, fan_out, "fan_out")
    assert backward * fan_out == pytest.approx(1, abs=1e-6)
    glorot = critical_variance(name, fan_in, fan_out, "fan_avg")
    assert glorot * (fan_in + fan_out) == pytest.approx(2, abs=1e-6)


@given(WIDTHS, WIDTHS, st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_statement_07_recovers_he(fan_in: int, fan_out: int, std: float) -> None:
    forward = critical_variance("relu", fan_in, fan_out, std=std)
    assert forward * fan_in == pytest.approx(2, abs=1e-6)
    backward = critical_variance("relu", fan_in, fan_out, "fan_out", std=std)
    assert backward * fan_out == pytest.approx(2, abs=1e-6)


@given(WIDTHS, st.floats(0.0, 1.0))
def test_statement_07_recovers_leaky_relu(fan_in: int, slope: float) -> None:
    found = critical_variance(nn.LeakyReLU(slope), fan_in, 10)
    assert found * (1 + slope**2) * fan_in == pytest.approx(2, abs=1e-6)


def test_statement_07_recovers_selu() -> None:
    assert critical_variance("selu", 300, 10) * 300 == pytest.approx(1, abs=1e-6)


@given(st.floats(0.0, 0.95), st.sampled_from(["tanh", "relu"]))
def test_statement_07_dropout(dropout: float, name: str) -> None:
    keep, plain = 1 - dropout, critical_variance(name, 64, 64)
    dropped = critical_variance(name, 64, 64, dropout=dropout, rescale=False)
    assert dropped == pytest.approx(plain / keep)
    inverted = critical_variance(name, 64, 64, dropout=dropout)
    assert inverted == pytest.approx(plain * keep)


def test_statement_07_smooth_activations_lose_their_small_signal_gain() -> None:
    assert critical_variance("gelu", 64, 64) * 64 == pytest.approx(4, abs=1e-6)
    at_one = critical_variance("gelu", 64, 64, std=1.0) * 64
    assert at_one == pytest.approx(1 / gains("gelu").c)


def test_critical_variance_gives_layers_one_norm() -> None:
    # Equal widths, no correlation between samples' curvatures to speak of: one sample.
    s = critical_variance("relu", 4096, 4096)
    network = RandomNetwork.make([4096] * 6, [s] * 5, "relu")
    x = torch.full((1, 4096), 0.5)
    limits = [layer.limit for layer in predict_layer_norms(network, x)]
    assert limits == pytest.approx([limits[0]] * 5, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("relu", 0, 3), {}, "fan_in 0, fan_out 3: expected 1 or more"),
        (("relu", 3, 3, "both"), {}, "mode 'both': expected one of"),
        (("relu", 3, 3), {"dropout": 1.0}, r"dropout 1\.0: expected a probability below 1"),
        (("sigmoid", 3, 3), {}, "'sigmoid' is not 0 at 0: expected std above 0"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        critical_variance(*arguments, **options)


@given(st.integers(0, 100))
def test_statement_08_gain_of_a_small_step(seed: int) -> None:
    case = make_case([4, 5, 3], ["tanh"], "cross_entropy", 6, 1.0, seed)
    weight = case.model.get_parameter("0.weight")
    loss = case.loss_fn(case.model(case.inputs), case.targets)
    (gradient,) = torch.autograd.grad(loss, weight)
    g = gradient.flatten()
    square, curvature = float(g @ g), float(g @ case.dense_hessian("0.weight") @ g)
    realized = []
    for rate in (1e-2, 1e-3):
        with torch.no_grad():
            weight -= rate * gradient
            moved = case.loss_fn(case.model(case.inputs), case.targets)
            weight += rate * gradient
        realized.append(float(loss.detach() - moved) - predicted_gain(square, curvature, rate))
    # What is left is of third order: a tenth of the rate leaves a thousandth of it.
    assert abs(realized[1]) <= 2e-3 * abs(realized[0]) + 1e-15


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0, 10))
def test_statement_08_best_rate_gains_most(square: float, curvature: float, rate: float) -> None:
    best = predicted_gain(square, curvature, best_rate(square, curvature))
    assert predicted_gain(square, curvature, rate) <= best * (1 + 1e-12)
    assert best_rate(square, -curvature) == math.inf


NORMS = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=8)


@given(NORMS, st.floats(1e-3, 1e3))
def test_statement_10_scales_reach_the_target(norms: list[float], target: float) -> None:
    scales = balancing_scales(norms, target)
    reached = [n * math.exp(2 * (sum(scales) - t)) for n, t in zip(norms, scales, strict=True)]
    assert reached == pytest.approx([target] * len(norms), rel=1e-9)


def test_statement_10_balances_a_relu_network() -> None:
    # The squared error has the same output curvature everywhere, so once is enough.
    case = make_case([5, 7, 6, 4], ["relu", "leaky_relu"], "mse", 6, 1.0, seed=3)
    names = ["0.weight", "2.weight", "4.weight"]
    with torch.no_grad():
        for name in names:
            case.model.get_parameter(name.replace("weight", "bias")).zero_()
    targets = [2.0, 1.0, 0.5]
    scales = balancing_scales([float(case.dense_hessian(n).norm()) for n in names], targets)
    with torch.no_grad():
        for name, t in zip(names, scales, strict=True):
            case.model.get_parameter(name).mul_(math.exp(t))
    reached = [float(case.dense_hessian(name).norm()) for name in names]
    assert reached == pytest.approx(targets, rel=1e-10)


@pytest.mark.parametrize(
    ("norms", "targets", "message"),
    [
        ([1.0], 1.0, "1 norms: expected those of two or more layers"),
        ([1.0, 2.0], [1.0], "1 targets: expected 2"),
        ([1.0, 0.0], 1.0, r"norm 0\.0: expected a finite number above 0"),
    ],
)
def test_statement_10_refuses(norms: list[float], targets: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balancing_scales(norms, targets)


@pytest.mark.parametrize("rescale", [True, False])
def test_statement_07_first_layer(rescale: bool) -> None:
    # The rule of every layer balances all; another first layer sets all others apart from it.
    keep, width, c = 0.5, 4096, 0.5
    masked = 1 / keep if rescale else keep
    rule = critical_variance("relu", width, width, dropout=1 - keep, rescale=rescale)
    x = torch.full((1, width), 0.5)
    firsts = {rule: 1.0, 1 / (c * width): masked, 1 / width: c * masked}
    for first, apart in firsts.items():
        masks = Masks(keep, rescale=rescale)
        network = RandomNetwork.make([width] * 6, [first, *[rule] * 4], "relu", masks)
        limits = [layer.limit for layer in predict_layer_norms(network, x)]
        assert limits[1:] == pytest.approx([apart * limits[0]] * 4, rel=1e-6)


@pytest.mark.parametrize(("activation", "least", "most"), [("relu", 1.0, 1.1), ("tanh", 0.1, 0.4)])
def test_a_layer_sees_its_own_deviation_through_its_slopes(
    activation: str, least: float, most: float
) -> None:
    # Hence the hypothesis of two slopes in statement 6; and of fixed output curvature, which
    # moves a little here, with the logits.
    x = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))

    def first(deviation: float) -> float:
        variances = [deviation**2 / 512, *[1 / 512] * 3]
        return predict_layer_norms(RandomNetwork.make([512] * 5, variances, activation), x)[0].limit

    assert least < first(1.0) / first(0.01) < most
