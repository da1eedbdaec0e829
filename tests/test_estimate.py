"""Estimates by products of blocks with vectors: right, and as sure as they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import Case, chain_hessians, estimated_hessians, labels, make_case, seeded
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessinit_lib.hessians import layer_hessians
from hessinit_lib.hessians.case import Case as HessianCase
from hessinit_lib.hessians.estimate.hessians import model_hessian
from hessinit_lib.hessians.estimate.products import BlockProducts
from hessinit_lib.hessians.functional import FROZEN, PureModel
from hessinit_lib.hessians.options import Options


class Attention(nn.Module):
    """A transformer layer of its own: attention, normalization, GELU, residual sums."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + F.gelu(self.up(x))


class Language(nn.Module):
    """A language model whose last layer shares the embedding's weight."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.embedding, self.layer = nn.Embedding(5, 4), Attention(4)
        self.head = nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells, self.head = kind(3, 4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(x).tanh())


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(0), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(5, shape, generator=seeded(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.SiLU(), nn.Conv2d(3, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(8, 3)
    )


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor, Callable[..., Tensor]]] = {
    "transformer": (Language, tokens(3, 4), tokens(3, 4), token_loss),
    "untied": (lambda: Language(tied=False), tokens(3, 4), tokens(3, 4), token_loss),
    "gru": (lambda: Recurrent(nn.GRU), normal(4, 3, 3), labels(4), F.cross_entropy),
    "lstm": (lambda: Recurrent(nn.LSTM), normal(4, 3, 3), labels(4), F.cross_entropy),
    "conv": (convolutional, normal(4, 2, 4, 4), labels(4), nn.CrossEntropyLoss()),
    "repeated": (Repeated, normal(5, 3), normal(5, 3), nn.MSELoss()),
    "nonconvex loss": (
        Repeated, normal(5, 3), normal(5, 3), lambda z, t: ((z - t).sin() ** 2).mean(),
    ),
}  # fmt: skip


def initialized(make: Callable[[], nn.Module]) -> nn.Module:
    model = make().double()
    generator = seeded(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6, generator=generator)
    return model


def dense(
    model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor, names: list[str]
) -> tuple[Tensor, Tensor]:
    """Form the Hessian and the Gauss-Newton matrix of some parameters, by autograd alone."""
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    leaves = [values[n].requires_grad_() for n in names]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
        outputs = torch.func.functional_call(model, values, (x,))
    slopes = torch.autograd.grad(loss_fn(outputs, y), leaves, create_graph=True)
    rows = torch.cat([s.reshape(-1) for s in slopes])
    hessian = [torch.autograd.grad(row, leaves, retain_graph=True) for row in rows]
    flat = outputs.reshape(-1)
    jacobian = [torch.autograd.grad(z, leaves, retain_graph=True) for z in flat]
    curvature = torch.func.jacrev(torch.func.grad(lambda z: loss_fn(z, y)))(outputs.detach())
    j = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in jacobian])
    h = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in hessian])
    return h, j.mT @ curvature.reshape(len(flat), -1) @ j


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [None, 2])
def test_products_equal_dense_matrices(name: str, chunk: int | None) -> None:
    make, x, y, loss_fn = CASES[name]
    model = initialized(make)
    names = [n for n, p in model.named_parameters() if p.ndim > 1]
    blocks = {n: [n] for n in names[:2]} | {"all": names}
    products = BlockProducts(HessianCase(model, loss_fn, x, y), blocks, chunk=chunk)
    vectors = {b: normal(3, size) for b, size in products.sizes.items()}
    for block, (linear, residual) in products.apply(vectors).items():
        hessian, gauss_newton = (
            vectors[block] @ matrix for matrix in dense(model, loss_fn, x, y, blocks[block])
        )
        scale = hessian.abs().max()
        assert scale > 0
        torch.testing.assert_close(linear, gauss_newton, rtol=0, atol=float(1e-12 * scale))
        torch.testing.assert_close(linear + residual, hessian, rtol=0, atol=float(1e-12 * scale))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("parts", [True, False])
def test_small_blocks_are_found_without_sampling(name: str, parts: bool) -> None:
    # The subspace grows to the whole space: nothing is left to estimate.
    make, x, y, loss_fn = CASES[name]
    model = initialized(make)
    options = Options(parts=parts, tolerance=1e-9, budget=None)
    report = estimated_hessians(model, loss_fn, x, y, options)
    assert list(report) == [n for n, p in model.named_parameters() if p.ndim > 1]
    for layer in report.values():
        hessian, gauss_newton = dense(model, loss_fn, x, y, [layer.name])
        expected = [(layer, hessian)]
        if parts:
            expected += [
                (layer.linearization, gauss_newton),
                (layer.residual, hessian - gauss_newton),
            ]
        for norms, matrix in expected:
            scale = float(hessian.norm())
            spectral = float(torch.linalg.matrix_norm(matrix, 2))
            assert norms.frobenius == pytest.approx(float(matrix.norm()), rel=0, abs=1e-8 * scale)
            assert norms.spectral == pytest.approx(spectral, rel=0, abs=1e-8 * scale)
            allowed = 4 * norms.trace_stderr + 1e-8 * scale  # the trace may be sampled
            assert norms.trace == pytest.approx(float(matrix.trace()), rel=0, abs=allowed)


def wide(activation: str) -> Case:
    return make_case([8, 10, 8, 4], [activation, activation], "cross_entropy", 16, 1.3, seed=5)


@pytest.mark.parametrize(("activation", "layer"), [("relu", 2), ("tanh", 0)])
def test_intervals_cover_at_their_rate(activation: str, layer: int) -> None:
    case, draws = wide(activation), 400
    for index in {0, 2, 4} - {layer}:
        case.model[index].requires_grad_(False)
    truth = chain_hessians(case.model, case.loss_fn, case.inputs, case.targets, Options())
    hits: dict[tuple[str, str], int] = {}
    for draw in range(draws):
        options = Options(tolerance=0.03, norms=("frobenius",), generator=seeded(draw))
        report = estimated_hessians(case.model, case.loss_fn, case.inputs, case.targets, options)
        for name, found in report.items():
            known = truth[name]
            pairs = {"frobenius": (found, known), "residual": (found.residual, known.residual)}
            for kind, (got, exact) in pairs.items():
                if exact.frobenius == 0:
                    continue
                hit = abs(got.frobenius - exact.frobenius) <= 1.96 * got.stderr
                hits[name, kind] = hits.get((name, kind), 0) + hit
            assert found.stderr <= 0.03 * found.frobenius
            assert found.products > 0
            assert not found.exact
    assert hits
    for key, count in hits.items():
        # More than 0.95: few draws of a skewed remainder are to hold at five errors, too.
        assert 0.90 <= count / draws < 1, f"{key}: {count} of {draws}"


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_spectral_norms_are_within_the_tolerance(activation: str) -> None:
    case = wide(activation)
    truth = chain_hessians(case.model, case.loss_fn, case.inputs, case.targets, Options())
    for draw in range(5):
        options = Options(tolerance=0.01, norms=("spectral",), generator=seeded(draw))
        report = estimated_hessians(case.model, case.loss_fn, case.inputs, case.targets, options)
        for name, layer in report.items():
            exact = truth[name]
            allowed = 0.01 * exact.spectral
            assert layer.frobenius != layer.frobenius  # not asked for
            assert abs(layer.spectral - exact.spectral) <= allowed
            assert abs(layer.linearization.spectral - exact.linearization.spectral) <= allowed
            assert abs(layer.residual.spectral - exact.residual.spectral) <= allowed


def test_memory_bound_changes_nothing_but_memory() -> None:
    case = wide("tanh")
    given = (case.model, case.loss_fn, case.inputs, case.targets)
    free = estimated_hessians(*given, Options(generator=seeded(0), norms=("frobenius",)))
    bound = Options(generator=seeded(0), norms=("frobenius",), max_memory=40_000)
    for name, layer in estimated_hessians(*given, bound).items():
        close = 3 * (layer.stderr + free[name].stderr)
        assert layer.frobenius == pytest.approx(free[name].frobenius, abs=close)


def test_outputs_of_any_shape_are_estimated() -> None:
    source = seeded(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 3, 1)).double()
    x = torch.randn(4, 1, 3, 3, generator=source, dtype=torch.float64)
    y = torch.randint(3, (4, 2, 2), generator=source)  # a class for each pixel
    report = layer_hessians(model, nn.CrossEntropyLoss(), x, y, tolerance=1e-9)
    assert report.why_estimated.startswith("the model gave outputs of shape (4, 3, 2, 2)")
    for name, layer in report.items():
        hessian, _ = dense(model, nn.CrossEntropyLoss(), x, y, [name])
        assert layer.frobenius == pytest.approx(float(hessian.norm()), rel=1e-8)


def test_the_whole_model_is_one_block() -> None:
    case = make_case([3, 4, 2], ["tanh"], "cross_entropy", 6, 1.0, seed=2)
    whole = model_hessian(case.model, case.loss_fn, case.inputs, case.targets, tolerance=1e-9)
    names = ["0.weight", "2.weight"]
    hessian, gauss_newton = dense(case.model, case.loss_fn, case.inputs, case.targets, names)
    assert whole.shape == (20,)
    assert whole.frobenius == pytest.approx(float(hessian.norm()), rel=1e-8)
    spectral = float(torch.linalg.matrix_norm(gauss_newton, 2))
    assert whole.linearization.spectral == pytest.approx(spectral, rel=1e-8)


def test_batch_statistics_are_frozen_and_said_so() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = normal(6, 3), labels(6)
    before = {n: b.clone() for n, b in model.named_buffers()}
    with pytest.warns(UserWarning, match="statistics frozen at this batch"):
        report = estimated_hessians(
            model, nn.CrossEntropyLoss(), x, y, Options(tolerance=1e-9, max_memory=10_000)
        )
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name])
    assert model[1].training
    # The same network with constants in place of the batch's statistics.
    hidden = model[0](x).detach()
    frozen = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    frozen.load_state_dict(model.state_dict())
    frozen[1].running_mean, frozen[1].running_var = hidden.mean(0), hidden.var(0, correction=0)
    frozen.eval()
    for name, layer in report.items():
        hessian, _ = dense(frozen, nn.CrossEntropyLoss(), x, y, [name])
        assert layer.frobenius == pytest.approx(float(hessian.norm()), rel=1e-8)


def test_warning_text_names_the_choice() -> None:
    assert "batch" in FROZEN


def test_model_is_left_as_found() -> None:
    model = Language().double()
    model(tokens(2, 3)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    values = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    estimated_hessians(model, token_loss, tokens(2, 3), tokens(2, 3), Options(tolerance=0.2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name])
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name])


def test_same_generator_same_numbers() -> None:
    case = wide("gelu")
    reports = [
        estimated_hessians(
            case.model, case.loss_fn, case.inputs, case.targets, Options(generator=seeded(7))
        )
        for _ in range(2)
    ]
    assert dict(reports[0]) == dict(reports[1])


def test_compiled_models_are_unwrapped() -> None:
    model, x = convolutional(), normal(2, 2, 4, 4).float()
    case = HessianCase.checked(torch.compile(model), F.mse_loss, x, x)
    assert case.model is model
    pure = PureModel(case.model, ["0.weight"])
    with pure.running():
        outputs = pure(x)
    torch.testing.assert_close(outputs, model(x))
    assert "0.weight" in pure.state


def test_lost_and_unused_blocks() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)}).double()
    model.forward = lambda x: model["used"](x)  # type: ignore[method-assign]
    report = estimated_hessians(model, nn.CrossEntropyLoss(), normal(4, 3), labels(4), Options())
    assert report["idle.weight"].frobenius == 0
    assert report["used.weight"].frobenius > 0
    lost = estimated_hessians(
        model, nn.CrossEntropyLoss(), normal(4, 3) * float("inf"), labels(4), Options()
    )
    assert lost["used.weight"].frobenius != lost["used.weight"].frobenius


@pytest.mark.parametrize(
    ("model", "loss_fn", "error", "words"),
    [
        (Recurrent(nn.GRU).cells, F.mse_loss, ValueError, "gave a tuple, expected one tensor"),
        (nn.Linear(3, 3), lambda z, t: z - t, ValueError, r"gave shape \(4, 3, 3\)"),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout()), F.mse_loss, NotImplementedError, "Dropout"),
    ],
)
def test_refusals(
    model: nn.Module, loss_fn: Callable[..., Tensor], error: type[Exception], words: str
) -> None:
    x = normal(4, 3, 3).float()
    with pytest.raises(error, match=words):
        estimated_hessians(model, loss_fn, x, x, Options())


def test_coupled_samples_and_a_memory_bound() -> None:
    def contrast(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs @ outputs.mT).exp().mean() + targets.sum() * 0

    products = BlockProducts(
        HessianCase(nn.Linear(3, 3), contrast, torch.ones(4, 3), torch.ones(4)),
        {"w": ["weight"]},
        chunk=2,
    )
    with pytest.raises(NotImplementedError, match="couples the samples"):
        products.apply({"w": torch.eye(9)[:1]})


@pytest.mark.parametrize("budget", [4.0, 25.0, 60.0])
def test_the_budget_ends_the_work_and_says_what_was_reached(budget: float) -> None:
    make, x, y, loss_fn = CASES["transformer"]
    model = initialized(make)
    report = layer_hessians(model, loss_fn, x, y, method="estimate", tolerance=1e-6, budget=budget)
    assert f"stopped at the budget of {budget:g} training steps" in report.why_estimated
    assert "curvature='ggn' takes about" in report.why_estimated
    products = [layer.products for layer in report.values()]
    assert all(2 <= count <= 2 + budget for count in products)
    for layer in report.values():
        hessian, _ = dense(model, loss_fn, x, y, [layer.name])
        assert layer.stderr > 0
        assert abs(layer.frobenius - hessian.norm()) < 4 * layer.stderr


def test_what_is_known_within_the_budget_does_not_depend_on_it() -> None:
    make, x, y, loss_fn = CASES["gru"]
    model = initialized(make)
    found = [
        layer_hessians(model, loss_fn, x, y, norms=("spectral",), tolerance=0.1, budget=budget)
        for budget in (2000.0, None)
    ]
    for name, layer in found[0].items():
        assert (layer.spectral, layer.products) == (
            found[1][name].spectral,
            found[1][name].products,
        )
