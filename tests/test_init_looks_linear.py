"""`looks_linear_` and `scale_outputs_`: outputs of a given size; linear at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessinit_lib.init import apply, looks_linear_, scale_outputs_
from hessinit_lib.init.looks_linear import OUTPUT_RMS
from tests.networks import chain, seeded
from tests.test_init_hessian import Attention, Residual, TwoInputs, images, pairs, tokens, vectors


def rms(model: nn.Module, x: Any) -> float:
    with torch.no_grad():
        z = model(**x) if isinstance(x, dict) else model(*x if isinstance(x, tuple) else (x,))
    return z.double().square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: chain(6, 10, nn.ReLU), lambda: vectors()[0]),
        (lambda: chain(6, 10, nn.Tanh), lambda: vectors()[0]),
        (Residual, lambda: images()[0]),
        (Attention, lambda: tokens()[0]),
        (TwoInputs, pairs),
        (TwoInputs, lambda: dict(zip("yx", pairs()[::-1], strict=True))),
        (lambda: nn.Sequential(chain(3, 8, nn.GELU), nn.LogSoftmax(1)), lambda: vectors()[0]),
    ],
    ids=["relu", "tanh", "residual", "attention", "two inputs", "by keyword", "log-softmax"],
)
@pytest.mark.parametrize("size", [OUTPUT_RMS, 0.05])
def test_outputs_have_the_size_asked_for(
    make: Callable[[], nn.Module], inputs: Callable[[], Any], size: float
) -> None:
    model, x = make(), inputs()
    scales = looks_linear_(model, x, output_rms=size, generator=seeded(0))
    head = model[0] if isinstance(model, nn.Sequential) and len(model) == 2 else model  # logits
    assert rms(head, x) == pytest.approx(size, rel=0.03)
    assert set(scales) == {
        name for name, p in model.named_parameters() if p.ndim > 1 and "norm" not in name
    }


@pytest.mark.parametrize(
    ("make", "data"), [(Residual, images), (lambda: chain(4, 10, nn.Tanh), vectors)]
)
def test_outputs_are_scaled_by_the_last_layer_alone(
    make: Callable[[], nn.Module], data: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    model, (x, _) = make(), data()
    apply(model, "he", generator=seeded(0))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    outputs = model(x)
    scales = scale_outputs_(model, x, output_rms=0.3)
    assert rms(model, x) == pytest.approx(0.3, rel=0.03)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert [name for name, scale in scales.items() if scale != 1] == changed
    assert len(changed) == 1  # biases are zero
    torch.testing.assert_close(model(x), outputs * scales[changed[0]])


def test_directions_are_a_linear_map_of_relus_and_branches_are_damped() -> None:
    model = Residual(blocks=4)
    scales = looks_linear_(model, images()[0], generator=seeded(0))
    assert [scales[f"b.{k}.weight"] for k in range(4)] == pytest.approx([0.5] * 4)
    assert [scales[f"a.{k}.weight"] for k in range(4)] == [1.0] * 4
    plain = chain(5, 10, nn.ReLU)
    x = vectors()[0]
    looks_linear_(plain, x, generator=seeded(0))
    assert torch.allclose(plain(x) + plain(-x), torch.zeros(24, 3), atol=1e-5)


def test_directions_do_not_depend_on_the_weights_as_found() -> None:
    x = vectors()[0]
    first, second = chain(4, 10, nn.Tanh), chain(4, 10, nn.Tanh)
    with torch.no_grad():
        for p in second.parameters():
            p.zero_()
    looks_linear_(first, x, generator=seeded(0))
    looks_linear_(second, x, generator=seeded(0))
    assert torch.equal(first[4].weight, second[4].weight)


@pytest.mark.parametrize(("make", "data"), [(Residual, images), (Attention, tokens)])
def test_bfloat16(make: Callable[[], nn.Module], data: Callable[[], tuple[Tensor, Tensor]]) -> None:
    model, x = make().bfloat16(), data()[0]
    x = x.bfloat16() if x.is_floating_point() else x
    looks_linear_(model, x, generator=seeded(0))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    exact = make()
    exact.load_state_dict(model.state_dict())
    assert rms(exact, x.float() if x.is_floating_point() else x) == pytest.approx(0.7, rel=0.05)


def test_outputs_that_do_not_follow_the_last_layer() -> None:
    for behind in (nn.LayerNorm(3), nn.Sigmoid()):
        model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3), behind)
        kept = [weight.clone() for weight in model.parameters()]
        with pytest.raises(ValueError, match=r"the outputs do not follow the scale of 2\.weight"):
            looks_linear_(model, vectors()[0], output_rms=3.0, generator=seeded(0))
        assert all(map(torch.equal, kept, model.parameters()))


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("function", [looks_linear_, scale_outputs_])
def test_sizes_that_are_none(function: Callable[..., Any], size: Any) -> None:
    message = f"output_rms={size!r}: expected a number above 0"
    with pytest.raises(ValueError, match=message):
        function(chain(2, 4, nn.ReLU), vectors()[0], output_rms=size)


def test_batch_statistics_and_lazy_models_are_refused() -> None:
    model = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(NotImplementedError, match=r"1 \(BatchNorm1d\) normalizes by the stat"):
        looks_linear_(model, vectors()[0])
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet: expected a model that was"):
        looks_linear_(model, vectors()[0])
    model(vectors()[0])
    looks_linear_(model, vectors()[0], generator=seeded(0))
