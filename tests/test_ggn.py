"""Gauss-Newton norms of any network against dense float64 matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ggn_networks import NAMES, dense, images, jacobians, make
from torch import Tensor, nn

from hessinit_lib import layer_hessians, model_hessian
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.ggn.gradients import SampleGradients
from hessinit_lib.hessians.ggn.passes import Passes
from hessinit_lib.hessians.ggn.uses import find_layouts


@pytest.mark.parametrize(
    ("by_positions", "memory"), [(False, None), (True, None), (False, 16), (False, 4000)]
)
@pytest.mark.parametrize("name", NAMES)
def test_per_sample_gradients_are_those_of_each_sample(
    name: str, by_positions: bool, memory: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forced(self: SampleGradients, _: object) -> bool:
        single = all(each.rows[0].shape[1] == 1 for each in self._products)
        return by_positions and single and not self._others

    monkeypatch.setattr(SampleGradients, "_by_positions", forced)
    case = make(name)
    z, _, rows = jacobians(case)
    vectors = [torch.randn(z.shape, dtype=z.dtype) for _ in range(2)]
    passes = Passes(case, memory)
    found = dict(passes.gradients(list(case.weights), vectors))
    assert found.keys() == case.weights.keys()
    for weight, gradients in found.items():
        by_sample = rows[weight].view(6, -1, rows[weight].shape[1])
        g = [torch.einsum("bc,bcp->bp", v.view(6, -1), by_sample) for v in vectors]
        (product,), squares, _ = gradients.inner_products([(0, 1)], squares=True)
        scale = g[0].norm() * g[1].norm()
        assert (product - g[0] @ g[1].T).abs().max() <= 1e-12 * scale, weight
        for one, square in zip(g, squares, strict=True):
            assert (square - one.square().sum(1)).abs().max() <= 1e-12 * one.norm() ** 2, weight


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_gradients_of_depthwise_convolutions(axes: int) -> None:
    """Of any kernel, stride, padding, dilation, and several outputs a channel."""
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    for index, (kernel, stride, padding, dilation, several) in enumerate(
        [(3, 2, 1, 1, 1), (2, 3, 0, 2, 2), (1, 2, 1, 1, 1), (3, 1, 2, 2, 2)]
    ):
        torch.manual_seed(index)
        convolution = kind(3, 3 * several, kernel, stride, padding, dilation, groups=3)
        model = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
        x, y = torch.randn(4, 3, *[8, 7, 6][:axes]).double(), torch.randint(2, (4,))
        model(x)
        passes = Passes(Case.checked(model, nn.CrossEntropyLoss(), x, y, layers="0.weight"))
        vector = torch.randn(4, 2, dtype=torch.float64)
        (product,), *_ = dict(passes.gradients(["0.weight"], [vector]))["0.weight"].inner_products(
            [(0, 0)]
        )
        z = model(x)
        g = [torch.autograd.grad(z[b], model[0].weight, vector[b], True)[0] for b in range(4)]
        rows = torch.stack(g).flatten(1)
        assert (product - rows @ rows.T).abs().max() <= 1e-12 * rows.square().sum()


@pytest.mark.parametrize("name", ["tied", "lstm", "images", "not convex"])
def test_norms_are_those_of_dense_blocks(name: str) -> None:
    case = make(name)
    report = layer_hessians(
        *case[:4], layers="*", curvature="ggn", norms=("frobenius",), tolerance=0.05, budget=None
    )
    for weight, block in dense(case).items():
        layer = report[weight]
        slack = 1e-9 * block.norm()
        assert abs(layer.frobenius - block.norm()) <= 3.5 * layer.stderr + slack, weight
        assert abs(layer.trace - block.trace()) <= 3.5 * layer.trace_stderr + 10 * slack, weight
        assert layer.stderr <= 0.05 * layer.frobenius
        assert (layer.curvature, layer.exact) == ("ggn", layer.stderr == 0)


def test_the_budget_ends_the_work_and_the_report_says_so() -> None:
    case = make("tied")
    report = layer_hessians(
        *case[:4], curvature="ggn", norms=("frobenius",), tolerance=1e-3, budget=12.0
    )
    assert "stopped at the budget of 12 training steps" in report.why_estimated
    assert all(0 < layer.stderr < layer.frobenius for layer in report.values())


def test_rows_that_belong_to_samples_in_no_order_are_gone_through_one_by_one() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.o = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            inside = x[..., 0] > -0.5  # a different number of positions in each sample
            z = x.new_zeros(*x.shape[:2], 4).masked_scatter(
                inside[..., None], torch.tanh(self.w(x[inside]))
            )
            return self.o(z.sum(1))

    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 3, dtype=torch.float64), torch.arange(6) % 2
    case = Case.checked(Packed().double(), nn.CrossEntropyLoss(), x, y)
    _, _, rows = jacobians(case)
    passes = Passes(case)
    assert passes.unknown == ["w.weight"]
    vector = torch.randn(6, 2, dtype=torch.float64)
    (product,), *_ = dict(passes.gradients(["w.weight"], [vector]))["w.weight"].inner_products(
        [(0, 0)]
    )
    g = torch.einsum("bc,bcp->bp", vector, rows["w.weight"].view(6, 2, -1))
    torch.testing.assert_close(product, g @ g.T)


def test_samples_on_either_axis_and_in_either_order_are_found() -> None:
    chosen = torch.tensor([True, False, True, False])
    rows = torch.zeros(8, 3)
    rows[[0, 4]] = 1.0  # samples 0 and 2, if a sample has two rows that follow each other
    assert [layout[2:] for layout in find_layouts((8, 3), rows, chosen)] == [(2, True)]
    rows = torch.zeros(3, 8)
    rows[:, [0, 2, 4, 6]] = 1.0
    assert find_layouts((3, 8), rows, chosen) == [(1, 4, 2, False)]
    assert find_layouts((8, 3), torch.ones(8, 3), chosen) == []


def test_a_loss_that_couples_samples_is_refused() -> None:
    x = torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match="couples samples"):
        layer_hessians(nn.Linear(3, 2), lambda z, _: z.sum().square(), x, x, curvature="ggn")


def test_layers_are_chosen_by_patterns() -> None:
    model, x, y = images().eval(), torch.randn(4, 3, 8, 8), torch.arange(4)
    call = [model, nn.CrossEntropyLoss(), x, y]
    report = layer_hessians(*call, layers=["*.bias"], exclude="0.*", curvature="ggn", tolerance=1.0)
    assert list(report) == [f"{index}.bias" for index in (2, 3, 5, 7, 8, 12)]
    with pytest.raises(ValueError, match=r"layers: '9\.\*' matches no trainable parameter"):
        layer_hessians(*call, layers="9.*")


def test_spectral_norms_alone_are_iterated_to_the_tolerance() -> None:
    case = make("images")
    report = layer_hessians(*case[:4], curvature="ggn", norms=("spectral",), tolerance=0.01)
    for name, block in dense(case).items():
        if name in report:
            exact = torch.linalg.eigvalsh(block)[-1].item()
            assert report[name].spectral == pytest.approx(exact, rel=2e-3)
            assert math.isnan(report[name].frobenius)


def test_the_whole_model_is_one_block() -> None:
    case = make("lstm")
    _, hessian, rows = jacobians(case)
    j = torch.cat(list(rows.values()), 1)
    exact = (j.T @ hessian @ j).norm()
    found = model_hessian(
        *case[:4], layers="*", curvature="ggn", norms=("frobenius",), tolerance=0.03
    )
    assert found.shape == (j.shape[1],)
    assert abs(found.frobenius - exact) < 3.5 * found.stderr + 1e-9 * exact


def test_a_report_says_which_matrix_its_norms_are_of() -> None:
    case = make("lstm")
    options = {"curvature": "ggn", "tolerance": 0.5}
    report = layer_hessians(*make("tied")[:4], **options)
    assert 'Gauss-Newton blocks (curvature="ggn"): spectral' in repr(report)
    report = layer_hessians(*case[:4], norms=("frobenius",), **options)
    assert 'Gauss-Newton blocks (curvature="ggn")\n' in repr(report)
    assert set(report.to_frame()["curvature"]) == {"ggn"}
    with pytest.raises(ValueError, match="curvature='fisher': expected one of hessian, ggn"):
        layer_hessians(*case[:4], curvature="fisher")


def test_samples_that_mix_in_the_network_are_told_apart_at_its_outputs() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.tanh(self.a(x))
            return self.b(z - z.mean(0))

    torch.manual_seed(0)
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 2
    case = Case.checked(Mixing().double(), nn.CrossEntropyLoss(), x, y)
    passes = Passes(case)
    assert passes.unknown == ["a.weight"]
    report = layer_hessians(*case[:4], curvature="ggn", norms=("frobenius",), tolerance=0.05)
    for name, block in dense(case).items():
        assert report[name].exact
        assert abs(report[name].frobenius - block.norm()) < 1e-9 * block.norm()


class Both(torch.autograd.Function):
    """Two outputs of one operation on samples and a weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x @ w, x @ (2 * w)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, x.T @ (gradients[0] + 2 * gradients[1])


class Turned(nn.Module):
    """Square weights, turned in ways that leave them as they are or transpose them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(x @ self.a.transpose(1, 1))
        z = torch.tanh(z @ self.b.permute(0, 1))
        return z @ self.c.permute(1, 0) + z @ self.c.transpose(-1, 0)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        first, second = Both.apply(x, self.w)
        return torch.tanh(first) + second.square()


@pytest.mark.parametrize("kind", [Pair, Turned])
def test_places_of_a_weight_that_look_like_others_are_told_apart(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 4
    case = Case.checked(kind().double(), nn.CrossEntropyLoss(), x, y)
    _, _, rows = jacobians(case)
    vector = torch.randn(8, 4, dtype=torch.float64)
    for name, gradients in Passes(case).gradients(list(case.weights), [vector]):
        (product,), *_ = gradients.inner_products([(0, 0)])
        g = torch.einsum("bc,bcp->bp", vector, rows[name].view(8, 4, -1))
        torch.testing.assert_close(product, g @ g.T)


def test_little_memory_holds_one_vector_at_a_large_layer() -> None:
    """Of images whose channels are many, gradients of the kernel take less than those there."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(5, 3, 20, 20)
    model(x)
    case = Case.checked(model, nn.CrossEntropyLoss(), x, torch.randint(3, (5,)), layers="0.weight")
    vectors = [torch.randn(5, 3) for _ in range(4)]
    one = 4 * 5 * 8 * 18 * 18  # bytes of what a vector leaves there
    held = [
        len(gradients._products)
        for memory in (None, 8 * one, 8 * one - 1)
        for _, gradients in Passes(case, memory).gradients(["0.weight"], vectors)
    ]
    assert held == [1, 1, 0]
