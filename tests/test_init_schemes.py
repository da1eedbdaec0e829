"""Named schemes: deviations, biases, what is left alone, and clear errors."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hessinit_lib
from hessinit_lib.init import SCHEMES, apply, mirrored_, normal_, orthogonal_, truncated_, uniform_
from hessinit_lib.init.layers import weight_layers
from tests.networks import seeded

OPTIONS: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.2},
    "normal": {"std": 0.3},
    "uniform": {"std": 0.3},
    "truncated": {"std": 0.3},
}
LAYERS = {
    "linear": lambda: nn.Linear(300, 200),
    "conv1d": lambda: nn.Conv1d(60, 80, 5),
    "conv2d": lambda: nn.Conv2d(40, 60, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(20, 30, 3),
    "transposed": lambda: nn.ConvTranspose2d(40, 60, 3, groups=2),
}


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 36, 8),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


# Deviations


def expected_std(scheme: str, fan_in: int, fan_out: int) -> float:
    return {
        "lecun": 1 / math.sqrt(fan_in),
        "glorot": math.sqrt(2 / (fan_in + fan_out)),
        "he": math.sqrt(2 / fan_in),
        "dropout": math.sqrt(0.8 * 2 / fan_in),
        "torch": 1 / math.sqrt(3 * fan_in),
    }.get(scheme, 0.3)


FANS = {
    "linear": (300, 200),
    "conv1d": (300, 400),
    "conv2d": (180, 270),
    "conv3d": (540, 810),
    "transposed": (180, 270),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"orthogonal", "mirrored", "torch"}))
def test_deviation_of_the_weights(scheme: str, kind: str) -> None:
    layer = LAYERS[kind]()
    apply(layer, scheme, generator=seeded(0), **OPTIONS.get(scheme, {}))
    assert layer.weight.std().item() == pytest.approx(expected_std(scheme, *FANS[kind]), rel=0.02)
    assert layer.weight.mean().item() == pytest.approx(0, abs=0.03 * layer.weight.std().item())


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_scheme_has_the_law_of_torch(kind: str) -> None:
    """Weights and biases within torch's own bounds, and up to them."""
    ours, theirs = LAYERS[kind](), LAYERS[kind]()
    apply(ours, "torch", generator=seeded(0))
    for name in ("weight", "bias"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=0.15)
    assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.03)


@pytest.mark.parametrize(("fan", "n"), [("in", 300), ("out", 200), ("average", 250)])
@pytest.mark.parametrize(("scheme", "power"), [("lecun", 1), ("he", 2), ("glorot", 1)])
def test_fan_is_the_one_that_is_named(scheme: str, power: int, fan: str, n: int) -> None:
    layer = apply(nn.Linear(300, 200), scheme, fan=fan, generator=seeded(0))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(power / n), rel=0.02)


def test_slope_of_leaky_relu() -> None:
    layer = apply(nn.Linear(300, 200), "he", slope=0.5, generator=seeded(0))
    assert layer.weight.std().item() == pytest.approx(math.sqrt(1.6 / 300), rel=0.02)


def test_embedding_is_a_layer_of_fan_one() -> None:
    layer = nn.Embedding(500, 40, padding_idx=3)
    apply(layer, "lecun", generator=seeded(0))
    assert layer.weight.std().item() == pytest.approx(1, rel=0.02)
    assert not layer.weight[3].any()


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 2, 3), (4, 3, 2, 2)])
def test_orthogonal_as_a_matrix(shape: tuple[int, ...]) -> None:
    weight = orthogonal_(torch.empty(shape, dtype=torch.float64), generator=seeded(0)).flatten(1)
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    assert torch.allclose(gram, torch.eye(len(gram), dtype=torch.float64), atol=1e-6)


def test_orthogonal_in_each_group() -> None:
    layer = apply(nn.Conv2d(8, 4, 3, groups=2), "orthogonal", gain=3.0, generator=seeded(0))
    for block in layer.weight.detach().flatten(1).split(2):
        assert torch.allclose(block @ block.T, 9 * torch.eye(2), atol=1e-4)


@pytest.mark.parametrize("draw", [normal_, truncated_, uniform_])
def test_tensor_functions_work_in_place(draw: Any) -> None:
    weight = torch.empty(200, 300, dtype=torch.bfloat16)
    assert draw(weight, 0.5, generator=seeded(0)) is weight
    assert weight.float().std().item() == pytest.approx(0.5, rel=0.02)


# Mirrored


def test_mirrored_network_is_linear_at_the_start() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    apply(model.double(), "mirrored", generator=seeded(0))
    x, y = torch.randn(2, 5, 6, dtype=torch.float64, generator=seeded(1))
    assert torch.allclose(model(2 * x - y), 2 * model(x) - model(y), atol=1e-6)


def test_mirrored_keeps_lengths() -> None:
    """From the second layer to the last, V is square and orthogonal: so is the whole map."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    apply(model, "mirrored", generator=seeded(0))
    x = torch.randn(5, 4, generator=seeded(1))
    assert torch.allclose(model(x).norm(dim=1), x.norm(dim=1), atol=1e-5)


def test_mirrored_needs_even_halves() -> None:
    with pytest.raises(ValueError, match="3 outputs: expected an even number, two halves"):
        mirrored_(torch.empty(3, 4))
    # In a whole model, a layer with an odd number of outputs is not mirrored.
    apply(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "mirrored")


# What is left alone


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rest_of_the_model_and_random_state_are_left(scheme: str) -> None:
    model = network()
    model[8].weight.requires_grad_(False)
    with torch.no_grad():
        model[1].weight.fill_(3.0)
        model[6].bias.fill_(2.0)
        model[5].bias.fill_(9.0)
    frozen = model[8].weight.clone()
    before = torch.get_rng_state()
    again = network()
    again.load_state_dict(model.state_dict())
    again[8].weight.requires_grad_(False)
    torch.set_rng_state(before)
    assert apply(model, scheme, generator=seeded(0), **OPTIONS.get(scheme, {})) is model
    apply(again, scheme, generator=seeded(0), **OPTIONS.get(scheme, {}))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model[8].weight, frozen)
    assert (model[1].weight == 3).all()
    assert (model[6].bias == 2).all()
    assert bool(model[5].bias.any()) == (scheme == "torch")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.grad is None


def test_tied_weight_is_drawn_once_as_the_layer_that_sums() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(400, 100)
            self.head = nn.Linear(100, 400, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    model = Tied()
    (layer,) = weight_layers(model)
    assert layer.name == "embed.weight"
    assert layer.fans() == (100, 400)
    apply(model, "lecun", generator=seeded(0))
    assert model.head.weight.std().item() == pytest.approx(0.1, rel=0.02)


# Errors


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("hee", {}, "scheme 'hee': expected one of lecun, glorot, he"),
        ("he", {"fann": "in"}, "unknown option 'fann'; it takes fan, law, slope"),
        ("normal", {}, "option 'std' is missing; it takes std"),
        ("torch", {"fan": "in"}, "unknown option 'fan'; it takes none"),
        ("he", {"fan": "up"}, "fan 'up': expected one of in, out, average"),
        ("he", {"law": "cauchy"}, "law 'cauchy': expected one of normal, uniform, truncated"),
        ("normal", {"std": -1.0}, "std -1.0: expected a finite number, 0 or more"),
        ("dropout", {"dropout": 1.0}, "dropout 1.0: expected a probability below 1"),
    ],
)
def test_wrong_options(scheme: str, options: dict[str, Any], message: str) -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.clone()
    with pytest.raises(ValueError, match=message):
        apply(layer, scheme, **options)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.LSTM(3, 4), "weight_ih_l0 belongs to a LSTM: expected weights of Linear, Embedding"),
        (nn.ReLU(), "no trainable weight: expected a Linear, convolution or Embedding layer"),
    ],
)
def test_models_that_are_not_covered(model: nn.Module, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        apply(model, "he")


def test_the_package_names_what_people_use_without_loading_it() -> None:
    code = (
        "import sys, hessinit_lib; assert 'torch' not in sys.modules; "
        "assert {'diagnose', 'init', 'layer_hessians'} <= set(dir(hessinit_lib)); "
        "hessinit_lib.init.hessian_; hessinit_lib.layer_hessians; "
        "print(hessinit_lib.diagnose.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "hessinit_lib.diagnosis.diagnose\n", done.stderr
    with pytest.raises(AttributeError, match="'hessinit_lib' has no attribute 'diagnosis_of'"):
        hessinit_lib.diagnosis_of  # noqa: B018
