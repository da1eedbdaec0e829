"""Exact norms of graphs of any shape against dense float64 Hessians."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Function, graph_hessians, labels, make_case, seeded
from torch import Tensor, nn

from hessinit_lib import layer_hessians
from hessinit_lib.hessians.graph import gram


def prepare(model: nn.Module, seed: int) -> nn.Module:
    """Give a model reproducible float64 parameters and statistics of a realistic size."""
    model.double()
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 4
            parameter.normal_(0, 1 / math.sqrt(fan), generator=generator)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def dense_hessian(
    model: nn.Module, loss_fn: nn.Module, inputs: Tensor, targets: Tensor, name: str
) -> Tensor:
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(value: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, {**parameters, name: value}, (inputs,))
        return loss_fn(outputs, targets)

    # Reverse mode twice: forward mode does not know every pooling.
    value = parameters[name]
    return torch.func.jacrev(torch.func.grad(loss))(value).reshape(value.numel(), -1)


def check(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor | None = None,
    loss_fn: nn.Module | None = None,
    tolerance: float = 1e-8,
) -> None:
    targets = labels(len(inputs)) if targets is None else targets
    loss_fn = nn.CrossEntropyLoss() if loss_fn is None else loss_fn
    report = graph_hessians(model, loss_fn, inputs, targets)
    expected = [n for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad]
    assert list(report) == expected
    for name, layer in report.items():
        dense = dense_hessian(model, loss_fn, inputs, targets, name)
        spectral = float(torch.linalg.eigvalsh(dense).abs().max())
        assert spectral > 0, f"{name} has no curvature: this checks nothing"
        assert layer.frobenius == pytest.approx(float(dense.norm()), rel=tolerance)
        assert layer.spectral == pytest.approx(spectral, rel=tolerance)
        assert layer.trace == pytest.approx(float(dense.trace()), rel=tolerance)
        assert layer.linearization.frobenius == layer.frobenius
        assert layer.residual.frobenius == layer.residual.spectral == layer.residual.trace == 0
        assert layer.exact
        assert layer.shape == tuple(model.get_parameter(name).shape)


def with_head(body: nn.Sequential, inputs: Tensor) -> nn.Sequential:
    """End in a frozen classifier: its block is large, and not what is to be checked."""
    features = body.double()(inputs)[0].numel()
    return nn.Sequential(
        *body, nn.ReLU(), nn.Flatten(), nn.Linear(features, 3).requires_grad_(False)
    )


CONVOLUTIONS = {
    "plain": nn.Conv2d(2, 4, 3),
    "padding": nn.Conv2d(2, 4, 3, padding=(1, 0)),
    "stride": nn.Conv2d(2, 4, 3, stride=(2, 1), padding=1),
    "dilation": nn.Conv2d(2, 4, (2, 3), dilation=(2, 1)),
    "groups": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4, padding=1, stride=2),
    "same": nn.Conv2d(2, 4, (2, 3), padding="same", dilation=(3, 1)),
    "valid": nn.Conv2d(2, 4, 3, padding="valid"),
    "pointwise": nn.Conv2d(2, 4, 1),
    "whole": nn.Conv2d(2, 4, 6),  # one position a sample
    "whole in groups": nn.Conv2d(4, 4, 6, groups=2),
    "no bias": nn.Conv2d(2, 4, 3, bias=False),
    "reflect": nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
    "1d": nn.Conv1d(2, 4, 3, stride=2, padding=1),
    "1d groups": nn.Conv1d(4, 4, 2, dilation=2, groups=2),
    "3d": nn.Conv3d(2, 3, 2, padding=(1, 0, 0), stride=2),
    "transposed": nn.ConvTranspose2d(2, 3, 3),
    "transposed options": nn.ConvTranspose2d(
        4, 6, 3, stride=(2, 3), padding=(1, 2), output_padding=(1, 2), dilation=(2, 1), groups=2
    ),
    "transposed 1d": nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1, output_padding=1),
    "transposed large output padding": nn.ConvTranspose1d(2, 3, 2, dilation=3, output_padding=2),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("batch", [2, 9], ids=["more parameters", "more rows"])
@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolutions(layer: nn.Module, batch: int) -> None:
    space = layer.weight.ndim - 2
    inputs = normal(batch, layer.in_channels, *[6] * space)
    first = nn.Conv1d if space == 1 else nn.Conv2d if space == 2 else nn.Conv3d
    below = first(layer.in_channels, layer.in_channels, 1)
    model = with_head(nn.Sequential(below, nn.LeakyReLU(0.1), layer), inputs)
    check(prepare(model, 1), inputs)


POOLINGS = {
    "max": nn.MaxPool2d(2),
    "max, overlapping": nn.MaxPool2d(3, stride=1, padding=1, dilation=2),
    "average": nn.AvgPool2d(2),
    "adaptive max": nn.AdaptiveMaxPool2d(2),
    "adaptive average": nn.AdaptiveAvgPool2d((2, 3)),
    "global average": nn.AdaptiveAvgPool2d(1),
    "upsample": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "shuffle": nn.PixelShuffle(2),
    "unfold": nn.Unfold(2),
    "relu6": nn.ReLU6(),
    "prelu": nn.PReLU(4),
    "hardtanh": nn.Hardtanh(-0.5, 0.5),
    "hardshrink": nn.Hardshrink(0.1),
    "softshrink": nn.Softshrink(0.1),
    "in place": nn.ReLU(inplace=True),
    "dropout": nn.Dropout(0.5).eval(),
    "batch norm": nn.BatchNorm2d(4).eval(),
    "batch norm, not affine": nn.BatchNorm2d(4, affine=False).eval(),
}


@pytest.mark.parametrize("middle", POOLINGS.values(), ids=POOLINGS.keys())
def test_functions_between_layers(middle: nn.Module) -> None:
    inputs = normal(4, 2, 5, 5)
    check(prepare(with_head(nn.Sequential(nn.Conv2d(2, 4, 2), middle), inputs), 2), inputs)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveMaxPool1d(2), nn.BatchNorm1d(3).eval()]
)
def test_functions_in_one_dimension(pool: nn.Module) -> None:
    inputs = normal(4, 2, 8)
    check(prepare(with_head(nn.Sequential(nn.Conv1d(2, 3, 2), pool), inputs), 3), inputs)


class ResNet(nn.Module):
    """Residual sums, with a strided shortcut padded by new channels, and F.relu."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.first = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.second = nn.Conv2d(5, 5, 3, padding=1, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.second(F.relu(self.first(x)))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)) + y, inplace=True)
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Branches side by side, joined by concatenation; chunks, constants and scales."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 2, 1)
        self.three = nn.Conv2d(2, 3, 3, padding=1)
        self.pooled = nn.Conv2d(2, 2, 1)
        self.scale = nn.Parameter(torch.ones(7))
        self.register_buffer("mask", (torch.arange(7) % 3 > 0).double())
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.one(x), self.three(x), self.pooled(F.max_pool2d(x, 3, 1, 1))]
        x = torch.cat([F.leaky_relu(part) for part in parts], 1)
        left, right = (x * self.mask[:, None, None]).chunk(2, dim=3)
        x = torch.maximum(left, right - 1).flatten(2).amax(2)
        return self.head(x * self.scale / 2) * 3 - 1


class Tokens(nn.Module):
    """Embedding, Linear layers on positions, a folded batch, and a mean over positions."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4, padding_idx=padding_idx)
        self.mix = nn.Linear(4, 5)
        self.fold = nn.Linear(5, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.relu(self.mix(self.table(tokens)))
        x = self.fold(x.view(-1, 5)).view(*tokens.shape, 4)  # samples and positions in one axis
        return self.head(x.relu().mean(1))


class Folded(nn.Module):
    """A convolution on frames that share the batch axis with the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.conv(x.flatten(0, 1)).relu().flatten(1)
        return self.head(frames.view(len(x), -1, 12).sum(1))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", [ResNet, Inception])
def test_image_networks(kind: Callable[[], nn.Module], seed: int) -> None:
    check(prepare(kind(), seed), normal(5, 2, 4, 4, seed=seed))


@pytest.mark.parametrize("batch", [3, 20])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_embeddings_and_positions(padding_idx: int | None, batch: int) -> None:
    tokens = torch.randint(11, (batch, 6), generator=seeded(3))
    assert (tokens == 2).any()
    check(prepare(Tokens(padding_idx), 3), tokens)


def test_embedding_of_one_token() -> None:
    model = nn.Sequential(nn.Embedding(30, 4, padding_idx=1), nn.ReLU(), nn.Linear(4, 3))
    tokens = torch.tensor([0, 1, 5, 5, 29, 1, 7, 0, 5])
    check(prepare(model, 4), tokens)


def test_frames_folded_into_the_batch() -> None:
    check(prepare(Folded(), 5), normal(3, 4, 2, 3, 3))


def test_in_place_activation_on_positions() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))
    check(prepare(model, 15), normal(5, 2, 3))


def test_functional_dropout_is_estimated_with_a_fixed_mask() -> None:
    model = Function(lambda a, b, x: b(F.dropout(a(x).relu(), 0.5))).double()
    inputs, state = normal(5, 4), torch.get_rng_state()
    with pytest.raises(NotImplementedError, match="draws random numbers"):
        graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(5))
    assert torch.equal(state, torch.get_rng_state())
    found = layer_hessians(model, nn.CrossEntropyLoss(), inputs, labels(5))
    assert "norms of one draw" in found.why_estimated
    assert torch.equal(state, torch.get_rng_state())
    assert dict(found) == dict(layer_hessians(model, nn.CrossEntropyLoss(), inputs, labels(5)))


def test_a_batch_of_one() -> None:
    check(prepare(ResNet(), 6), normal(1, 2, 4, 4))


@pytest.mark.parametrize(
    "loss_fn",
    [
        nn.MSELoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0]).double(), ignore_index=1),
    ],
    ids=["mse", "smoothing", "weights"],
)
def test_losses(loss_fn: nn.Module) -> None:
    targets = normal(5, 3, seed=9) if isinstance(loss_fn, nn.MSELoss) else labels(5, seed=2)
    check(prepare(ResNet(), 7), normal(5, 2, 4, 4), targets, loss_fn)


@st.composite
def conv_nets(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Draw small convolutional networks and a batch."""
    channels = draw(st.sampled_from([2, 4]))
    inputs = normal(draw(st.integers(1, 6)), channels, 6, 6, seed=draw(st.integers(0, 99)))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 2))):
        groups = draw(st.sampled_from([1, 2, channels]))
        units = groups * draw(st.integers(1, 2))
        kind = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))
        options = {"dilation": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1))}
        stride = draw(st.integers(1, 2))
        layers.append(kind(channels, units, 2, stride, groups=groups, **options))
        layers.append(draw(st.sampled_from([nn.ReLU(), nn.LeakyReLU(), nn.PReLU()])))
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1)])))
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(units).eval())
        channels = units if units % 2 == 0 else 2 * units
        if channels != units:
            layers.append(nn.Conv2d(units, channels, 1))
    layers.append(nn.AdaptiveAvgPool2d(draw(st.integers(1, 2))))
    features = channels * layers[-1].output_size ** 2
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))
    return prepare(model, draw(st.integers(0, 2**31))), inputs


@settings(max_examples=30)
@given(conv_nets())
def test_drawn_networks(drawn: tuple[nn.Module, Tensor]) -> None:
    model, inputs = drawn
    report = graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(len(inputs)))
    for name, layer in report.items():
        dense = dense_hessian(model, nn.CrossEntropyLoss(), inputs, labels(len(inputs)), name)
        exact = float(dense.norm()), float(torch.linalg.eigvalsh(dense).abs().max())
        assert (layer.frobenius, layer.spectral) == pytest.approx(exact, rel=1e-8, abs=1e-200)


@pytest.mark.parametrize("batch", [3, 40])
def test_agrees_with_the_recursion_on_fully_connected_chains(batch: int) -> None:
    case = make_case([5, 12, 6, 4], ["relu", "leaky_relu"], "cross_entropy", batch, 1.0, seed=1)
    graph = graph_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    chain = layer_hessians(case.model, case.loss_fn, case.inputs, case.targets)
    assert list(graph) == list(chain)
    for name, layer in chain.items():
        got = graph[name]
        assert got.frobenius == pytest.approx(layer.frobenius, rel=1e-10)
        assert got.spectral == pytest.approx(layer.spectral, rel=1e-9)
        assert got.trace == pytest.approx(layer.trace, rel=1e-10)


@pytest.mark.parametrize("piece", [1, 100])
def test_results_do_not_depend_on_the_pieces(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_PIECE", piece)
    monkeypatch.setattr(gram, "_SPLIT", 3)
    check(prepare(ResNet(), 8), normal(4, 2, 4, 4))
    check(prepare(Tokens(2), 8), torch.randint(11, (4, 6), generator=seeded(3)))
    inputs = normal(4, 4, 3, 3)
    grouped = with_head(nn.Sequential(nn.Conv2d(4, 8, 2, groups=4)), inputs)
    check(prepare(grouped, 8), inputs)


def test_float32_and_half_precision() -> None:
    model, inputs = prepare(ResNet(), 9), normal(8, 2, 4, 4)
    double = graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(8))
    single = graph_hessians(model.float(), nn.CrossEntropyLoss(), inputs.float(), labels(8))
    for name, layer in double.items():
        assert single[name].frobenius == pytest.approx(layer.frobenius, rel=1e-5)
        assert single[name].spectral == pytest.approx(layer.spectral, rel=1e-5)
    half = graph_hessians(model.bfloat16(), nn.CrossEntropyLoss(), inputs.bfloat16(), labels(8))
    again = graph_hessians(
        model.float(), nn.CrossEntropyLoss(), inputs.bfloat16().float(), labels(8)
    )
    assert dict(half) == dict(again)


def test_frozen_and_unused_weights() -> None:
    model, inputs = prepare(ResNet(), 10), normal(4, 2, 4, 4)
    full = graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(4))
    model.spare = nn.Linear(2, 3).double()
    model.stem.requires_grad_(False)
    model.second.requires_grad_(False)
    report = graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(4))
    assert list(report) == ["first.weight", "head.weight", "spare.weight"]
    assert report["first.weight"].frobenius == pytest.approx(full["first.weight"].frobenius)
    assert report["spare.weight"].frobenius == report["spare.weight"].spectral == 0


def test_anything_may_lie_below_the_layers() -> None:
    model = nn.Sequential(
        nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3), nn.ReLU()
    )
    prepare(model, 11)[2].requires_grad_(False)
    check(model, normal(6, 4))


def test_leaves_everything_as_found() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), ResNet())  # in training mode below all layers
    prepare(model, 12)
    inputs, targets = normal(4, 2, 4, 4), labels(4)
    F.cross_entropy(model(inputs), targets).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    random, copy = torch.get_rng_state(), inputs.clone()
    with pytest.warns(UserWarning, match="statistics frozen"):
        first = graph_hessians(model, nn.CrossEntropyLoss(), inputs, targets)
    with torch.no_grad(), pytest.warns(UserWarning, match="statistics frozen"):
        again = graph_hessians(model, nn.CrossEntropyLoss(), inputs, targets)
    assert dict(first) == dict(again)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(inputs, copy)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
        assert parameter.requires_grad
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("tracked", [True, False])
def test_batch_statistics_are_held_constant(tracked: bool) -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(2, 3, 2),
            nn.BatchNorm2d(3, track_running_stats=tracked),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(27, 3),
        )

    model, inputs, targets = prepare(network(), 4), normal(5, 2, 4, 4), labels(5)
    with pytest.warns(UserWarning, match="statistics frozen"):
        report = graph_hessians(model, nn.CrossEntropyLoss(), inputs, targets)
    fixed = network().double()
    fixed.load_state_dict(model.state_dict())
    hidden = model[0](inputs).detach()
    fixed[1] = nn.BatchNorm2d(3).double()
    fixed[1].weight, fixed[1].bias = model[1].weight, model[1].bias
    fixed[1].running_mean = hidden.mean((0, 2, 3))
    fixed[1].running_var = hidden.var((0, 2, 3), correction=0)
    expected = graph_hessians(fixed.eval(), nn.CrossEntropyLoss(), inputs, targets)
    for name, layer in report.items():
        assert layer.frobenius == pytest.approx(expected[name].frobenius, rel=1e-10)
        dense = dense_hessian(fixed, nn.CrossEntropyLoss(), inputs, targets, name)
        assert layer.frobenius == pytest.approx(float(dense.norm()), rel=1e-8)


def test_hooks_are_removed_after_a_failure() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="shapes"):
        graph_hessians(model, nn.CrossEntropyLoss(), torch.zeros(2, 4), labels(2))
    assert not any(module._forward_hooks for module in model.modules())


def test_users_hooks_count_as_part_of_the_model() -> None:
    model = prepare(nn.Sequential(nn.Linear(4, 3)), 13)
    plain = graph_hessians(model, nn.MSELoss(), normal(5, 4), normal(5, 3, seed=1))
    handle = model[0].register_forward_hook(lambda module, args, output: 2 * output)
    double = graph_hessians(model, nn.MSELoss(), normal(5, 4), normal(5, 3, seed=1))
    assert double["0.weight"].frobenius == pytest.approx(4 * plain["0.weight"].frobenius)
    handle.remove()


def test_dead_and_diverged_networks() -> None:
    model, inputs = prepare(ResNet(), 14), normal(4, 2, 4, 4)
    with torch.no_grad():
        model.stem.bias.fill_(-100.0)
    dead = graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(4))["stem.weight"]
    assert (dead.frobenius, dead.spectral, dead.trace, dead.residual_ratio) == (0, 0, 0, 0)
    with torch.no_grad():
        model.head.weight.fill_(math.inf)
    lost = graph_hessians(model, nn.CrossEntropyLoss(), inputs, labels(4))["stem.weight"]
    assert math.isnan(lost.frobenius)
    assert math.isnan(lost.spectral)
