r"""The initializers that `init_targets` compares: which norm should be set, and to what?

Each takes a network that has He's weights and sets it, or leaves it. Those that balance
multiply the layers by $e^{t_k}$ with $\sum t_k = 0$, so that a ReLU network's outputs stay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.chapters.init_targets.gauss_newton_norms import gauss_newton_norms
from hessinit_lib.init import apply, looks_linear_, lsuv_, scale_outputs_
from hessinit_lib.init.layers import weight_layers
from hessinit_lib.theory.balancing import balancing_scales


@dataclass(frozen=True)
class Start:
    """What an initializer may use.

    Attributes:
        model: with He's weights, to be set in place.
        inputs: a batch of the training data, shape (B, 784).
        labels: its classes.
        generator: source of randomness.
    """

    model: nn.Sequential
    inputs: Tensor
    labels: Tensor
    generator: torch.Generator

    @property
    def gain(self) -> float:
        """The gain that keeps mean squares: that of ReLU, or 1."""
        return math.sqrt(2) if isinstance(self.model[1], nn.ReLU) else 1.0


def _balance(start: Start, norm: str, centered: bool = False) -> None:
    """Equal norms of the layers' Hessians, measured anew three times for smooth networks."""
    for _ in range(1 if start.gain > 1 else 3):
        norms = gauss_newton_norms(start.model, start.inputs, start.labels, norm, centered=centered)
        _equalize(start.model, norms)


def _balance_later(start: Start, steps: int = 20, rate: float = 0.01) -> None:
    """Equal norms where training will be after some steps."""
    ahead = copy.deepcopy(start.model)
    descent = torch.optim.SGD(ahead.parameters(), lr=rate)
    for _ in range(steps):
        descent.zero_grad()
        F.cross_entropy(ahead(start.inputs), start.labels).backward()
        descent.step()
    _equalize(start.model, gauss_newton_norms(ahead, start.inputs, start.labels, "frobenius"))


def _balance_rows(start: Start, probes: int = 8) -> None:
    r"""Equal norms of the whole Hessian's rows of blocks, the blocks across layers included.

    $E \|(H v)_k\|^2 = \sum_j \|H_{kj}\|_F^2$ for standard normal v. Block (k, j) scales
    by $e^{2T - t_k - t_j}$, so the balancing is repeated.
    """
    for _ in range(3):
        weights = [layer.weight for layer in weight_layers(start.model)]
        gradients = _gradients(start, weights)
        rows = torch.zeros(len(weights), device=start.inputs.device)
        for _ in range(probes):
            v = [torch.randn(w.shape, generator=start.generator).to(w) for w in weights]
            products = torch.autograd.grad(gradients, weights, v, retain_graph=True)
            rows += torch.stack([p.square().sum() for p in products])
        _equalize(start.model, rows.sqrt().tolist())


def _most_gain(start: Start, rounds: int = 20, rate: float = 0.05) -> None:
    r"""Scales of the layers that give the largest predicted gain $|g|^4 / g^\top H g$.

    Descent by Adam in the logarithms of the scales, which keep the sum 0.
    """
    layers = [module for module in start.model if isinstance(module, nn.Linear)]
    logs = torch.zeros(len(layers), device=start.inputs.device, requires_grad=True)
    adam = torch.optim.Adam([logs], lr=rate)
    activation = start.model[1]
    for _ in range(rounds):
        factors = (logs - logs.mean()).exp()
        weights = [f * layer.weight.detach() for f, layer in zip(factors, layers, strict=True)]
        z = start.inputs
        for index, weight in enumerate(weights):
            z = z @ weight.T
            z = activation(z) if index < len(weights) - 1 else z
        loss = F.cross_entropy(z, start.labels)
        g = torch.autograd.grad(loss, weights, create_graph=True)
        square = torch.stack([part.square().sum() for part in g]).sum()
        # H g, as the derivative of g . g' with the second factor held fixed.
        inner = torch.stack([(a * b.detach()).sum() for a, b in zip(g, g, strict=True)]).sum()
        hg = torch.autograd.grad(inner, weights, create_graph=True)
        curvature = torch.stack([(a * b).sum() for a, b in zip(g, hg, strict=True)]).sum()
        adam.zero_grad()
        (curvature.abs().log() - 2 * square.log()).backward()
        adam.step()
    multiply(start.model, (logs - logs.mean()).exp().tolist())


def _last(start: Start, factor: float) -> None:
    layers = weight_layers(start.model)
    multiply(start.model, [1.0] * (len(layers) - 1) + [factor])


def _narrow_last(start: Start) -> None:
    """Give the last layer the deviation $1/n$, as in the maximal-update parametrization."""
    layers = weight_layers(start.model)
    _last(start, 1 / (math.sqrt(2) * math.sqrt(layers[-1].fans()[0])))


def _one(start: Start, rounds: int = 4) -> None:
    """The Frobenius norm 1 in every layer, by the closed form, again and again."""
    for _ in range(rounds):
        norms = gauss_newton_norms(start.model, start.inputs, start.labels, "frobenius")
        multiply(start.model, [math.exp(t) for t in balancing_scales(norms, 1.0)])


def _orthogonal(start: Start) -> None:
    apply(start.model, "orthogonal", gain=start.gain, generator=start.generator)


def _directions(start: Start) -> None:
    """Orthogonal maps, mirrored around ReLUs, and no more."""
    relu = start.gain > 1
    apply(start.model, "mirrored" if relu else "orthogonal", generator=start.generator)


def _centered(start: Start) -> None:
    """Orthogonal maps, with biases that take the batch mean out of every pre-activation."""
    _orthogonal(start)

    def hook(module: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear)
        module.bias.copy_(-output.mean(0))
        return output - output.mean(0)

    handles = [m.register_forward_hook(hook) for m in start.model if isinstance(m, nn.Linear)]
    with torch.no_grad():
        start.model(start.inputs)
    for handle in handles:
        handle.remove()


def _balanced_directions(start: Start) -> None:
    _directions(start)
    _balance(start, "frobenius")


def _sized(start: Start, draw: Callable[[Start], None]) -> None:
    """Another start, with logits of the size that `looks_linear_` sets."""
    draw(start)
    scale_outputs_(start.model, start.inputs)


def _looks_linear(start: Start, **options: float) -> None:
    looks_linear_(start.model, start.inputs, generator=start.generator, **options)


def multiply(model: nn.Module, factors: Sequence[float]) -> None:
    """Multiply each layer's weight by a factor, in place."""
    with torch.no_grad():
        for layer, factor in zip(weight_layers(model), factors, strict=True):
            layer.weight.mul_(factor)


def _equalize(model: nn.Module, norms: Sequence[float]) -> None:
    logs = [math.log(norm) for norm in norms]
    mean = sum(logs) / len(logs)
    multiply(model, [math.exp((log - mean) / 2) for log in logs])


def _gradients(start: Start, weights: list[Tensor]) -> tuple[Tensor, ...]:
    loss = F.cross_entropy(start.model(start.inputs), start.labels)
    return torch.autograd.grad(loss, weights, create_graph=True)


def inverse_norms(start: Start) -> list[float]:
    r"""Give rates for each layer: $1 / \|H_k\|_2$, over their geometric mean."""
    norms = gauss_newton_norms(start.model, start.inputs, start.labels, "spectral")
    logs = [math.log(norm) for norm in norms]
    mean = sum(logs) / len(logs)
    return [math.exp(mean - log) for log in logs]


STARTS: dict[str, Callable[[Start], None]] = {
    "he": lambda start: None,
    "orthogonal": _orthogonal,
    "lsuv": lambda start: (lsuv_(start.model, start.inputs, generator=start.generator), None)[1],
    "equal_frobenius": partial(_balance, norm="frobenius"),
    "equal_spectral": partial(_balance, norm="spectral"),
    "equal_centered": partial(_balance, norm="frobenius", centered=True),
    "equal_later": _balance_later,
    "equal_rows": _balance_rows,
    "all_one": _one,
    "most_gain": _most_gain,
    "layer_rates": lambda start: None,  # He's weights; `inverse_norms` sets the rates
    "narrow_last": _narrow_last,
    "zero_last": partial(_last, factor=0.0),
    "he_sized": partial(_sized, draw=lambda start: None),
    "centered_biases": _centered,
    "orthogonal_sized": partial(_sized, draw=_orthogonal),
    "mirrored": _directions,
    "mirrored_equal": _balanced_directions,
    "mirrored_small": partial(_looks_linear, output_rms=0.2),
    "mirrored_sized": _looks_linear,
    "mirrored_large": partial(_looks_linear, output_rms=1.4),
}
"""Every initializer that was tried, in the order of the figures."""
