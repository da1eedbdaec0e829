"""Statement 5 against dense references, and the experiment that measures the residual."""

from __future__ import annotations

import io
import math
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from networks import Case, cases, make_case
from torch import nn

from hessinit_book.chapters.linearization_error import (
    checks as linearization_checks,
)
from hessinit_book.chapters.linearization_error import figures
from hessinit_book.chapters.linearization_error import (
    run as linearization_error,
)
from hessinit_book.chapters.linearization_error.residual import layer_residuals
from hessinit_book.chapters.linearization_error.run import (
    PLACES,
    LinearizationErrorParameters,
    Setting,
    make_network,
    sweeps,
)
from hessinit_book.chapters.linearization_error.trained import train
from hessinit_book.data import load
from hessinit_book.drawing.style import data_label
from hessinit_book.errors import ParameterError
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_lib import layer_hessians

TINY: dict[str, Any] = {
    "activations": ["relu", "tanh", "gelu"],
    "deviations": [0.25, 1.0],
    "widths": [4, 8],
    "depths": [2, 3],
    "batch_sizes": [1, 16, 32],
    "width": 6,
    "batch_size": 12,
    "draws": 2,
    "steps": 30,
}


def run(folder: Path, **given: Any) -> list[Record]:
    fixed = {"profile": "smoke", "device": "cpu", "results_dir": str(folder)}
    return linearization_error.run(LinearizationErrorParameters.check(**{**fixed, **TINY, **given}))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records of two seeds."""
    return run(tmp_path_factory.mktemp("found"), seeds=[0, 1])


# The statement


@settings(max_examples=20)
@given(cases())
def test_statement_05_identity_and_bounds(case: Case) -> None:
    for layer in layer_residuals(case.model, case.loss_fn, case.inputs, case.targets):
        z = layer.inputs
        found = torch.einsum("bip,bj,bq->ijpq", layer.residuals(), z, z) / len(z)
        dense = case.dense_hessian(layer.name)
        linearization = case.dense_gauss_newton(layer.name)
        residual = dense - linearization
        scale = float(dense.norm() + linearization.norm() + z.square().sum(1).mean())
        assert (found.reshape(dense.shape) - residual).norm() <= 1e-11 * scale
        frobenius, spectral = layer.bounds()
        assert residual.norm() <= frobenius + 1e-11 * scale
        assert torch.linalg.matrix_norm(residual, 2) <= spectral + 1e-11 * scale


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "gelu"])
def test_statement_05_bounds_of_samples(activation: str) -> None:
    case = make_case([5, 6, 4, 3], [activation] * 2, "cross_entropy", 6, 1.0, seed=0)
    first, *_ = layer_residuals(case.model, case.loss_fn, case.inputs, case.targets)
    frobenius, spectral = first.sample_bounds()
    found = first.residuals()
    assert (found.flatten(1).norm(dim=1) <= frobenius).all()
    assert (torch.linalg.matrix_norm(found, 2) <= spectral).all()
    assert (spectral <= frobenius).all()


def test_statement_05_bound_is_reached_below_the_last_activation() -> None:
    """One sample, J = I: the residual is the diagonal matrix itself."""
    case = make_case([5, 6, 3], ["tanh"], "cross_entropy", 1, 1.0, seed=1)
    first, _ = layer_residuals(case.model, case.loss_fn, case.inputs, case.targets)
    residual = case.dense_hessian("0.weight") - case.dense_gauss_newton("0.weight")
    assert first.bounds() == pytest.approx(
        (float(residual.norm()), float(torch.linalg.matrix_norm(residual, 2))), rel=1e-10
    )


@pytest.mark.parametrize("seed", range(3))
def test_statement_05_piecewise_linear_networks_have_none(seed: int) -> None:
    names = ["relu", "leaky_relu", "relu"]
    case = make_case([5, 6, 6, 5, 3], names, "cross_entropy", 8, 1.0, seed)
    for layer in layer_residuals(case.model, case.loss_fn, case.inputs, case.targets):
        dense = case.dense_hessian(layer.name)
        assert (dense - case.dense_gauss_newton(layer.name)).norm() <= 1e-13 * dense.norm()
        assert layer.terms == []


@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_statement_05_average_over_labels(activation: str) -> None:
    """Every labelling of three samples, with its probability; all by dense Hessians."""
    case = make_case([4, 3, 3], [activation], "cross_entropy", 3, 1.5, seed=2)
    p = case.model(case.inputs).softmax(1).detach()
    linearization = case.dense_gauss_newton("0.weight")
    mean, square = torch.zeros_like(linearization), 0.0
    for labels in product(range(3), repeat=3):
        case.targets = torch.tensor(labels)
        probability = math.prod(float(p[b, c]) for b, c in enumerate(labels))
        residual = case.dense_hessian("0.weight") - linearization
        mean += probability * residual
        square += probability * float(residual.square().sum())
    assert mean.norm() <= 1e-12 * linearization.norm()
    expected = 0.0
    for c in range(3):
        case.targets = torch.full((3,), c)
        first, *_ = layer_residuals(case.model, case.loss_fn, case.inputs, case.targets)
        weights = p[:, c] * first.inputs.square().sum(1).square() / 9
        expected += float(weights @ first.residuals().square().sum((1, 2)))
    assert square == pytest.approx(expected, rel=1e-11)


def test_statement_05_close_norms_do_not_mean_a_small_residual() -> None:
    """The trap: norms within 10 %, a residual of more than a quarter."""
    ratios = []
    for seed in range(40):
        case = make_case([4, 5, 3], ["tanh"], "cross_entropy", 12, 1.0, seed)
        dense, linear = case.dense_hessian("0.weight"), case.dense_gauss_newton("0.weight")
        if abs(float(linear.norm() / dense.norm()) - 1) < 0.1:
            ratios.append(float((dense - linear).norm() / dense.norm()))
    assert max(ratios) > 0.25


def test_layer_residuals_of_a_composed_activation() -> None:
    """Two activations in a row, and a frozen weight in between."""
    case = make_case([4, 5, 4, 3], ["tanh", "gelu"], "mse", 3, 1.0, seed=3)
    first, tanh, second, gelu, last = case.model
    case.model = nn.Sequential(first, tanh, nn.Sigmoid(), second, gelu, last)
    second.weight.requires_grad_(False)
    for layer in layer_residuals(case.model, case.loss_fn, case.inputs, case.targets):
        z = layer.inputs
        found = torch.einsum("bip,bj,bq->ijpq", layer.residuals(), z, z) / len(z)
        residual = case.dense_hessian(layer.name) - case.dense_gauss_newton(layer.name)
        torch.testing.assert_close(found.reshape(residual.shape), residual, atol=1e-13, rtol=0)


# The experiment


def test_checks_hold_and_see_errors(found: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    for record in found:
        checks = record.values["checks"]
        names = ["", "_bound", "_exact", "_labels"]
        assert list(checks) == [f"statement_05{name}" for name in names]
        assert all(0 <= check["value"] <= check["allowed"] for check in checks.values())
    images = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    few = images[0][:4], images[1][:4]
    real = linearization_checks.layer_residuals

    def off(*given: Any) -> Any:
        return real(given[0], given[1], given[2], (given[3] + 1) % 10)

    monkeypatch.setattr(linearization_checks, "layer_residuals", off)
    assert linearization_checks.checks(("tanh",), 0, *few)["statement_05"]["value"] > 0.01


def test_sweeps_are_what_layer_hessians_gives(found: list[Record]) -> None:
    """One cell once more, from the pieces."""
    images, labels = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    order = torch.randperm(2000, generator=generator(1, "batch"))[:12]
    x, y = images[order].flatten(1), labels[order]
    for name in ("tanh", "gelu"):
        model = make_network(Setting(name, 0.25, 6, 4, 12), 1)
        report = list(layer_hessians(model, F.cross_entropy, x, y, tolerance=1e-4).values())
        swept = found[1].values["deviation"][name]
        for place, layer in zip(("first", "middle", "upper"), report[:3], strict=True):
            row = {key: values[0] for key, values in swept[place].items()}
            assert row == pytest.approx(
                {
                    "frobenius": layer.residual_ratio,
                    "spectral": layer.residual.spectral / layer.spectral,
                    "norm_ratio": layer.linearization.frobenius / layer.frobenius,
                    "residual": layer.residual.frobenius,
                },
                rel=1e-4,
            )


def test_record(found: list[Record]) -> None:
    for record in found:
        values = record.values
        for sweep, changes in sweeps(LinearizationErrorParameters.check(**TINY)).items():
            assert list(values[sweep]) == TINY["activations"]
            for row in values[sweep].values():
                assert {len(x) for place in row.values() for x in place.values()} == {len(changes)}
        assert values["deviation"]["relu"]["first"]["frobenius"] == [0.0, 0.0]
        assert values["deviation"]["relu"]["first"]["norm_ratio"] == [1.0, 1.0]
        ratios = [values["deviation"][name]["first"]["frobenius"] for name in ("tanh", "gelu")]
        first = values["overview"]["first"]["frobenius"]
        assert first["max"] == max(row[1] for row in ratios)
        assert first["below_half"] == np.mean(np.array(ratios) < 0.5)
        assert all(x >= 1 for b in values["bound"].values() for p in b.values() for x in p.values())
    assert found[0].values != found[1].values


def test_start_and_trained_networks_are_measured_alike(found: list[Record]) -> None:
    """The start is that of the sweeps; a trained network is another, and fits the data better."""
    images, labels = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    x, order = images.flatten(1), torch.randperm(2000, generator=generator(0, "batch"))
    values = found[0].values
    for name in TINY["activations"]:
        start = values["start"][name]["first"]["norm_ratio"]
        swept = [values[sweep][name]["first"]["norm_ratio"] for sweep in ("batch", "width")]
        assert start[1:] == [row[-1] for row in swept]
        model = make_network(Setting(name, 1.0, 6, 4, 0), 0)
        before = F.cross_entropy(model(x), labels).item()
        after = train(model, x, labels, 30, 0.1, generator(0, "training"))
        assert values["losses"][name] == after < before
        report = layer_hessians(model, F.cross_entropy, x[order[:12]], labels[order[:12]])
        trained = values["trained"][name]["first"]["frobenius"][0]
        assert trained == pytest.approx(report["0.weight"].residual_ratio, rel=1e-4)


def test_accuracy_is_of_smooth_activations(found: list[Record]) -> None:
    for record in found:
        for moment in ("start", "trained"):
            rows = [record.values[moment][name].values() for name in ("tanh", "gelu")]
            ratios = [r for row in rows for layer in row for r in layer["norm_ratio"]]
            errors = np.abs(np.array(ratios) - 1)
            found_sum = record.values["accuracy"][moment]["norm"]
            assert found_sum["worst"] == pytest.approx(errors.max(), rel=1e-5)
            assert found_sum["typical"] == pytest.approx(np.median(errors), rel=1e-5)
            assert found_sum["accurate"] == pytest.approx((errors <= 0.1).mean(), rel=1e-5)


def test_drawn_labels_average_out() -> None:
    """A slope of -1/2 against the batch size, for the expected square over labels."""
    values: dict[str, Any] = {"batch": {}, "batch_drawn": {}}
    for sweep, power in (("batch", -0.25), ("batch_drawn", -0.5)):
        residual = [3.0 * size**power for size in (1, 16, 64)]
        values[sweep]["tanh"] = {"first": {"residual": [7.0, *residual[1:]]}}
        values[sweep]["relu"] = {"first": {"residual": [0.0] * 3}}
    found = linearization_error.slopes((1, 16, 64), values)
    assert found["batch"] == {"tanh": pytest.approx(-0.25)}  # B = 1 does not count
    assert found["batch_drawn"] == {"tanh": pytest.approx(-0.5)}
    assert linearization_error.slopes((1, 16), values) == {}


def test_same_parameters_give_the_same_values(found: list[Record], tmp_path: Path) -> None:
    torch.manual_seed(99)  # must not matter
    before = torch.get_rng_state()
    again = run(tmp_path, seeds=[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert again[0].values == found[1].values


def test_piecewise_linear_alone(tmp_path: Path) -> None:
    (record,) = run(tmp_path, seeds=[0], activations=["relu"])
    assert list(record.values["checks"]) == ["statement_05_exact"]
    assert record.values["overview"] == record.values["bound"] == record.values["slope"] == {}
    assert record.values["accuracy"] == {"start": {}, "trained": {}}


def test_saturated_softmax_is_measured_in_float64() -> None:
    """Deep softplus networks: the curvature at the logits underflows in float32."""
    images, labels = load("mnist", sample=True).tensors("train", torch.device("cpu"))
    setting = Setting("softplus", 2.0, 16, 12, 16)
    found = linearization_error.measure(setting, 0, images[:16], labels[:16])
    assert all(math.isfinite(value) for place in found.values() for value in place.values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 2001}, "batch_size: got 2001, expected at most 2000"),
        ({"batch_sizes": [1, 3000]}, "batch_sizes: got 3000, expected at most 2000"),
        ({"activations": ["tanhh"]}, r"activations\[0\]: got 'tanhh', expected 'relu', "),
        ({"depths": [1]}, r"depths\[0\]: got 1, expected greater than or equal to 2"),
    ],
)
def test_bad_parameters(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=message):
        run(tmp_path, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "draw",
    [
        figures.deviation_map,
        lambda found: figures.against(found, "width"),
        lambda found: figures.against(found, "depth"),
        figures.against_batch,
        figures.norms_and_residuals,
        figures.bounds,
    ],
)
def test_figures(draw: Any, found: list[Record]) -> None:
    """Any warning is an error, too."""
    figure = draw(found)
    figure.savefig(io.BytesIO(), format="svg")
    assert data_label(found) in [text.get_text() for text in figure.texts]
    assert plt.get_fignums() == []


def test_figures_show_the_numbers(found: list[Record]) -> None:
    figure = figures.against(found, "width")
    line = figure.axes[0].lines[0]
    rows = [record.values["width"]["tanh"]["first"]["frobenius"] for record in found]
    assert line.get_label() == "tanh"
    np.testing.assert_allclose(line.get_ydata(), np.median(rows, 0))
    table = figures.summary(found)
    rows = [record.values["deviation"]["gelu"]["upper"]["spectral"][1] for record in found]
    assert table.loc["gelu", "layer n - 1, spectral"] == pytest.approx(np.median(rows), abs=1e-3)
    table = figures.accuracy(found)
    rows = [
        record.values["trained"]["gelu"][place]["spectral"] for record in found for place in PLACES
    ]
    medians = np.median(np.reshape(rows, (2, -1)), 0)
    assert table.loc["gelu", ("trained", "spectral")] == (
        f"{np.median(medians):.2f} ({medians.min():.2f} to {medians.max():.2f})"
    )
