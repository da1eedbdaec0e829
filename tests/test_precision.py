"""Where products may be rounded, by how much norms move, and that settings are put back."""

from __future__ import annotations

import pytest
import torch
from networks import chain_hessians, make_case
from torch import nn

from hessinit_lib.hessians import layer_hessians, model_hessian, spectrum
from hessinit_lib.hessians.numerics.precision import (
    cpu_multiplies_bfloat16,
    fast_products,
    few_threads,
    narrowed,
)
from hessinit_lib.hessians.options import Options


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_setting_is_put_back(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    try:
        found = settings()
        with pytest.raises(RuntimeError), fast_products(torch.float32, 0.01, 1 << 30):
            torch.zeros(2, 3) @ torch.zeros(2, 3)
        assert settings() == found
    finally:
        torch.set_float32_matmul_precision("highest")


def test_small_products_take_one_thread_and_the_number_is_put_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with few_threads(1 << 30):
            assert torch.get_num_threads() == 2
        with few_threads(1 << 10):
            assert torch.get_num_threads() == 1
        with pytest.raises(RuntimeError), few_threads(1 << 10):
            torch.zeros(2, 3) @ torch.zeros(2, 3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "multiplications"),
    [
        (torch.float64, 0.01, 1 << 30),
        (torch.float32, 1e-4, 1 << 30),
        (torch.float32, 0.01, 1 << 20),
    ],
)
def test_exact_where_asked_for_or_small(
    dtype: torch.dtype, tolerance: float, multiplications: int
) -> None:
    left = torch.rand(300, 300, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = left.double() @ left.double()
    with fast_products(dtype, tolerance, multiplications) as rounded:
        product = left @ left
    assert not rounded
    # Another library may sum up in another order; bfloat16 would be off by 1e-4.
    assert (product / expected - 1).abs().max() < 10 * torch.finfo(dtype).eps


def test_factors_are_narrowed_only_where_that_is_allowed() -> None:
    narrow = torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    assert narrowed(torch.ones(2, 2), rounded=True).dtype == narrow
    assert narrowed(torch.ones(2, 2), rounded=False).dtype == torch.float32
    assert narrowed(torch.ones(2, 2, dtype=torch.float64), rounded=True).dtype == torch.float64


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_rounding_stays_far_below_the_tolerance(activation: str) -> None:
    case = make_case([300, 150, 150, 10], [activation] * 2, "cross_entropy", 128, 1.0, seed=1)
    case.inputs += 3.0  # much in common
    exact = chain_hessians(case.model, case.loss_fn, case.inputs, case.targets, Options())
    single = (case.model.float(), case.loss_fn, case.inputs.float(), case.targets)
    for tolerance, error in ((0.01, 2e-3), (1e-5, 1e-5)):
        found = chain_hessians(*single, Options(tolerance=tolerance))
        for name, layer in found.items():
            assert layer.frobenius == pytest.approx(exact[name].frobenius, rel=error)
            assert layer.spectral == pytest.approx(exact[name].spectral, rel=error)
            assert layer.residual.frobenius == pytest.approx(
                exact[name].residual.frobenius, rel=error
            )


@pytest.mark.parametrize(
    "middle", [nn.ReLU(), nn.Tanh(), nn.LayerNorm(6)], ids=["factors", "chain", "products"]
)
def test_autocast_around_the_call_changes_nothing(middle: nn.Module) -> None:
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), middle, nn.Linear(6, 3))
    inputs, targets = torch.randn(8, 5, generator=source), torch.arange(8) % 3
    loss_fn = nn.CrossEntropyLoss()

    def numbers() -> list[float]:
        report = layer_hessians(model, loss_fn, inputs, targets)
        whole = model_hessian(model, loss_fn, inputs, targets, norms=("spectral",))
        values = spectrum(model, loss_fn, inputs, targets)
        return [layer.frobenius for layer in report.values()] + [
            whole.spectral,
            values.spectral,
        ]

    expected = numbers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert numbers() == expected
        assert torch.is_autocast_enabled("cpu")
