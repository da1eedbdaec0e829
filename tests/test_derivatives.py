"""What is differentiated is what the model computes, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from hessinit_lib import layer_hessians
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.equal_functions import equal_functions

LOSS = nn.CrossEntropyLoss()


def _batch(inputs: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (8,), generator=generator)


def _net(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)).double()


def _dense(model: nn.Module, function: Callable[[Tensor], Tensor] | None = None) -> dict:
    """Frobenius norms of the blocks, by products with unit vectors."""
    x, y = _batch()
    call = function or model
    norms = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            (g,) = torch.autograd.grad(LOSS(call(x), y), weight, create_graph=True)
            rows = [torch.autograd.grad(e, weight, retain_graph=True)[0] for e in g.reshape(-1)]
            norms[name] = float(torch.stack(rows).norm())
    return norms


def _right(model: nn.Module, expected: dict | None = None) -> None:
    report = layer_hessians(model, LOSS, *_batch(), tolerance=0.01)
    for name, norm in (expected or _dense(model)).items():
        assert report[name].frobenius == pytest.approx(norm, rel=0.05, abs=1e-12), name


def _hooked(where: int | None, hook: Callable, kind: str = "register_forward_hook") -> nn.Module:
    model = _net()
    getattr(model if where is None else model[where], kind)(hook)
    return model


@pytest.mark.parametrize("where", [None, 0, 1])
def test_forward_hooks_count(where: int | None) -> None:
    _right(_hooked(where, lambda module, args, output: output * 3))


def test_forward_pre_hooks_count() -> None:
    _right(_hooked(0, lambda module, args: (args[0] + 1,), "register_forward_pre_hook"))


def test_hooks_on_all_modules_count() -> None:
    model = _net()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: output * 2 if isinstance(module, nn.Linear) else None
    )
    try:
        _right(model)
    finally:
        handle.remove()


def test_a_replaced_forward_counts() -> None:
    model = _net()
    old = model[0].forward
    model[0].forward = lambda z: old(z) * 2
    _right(model)


def test_a_dropout_of_its_own_is_not_idle() -> None:
    class Double(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * input

    _right(nn.Sequential(Double(), *_net()).eval())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
def test_weight_norm_has_the_right_second_derivative(norm: Callable) -> None:
    model = _net(nn.Tanh)
    norm(model[0])
    _right(model, _dense(model, lambda x: _weight_normed(model, x)))


def _weight_normed(model: nn.Module, x: Tensor) -> Tensor:
    (g, v) = sorted((p for p in model[0].parameters() if p.ndim > 1), key=lambda p: p.numel())
    z = F.linear(x, g * v / v.norm(dim=1, keepdim=True), model[0].bias)
    return model[2](torch.tanh(z))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_keeps_its_vectors(norm: Callable) -> None:
    model = _net(nn.Tanh)
    norm(model[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_hessians(model, LOSS, *_batch(), tolerance=0.01)  # in training mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _right(model.eval())


def test_pruned_and_orthogonal_weights() -> None:
    model = _net(nn.Tanh)
    prune.random_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[2], "weight", 0.5)
    layer_hessians(model, LOSS, *_batch())
    model = _net(nn.Tanh)
    parametrizations.orthogonal(model[0], orthogonal_map="matrix_exp")
    _right(model)


class _Function(nn.Module):
    """A network that computes its hidden layer by a function of (module, z)."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        self.function = function
        self.weights = [self.a.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, x))


def _no_grad(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        z = m.a(x)
    return torch.tanh(z)


class _Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return z.sign()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0].cos()


class _Forgets(torch.autograd.Function):
    """Its backward pass is right, that of its backward pass is not."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.z = z.detach()
        return z.sin()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * ctx.z.cos()


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda m, x: torch.tanh(F.linear(x, m.weights[0])), r"a\.weight"),
        (lambda m, x: torch.tanh(m.a(x)) * m.a(x).detach(), "detach"),
        (_no_grad, "detach"),
        (lambda m, x: _Sign.apply(m.a(x)), "detach"),
        (lambda m, x: m.a(x).detach() + 0 * m.a(x), "detach"),
        (lambda m, x: _Once.apply(m.a(x)), "second derivative"),
        (lambda m, x: _Forgets.apply(m.a(x)), "second derivative"),
    ],
)
@pytest.mark.parametrize("method", ["auto", "exact", "estimate"])
def test_other_derivatives_are_refused(function: Callable, named: str, method: str) -> None:
    with pytest.raises(NotImplementedError) as refusal:
        layer_hessians(_Function(function), LOSS, *_batch(), method=method)
    assert "\n" not in str(refusal.value)
    if method != "exact":
        refusal.match(named)


def test_backward_hooks_are_refused() -> None:
    model = _net()
    model[2].register_full_backward_hook(lambda module, before, after: (before[0] * 2,))
    with pytest.raises(NotImplementedError, match="backward hook"):
        layer_hessians(model, LOSS, *_batch())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_passed_through(reentrant: bool) -> None:
    model = _Function(lambda m, x: checkpoint(lambda z: m.a(z).tanh(), x, use_reentrant=reentrant))
    plain = _Function(lambda m, x: m.a(x).tanh())
    _right(model, _dense(plain))


def test_functions_without_a_second_derivative_are_replaced() -> None:
    torch.manual_seed(0)
    table = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    ids, offsets = torch.randint(7, (9,)), torch.tensor([0, 4, 4])
    weights = torch.randn(9, dtype=torch.float64)
    for mode in ("sum", "mean", "max"):
        for last in (False, True):
            chosen = weights if mode == "sum" else None
            arguments = {
                "mode": mode,
                "per_sample_weights": chosen,
                "include_last_offset": last,
                "padding_idx": 2,
            }
            starts = torch.cat((offsets, torch.tensor([9]))) if last else offsets
            expected = F.embedding_bag(ids, table, starts, **arguments)
            with equal_functions():
                found = F.embedding_bag(ids, table, starts, **arguments)
            torch.testing.assert_close(found, expected)
    _right(nn.Sequential(_net()[0], nn.Hardsigmoid(), _net()[2]), _dense_hardsigmoid())


def _dense_hardsigmoid() -> dict:
    model = nn.Sequential(_net()[0], nn.Identity(), _net()[2])
    return _dense(model, lambda x: model[2](F.relu6(model[0](x) + 3) / 6))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = x[:, None].repeat(1, 3, 1).cumsum(1)
        return self.b(self.a(z, z, z)[0].mean(1))


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.a, self.b = kind(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.view(-1, 2, 2))[0][:, -1])


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _scaled(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


def _deep(activation: type[nn.Module], factor: float) -> nn.Module:
    layers = [each for _ in range(20) for each in (nn.Linear(8, 8), activation())]
    return _scaled(nn.Sequential(nn.Linear(4, 8), *layers, nn.Linear(8, 3)), factor)


SOUND: dict[str, Callable[[], nn.Module]] = {
    "bn": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    "bn, tanh": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh()),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU()),
    "attention": _Attention,
    "lstm": lambda: _Recurrent(nn.LSTM),
    "gru": lambda: _Recurrent(nn.GRU),
    "zero": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), _zero(nn.Linear(5, 3))),
    "zero first": lambda: nn.Sequential(_zero(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)),
    "dead": lambda: nn.Sequential(nn.Linear(4, 5), nn.Threshold(99, 0), nn.Linear(5, 3)),
    "max pool": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4)),
        nn.Conv1d(1, 4, 3, padding=1),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.LayerNorm(8),
        nn.Linear(8, 3),
    ),
    "chaotic": lambda: _deep(nn.Tanh, 4.0),
    "chaotic ReLU": lambda: nn.Sequential(_deep(nn.ReLU, 2.0), nn.LayerNorm(3)),
    "saturated": lambda: _scaled(_net(nn.Sigmoid).float(), 300.0),
    "vanishing": lambda: _deep(nn.Tanh, 0.1),
    "tiny": lambda: _scaled(_net(nn.Tanh).float(), 1e-4),
    "half": lambda: _net(nn.Tanh).half(),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Tanh()).eval(),
}


@pytest.mark.filterwarnings("ignore:batch normalization")
@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("method", ["auto", "estimate"])
def test_sound_networks_are_not_refused(name: str, method: str) -> None:
    torch.manual_seed(0)
    x, y = _batch()
    layer_hessians(SOUND[name](), LOSS, x.float(), y, method=method, tolerance=0.3)


class _RMSNorm(nn.Module):
    """Normalizes in float32, as language models do."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.to(torch.float32)
        return (z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parts_in_float32_are_not_refused(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 5), _RMSNorm(), nn.SiLU(), nn.Linear(5, 3)).to(dtype)
    x, y = _batch()
    report = layer_hessians(model, LOSS, x.to(dtype), y, tolerance=0.1)
    assert report["0.weight"].frobenius > 0


class _SlightlyWrong(_Once):
    """Its second derivative is off by 1e-4."""

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad * (z.cos() * (1 + 1e-4) - 1e-4 * z.detach().cos())


def test_second_derivatives_that_are_slightly_wrong_are_refused() -> None:
    model = _Function(lambda m, x: _SlightlyWrong.apply(m.a(x)))
    with pytest.raises(NotImplementedError, match="second derivative"):
        layer_hessians(model, LOSS, *_batch())


def test_wrong_second_derivatives_of_small_weights_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.small, self.last = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 3)
            with torch.no_grad():
                self.small.weight.mul_(1e-4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(_Forgets.apply(self.small(self.first(x).tanh())))

    with pytest.raises(NotImplementedError, match="second derivative"):
        layer_hessians(Twice().double(), LOSS, *_batch())


class _Cosine(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.cos(z)


def _rough(depth: int, *end: nn.Module) -> nn.Module:
    """Layers of large weights, whose slopes differ at each step of a difference."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), _Cosine())]
    model = nn.Sequential(nn.Linear(4, 16), *layers, *end, nn.Linear(16, 3)).double()
    with torch.no_grad():
        for layer in model[:-1]:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(8)
    return model


def test_what_is_too_rough_to_check_is_an_estimate_that_says_so() -> None:
    model, (x, y) = _rough(30), _batch()
    report = layer_hessians(model, LOSS, x, y, norms=("frobenius",), tolerance=0.5)
    assert "could not be checked" in str(report)
    with pytest.raises(NotImplementedError, match="could not be checked"):
        check_derivatives(Case(model, LOSS, x, y))


@pytest.mark.parametrize("depth", [4, 8, 12])
def test_what_is_rough_is_still_to_be_differentiated_right(depth: int) -> None:
    class Estimator(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return _Sign.apply(z)

    with pytest.raises(NotImplementedError, match="is not that of the model"):
        layer_hessians(_rough(depth, Estimator()), LOSS, *_batch())
