"""Gradient and Hessian factor of the losses against dense float64 derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Case, labels, make_case, seeded
from torch import Tensor, nn

from hessinit_lib import layer_hessians
from hessinit_lib.hessians.cross_entropy import softmax_factor
from hessinit_lib.hessians.loss import loss_curvature, output_hessian

WEIGHTS = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)

OF_CLASSES = {
    "cross_entropy": F.cross_entropy,
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "all": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1, ignore_index=2),
    "all_sum": nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1, reduction="sum"),
    "partial": functools.partial(F.cross_entropy, label_smoothing=0.1, weight=WEIGHTS),
    "partial_sum": functools.partial(F.cross_entropy, reduction="sum"),
    "written_out": lambda z, y: -z.log_softmax(1)[torch.arange(len(z)), y].mean(),
    "nll": lambda z, y: F.nll_loss(z.log_softmax(1), y),
}
OF_VALUES = {
    "mse": nn.MSELoss(),
    "mse_sum": functools.partial(F.mse_loss, reduction="sum"),
    "bce": F.binary_cross_entropy_with_logits,
    "bce_all": nn.BCEWithLogitsLoss(weight=WEIGHTS, pos_weight=WEIGHTS.flip(0)),
    "bce_sum": nn.BCEWithLogitsLoss(reduction="sum", pos_weight=WEIGHTS),
    "huber": nn.HuberLoss(delta=0.5),
    "smooth_l1": nn.SmoothL1Loss(beta=0.5),
    "l1": nn.L1Loss(),
    "poisson": nn.PoissonNLLLoss(),
    "soft_margin": lambda z, y: F.soft_margin_loss(z, 2 * y - 1),
    "soft_targets": lambda z, y: F.kl_div(z.log_softmax(1), y.softmax(1), reduction="batchmean"),
    "square_of_sum": lambda z, y: (z - y).sum(1).square().sum(),
    "spread": lambda z, y: z.var(1).mean(),
    "distance": lambda z, y: (1 + (z - y).square().sum(1)).sqrt().mean(),
}


def dense(loss_fn: Callable[..., Tensor], z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Differentiate B L in all outputs at once: shapes (B, C) and (B, C, B, C)."""
    loss = lambda outputs: len(z) * loss_fn(outputs, targets)  # noqa: E731
    return torch.func.grad(loss)(z), torch.autograd.functional.hessian(loss, z)


def check(loss_fn: Callable[..., Tensor], z: Tensor, targets: Tensor) -> None:
    gradient, factor = loss_curvature(loss_fn, z, targets)
    expected_gradient, expected = dense(loss_fn, z, targets)
    blocks = expected.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    assert float(expected.norm()) == pytest.approx(float(blocks.norm()), rel=1e-12)
    for got, wanted in ((gradient, expected_gradient), (factor.mT @ factor, blocks)):
        assert got.shape == wanted.shape
        # Where a loss is saturated, its derivatives are rounded differences of numbers near 1.
        assert float((got - wanted).norm()) <= 1e-9 * float(wanted.norm()) + 1e-13


def draw_outputs(batch: int, seed: int, scale: float) -> Tensor:
    return scale * torch.randn(batch, 3, generator=seeded(seed), dtype=torch.float64)


batches = st.integers(1, 9)
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.01, 1.0, 10.0])


@pytest.mark.parametrize("name", sorted(OF_CLASSES))
@settings(max_examples=8)
@given(batches, seeds, scales)
def test_losses_of_classes(name: str, batch: int, seed: int, scale: float) -> None:
    targets = labels(batch, 3, seed)
    targets[0] = 0  # not every target may be ignored
    check(OF_CLASSES[name], draw_outputs(batch, seed, scale), targets)


@pytest.mark.parametrize("name", sorted(OF_VALUES))
@settings(max_examples=8)
@given(batches, seeds, scales)
def test_losses_of_values(name: str, batch: int, seed: int, scale: float) -> None:
    targets = torch.rand(batch, 3, generator=seeded(seed + 1), dtype=torch.float64)
    check(OF_VALUES[name], draw_outputs(batch, seed, scale), targets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_class_probabilities(reduction: str) -> None:
    loss_fn = nn.CrossEntropyLoss(WEIGHTS, reduction=reduction, label_smoothing=0.2)
    check(loss_fn, draw_outputs(6, 0, 1.0), draw_outputs(6, 1, 1.0).softmax(1))


@pytest.mark.parametrize("loss_fn", [nn.BCEWithLogitsLoss(), nn.MSELoss(), nn.HuberLoss()])
def test_one_output(loss_fn: nn.Module) -> None:
    check(loss_fn, draw_outputs(6, 0, 1.0)[:, :1], labels(6, 2)[:, None].double())


def test_closed_forms_equal_the_general_way() -> None:
    z, y = draw_outputs(6, 0, 1.0), labels(6)
    closed = loss_curvature(OF_CLASSES["all"], z, y)
    gradient, hessian = output_hessian(OF_CLASSES["all"], z, y)
    torch.testing.assert_close(closed.gradient, gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(closed.factor.mT @ closed.factor, hessian, rtol=1e-12, atol=1e-14)


def test_outputs_of_any_shape() -> None:
    z, y = draw_outputs(8, 0, 1.0).view(2, 3, 4), labels(8).view(2, 4)
    gradient, factor = loss_curvature(F.cross_entropy, z, y)
    expected_gradient, expected = dense(F.cross_entropy, z, y)
    blocks = expected.reshape(2, 12, 2, 12).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    torch.testing.assert_close(gradient, expected_gradient.view(2, 12), rtol=1e-9, atol=0)
    torch.testing.assert_close(factor.mT @ factor, blocks, rtol=1e-9, atol=1e-12)
    assert factor.shape == (2, 8, 12)  # four positions of rank 2

    gradient, factor = loss_curvature(nn.MSELoss(), z[0, 0], z[1, 0])
    torch.testing.assert_close(gradient, 2 * (z[0, 0] - z[1, 0])[:, None])
    torch.testing.assert_close(factor, torch.full((4, 1, 1), math.sqrt(2), dtype=torch.float64))


def test_rows_that_vanish_everywhere_are_left_out() -> None:
    z, y = draw_outputs(6, 0, 1.0), labels(6)
    written_out = OF_CLASSES["written_out"]
    assert loss_curvature(written_out, z, y).factor.shape == softmax_factor(z.softmax(1)).shape
    assert loss_curvature(OF_VALUES["distance"], z, z).factor.shape == (6, 3, 3)
    assert loss_curvature(nn.L1Loss(), z, z + 1).factor.shape == (6, 1, 3)


def test_saturated_loss_in_float32_is_convex() -> None:
    # p - p^2 at p = 1 - 1e-9: in float32 rounding makes up all of it.
    z, y = 20 * F.one_hot(labels(6), 3).float(), labels(6)
    got = loss_curvature(OF_CLASSES["written_out"], z, y)
    expected = loss_curvature(F.cross_entropy, z.double(), y)
    assert got.factor.dtype == torch.float32
    torch.testing.assert_close(
        got.factor.norm().double(), expected.factor.norm(), rtol=1e-5, atol=0
    )


def test_tensors_of_the_outputs_type_inside_a_loss() -> None:
    weights = WEIGHTS.float()  # F.cross_entropy takes no others for float32 outputs
    z, y = draw_outputs(6, 0, 1.0).float(), labels(6)
    got = loss_curvature(lambda z, y: F.cross_entropy(z, y, weight=weights), z, y)
    expected = loss_curvature(nn.CrossEntropyLoss(weights), z, y)
    torch.testing.assert_close(got.factor.mT @ got.factor, expected.factor.mT @ expected.factor)


class _Calibrated(nn.Module):
    """A loss with a parameter, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(self.scale * outputs, targets)


def test_a_loss_module_stays_as_it_is() -> None:
    loss_fn = _Calibrated()
    z, y = draw_outputs(6, 0, 1.0).float(), labels(6)
    curvature = loss_curvature(loss_fn, z, y)
    plain = loss_curvature(F.cross_entropy, 2 * z, y)
    torch.testing.assert_close(curvature.gradient, 2 * plain.gradient)
    assert loss_fn.scale.grad is None
    assert loss_fn.scale.dtype == torch.float32
    assert int(loss_fn.calls) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["written_out", "cross_entropy"])
def test_outputs_that_are_not_finite_give_nan(name: str, value: float) -> None:
    z = draw_outputs(4, 0, 1.0)
    z[2, 1] = value
    assert loss_curvature(OF_CLASSES[name], z, labels(4)).factor.isnan().any()


def test_a_loss_that_overflows_gives_nan_norms() -> None:
    case = make_case([4, 6, 3], ["tanh"], "mse", 7, 1.0, seed=1)
    with torch.no_grad():
        case.model[2].bias.fill_(1e3)
    report = layer_hessians(case.model, nn.PoissonNLLLoss(), case.inputs, case.targets)
    assert all(math.isnan(layer.frobenius) for layer in report.values())


@pytest.mark.parametrize("name", ["bce_all", "huber", "distance", "poisson"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_layers_under_other_losses(name: str, activation: str) -> None:
    case = make_case([4, 6, 3], [activation], "mse", 7, 1.0, seed=1)
    targets = torch.rand(7, 3, generator=seeded(2), dtype=torch.float64)
    case = Case(case.model, OF_VALUES[name], case.inputs, targets)
    report = layer_hessians(case.model, case.loss_fn, case.inputs, targets)
    for weight, layer in report.items():
        whole, part = case.dense_hessian(weight).norm(), case.dense_gauss_newton(weight).norm()
        assert layer.frobenius == pytest.approx(float(whole), rel=1e-9)
        assert layer.linearization.frobenius == pytest.approx(float(part), rel=1e-9)


def test_sum_is_the_batch_times_the_mean() -> None:
    case = make_case([4, 6, 3], ["tanh"], "cross_entropy", 7, 1.0, seed=3)
    mean = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    total = layer_hessians(
        case.model, nn.CrossEntropyLoss(reduction="sum"), case.inputs, case.targets
    )
    for name, layer in mean.items():
        assert total[name].frobenius == pytest.approx(7 * layer.frobenius, rel=1e-12)


def _pairs(z: Tensor, y: Tensor) -> Tensor:
    """Couple the last two samples alone."""
    return z.square().mean() + z[-1, 0] * z[-2, 1]


@pytest.mark.parametrize(
    ("loss_fn", "error", "words"),
    [
        (lambda z, y: z.softmax(1)[:, 0].mean(), NotImplementedError, "is not convex"),
        (lambda z, y: -z.square().mean(), NotImplementedError, "eigenvalue -0.667"),
        (
            nn.CrossEntropyLoss(-WEIGHTS, reduction="sum"),
            NotImplementedError,
            "CrossEntropyLoss is not convex",
        ),
        (lambda z, y: z.mean(0).square().sum(), NotImplementedError, "couples samples"),
        (lambda z, y: F.cross_entropy(z @ z.mT, y), NotImplementedError, "couples samples"),
        (_pairs, NotImplementedError, "loss _pairs couples samples"),
        (nn.CrossEntropyLoss(reduction="none"), ValueError, "reduction='none'"),
        (
            nn.MultiMarginLoss(),
            NotImplementedError,
            "MultiMarginLoss cannot be differentiated twice",
        ),
        (lambda z, y: z.square().sum(1), ValueError, r"shape \(5,\), expected one number"),
        (lambda z, y: (z.argmax(1) == y).double().mean(), ValueError, "gave a constant"),
        (nn.BCEWithLogitsLoss(), ValueError, r"BCEWithLogitsLoss: targets have shape \(5,\)"),
    ],
)
def test_refusals_name_the_cause(
    loss_fn: Callable[..., Tensor], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        loss_curvature(loss_fn, draw_outputs(5, 0, 1.0), labels(5))
    assert "\n" not in str(caught.value)


def test_binary_cross_entropy_outside_the_unit_interval_is_refused() -> None:
    z = draw_outputs(5, 0, 1.0)
    with pytest.raises(NotImplementedError, match="BCEWithLogitsLoss is not convex"):
        loss_curvature(nn.BCEWithLogitsLoss(pos_weight=0 * WEIGHTS), z, torch.full_like(z, 2))
