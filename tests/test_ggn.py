"""Gauss-Newton norms of any network against dense float64 matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_lib import layer_hessians, model_hessian
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel
from hessinit_lib.hessians.ggn.gradients import SampleGradients
from hessinit_lib.hessians.ggn.outputs import OutputHessian
from hessinit_lib.hessians.ggn.passes import Passes
from hessinit_lib.hessians.ggn.uses import find_layouts
from hessinit_lib.hessians.ggn.vectors import BasisDraw, Subset, balanced_signs
from hessinit_lib.hessians.loss import on_logits
from hessinit_lib.hessians.loss_value import evaluate
from hessinit_lib.hessians.numerics.estimates import sketch_of


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def log_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Convex on small outputs, and neither of a softmax nor diagonal."""
    return (1 + outputs.square().sum(1) + (outputs - targets).sum(1).square()).sqrt().mean()


def wavy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Not convex, and outputs of a sample depend on each other."""
    return (outputs.prod(1) - targets.sum(1)).square().mean()


class Transformer(nn.Module):
    """A class token, learned positions, packed attention, a normalized weight, a tied head."""

    def __init__(self, tied: bool, batch_first: bool = True) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(7, 8, padding_idx=2), nn.Parameter(torch.randn(5, 8) / 5)
        self.c, self.n = nn.Parameter(torch.randn(1, 1, 8)), nn.LayerNorm(8)
        self.a = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.q = nn.Linear(8, 16)
        self.r = nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))
        self.w = nn.Parameter(torch.randn(2, 4, 8) / 3)
        self.h = nn.Linear(8, 7, bias=False)
        if tied:
            self.h.weight = self.e.weight
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        z = torch.cat([self.c.expand(len(x), 1, -1), self.e(x) + self.p], 1)
        y = self.n(z) if self.batch_first else self.n(z).transpose(0, 1)
        y = self.a(y, y, y, need_weights=False)[0]
        z = z + (y if self.batch_first else y.transpose(0, 1))
        z = z + self.r(F.gelu(self.q(z)))
        heads = z.unflatten(2, (2, 4)).transpose(1, 2)
        z = z + torch.einsum("bhtd,hdk->btk", heads, self.w)
        return self.h(z[:, 1:])


class Recurrent(nn.Module):
    """Two layers of a kind, over the first axis or the second."""

    def __init__(self, kind: type[nn.Module], batch_first: bool) -> None:
        super().__init__()
        self.r, self.o = kind(5, 6, 2, batch_first=batch_first), nn.Linear(6, 4)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return self.o(self.r(x)[0][:, -1])
        return self.o(self.r(x.transpose(0, 1))[0][-1])


class Bare(nn.Module):
    """Parameters used past any layer: by row, by column, by sample, from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.v, self.u = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(4, 5))
        self.t, self.s = nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.rand(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(x @ self.v)
        z = z + self.t[(x[:, 0].abs() * 3).long() % 9]
        z = z * self.s
        return (self.u @ z.T).T


def images() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        *(nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 12, 1), nn.PReLU(12), nn.BatchNorm2d(12)),
        *(nn.ConvTranspose2d(12, 6, 3, 2, 1, groups=3), nn.Tanh(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(24, 4)),
    )


def make(name: str) -> Case:
    """Make a network of a name, and a batch of six samples."""
    torch.manual_seed(3)
    x, y = torch.randn(6, 4, 5), torch.randint(4, (6,))
    tokens, loss = torch.randint(7, (6, 5)), nn.CrossEntropyLoss(label_smoothing=0.1)
    pictures = torch.randn(6, 3, 8, 8)
    networks = {
        "tied": lambda: (Transformer(True), token_loss, tokens, tokens.roll(1, 1)),
        "untied": lambda: (Transformer(False, False), token_loss, tokens, tokens.roll(1, 1)),
        "lstm": lambda: (Recurrent(nn.LSTM, True), loss, x, y),
        "gru": lambda: (Recurrent(nn.GRU, False), loss, x, y),
        "rnn": lambda: (Recurrent(nn.RNN, True), nn.MSELoss(), x, torch.randn(6, 4)),
        "images": lambda: (images().eval(), loss, pictures, y),
        "bce": lambda: (images().eval(), nn.BCEWithLogitsLoss(), pictures, torch.rand(6, 4)),
        "coupled outputs": lambda: (images().eval(), log_loss, pictures, torch.rand(6, 4)),
        "not convex": lambda: (images().eval(), wavy, pictures, torch.rand(6, 4)),
        "one output": lambda: (
            nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)),
            *(nn.BCEWithLogitsLoss(), torch.randn(6, 5), torch.rand(6)),
        ),
        "bare": lambda: (Bare(), loss, torch.randn(6, 6), y),
    }
    model, loss_fn, inputs, targets = networks[name]()
    inputs, targets = (t.double() if t.is_floating_point() else t for t in (inputs, targets))
    return Case.checked(model.double(), loss_fn, inputs, targets, layers="*")


NAMES = [
    *("tied", "untied", "lstm", "gru", "rnn", "images", "bce", "coupled outputs", "not convex"),
    *("one output", "bare"),
]


def jacobians(case: Case) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Compute the outputs, A, and J of each parameter, row by row."""
    pure = PureModel(case.model, case.weights)
    with pure.running(), torch.enable_grad():
        outputs, axis = pure.logits(case.inputs)
    loss_fn = on_logits(case.loss_fn, axis)
    z = outputs.detach()
    hessian: Any = torch.autograd.functional.hessian(
        lambda v: evaluate(loss_fn, v, case.targets), z
    )
    units = torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape)
    weights = [pure.state[name] for name in case.weights]
    rows = [
        torch.autograd.grad(outputs, weights, unit, retain_graph=True, materialize_grads=True)
        for unit in units
    ]
    found = [torch.stack([row.flatten() for row in column]) for column in zip(*rows, strict=True)]
    return z, hessian.reshape(z.numel(), -1), dict(zip(case.weights, found, strict=True))


def dense(case: Case) -> dict[str, Tensor]:
    """Form all Gauss-Newton blocks."""
    _, hessian, rows = jacobians(case)
    return {name: j.T @ hessian @ j for name, j in rows.items()}


@pytest.mark.parametrize("by_positions", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_per_sample_gradients_are_those_of_each_sample(
    name: str, by_positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forced(self: SampleGradients, _: object) -> bool:
        single = all(each.rows[0].shape[1] == 1 for each in self._products)
        return by_positions and single and not self._others

    monkeypatch.setattr(SampleGradients, "_by_positions", forced)
    case = make(name)
    z, _, rows = jacobians(case)
    vectors = [torch.randn(z.shape, dtype=z.dtype) for _ in range(2)]
    passes = Passes(case)
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


@pytest.mark.parametrize("name", NAMES)
def test_random_vectors_have_the_hessian_in_the_outputs_as_covariance(name: str) -> None:
    case = make(name)
    z, hessian, _ = jacobians(case)
    draw = OutputHessian(case, case.loss_fn, z).draw
    generator = torch.Generator().manual_seed(1)
    drawn = [draw(generator) for _ in range(4000)]
    assert {len(pair) for pair in drawn} == {2 if name == "not convex" else 1}
    left, right = (torch.stack([pair[i] for pair in drawn]).flatten(1) for i in (0, -1))
    size = 1.0 if name == "not convex" else hessian.abs().max()
    assert (left.T @ right / len(left) - hessian).abs().max() < 0.15 * size


def test_estimates_are_unbiased_and_their_intervals_hold() -> None:
    """400 draws over all networks, three vectors each: dense Jacobians give the exact norms."""
    covered: list[Tensor] = []
    errors: list[Tensor] = []
    for name in NAMES:
        case = make(name)
        z, hessian, rows = jacobians(case)
        outputs = OutputHessian(case, case.loss_fn, z)
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            vectors = [outputs.draw(generator) for _ in range(3)]
            left, right = (torch.stack([v[i] for v in vectors]).view(3, 6, -1) for i in (0, -1))
            misses = []
            for j in rows.values():
                by_sample = j.view(6, -1, j.shape[1])
                ends = (torch.einsum("mbi,bip->mbp", e, by_sample) for e in (left, right))
                products = torch.einsum("mbp,ncp->mnbc", *ends)
                pairs = {(a, c): products[a, c] for a in range(3) for c in range(3)}
                found = sketch_of(pairs, [products[a, a].diagonal() for a in range(3)])
                kernel = j @ j.T
                exact = ((hessian @ kernel) * (hessian @ kernel).T).sum()
                misses.append((found.square.mean - exact) / exact)
                covered.append(misses[-1].abs() < 1.96 * found.square.error / exact)
            errors.append(torch.stack(misses).mean())
    mean, deviation = torch.stack(errors).mean(), torch.stack(errors).std() / len(errors) ** 0.5
    assert abs(mean) < 4 * deviation < 0.1
    assert 0.9 < torch.stack(covered).double().mean() < 0.99


BASES = [name for name in NAMES if name != "not convex"]


@pytest.mark.parametrize("complete", [[], [1, 4]])
def test_bases_give_unbiased_estimates_with_intervals_that_hold(complete: list[int]) -> None:
    """Two or three of the vectors of a random basis; for some samples all."""
    covered: list[Tensor] = []
    errors: list[Tensor] = []
    for name in BASES:
        case = make(name)
        z, hessian, rows = jacobians(case)
        outputs = OutputHessian(case, case.loss_fn, z)
        if outputs.rank < 4:
            continue
        kernels = []
        for j in rows.values():
            kernel = j @ j.T
            exact = ((hessian @ kernel) * (hessian @ kernel).T).sum(), (hessian * kernel).sum()
            kernels.append((kernel.view(6, len(j) // 6, 6, -1), *exact))
        for seed in range(60):
            generator = torch.Generator().manual_seed(seed)
            draw = BasisDraw.of(6, outputs.rank, 2 + seed % 2, generator, complete)
            vectors = [outputs.product(draw.vectors(a), draw.samples) for a in range(draw.count)]
            weights = {pair: draw.weights(pair, z) for pair in draw.pairs}
            misses = []
            flat = [v.flatten(1) for v in vectors]
            for kernel, exact, trace in kernels:
                rows = kernel[draw.samples][:, :, draw.samples]
                products = {
                    (a, c): torch.einsum("bi,bidj,dj->bd", flat[a], rows, flat[c])
                    for a in range(draw.count)
                    for c in range(a, draw.count)
                }
                own = [products[a, a].diagonal() for a in range(draw.count)]
                found, _ = draw.sketch(products, own, weights.__getitem__)
                misses.append((found.square.mean - exact) / exact)
                covered.append(misses[-1].abs() < 1.96 * found.square.error / exact)
                covered.append(abs(found.trace.mean - trace) < 1.96 * found.trace.error)
            errors.append(torch.stack(misses).mean())
    mean, deviation = torch.stack(errors).mean(), torch.stack(errors).std() / len(errors) ** 0.5
    assert abs(mean) < 4 * deviation < 0.1
    assert 0.9 < torch.stack(covered).double().mean() < 0.995


@pytest.mark.parametrize("name", BASES)
def test_all_vectors_of_a_basis_give_the_exact_norms(name: str) -> None:
    case = make(name)
    report = layer_hessians(*case[:4], layers="*", curvature="ggn", tolerance=1e-9, budget=None)
    for weight, block in dense(case).items():
        layer, spectral = report[weight], torch.linalg.eigvalsh(block)[-1].item()
        assert layer.exact
        assert layer.frobenius == pytest.approx(block.norm().item(), rel=1e-9)
        assert layer.trace == pytest.approx(block.trace().item(), rel=1e-9)
        assert layer.spectral == pytest.approx(spectral, rel=1e-9)


def test_samples_that_rule_the_norm_are_given_all_vectors() -> None:
    """One image of 32 has nearly all of the norm: exact there, sampled elsewhere."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))
    x, y = torch.randn(32, 3, 4), torch.arange(32) % 8
    x[7] *= 10
    case = Case.checked(model.double(), nn.CrossEntropyLoss(), x.double(), y)
    report = layer_hessians(*case[:4], curvature="ggn", norms=("frobenius",), tolerance=0.05)
    for name, block in dense(case).items():
        assert abs(report[name].frobenius - block.norm()) < 3.5 * report[name].stderr
        assert 0 < report[name].stderr < 0.05 * block.norm()
        assert not report[name].exact


@pytest.mark.parametrize(("rows", "columns"), [(8, 5), (20, 8), (6, 2000), (3, 1)])
def test_balanced_signs_are_signs_of_mean_zero(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([balanced_signs(rows, columns, generator).double() for _ in range(400)])
    assert drawn.abs().eq(1).all()
    assert drawn.mean(0).abs().max() < 0.3
    if columns > 1:
        assert (drawn[:, :, 0] * drawn[:, :, -1]).mean(0).abs().max() < 0.3


def test_spectral_bounds_enclose_the_norm() -> None:
    case = make("images")
    exact = {name: torch.linalg.eigvalsh(g)[-1].item() for name, g in dense(case).items()}
    report = layer_hessians(*case[:4], curvature="ggn", tolerance=0.05)
    for name, layer in report.items():
        assert layer.spectral - 3 * layer.spectral_stderr < exact[name] * (1 + 1e-6)
        assert layer.spectral + layer.spectral_gap > 0.9 * exact[name]
        assert layer.spectral > 0.5 * exact[name]


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


@pytest.mark.parametrize("heavy", [False, True])
def test_a_part_of_many_samples_tells_the_norm_and_its_error(heavy: bool) -> None:
    """Products of 300 samples, of which some are taken; a few may have long gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    x, y = torch.randn(300, 6).double(), torch.randint(4, (300,))
    if heavy:
        x[::60] *= 6
    exact = dense(Case.checked(model, nn.CrossEntropyLoss(), x, y))
    misses: dict[str, list[float]] = {name: [] for name in exact}
    covered, of_traces, taken = [], [], []
    of = Subset.of

    def counted(*args: Any, **options: Any) -> Subset | None:
        taken.append(of(*args, **options))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subset, "of", counted)
        patch.setattr(SampleGradients, "_by_positions", lambda *_: True)
        for seed in range(100):
            report = layer_hessians(
                *(model, nn.CrossEntropyLoss(), x, y),
                **{"curvature": "ggn", "norms": ("frobenius",), "tolerance": 0.3},
                generator=torch.Generator().manual_seed(seed),
            )
            for name, block in exact.items():
                found, norm = report[name], block.norm().item()
                misses[name].append((found.frobenius / norm) ** 2 - 1)
                covered.append(abs(found.frobenius - norm) < 1.96 * found.stderr)
                of_traces.append(
                    abs(found.trace - block.trace().item()) < 1.96 * found.trace_stderr
                )
    assert all(subset is not None and 64 <= len(subset.rows) < 150 for subset in taken)
    for found in (torch.tensor(each) for each in misses.values()):
        assert abs(found.mean()) < 4 * found.std() / 10
    for each in (covered, of_traces):
        assert 0.9 < sum(each) / len(each) < 0.995


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
