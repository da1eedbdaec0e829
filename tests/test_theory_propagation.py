"""Statement 6: predicted layer-Hessian norms against measured ones."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from networks import seeded
from torch import Tensor, nn

from hessinit_book.data import load
from hessinit_book.theory import LayerPrediction, Masks, RandomNetwork, predict_layer_norms
from hessinit_book.theory.finite_width import carried_back, kernel_noise, log_variance
from hessinit_book.theory.forward import HiddenLayer, hidden_layers
from hessinit_book.theory.output_hessians import output_pairs
from hessinit_lib.hessians.loss import loss_curvature

CLASSES = 10


def images(batch: int) -> Tensor:
    return load("mnist", sample=True).train_images[:batch].flatten(1).double() / 255


def measure(network: RandomNetwork, x: Tensor, loss: nn.Module, seed: int) -> list[float]:
    """Draw weights and fixed masks; give the norms of the layers' Gauss-Newton blocks.

    From Jacobians, by the double sum over samples; no code of the library but the factor of
    the output Hessian.
    """
    generator = seeded(seed)
    z, read, outputs = x.float(), [], []
    for k, (fan_in, fan_out) in enumerate(pairwise(network.widths)):
        weight = torch.randn(fan_out, fan_in, generator=generator) * network.variances[k] ** 0.5
        read.append(z.detach())
        outputs.append((z @ weight.mT).requires_grad_())
        if k == len(network.activations):
            break
        masks = network.masks[k]
        shape = (1 if masks.shared else len(x), fan_out)
        kept = (torch.rand(shape, generator=generator) < masks.keep).float()
        z = network.activations[k](outputs[-1]) * kept / (masks.keep if masks.rescale else 1)
    logits = outputs[-1]
    targets = torch.zeros(logits.shape)
    targets[:, 0] = 1
    factor = loss_curvature(loss, logits.detach(), targets).factor
    columns = [torch.autograd.grad(logits, outputs, c, retain_graph=True) for c in factor.unbind(1)]
    norms = []
    for inputs, *gradients in zip(read, *columns, strict=True):
        rows = torch.cat(gradients)
        squares = (rows @ rows.mT).square().reshape(len(gradients), len(x), -1, len(x))
        pairs = (inputs @ inputs.mT).square() * squares.sum((0, 2))
        norms.append(float(pairs.sum().sqrt()) / len(x))
    return norms


def geometric_means(
    network: RandomNetwork, x: Tensor, loss: nn.Module, seeds: int
) -> tuple[Tensor, Tensor]:
    """Give the geometric mean of each layer's norm over seeds, and the deviation of its log."""
    logs = torch.tensor([measure(network, x, loss, seed) for seed in range(seeds)]).log()
    return logs.mean(0).exp(), logs.std(0)


def of(predictions: list[LayerPrediction], attribute: str) -> Tensor:
    return torch.tensor([getattr(layer, attribute) for layer in predictions])


def network_of(
    width: int, depth: int, gain: float, activation: str = "relu", masks: Masks | None = None
) -> RandomNetwork:
    widths = [784, *[width] * (depth - 1), CLASSES]
    return RandomNetwork.make(widths, [gain / n for n in widths[:-1]], activation, masks)


@pytest.mark.parametrize(
    ("network", "scale", "seeds"),
    [
        pytest.param(network_of(512, 2, 2.0), 1.0, 20, id="relu-2"),
        pytest.param(network_of(512, 5, 2.0), 1.0, 30, id="relu-5"),
        pytest.param(network_of(512, 5, 1.0, "tanh"), 0.3, 20, id="tanh-5"),
        pytest.param(network_of(512, 4, 1.0, masks=Masks(0.5)), 1.0, 30, id="dropout-4"),
        pytest.param(
            network_of(512, 4, 4.0, masks=Masks(0.5, rescale=False, shared=True)),
            1.0,
            60,
            id="shared-dropout-4",
        ),
        pytest.param(network_of(128, 8, 2.0), 1.0, 200, id="relu-8-narrow"),
        pytest.param(network_of(128, 8, 1.0, masks=Masks(0.5)), 1.0, 200, id="dropout-8-narrow"),
    ],
)
def test_statement_06_norm_propagation(network: RandomNetwork, scale: float, seeds: int) -> None:
    x = images(32) * scale
    predictions = predict_layer_norms(network, x)
    means, deviations = geometric_means(network, x, nn.CrossEntropyLoss(), seeds)
    # 4 % for the terms beyond 1/n, and what so few networks leave open.
    allowed = 0.04 + 2.5 * deviations / math.sqrt(seeds)
    assert ((of(predictions, "frobenius") / means).log().abs() <= allowed).all()
    assert ((of(predictions, "log_std") / deviations).log().abs() <= 0.5).all()


def test_statement_06_typical_norm_at_large_logits() -> None:
    # One sample: the drawn logits alone move the norm.
    x = images(1)
    network = RandomNetwork.make([784, CLASSES], [9 / float(x.square().sum())])
    (found,) = predict_layer_norms(network, x)
    means, deviations = geometric_means(network, x, nn.CrossEntropyLoss(), 1000)
    assert found.frobenius == pytest.approx(float(means), rel=0.08)
    assert found.log_std == pytest.approx(float(deviations), rel=0.15)
    assert found.limit > 1.15 * found.frobenius


def test_statement_06_needs_the_finite_width_terms() -> None:
    network, x = network_of(128, 8, 2.0), images(32)
    means, _ = geometric_means(network, x, nn.CrossEntropyLoss(), 40)
    limit = of(predict_layer_norms(network, x), "limit")
    assert float((limit / means)[0]) < 0.75  # C / n a layer: J J^T is not a multiple of I


def test_statement_06_second_moment_is_exact_for_the_squared_error() -> None:
    # A linear network below a squared error: every formula for the mean is exact.
    network = RandomNetwork.make([6, 8, 7, 4], [0.2, 0.1, 0.3], "linear")
    x = torch.randn(3, 6, generator=seeded(1), dtype=torch.float64)
    layers, covariance = hidden_layers(network, x @ x.mT, 20_000, seeded(0))
    pairs = output_pairs("mse", covariance, 4, 1, seeded(0))
    first = carried_back(layers, pairs.inner[0], pairs.traces[0])[0]
    expected = float(((x @ x.mT).square() * first.inner).mean())
    squares = [measure(network, x, nn.MSELoss(), seed)[0] ** 2 for seed in range(4000)]
    mean, stderr = torch.tensor(squares).mean(), torch.tensor(squares).std() / math.sqrt(4000)
    assert abs(float(mean) - expected) <= 3 * float(stderr)
    assert float(stderr) < 0.03 * expected


@pytest.mark.parametrize("activation", ["linear", "tanh"])
def test_statement_06_orthogonal_inputs(activation: str) -> None:
    # Scalar products of zero, whose deviations at finite width count none the less.
    network = RandomNetwork.make([16, 256, 256, CLASSES], [1 / 16, 1 / 256, 1 / 256], activation)
    x = 4 * torch.eye(8, 16)
    predictions = predict_layer_norms(network, x)
    means, deviations = geometric_means(network, x, nn.CrossEntropyLoss(), 40)
    assert of(predictions, "frobenius") == pytest.approx(means, rel=0.04)
    assert ((of(predictions, "log_std") / deviations).log().abs() <= 0.4).all()


def test_statement_06_a_sample_of_zeros_adds_nothing() -> None:
    network = RandomNetwork.make([16, 256, CLASSES], [1 / 16, 1 / 256], "linear")
    x = 4 * torch.eye(3, 16)
    alone = of(predict_layer_norms(network, x, loss="mse"), "frobenius")
    beside = of(predict_layer_norms(network, torch.cat((x, 0 * x)), loss="mse"), "frobenius")
    assert beside == pytest.approx(alone / 2, rel=0.02)  # averaged over twice as many
    nothing = of(predict_layer_norms(network, 0 * x), "frobenius")
    assert (nothing < 1e-20).all()


def test_statement_06_factors_of_one_sample() -> None:
    widths, variances = [50, 4000, 3000, CLASSES], [0.03, 0.0004, 0.0001]
    network = RandomNetwork.make(widths, variances, "relu")
    x = torch.full((1, 50), 0.2)
    power = float((x**2).sum())
    found = predict_layer_norms(network, x)
    forward = [power, power * 0.03 * 4000 / 2, power * 0.03 * 4000 / 2 * 0.0004 * 3000 / 2]
    backward = [0.0004 * 4000 / 2 * 0.0001 * 3000 / 2, 0.0001 * 3000 / 2, 1.0]
    assert [layer.forward for layer in found] == pytest.approx(forward)
    assert [layer.backward for layer in found] == pytest.approx(backward)
    # Small logits: the uniform softmax.
    assert found[0].output == pytest.approx(math.sqrt(CLASSES - 1) / CLASSES, rel=2e-2)
    for layer in found:
        assert layer.limit == pytest.approx(layer.per_sample, rel=1e-9)


def test_statement_06_a_layers_own_variance_is_absent() -> None:
    # All others are in: this is the dependency between layers.
    x = images(4)
    for k in range(3):
        variances = [1 / 784, 1 / 64, 1 / 64]
        before = predict_layer_norms(
            RandomNetwork.make([784, 64, 64, 10], variances), x, loss="mse"
        )
        variances[k] *= 4
        after = predict_layer_norms(RandomNetwork.make([784, 64, 64, 10], variances), x, loss="mse")
        ratios = (of(after, "limit") / of(before, "limit")).tolist()
        assert ratios == pytest.approx([1.0 if j == k else 4.0 for j in range(3)], rel=1e-6)


def test_output_pairs_equal_dense_products() -> None:
    covariance = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    pairs = output_pairs("cross_entropy", covariance, 4, 3, seeded(2))
    rows = torch.linalg.cholesky(covariance)  # the same law, other draws
    p = (rows @ torch.randn(20_000, 2, 4, generator=seeded(3), dtype=torch.float64)).softmax(2)
    dense = p.diag_embed() - p[..., :, None] * p[..., None, :]
    inner = torch.einsum("tbij,tcij->tbc", dense, dense).mean(0)
    many = output_pairs("cross_entropy", covariance, 4, 20_000, seeded(4)).inner.mean(0)
    assert pairs.inner.shape == (3, 2, 2)
    assert torch.allclose(many, inner, rtol=2e-2)


def test_backward_recursion_is_exact_for_given_slopes() -> None:
    # One layer: E <A, A'> over W for constant slopes, by Monte Carlo over W.
    width, batch = 5, 2
    ones = torch.ones(batch, batch, dtype=torch.float64)
    draws = torch.ones(10, batch, dtype=torch.float64)
    layer = HiddenLayer(width, 0.7, ones, ones, ones, draws, draws)
    roots = torch.randn(batch, 3, 3, generator=seeded(0), dtype=torch.float64)
    a = roots @ roots.mT
    inner = torch.einsum("bij,cij->bc", a, a)
    trace = a.diagonal(dim1=1, dim2=2).sum(1)
    found = carried_back([layer], inner, torch.outer(trace, trace))[0]
    w = torch.randn(40_000, 1, 3, width, generator=seeded(1), dtype=torch.float64) * 0.7**0.5
    carried = w.mT @ a @ w
    traces = carried.diagonal(dim1=2, dim2=3).sum(2)
    assert torch.allclose(
        torch.einsum("tbij,tcij->bc", carried, carried) / len(w), found.inner, rtol=3e-2
    )
    assert torch.allclose(traces.mT @ traces / len(w), found.traces, rtol=3e-2)


def test_kernel_noise_is_that_of_simulated_networks() -> None:
    # Each sample with its own dropout masks, so that samples deviate apart.
    batch, nets, widths = 3, 2000, [20, *[128] * 6, 2]
    variances = [1 / n for n in widths[:-1]]
    network = RandomNetwork.make(widths, variances, "relu", Masks(0.5))
    x = torch.rand(batch, 20, generator=seeded(0), dtype=torch.float64)
    layers, _ = hidden_layers(network, x @ x.mT, 20_000, seeded(1))
    noise = kernel_noise(layers, batch)[-1]
    generator, z = seeded(2), x.float().expand(nets, -1, -1)
    for variance, (fan_in, fan_out) in zip(variances[:-1], pairwise(widths[:-1]), strict=True):
        weight = torch.randn(nets, fan_in, fan_out, generator=generator) * variance**0.5
        kept = torch.rand(nets, batch, fan_out, generator=generator) < 0.5
        z = (z @ weight).relu() * kept * 2
    ratio = (z @ z.mT).double() / layers[-1].kernel
    apart = ~torch.eye(batch, dtype=torch.bool)
    # Pairs are lower than at infinite width, by more than is allowed here.
    assert float(noise.shift[apart].mean()) < -0.07
    # Against the samples' own squared norms, since so few networks leave 2 % open.
    means = ratio.mean(0)
    own = means.diagonal().sqrt()
    assert torch.allclose(means / torch.outer(own, own), 1 + noise.shift, atol=0.04)
    assert torch.allclose(ratio.square().mean(0).sqrt(), noise.second_moment().sqrt(), rtol=0.08)
    weights = layers[-1].kernel ** 2
    sums = (weights * ratio**2).sum((1, 2)).log()
    predicted = log_variance(layers, len(layers), weights / weights.sum(), [])
    assert math.sqrt(predicted) == pytest.approx(float(sums.std()), rel=0.1)


def test_a_model_is_read_by_its_variances() -> None:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Dropout(0.25)),
        nn.Identity(),
        nn.Linear(5, 3),
    )
    network = RandomNetwork.of_model(model)
    assert network.widths == (6, 5, 3)
    assert network.names == ("1.0.weight", "3.weight")
    assert network.masks == (Masks(0.75),)
    assert RandomNetwork.of_model(model.eval()).masks == (Masks(),)
    weight = model.get_parameter("3.weight")
    assert network.variances[1] == pytest.approx(weight.detach().square().mean().item())
    assert network.bias_variances[0] == 0 < network.bias_variances[1]
    predictions = predict_layer_norms(model, torch.ones(2, 2, 3))
    assert [layer.name for layer in predictions] == list(network.names)


def test_biases_add_to_the_kernel() -> None:
    network = RandomNetwork.make([3, 20, 2], [0.0, 1.0], "linear")
    biased = RandomNetwork(
        network.widths,
        network.variances,
        network.activations,
        network.masks,
        (0.3, 0.0),
        network.names,
    )
    _, logits = predict_layer_norms(biased, torch.ones(2, 3))
    assert logits.forward == pytest.approx(20 * 0.3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), r"0 \(Conv2d\): expected Linear layers"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "expected a network that ends in a Linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Tanh()), r"2 \(Tanh\): expected Linear"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2)), "1: its input is not the layer before"),
    ],
)
def test_other_models_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        RandomNetwork.of_model(model)


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"variances \[1\.0\]: expected 2"):
        RandomNetwork.make([3, 4, 2], [1.0])
    with pytest.raises(ValueError, match=r"widths \[3\]: expected two or more"):
        RandomNetwork.make([3], [])
    with pytest.raises(ValueError, match=r"keep 0\.0: expected a probability above 0"):
        RandomNetwork.make([3, 2, 2], [1.0, 1.0], masks=Masks(0.0))
    network = RandomNetwork.make([3, 2], [1.0])
    with pytest.raises(ValueError, match=r"inputs of shape \(2, 4\): expected 3 numbers"):
        predict_layer_norms(network, torch.ones(2, 4))
    with pytest.raises(ValueError, match="loss 'hinge': expected one of"):
        predict_layer_norms(network, torch.ones(2, 3), loss="hinge")
