"""The networks have the shapes they claim, and their starts the variances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hessinit_book.networks import NETWORKS, TITLES, build
from hessinit_book.networks.plain_cnn import plain_cnn
from hessinit_book.networks.resnet import resnet
from hessinit_book.networks.starts import LABELS, SCHEMES, draw_weights, weight_layers
from hessinit_lib.hessians.kinds import fans


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_network_gives_logits(name: str) -> None:
    model = build(NETWORKS[name], "he", seeded()).eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


def test_every_network_and_scheme_has_a_name_for_readers() -> None:
    assert NETWORKS.keys() == TITLES.keys()
    assert SCHEMES.keys() == LABELS.keys()


@pytest.mark.parametrize("depth", [4, 5, 8, 16])
def test_plain_network_has_its_depth(depth: int) -> None:
    assert len(weight_layers(plain_cnn(depth))) == depth
    assert plain_cnn(depth)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_resnet_is_the_identity_where_its_branches_are_zero() -> None:
    model = build(lambda: resnet(8, norm=False), "he", seeded())
    block = model[2]
    with torch.no_grad():
        block.second.weight.zero_()
    x = torch.rand(2, 16, 8, 8, generator=seeded())
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plain_cnn(3), "depth=3: expected at least 4"),
        (lambda: resnet(21), "depth=21: expected 6 n"),
        (lambda: draw_weights(nn.Linear(2, 2), "hee", seeded()), "scheme='hee': expected one of"),
        (lambda: draw_weights(nn.LayerNorm(2), "he", seeded()), "LayerNorm, which has no scheme"),
    ],
)
def test_wrong_request(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("torch", lambda n, m: 1 / (3 * n)),
        ("lecun", lambda n, m: 1 / n),
        ("glorot", lambda n, m: 2 / (n + m)),
        ("he", lambda n, m: 2 / n),
        ("orthogonal", lambda n, m: 2 / max(n, m)),
    ],
)
@pytest.mark.parametrize(
    "layer", [nn.Linear(300, 200), nn.Conv2d(24, 48, 3), nn.Conv2d(400, 400, 5, groups=400)]
)
def test_variances(scheme: str, variance, layer: nn.Module) -> None:
    if scheme == "orthogonal" and isinstance(layer, nn.Conv2d):
        pytest.skip("the flattened kernel is orthogonal, not the map")
    draw_weights(layer, scheme, seeded())
    expected = math.sqrt(variance(*fans(layer)))
    assert layer.weight.std().item() == pytest.approx(expected, rel=0.03)


def test_scale_of_a_start_does_not_change_its_directions() -> None:
    he, lecun = (build(NETWORKS["cnn4"], s, seeded(7)) for s in ("he", "lecun"))
    for a, b in zip(weight_layers(he).values(), weight_layers(lecun).values(), strict=True):
        torch.testing.assert_close(a, math.sqrt(2) * b)
