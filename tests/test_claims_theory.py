"""Claims on the known rules and on the chain rule: each verdict from records made for it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from test_records import make_record

from hessinit_book.chapters.linearization_error.run import PLACES
from hessinit_book.chapters.norm_balance.run import RULES, units
from hessinit_book.claims import authors, chain_rule, rules
from hessinit_book.claims.findings import DERIVED, NOT_REPRODUCED, PARTLY, REPRODUCED
from hessinit_book.records.records import Record

SHAPES = {"w8_d3": [64, 8, 8, 4], "w64_d3": [64, 64, 64, 4], "tapered_d3": [64, 64, 8, 4]}
NORMS = ("trace", "b1", "b4", "b16", "large_batch", "whole")
Where = tuple[str, str, str]  # rule, shape, norm; "*" for any


def balance(
    unit: str | None = None, drifts: dict[Where, float] | None = None, seeds: int = 1
) -> list[Record]:
    """Make records of `norm_balance`: balanced in the rule's own unit or another, but for some."""
    values: dict[str, Any] = {"shapes": SHAPES, "glorot": {"784_100": 0.63, "784_10": 0.22}}
    for name, (shape, widths) in product(RULES, SHAPES.items()):
        scale = units(unit or RULES[name].unit, widths)
        one: dict[str, list[float]] = {norm: [3 * u for u in scale] for norm in NORMS}
        for (rule, where, norm), drift in (drifts or {}).items():
            for key in NORMS:
                if rule in ("*", name) and where in ("*", shape) and norm in ("*", key):
                    one[key] = [*one[key][:-1], one[key][-1] * drift]
        values.setdefault(name, {})[shape] = one
    parameters = {"batch_sizes": [1, 4, 16], "widths": [8, 64]}
    return [
        make_record(experiment="norm_balance", seed=seed, values=values, parameters=parameters)
        for seed in range(seeds)
    ]


def algebra(value: float) -> list[Record]:
    check = {"what": "rules", "value": value, "allowed": 1e-6}
    return [make_record(values={"checks": {"statement_07": check}})]


@pytest.mark.parametrize(
    ("drifts", "error", "verdict"),
    [
        ({}, 1e-16, DERIVED),
        ({("*", "*", "b16"): 9.0}, 1e-16, DERIVED),  # batches are another matter
        ({("he", "w64_d3", "trace"): 2.1}, 1e-16, PARTLY),
        ({("*", "*", "trace"): 0.4}, 1e-16, NOT_REPRODUCED),
        ({}, 1e-3, NOT_REPRODUCED),
        ({}, float("nan"), NOT_REPRODUCED),
    ],
)
def test_traces(drifts: dict[Where, float], error: float, verdict: str) -> None:
    assert rules.traces(balance(drifts=drifts), algebra(error)).verdict == verdict


@pytest.mark.parametrize(
    ("drifts", "verdict"),
    [
        ({}, DERIVED),
        ({("*", "w8_d3", "b1"): 9.0, ("*", "*", "b16"): 9.0}, DERIVED),  # a limit of wide networks
        ({("dropout", "w64_d3", "b1"): 2.1}, PARTLY),
        ({("*", "w64_d3", "b1"): 2.1}, NOT_REPRODUCED),
    ],
)
def test_single_samples(drifts: dict[Where, float], verdict: str) -> None:
    assert rules.one_sample(balance(drifts=drifts)).verdict == verdict


@pytest.mark.parametrize(
    ("drifts", "verdict"),
    [
        ({("*", "*", "b1"): 9.0, ("*", "*", "trace"): 9.0}, REPRODUCED),
        ({("he", "tapered_d3", "b16"): 2.1}, PARTLY),
        ({("lecun", "w8_d3", "whole"): 0.4}, PARTLY),
        ({("*", "*", "*"): 2.1}, NOT_REPRODUCED),
    ],
)
def test_batches(drifts: dict[Where, float], verdict: str) -> None:
    assert rules.batches(balance(drifts=drifts)).verdict == verdict


def test_figures_of_batches_are_counts() -> None:
    found = rules.batches(balance(drifts={("he", "tapered_d3", "b16"): 4.0}, seeds=2))
    assert "He, ReLU: 1.0 to 4.0, within 2 in 5 of 6" in found.figure


@pytest.mark.parametrize(
    ("unit", "drifts", "verdict"),
    [
        (None, {}, NOT_REPRODUCED),  # balanced per input: eightfold where widths differ
        ("one", {}, REPRODUCED),
        ("one", {("*", "w64_d3", "b1"): 9.0}, REPRODUCED),  # there they do not differ
        ("one", {("he", "w8_d3", "b1"): 9.0}, PARTLY),
    ],
)
def test_norms_as_they_are(unit: str | None, drifts: dict[Where, float], verdict: str) -> None:
    assert rules.literal(balance(unit, drifts)).verdict == verdict


@pytest.mark.parametrize(
    ("unit", "drifts", "verdict"),
    [
        (None, {("*", "*", "b16"): 9.0}, REPRODUCED),
        (None, {("glorot_small", "w64_d3", "trace"): 3.7}, PARTLY),
        (None, {("glorot_small", "*", "*"): 3.7}, NOT_REPRODUCED),
    ],
)
def test_glorot(unit: str | None, drifts: dict[Where, float], verdict: str) -> None:
    found = rules.glorot(balance(unit, drifts))
    assert found.verdict == verdict
    assert "0.22 in a layer 784 to 10" in found.figure


def chain(error: float, *cells: float, relu: float = 0.0, check: float = 1e-16) -> list[Record]:
    """Make records of `linearization_error` with one error everywhere, but for the first cells."""

    def layer(errors: list[float]) -> dict[str, list[float]]:
        return {
            "frobenius": errors,
            "spectral": errors,
            "norm_ratio": [1 - errors[0], *(1 + e for e in errors[1:])],
        }

    values: dict[str, Any] = {
        "checks": {"statement_05_exact": {"value": check, "allowed": 1e-12}},
    }
    for moment in ("start", "trained"):
        same = {place: layer([error, error]) for place in PLACES}
        exact = {place: layer([relu, relu]) for place in PLACES}
        values[moment] = {"relu": exact, "leaky_relu": exact, "tanh": same}
    if cells:
        values["trained"]["tanh"] = {**values["trained"]["tanh"], "upper": layer([*cells])}
    parameters = {"activations": ["relu", "leaky_relu", "tanh"]}
    return [make_record(values=values, parameters=parameters, seed=seed) for seed in range(3)]


def modern(residual: float, ratio: float) -> list[Record]:
    """Make records of `modern_linearization`: two layers, and a head without a residual."""
    batch = {"b8": {"residual": [residual] * 2 + [0.0], "linearization": [ratio] * 2 + [1.0]}}
    network = {"names": ["a", "b", "head.weight"], "start": batch, "trained": batch}
    return [make_record(values={"networks": {"gpt": network}})]


@pytest.mark.parametrize(
    ("relu", "check", "verdict"),
    [(0.0, 1e-16, DERIVED), (0.2, 1e-16, NOT_REPRODUCED), (0.0, 1e-3, NOT_REPRODUCED)],
)
def test_piecewise_linear_networks(relu: float, check: float, verdict: str) -> None:
    assert chain_rule.piecewise_linear(chain(0.9, relu=relu, check=check)).verdict == verdict


@pytest.mark.parametrize(
    ("found", "others", "verdict"),
    [
        (chain(0.05), modern(0.05, 0.95), REPRODUCED),
        (chain(0.05), modern(0.5, 0.95), PARTLY),
        (chain(0.5, 0.05, 0.5), modern(0.5, 0.5), PARTLY),
        (chain(0.5), modern(0.5, 0.5), NOT_REPRODUCED),
    ],
)
def test_the_matrix(found: list[Record], others: list[Record], verdict: str) -> None:
    assert chain_rule.matrix(found, others).verdict == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (chain(0.05), REPRODUCED),
        (chain(0.5, 0.05, 0.5), PARTLY),
        (chain(0.5), NOT_REPRODUCED),
    ],
)
def test_the_spectral_norm(found: list[Record], verdict: str) -> None:
    assert chain_rule.spectral(found).verdict == verdict


@pytest.mark.parametrize(
    ("found", "others", "verdict"),
    [
        (chain(0.05), modern(0.9, 1.05), REPRODUCED),  # too large or too small a norm alike
        (chain(0.05), modern(0.9, 1.2), PARTLY),
        (chain(0.5), modern(0.0, 0.5), NOT_REPRODUCED),
    ],
)
def test_the_norm(found: list[Record], others: list[Record], verdict: str) -> None:
    judged = chain_rule.norm(found, others)
    assert judged.verdict == verdict
    assert "modern, at the start" in judged.figure


def test_errors_are_summed_up_by_moment() -> None:
    figure = chain_rule.matrix(chain(0.5, 0.05, 0.9), modern(0.5, 0.5)).figure
    assert (
        "fully connected, after training: typically 0.50, at worst 0.90, at best 0.05, "
        "within 0.1 in 1 of 6" in figure
    )


@pytest.mark.parametrize(
    ("relu", "frobenius", "spectral", "verdict"),
    [
        (0.0, 0.3, 0.2, REPRODUCED),
        (0.0, 0.7, 0.6, PARTLY),
        (0.0, 0.7, 0.2, PARTLY),
        (0.6, 0.7, 0.6, NOT_REPRODUCED),
    ],
)
def test_linearization_dominates(
    relu: float, frobenius: float, spectral: float, verdict: str
) -> None:
    values = {
        "deviation": {"relu": {"first": {"frobenius": [relu]}}},
        "authors_network": {"frobenius": frobenius, "spectral": spectral},
    }
    assert authors.linearization_dominates([make_record(values=values)]).verdict == verdict
