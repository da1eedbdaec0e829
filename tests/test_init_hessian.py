"""`hessian_`: the norms asked for are met, nothing else changes, and refusals are clear."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_lib import layer_hessians
from hessinit_lib.init import apply, hessian_
from hessinit_lib.init.forward_graph import forward_graph, last_layers, residual_branches
from tests.networks import chain, curvature_along_weights, labels, seeded

CE = nn.CrossEntropyLoss()


class Residual(nn.Module):
    """A stem, blocks of two layers with shortcuts, one of them a layer, and a head."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.a = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(blocks))
        self.b = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(blocks))
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for index, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            skip = self.shortcut(x) if index == 1 else x
            x = (skip + b(a(x).relu())).relu()
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """A small transformer block on embeddings, its head tied to them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8), nn.Embedding(5, 8)
        self.norm, self.mix, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x) + self.place(torch.arange(x.shape[1], device=x.device))
        q, k, v = self.mix(self.norm(z)).chunk(3, -1)
        z = z + self.out(F.scaled_dot_product_attention(q, k, v))
        return self.head(z)[:, -1]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c((self.a(x) + self.b(y)).relu())


def tokens() -> tuple[Tensor, Tensor]:
    return torch.randint(11, (12, 5), generator=seeded(4)), labels(12, 11)


def vectors() -> tuple[Tensor, Tensor]:
    return torch.randn(24, 12, generator=seeded(5)), labels(24)


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 1, 6, 6, generator=seeded(6)), labels(16)


def pairs() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 4, generator=seeded(1)), torch.ones(9, 3)


def norms(model: nn.Module, x: Tensor, y: Tensor, norm: str = "frobenius") -> dict[str, float]:
    report = layer_hessians(model, CE, x, y)
    return {name: getattr(layer, norm) for name, layer in report.items()}


# Norms that are asked for


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("directions", ["keep", "draw"])
def test_depth_50_in_three_evaluations(directions: str, seed: int) -> None:
    model = chain(50, 40, nn.ReLU)
    apply(model, "he", generator=seeded(seed))
    x, y = torch.randn(24, 12, generator=seeded(100 + seed)), labels(24)
    report = hessian_(model, CE, x, y, target=1.0, directions=directions, generator=seeded(seed))
    assert report.evaluations <= 3
    found = norms(model, x, y)
    assert len(found) == 50
    for name, value in found.items():
        assert value == pytest.approx(1, rel=0.05)
        assert report.after[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize("directions", ["keep", "draw"])
def test_norm_for_each_layer(directions: str, norm: str) -> None:
    model = chain(4, 10, nn.ReLU).double()
    x, y = vectors()
    apply(model, "he", generator=seeded(2))
    target = {"0.weight": 0.5, "2.weight": 0.2, "4.weight": 0.3, "6.weight": 0.1}
    hessian_(
        model, CE, x.double(), y, target=target, directions=directions, norm=norm,
        tolerance=1e-3, generator=seeded(0),
    )  # fmt: skip
    assert norms(model, x.double(), y, norm) == pytest.approx(target, rel=1e-3)


def test_equal_norms_keep_the_outputs() -> None:
    model = chain(5, 10, nn.ReLU, bias=False)
    x, y = vectors()
    outputs = model(x).detach()
    before = norms(model, x, y)
    report = hessian_(model, CE, x, y, target="equal", directions="keep", tolerance=1e-3)
    assert torch.allclose(model(x), outputs, rtol=1e-4, atol=1e-6)
    mean = math.prod(before.values()) ** (1 / 5)
    assert list(norms(model, x, y).values()) == pytest.approx([mean] * 5, rel=2e-3)
    assert report.iterations == 1
    assert report.before == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: chain(4, 10, nn.Tanh), vectors),
        (Residual, images),
        (lambda: nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 11)), tokens),
    ],
    ids=["tanh", "residual", "embedding"],
)
def test_norms_of_networks_without_a_closed_form(
    make: Callable[[], nn.Module], data: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    model = make()
    x, y = data()
    apply(model, "he", generator=seeded(0))
    target = {name: 0.7 * value for name, value in norms(model, x, y).items()}
    hessian_(model, CE, x, y, target=target, directions="keep", rounds=12)
    assert norms(model, x, y) == pytest.approx(target, rel=0.06)


# What a level of curvature along the outputs rests on


def test_curvature_along_the_weights_is_the_same_in_all_layers() -> None:
    """What the level rests on: W . H W = E z . D2l z in every layer, at any scales."""
    model = chain(4, 6, nn.ReLU, bias=False).double()
    with torch.no_grad():
        for index, factor in ((0, 3.0), (2, 0.2), (4, 1.4)):
            model[index].weight.mul_(factor)
    x, y = vectors()
    x = x.double()
    along, expected = curvature_along_weights(model, x, y)
    assert along == pytest.approx([expected] * 4, rel=1e-9)


# What a model is made of


def test_branches_and_last_layers() -> None:
    found = forward_graph(Residual(), images()[0])
    assert residual_branches(found) == [[f"a.{k}.weight", f"b.{k}.weight"] for k in range(3)]
    assert last_layers(found) == {"head.weight"}
    found = forward_graph(Attention(), tokens()[0])
    assert residual_branches(found) == [["mix.weight", "out.weight"]]
    assert last_layers(found) == {"embed.weight"}
    assert residual_branches(forward_graph(chain(3, 4, nn.ReLU), vectors()[0])) == []


# Nothing else changes


@pytest.mark.parametrize("target", ["equal", 0.5])
def test_model_and_random_state_are_left_as_found(target: Any) -> None:
    model = nn.Sequential(
        nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6),
        nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    x, y = vectors()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    modes = [m.training for m in model.modules()]
    kept = {n: v.clone() for n, v in model.state_dict().items() if n[0] in "14" and n != "4.bias"}
    flags = [p.requires_grad for p in model.parameters()]
    before = torch.get_rng_state()
    hessian_(model, CE, x, y, target=target, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all((p.grad == 1).all() for p in model.parameters())
    for name, value in kept.items():
        assert torch.equal(model.state_dict()[name], value)
    assert not any(m._forward_hooks for m in model.modules())


def test_bfloat16_computes_in_float32() -> None:
    x, y = vectors()
    model, exact = chain(6, 10, nn.ReLU), chain(6, 10, nn.ReLU)
    model.bfloat16()
    hessian_(model, CE, x.bfloat16(), y, target=0.5, generator=seeded(0))
    assert model[0].weight.dtype == torch.bfloat16
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    found = norms(exact, x.bfloat16().float(), y)
    assert list(found.values()) == pytest.approx([0.5] * 6, rel=0.06)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
def test_norms_and_state_on_a_gpu() -> None:
    model, (x, y) = chain(6, 10, nn.ReLU).cuda(), vectors()
    model[2].weight.requires_grad_(False)
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    hessian_(model, CE, x.cuda(), y.cuda(), target=0.5, generator=seeded(0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], torch.cuda.get_rng_state())
    assert list(norms(model.cpu(), x, y).values()) == pytest.approx([0.5] * 5, rel=0.06)


def test_failure_restores_the_weights() -> None:
    model = chain(4, 10, nn.ReLU)
    before = copy.deepcopy(model.state_dict())
    x, y = vectors()
    with pytest.raises(ValueError, match="expected targets that the network can have"):
        hessian_(model, CE, x, y, target=1e9, generator=seeded(0))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_report_is_a_table() -> None:
    model = chain(3, 6, nn.ReLU)
    x, y = vectors()
    report = hessian_(model, CE, x, y, target=0.25, generator=seeded(0))
    lines = str(report).splitlines()
    assert lines[0] == f"target: norms of 0.25; {report.iterations} iterations, " + (
        f"{report.evaluations} evaluations"
    )
    assert lines[1].split() == ["frobenius", "before", "after", "scale"]
    assert [line.split()[0] for line in lines[2:]] == ["0.weight", "2.weight", "4.weight"]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "best"}, "target='best': expected a number, or 'equal'"),
        ({"target": "level"}, "or 'equal'; looks_linear_ sets a size of the outputs"),
        ({"target": -1.0}, "target of 0.weight: got -1.0, expected a number above 0"),
        ({"target": {"0.weight": 1.0}}, "target: '2.weight' is missing; expected 0.weight, 2"),
        ({"target": {"a": 1.0}}, "target: unknown weight 'a'; expected 0.weight, 2.weight"),
        ({"directions": "same"}, "directions='same': expected 'draw' or 'keep'"),
        ({"norm": "trace"}, "norm='trace': expected one of frobenius, spectral"),
        ({"curvature": "fisher"}, "curvature='fisher': expected one of hessian, ggn"),
        ({"tolerance": math.nan}, "tolerance=nan: expected a number above 0"),
        ({"rounds": 0}, "rounds=0: expected a whole number, 1 or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hessian_(chain(2, 4, nn.ReLU), CE, *vectors(), **options)


def test_models_that_cannot_be_treated() -> None:
    model = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(
        NotImplementedError, match=r"1 \(BatchNorm1d\) normalizes by the statistics"
    ):
        hessian_(model, CE, *vectors())


def test_layer_without_curvature() -> None:
    model = chain(3, 6, nn.ReLU)
    with torch.no_grad():
        model[4].weight.zero_()
    with pytest.raises(ValueError, match=r"0\.weight: the norm of its Hessian is 0"):
        hessian_(model, CE, *vectors(), target=1.0, directions="keep")


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"inputs: got \[4, 5\] samples, expected as many"):
        hessian_(TwoInputs(), CE, (torch.ones(4, 4), torch.ones(5, 3)), labels(4))
    with pytest.raises(ValueError, match="an empty batch"):
        hessian_(chain(2, 4, nn.ReLU), CE, torch.ones(0, 12), labels(0))


def test_wrong_types_are_named() -> None:
    """In a process of its own: in this one, annotations are checked at each call."""
    code = """
import torch
from hessinit_lib import init
x, y, model, loss = torch.ones(4, 3), torch.arange(4) % 2, torch.nn.Linear(3, 2), torch.nn.L1Loss()
for given, options in (
    ((len, loss, x, y), {}),
    ((model, loss, x.numpy(), y), {}),
    ((model, None, x, y), {}),
    ((model, loss, x, y.numpy()), {}),
    ((model, loss, x, y), {"target": None}),
    ((model, loss, x, y), {"rounds": 2.5}),
    ((model, loss, x, y), {"generator": 0}),
):
    try:
        init.hessian_(*given, **options)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "model: got builtin_function_or_method, expected a torch.nn.Module",
        "inputs: got ndarray, expected a tensor, or tensors in a tuple or dict",
        "loss_fn: got NoneType, expected a function",
        "targets: got ndarray, expected a tensor; what else the loss takes can be bound to it by "
        "a lambda or functools.partial",
        "target of weight: got None, expected a number above 0",
        "rounds=2.5: expected a whole number, 1 or more",
        "generator: got 0, expected a torch.Generator",
    ], done.stderr
