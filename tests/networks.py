"""Networks of several tests, random and plain ones, and dense Hessians as the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from hessinit_lib.hessians import HessianReport, case
from hessinit_lib.hessians.chain import hessians as by_chain
from hessinit_lib.hessians.chain.network import Chain
from hessinit_lib.hessians.estimate import hessians as by_estimates
from hessinit_lib.hessians.graph import hessians as by_graph
from hessinit_lib.hessians.options import Options

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
}


@dataclass
class Case:
    """A network, a loss and a batch, all in float64."""

    model: nn.Sequential
    loss_fn: nn.Module
    inputs: Tensor
    targets: Tensor

    def dense_hessian(self, name: str) -> Tensor:
        """Differentiate the loss twice in one parameter, shape (size, size)."""
        parameters = {n: p.detach() for n, p in self.model.named_parameters()}

        def loss(value: Tensor) -> Tensor:
            outputs = torch.func.functional_call(
                self.model, {**parameters, name: value}, (self.inputs,)
            )
            return self.loss_fn(outputs, self.targets)

        size = parameters[name].numel()
        return torch.func.hessian(loss)(parameters[name]).reshape(size, size)

    def dense_gauss_newton(self, name: str) -> Tensor:
        """Form J^T (D^2 loss) J from the Jacobian of all outputs, shape (size, size)."""
        parameters = {n: p.detach() for n, p in self.model.named_parameters()}

        def outputs(value: Tensor) -> Tensor:
            return torch.func.functional_call(
                self.model, {**parameters, name: value}, (self.inputs,)
            )

        size = parameters[name].numel()
        logits = outputs(parameters[name])
        jacobian = torch.func.jacrev(outputs)(parameters[name]).reshape(logits.numel(), size)
        curvature = torch.func.hessian(lambda z: self.loss_fn(z, self.targets))(logits)
        return jacobian.mT @ curvature.reshape(logits.numel(), logits.numel()) @ jacobian


def make_case(
    widths: list[int], activations: list[str], loss: str, batch: int, scale: float, seed: int
) -> Case:
    """Make a network with normal weights of variance scale^2 / fan_in and normal biases."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(widths)):
        linear = nn.Linear(fan_in, fan_out).double()
        with torch.no_grad():
            linear.weight.normal_(0, scale / math.sqrt(fan_in), generator=generator)
            linear.bias.normal_(0, 0.3, generator=generator)
        layers.append(linear)
        if index < len(activations):
            layers.append(ACTIVATIONS[activations[index]]())
    inputs = torch.randn(batch, widths[0], generator=generator, dtype=torch.float64)
    if loss == "mse":
        targets = torch.randn(batch, widths[-1], generator=generator, dtype=torch.float64)
        return Case(nn.Sequential(*layers), nn.MSELoss(), inputs, targets)
    targets = torch.randint(widths[-1], (batch,), generator=generator)
    return Case(nn.Sequential(*layers), nn.CrossEntropyLoss(), inputs, targets)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw fully connected networks of 1 to 4 layers with mixed activations."""
    depth = draw(st.integers(1, 4))
    widths = [draw(st.integers(1, 6)) for _ in range(depth)] + [draw(st.integers(2, 5))]
    activations = [draw(st.sampled_from(sorted(ACTIVATIONS))) for _ in range(depth - 1)]
    return make_case(
        widths,
        activations,
        draw(st.sampled_from(["cross_entropy", "mse"])),
        draw(st.integers(1, 12)),
        draw(st.sampled_from([0.1, 1.0, 3.0])),
        draw(st.integers(0, 2**32 - 1)),
    )


class Function(nn.Module):
    """Two Linear layers, given to a function of both and of the input."""

    def __init__(self, function: Callable[[nn.Module, nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.a, self.b, x)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(batch: int, classes: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(classes, (batch,), generator=seeded(seed))


def chain(
    depth: int, width: int, activation: Callable[[], nn.Module], bias: bool = True
) -> nn.Sequential:
    """A plain network of 12 inputs and 3 classes."""
    widths = [12, *[width] * (depth - 1), 3]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


class OwnSigmoid(nn.Module):
    """Nothing in the graph tells that it is one."""

    def forward(self, z: Tensor) -> Tensor:
        return 1 / (1 + (-z).exp())


def curvature_along_weights(model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[float], float]:
    """Give W . H W of the cross-entropy for each weight matrix, and E z . D2l z of the outputs."""
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    z = model(x)
    gradients = torch.autograd.grad(F.cross_entropy(z, y), weights, create_graph=True)
    along = []
    for weight, gradient in zip(weights, gradients, strict=True):
        (product,) = torch.autograd.grad(gradient, weight, weight, retain_graph=True)
        along.append((weight * product).sum().item())
    p = z.detach().softmax(1)
    mean = (p * z.detach()).sum(1)
    return along, ((p * z.detach().square()).sum(1) - mean.square()).mean().item()


# The three routes as `layer_hessians` takes them, each by itself.


def chain_hessians(
    model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor, options: Options
) -> HessianReport:
    chain = Chain.of(model, x)
    assert chain is not None
    return by_chain.chain_hessians(chain, loss_fn, x, y, options)


def graph_hessians(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    options: Options | None = None,
) -> HessianReport:
    return by_graph.graph_hessians(case.Case.checked(model, loss_fn, x, y), options)


def estimated_hessians(
    model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor, options: Options
) -> HessianReport:
    return by_estimates.estimated_hessians(case.Case.checked(model, loss_fn, x, y), options)
