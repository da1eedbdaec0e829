"""Norms of layer Hessians against dense float64 Hessians, and what the call refuses."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from networks import ACTIVATIONS, Case, cases, chain_hessians, make_case
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hessinit_lib import diagnose, layer_hessians, model_hessian
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import HessianReport


def check_against_dense(case: Case, tolerance: float = 1e-9) -> None:
    report = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    weights = [name for name, _ in case.model.named_parameters() if name.endswith("weight")]
    assert list(report) == weights
    for name, layer in report.items():
        hessian = case.dense_hessian(name)
        linearization = case.dense_gauss_newton(name)
        # Parts that cancel are compared on the scale of what they are parts of.
        scale = float(linearization.norm() + (hessian - linearization).norm())
        pairs = ((layer, hessian), (layer.linearization, linearization))
        for part, dense in (*pairs, (layer.residual, hessian - linearization)):
            eigenvalues = torch.linalg.eigvalsh(dense)
            for got, expected in (
                (part.frobenius, dense.norm()),
                (part.spectral, eigenvalues.abs().max()),
                (part.trace, dense.trace()),
            ):
                # Where G and R cancel to far below their own size, only that size can be met.
                allowed = tolerance * max(abs(float(expected)), 1e-2 * scale, 1e-200)
                assert abs(got - float(expected)) <= allowed, (name, got, float(expected))
        assert layer.exact
        assert layer.shape == tuple(case.model.get_parameter(name).shape)


@settings(max_examples=60)
@given(cases())
def test_norms_equal_dense_ones(case: Case) -> None:
    check_against_dense(case)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation_and_loss(activation: str, loss: str) -> None:
    check_against_dense(make_case([4, 6, 5, 4], [activation] * 2, loss, 7, 1.0, seed=1))


def test_wide_layers_take_the_route_over_factors() -> None:
    # n + 1 > 2 r^2: pairs of factor columns instead of packed matrices.
    check_against_dense(make_case([3, 12, 2], ["relu"], "cross_entropy", 9, 1.0, seed=2))


def test_batch_larger_than_inputs() -> None:
    check_against_dense(make_case([2, 3, 3], ["tanh"], "cross_entropy", 40, 1.0, seed=3))


def test_layers_of_one_shape_go_together() -> None:
    """Their chains of Lanczos vectors end at different steps."""
    case = make_case([4, *[5] * 6, 3], ["tanh", "relu", "silu"] * 2, "cross_entropy", 6, 2.0, 5)
    check_against_dense(case)
    case = make_case([8, *[10] * 10, 3], ["tanh"] * 10, "cross_entropy", 16, 1.0, seed=0)
    with Counted() as counted:
        layer_hessians(case.model.float(), case.loss_fn, case.inputs.float(), case.targets)
    assert counted.operations < 4000  # one by one: 7,200


class Counted(TorchDispatchMode):
    operations = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_linearization_of_relu_is_everything() -> None:
    case = make_case([4, 6, 5, 3], ["relu", "leaky_relu"], "cross_entropy", 7, 1.0, seed=4)
    for layer in layer_hessians(case.model, case.loss_fn, case.inputs, case.targets).values():
        assert layer.residual.frobenius == layer.residual.spectral == layer.residual_ratio == 0
        assert layer.linearization.frobenius == layer.frobenius


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(
            weight=torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64),
            label_smoothing=0.1,
            ignore_index=2,
        ),
    ],
    ids=["smoothing", "weights", "ignored", "all"],
)
def test_options_of_cross_entropy(loss_fn: nn.CrossEntropyLoss) -> None:
    case = make_case([4, 5, 3], ["tanh"], "cross_entropy", 8, 1.0, seed=5)
    case.loss_fn = loss_fn
    check_against_dense(case)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_probabilities_as_targets(smoothing: float) -> None:
    case = make_case([4, 5, 3], ["tanh"], "cross_entropy", 8, 1.0, seed=6)
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    case.targets = logits.softmax(1)
    case.loss_fn = nn.CrossEntropyLoss(label_smoothing=smoothing)
    check_against_dense(case)


def test_functional_losses_are_the_same() -> None:
    case = make_case([4, 5, 3], ["tanh"], "cross_entropy", 8, 1.0, seed=7)
    a = layer_hessians(case.model, nn.CrossEntropyLoss(), case.inputs, case.targets)
    b = layer_hessians(case.model, F.cross_entropy, case.inputs, case.targets)
    assert a["0.weight"] == b["0.weight"]


def test_nested_modules_images_and_idle_parts() -> None:
    case = make_case([12, 5, 3], ["relu"], "cross_entropy", 6, 1.0, seed=8)
    plain = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    first, relu, last = case.model
    nested = nn.Sequential(
        nn.Flatten(), nn.Sequential(first, nn.Identity(), relu), nn.Dropout(0.5), last
    ).eval()
    report = layer_hessians(nested, case.loss_fn, case.inputs.view(6, 3, 2, 2), case.targets)
    assert list(report) == ["1.0.weight", "3.weight"]
    assert report["1.0.weight"].frobenius == plain["0.weight"].frobenius


def test_in_place_activation_changes_nothing() -> None:
    case = make_case([4, 6, 3], ["relu"], "cross_entropy", 7, 1.0, seed=9)
    case.model[1] = nn.ReLU(inplace=True)
    check_against_dense(case)
    case.model[1] = nn.SiLU(inplace=True)
    check_against_dense(case)


def test_frozen_weights_are_left_out() -> None:
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=10)
    full = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    case.model[0].weight.requires_grad_(False)
    report = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    assert list(report) == ["2.weight"]
    assert report["2.weight"] == full["2.weight"]
    case.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no weight of two or more axes requires a gradient"):
        layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)


def test_one_class_has_no_curvature_and_a_layer_without_entries_is_refused() -> None:
    x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)
    for curvature in ("hessian", "ggn"):
        report = layer_hessians(nn.Linear(4, 1), nn.CrossEntropyLoss(), x, y, curvature=curvature)
        (layer,) = report.values()
        assert layer.frobenius == layer.spectral == layer.trace == 0
    with warnings.catch_warnings():  # torch initializes no entries
        warnings.simplefilter("ignore")
        empty = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3))
    for call in (layer_hessians, model_hessian, diagnose):
        with pytest.raises(ValueError, match=r"0\.weight: no entries, shape \(0, 4\)"):
            call(empty, nn.CrossEntropyLoss(), x, y)


def test_float32_agrees_with_float64() -> None:
    case = make_case([20, 30, 10], ["tanh"], "cross_entropy", 64, 1.0, seed=11)
    exact = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    single = layer_hessians(case.model.float(), case.loss_fn, case.inputs.float(), case.targets)
    for name, layer in exact.items():
        assert single[name].frobenius == pytest.approx(layer.frobenius, rel=1e-5)
        assert single[name].spectral == pytest.approx(layer.spectral, rel=5e-4)


def test_half_precision_is_computed_in_float32() -> None:
    case = make_case([8, 6, 3], ["relu"], "cross_entropy", 16, 1.0, seed=12)
    half = case.model.to(torch.bfloat16)
    report = layer_hessians(half, case.loss_fn, case.inputs.bfloat16(), case.targets)
    single = layer_hessians(
        half.float(), case.loss_fn, case.inputs.bfloat16().float(), case.targets
    )
    assert report["0.weight"].frobenius == pytest.approx(single["0.weight"].frobenius, rel=1e-6)


def test_leaves_everything_as_found() -> None:
    case = make_case([4, 6, 3], ["silu"], "cross_entropy", 7, 1.0, seed=13)
    case.loss_fn(case.model(case.inputs), case.targets).backward()
    before = [(p.clone(), p.grad.clone()) for p in case.model.parameters()]
    state, inputs = torch.get_rng_state(), case.inputs.clone()
    first = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    again = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    assert dict(first) == dict(again)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(inputs, case.inputs)
    assert case.model.training
    for (value, gradient), parameter in zip(before, case.model.parameters(), strict=True):
        assert torch.equal(value, parameter)
        assert torch.equal(gradient, parameter.grad)


def test_dead_network_has_zero_norms() -> None:
    case = make_case([4, 6, 3], ["relu"], "cross_entropy", 7, 1.0, seed=14)
    with torch.no_grad():
        case.model[0].bias.fill_(-100.0)  # every unit is off
    layer = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)["0.weight"]
    assert (layer.frobenius, layer.spectral, layer.trace, layer.residual_ratio) == (0, 0, 0, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_diverged_network_gives_nan(value: float) -> None:
    case = make_case([4, 6, 3], ["relu"], "cross_entropy", 7, 1.0, seed=15)
    with torch.no_grad():
        case.model[2].weight.fill_(value)
    layer = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)["0.weight"]
    assert math.isnan(layer.frobenius)
    assert math.isnan(layer.spectral)


def test_report_as_a_table() -> None:
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=16)
    report = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    frame = report.to_frame()
    assert list(frame.index) == ["0.weight", "2.weight"]
    layer = report["0.weight"]
    row = frame.loc["0.weight"]
    assert (row.fan_out, row.fan_in) == (6, 4)
    assert row.linearization_spectral == layer.linearization.spectral
    assert row.residual_ratio == layer.residual.frobenius / layer.frobenius
    assert "2.weight" in repr(report)


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=16)
    report = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    monkeypatch.setitem(sys.modules, "pandas", None)
    title, columns, *rows = repr(report).splitlines()
    assert title == "HessianReport of 2 layers"
    assert columns.split() == ["parameter", "frobenius", "spectral", "trace", "residual_ratio"]
    assert [row.split()[0] for row in rows] == list(report)
    with pytest.raises(ImportError, match=r"report\.to_frame\(\) needs pandas: pip install"):
        report.to_frame()


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


def _refused() -> list[tuple[str, nn.Module, object, type[Exception], str]]:
    linear = nn.Linear(4, 4)
    ce = nn.CrossEntropyLoss()
    return [
        (
            "module",
            nn.Sequential(nn.Linear(4, 4), _Sine()),
            ce,
            NotImplementedError,
            "SinBackward0 above 0.weight",
        ),
        ("recurrent", nn.LSTM(4, 4), ce, NotImplementedError, "weight_ih_l0 belongs to a LSTM"),
        ("dropout", nn.Sequential(nn.Dropout(0.5), linear), ce, NotImplementedError, "eval"),
        ("tied", nn.Sequential(linear, nn.ReLU(), linear), ce, NotImplementedError, "tied"),
        ("class", linear, nn.MSELoss, ValueError, r"the class MSELoss, expected MSELoss\(\)"),
        ("none", linear, nn.CrossEntropyLoss(reduction="none"), ValueError, "'none'"),
        ("nonconvex", linear, lambda z, y: -z.square().mean(), NotImplementedError, "not convex"),
        ("fan_in", nn.Linear(5, 4), ce, ValueError, r"\(3, 4\)"),
        ("mse shape", linear, nn.MSELoss(), ValueError, r"\(3,\)"),
    ]


@pytest.mark.parametrize(
    ("model", "loss_fn", "error", "words"),
    [pytest.param(*case, id=name) for name, *case in _refused()],
)
def test_refusals_name_the_cause(
    model: nn.Module, loss_fn: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        layer_hessians(
            model, loss_fn, torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), method="exact"
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "targets", "words"),
    [
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), "3 inputs and 2 targets"),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "empty batch"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), "class target 4: expected 0 to 3"),
        (torch.zeros(2, 4), torch.zeros(2, 1, dtype=torch.int64), r"\(2, 1\)"),
        (torch.zeros(2, 4), torch.zeros(2, 3), r"\(2, 3\)"),
        (torch.zeros(2, 5, 4), torch.zeros(2, dtype=torch.int64), r"\(2, 5, 4\).*\(2,\)"),
    ],
)
def test_wrong_batches(inputs: Tensor, targets: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer_hessians(nn.Linear(4, 4), nn.CrossEntropyLoss(), inputs, targets)


def test_a_layer_that_is_not_there() -> None:
    report = layer_hessians(nn.Linear(4, 2), nn.MSELoss(), torch.zeros(3, 4), torch.zeros(3, 2))
    with pytest.raises(KeyError, match="'0': expected one of weight"):
        report["0"]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_what_is_not_asked_for_is_nan_and_the_rest_the_same(activation: str) -> None:
    case = make_case([5, 12, 7, 4], [activation] * 2, "cross_entropy", 9, 1.0, seed=17)
    full = chain_report(case)
    for norms in (("frobenius",), ("spectral",), ("frobenius", "spectral")):
        for parts in (False, True):
            for name, layer in chain_report(case, norms=norms, parts=parts).items():
                expected = full[name]
                for norm in ("frobenius", "spectral"):
                    value = getattr(layer, norm)
                    if norm in norms:
                        assert value == pytest.approx(getattr(expected, norm), rel=1e-9)
                    else:
                        assert math.isnan(value)
                assert layer.trace == pytest.approx(expected.trace, rel=1e-12)
                assert parts != math.isnan(layer.linearization.trace)
                if activation == "relu":
                    assert layer.residual.frobenius == 0


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("part", [1.0, 1.3, 3.0])
def test_norms_do_not_depend_on_the_memory(activation: str, part: float) -> None:
    case = make_case([6, 70, 40, 4], [activation] * 2, "cross_entropy", 30, 1.0, seed=18)
    with pytest.raises(ValueError, match=r"max_memory=1: at least \d+ bytes") as caught:
        chain_report(case, max_memory=1)
    least = int(str(caught.value).split()[3])
    free, bound = chain_report(case), chain_report(case, max_memory=int(part * least))
    for name, layer in free.items():
        assert bound[name].frobenius == pytest.approx(layer.frobenius, rel=1e-12)
        assert bound[name].residual.frobenius == pytest.approx(layer.residual.frobenius, rel=1e-12)
        assert bound[name].spectral == pytest.approx(layer.spectral, rel=1e-9)


def chain_report(case: Case, **options: object) -> HessianReport:
    chosen = Options(**options)  # type: ignore[arg-type]
    return chain_hessians(case.model, case.loss_fn, case.inputs, case.targets, chosen)


@pytest.mark.parametrize("layers", ["fully connected", "convolutional"])
@pytest.mark.parametrize("std", [1e-6, 1e-3, 30.0])
def test_norms_whose_squares_are_no_float32_numbers(layers: str, std: float) -> None:
    source = torch.Generator().manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 36), nn.Tanh(), nn.Linear(36, 4))
        if layers == "fully connected"
        else nn.Sequential(
            nn.Unflatten(1, (1, 6, 6)),
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std if parameter.ndim > 1 else 0.01, generator=source)
    inputs = torch.randn(16, 36, generator=source)
    targets = torch.randint(4, (16,), generator=source)
    loss_fn = nn.CrossEntropyLoss()
    found = layer_hessians(model, loss_fn, inputs, targets)
    expected = layer_hessians(model.double(), loss_fn, inputs.double(), targets)
    for name, layer in expected.items():
        if layer.frobenius < 1e-35:  # beyond what float32 tells from zero
            continue
        assert found[name].frobenius == pytest.approx(layer.frobenius, rel=1e-2)
        assert found[name].spectral == pytest.approx(layer.spectral, rel=1e-2)
