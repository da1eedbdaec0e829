"""What the route for graphs of any shape refuses, and that it says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Function, graph_hessians, labels, seeded
from torch import Tensor, nn


def weight_norm() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def raw() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_parameter("position", nn.Parameter(torch.zeros(1, 4)))
    return model


REFUSED = {
    "tanh": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "TanhBackward0 above 0.weight"),
    "gelu": (lambda: Function(lambda a, b, x: b(F.gelu(a(x)))), "GeluBackward0 above a.weight"),
    "gate": (lambda: Function(lambda a, b, x: a(x) * b(x)), "MulBackward0 above a.weight"),
    "square": (lambda: Function(lambda a, b, x: b(a(x) ** 2)), "PowBackward0 above a.weight"),
    "ratio": (lambda: Function(lambda a, b, x: x / a(x)), "DivBackward0 above a.weight"),
    "reciprocal": (lambda: Function(lambda a, b, x: 1 / a(x)), "ReciprocalBackward0 above a"),
    "matrix product": (lambda: Function(lambda a, b, x: a(x) @ b(x).mT), "MmBackward0 above a"),
    "hypernetwork": (
        lambda: Function(lambda a, b, x: F.linear(b(x), a(x[:1]).T * x[0])),
        "MmBackward0 above",
    ),
    "softmax": (lambda: Function(lambda a, b, x: b(a(x).softmax(1))), "SoftmaxBackward0 above a"),
    "in place on a view": (
        lambda: Function(lambda a, b, x: in_place_on_a_view(a(x))),
        "operation in place on a view above a.weight",
    ),
    "inputs changed": (
        lambda: Function(lambda a, b, x: inputs_changed(a, x)),
        "inputs of a.weight are changed in place",
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
        "NativeLayerNormBackward0 above 0.weight",
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4)),
        "NativeGroupNormBackward0 above 0.weight",
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout()), r"1 \(Dropout\).*eval\(\)"),
    "rrelu": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RReLU()), r"1 \(RReLU\)"),
    "repeated": (lambda: Function(lambda a, b, x: a(a(x))), "a.weight is used more than once"),
    "borrowed": (
        lambda: Function(lambda a, b, x: a(F.linear(x, a.weight))),
        "a.weight is used more than once",
    ),
    "functional": (lambda: Function(lambda a, b, x: F.linear(x, a.weight)), "outside its layer"),
    "tied": (tied, "1.weight shares its tensor with 0.weight"),
    "weight norm": (weight_norm, "original"),
    "raw parameter": (raw, "position belongs to a Sequential"),
    "recurrent": (lambda: nn.LSTM(4, 4), "weight_ih_l0 belongs to a LSTM"),
    "max norm": (lambda: nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
    "frequencies": (lambda: nn.Embedding(4, 4, scale_grad_by_freq=True), "scale_grad_by_freq"),
    "mixed by a mean": (
        lambda: Function(lambda a, b, x: b(x) - a(x).mean(0)),
        "mixes the samples of the batch above a.weight",
    ),
    "mixed by an order": (
        lambda: Function(lambda a, b, x: a(x).flip(0)),
        "mixes the samples of the batch above a.weight",
    ),
}


def in_place_on_a_view(x: Tensor) -> Tensor:
    x = x * 1
    x[:, :2].tanh_()
    return x


def inputs_changed(layer: nn.Module, x: Tensor) -> Tensor:
    x = x.relu()
    y = layer(x)
    return y + x.add_(1)


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_the_cause(make: Callable[[], nn.Module], words: str) -> None:
    inputs = torch.randn(3, 4, generator=seeded(0))
    with pytest.raises(NotImplementedError, match=words) as caught:
        graph_hessians(make(), nn.CrossEntropyLoss(), inputs, labels(3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "inputs", "targets", "words"),
    [
        (nn.Linear(4, 3), torch.zeros(3, 4), labels(2), "3 inputs and 2 targets"),
        (nn.Linear(4, 3), torch.zeros(0, 4), labels(0), "empty batch"),
        (nn.Linear(4, 3), torch.zeros(2, 4), torch.tensor([0, 3]), "class target 3"),
    ],
)
def test_wrong_batches(model: nn.Module, inputs: Tensor, targets: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        graph_hessians(model, nn.CrossEntropyLoss(), inputs, targets)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Linear(4, 3), torch.zeros(2, 5, 4), r"\(2, 5, 3\): .*one row a sample"),
        (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), torch.zeros(2, 4), r"\(2,\): .*one row"),
    ],
)
def test_outputs_of_other_shapes(model: nn.Module, inputs: Tensor, words: str) -> None:
    with pytest.raises(NotImplementedError, match=words):
        graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(2))
