"""Where a layer's Hessian comes from: statements 1 to 4 against automatic differentiation.

A network on MNIST images averaged down to 7 x 7 pixels, so small that all Hessians can be
formed as matrices, in float64. What the theory says of them is compared entry by entry,
and the spectra and one whole block are kept for the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_book.networks.dense import critical_network
from hessinit_book.networks.dense_hessians import (
    DenseBlock,
    dense_block,
    dense_curvatures,
    kronecker_mean,
)
from hessinit_book.parameters import Parameters
from hessinit_book.parameters.values import Count, Units
from hessinit_book.randomness import generator
from hessinit_book.records.records import Record
from hessinit_book.records.runs import run_seeds
from hessinit_book.statistics.rounding import rounded
from hessinit_book.training.image_data import load_images
from hessinit_lib.theory.activations import differentiate

POOL = 4  # pixels a side that are averaged into one: 28 x 28 becomes 7 x 7
CLASSES = 10
SHOWN = ("tanh", 2)  # the activation and the layer whose matrices the record keeps
ALLOWED = 1e-12

WHAT = {
    "statement_01": "Hessian of a sample's loss in all weights: sum of the two parts",
    "statement_02": "layer Hessian: mean of Kronecker products; its norm: the sum over pairs",
    "statement_03": "curvature at the units of each layer: the recursion",
    "statement_04": "rule without the second term: Gauss-Newton curvature and block",
    "statement_04_sign": "smallest eigenvalue of the Gauss-Newton block, over its largest",
}

Activation = Literal["relu", "tanh", "gelu", "silu"]


class LayerStructureParameters(Parameters):
    """Parameters of the experiment, see `Parameters` for the common ones.

    Attributes:
        activations: names of the activations to compare with.
        hidden: units of the hidden layers.
        batch_size: samples.
    """

    EXPERIMENT: ClassVar[str] = "layer_structure"
    IMAGES: ClassVar[tuple[str, ...]] = ("mnist",)
    REPEATABLE: ClassVar[tuple[str, ...]] = ("hidden",)
    BY_PROFILE = {  # noqa: RUF012 - a constant of the class, not a field
        "smoke": {"seeds": (0,), "activations": ("tanh",)},
        "quick": {"seeds": (0, 1)},
        "paper": {"seeds": tuple(range(5))},
    }

    activations: Annotated[tuple[Activation, ...], Field(min_length=1)] = get_args(Activation)
    hidden: Annotated[tuple[Units, ...], Field(min_length=2)] = (10, 6)
    batch_size: Count = 16


def run(parameters: LayerStructureParameters) -> list[Record]:
    """Compare and decompose for every seed and give the records.

    Raises:
        DataError: the data set cannot be had.
        ParameterError: a batch larger than the training set.
        RecordError: a record that is in the way is damaged.
    """
    data = load_images(parameters, "mnist", "batch_size")
    size = parameters.batch_size

    def run_one(seed: int, device: torch.device, bar: tqdm) -> dict[str, Any]:
        images, labels = data.tensors("train", device)
        chosen = torch.randperm(len(images), generator=generator(seed, "batch"))[:size].to(device)
        inputs = F.avg_pool2d(images[chosen], POOL).flatten(1).double()
        values: dict[str, Any] = {}
        for name in parameters.activations:
            model = make_network(name, parameters.hidden, generator(seed, "weights")).to(device)
            values[name] = examine(model, inputs, labels[chosen], SHOWN[1] * (name == SHOWN[0]))
            bar.update()
        errors = [values[name]["errors"] for name in parameters.activations]
        checks = {
            key: {"what": what, "value": max(found[key] for found in errors), "allowed": ALLOWED}
            for key, what in WHAT.items()
        }
        return {"checks": checks, **values}

    return run_seeds(parameters, data.info, run_one, ticks=len(parameters.activations))


def make_network(
    activation: str, hidden: tuple[int, ...], weights: torch.Generator
) -> nn.Sequential:
    """Draw the network on 7 x 7 pixels in float64, at the critical deviation of each layer."""
    widths = ((28 // POOL) ** 2, *hidden, CLASSES)
    return critical_network(activation, widths, weights, dtype=torch.float64)


def examine(
    model: nn.Sequential, x: Float[Tensor, "b m"], y: Tensor, shown: int = 0
) -> dict[str, Any]:
    """Compare one network's Hessians with the statements, and decompose them.

    Args:
        model: Linear layers with elementwise activations between them, in float64.
        x: images, shape (B, m).
        y: labels, shape (B,).
        shown: number of the layer whose matrices are given back; 0 for none.

    Returns:
        `errors`, by the keys of `WHAT`; `layers`, with spectra and ranks of each; `shown`,
        the linearization and the residual, row by row.
    """
    layers = layer_parts(model, x, y)
    errors = {
        "statement_01": max(map(partial(chain_rule_error, model), x[:2], y[:2])),
        **{key: max(layer.errors()[key] for layer in layers) for key in list(WHAT)[1:]},
    }
    found = {
        "errors": {key: rounded(error) for key, error in errors.items()},
        "layers": {f"layer_{k}": layer.summary() for k, layer in enumerate(layers, start=1)},
    }
    if shown:
        block = layers[shown - 1].block
        found["shown"] = {
            "linearization": [[rounded(float(v), 3) for v in row] for row in block.linearization],
            "residual": [[rounded(float(v), 3) for v in row] for row in block.residual],
        }
    return found


def chain_rule_error(model: nn.Sequential, x: Float[Tensor, " m"], y: Tensor) -> float:
    r"""Compare both sides of statement 1 for one sample and all weights and biases at once.

    $$D^2_w l = (D_w z)^\top D^2_z l \, D_w z + \sum_i (\partial l / \partial z_i) D^2_w z_i$$
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}
    w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def logits(w: Tensor) -> Tensor:
        pieces = w.split([shape.numel() for shape in shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        return torch.func.functional_call(model, named, (x[None],))[0]

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(z, y)

    z = logits(w)
    first = torch.func.jacrev(logits)(w)
    second = torch.func.hessian(logits)(w)
    linearization = first.mT @ torch.func.hessian(loss)(z) @ first
    curvature = torch.einsum("i,ipq->pq", torch.func.grad(loss)(z), second)
    return _error(linearization + curvature, torch.func.hessian(lambda w: loss(logits(w)))(w))


@dataclass(frozen=True)
class LayerParts:
    r"""One layer's Hessian as a matrix, and what the theory makes it of.

    Attributes:
        inputs: $z^{k-1}$, shape (B, m).
        block: $H_k$ and $\hat H_k$ by automatic differentiation in the weight.
        curvatures: $A_k$ by automatic differentiation in the pre-activations, shape (B, n, n).
        linearized: $\hat A_k$ likewise.
        recursive: $A_k$ by the recursion of statement 3.
        recursive_linearized: $\hat A_k$ by the same without its second term.
    """

    inputs: Float[Tensor, "b m"]
    block: DenseBlock
    curvatures: Float[Tensor, "b n n"]
    linearized: Float[Tensor, "b n n"]
    recursive: Float[Tensor, "b n n"]
    recursive_linearized: Float[Tensor, "b n n"]

    def errors(self) -> dict[str, float]:
        """Compare with statements 2 to 4."""
        z, hessian = self.inputs, self.block.hessian
        flat = self.curvatures.flatten(1)
        by_pairs = ((z @ z.mT).square() * (flat @ flat.mT)).mean().sqrt()
        eigenvalues = torch.linalg.eigvalsh(self.block.linearization)
        return {
            "statement_02": max(
                _error(kronecker_mean(self.curvatures, z), hessian),
                _error(by_pairs, hessian.norm()),
            ),
            "statement_03": _error(self.recursive, self.curvatures),
            "statement_04": max(
                _error(self.recursive_linearized, self.linearized),
                _error(kronecker_mean(self.recursive_linearized, z), self.block.linearization),
            ),
            "statement_04_sign": float((-eigenvalues[0] / eigenvalues[-1]).clamp(min=0)),
        }

    def summary(self) -> dict[str, Any]:
        """Give spectra, ranks with their bounds, and how far one Kronecker product is off."""
        z, block = self.inputs, self.block
        parts = {
            "hessian": block.hessian,
            "linearization": block.linearization,
            "residual": block.residual,
        }
        product_of_means = torch.kron(self.curvatures.mean(0), z.mT @ z / len(z))
        return {
            "shape": [self.curvatures.shape[1], z.shape[1]],
            "spectrum": {name: _spectrum(part, block.hessian) for name, part in parts.items()},
            "rank": {name: _rank(part) for name, part in parts.items() if name != "residual"},
            "rank_bound": {
                "hessian": sum(map(_rank, self.curvatures)),
                "linearization": sum(map(_rank, self.linearized)),
            },
            "residual_ratio": rounded(float(block.residual.norm() / block.hessian.norm())),
            "norm_ratio": rounded(float(block.linearization.norm() / block.hessian.norm())),
            "product_of_means_error": rounded(_error(product_of_means, block.hessian)),
        }


def layer_parts(model: nn.Sequential, x: Float[Tensor, "b m"], y: Tensor) -> list[LayerParts]:
    """Compute every layer's Hessian along all the ways to be compared, first layer first."""
    places = [i for i, module in enumerate(model) if isinstance(module, nn.Linear)]
    found: list[LayerParts] = []
    with torch.no_grad():
        p = model(x).softmax(1)
    gradient = p - F.one_hot(y, CLASSES)
    whole = linearized = p.diag_embed() - p[:, :, None] * p[:, None, :]
    for i in reversed(places):
        with torch.no_grad():
            z = model[:i](x)
            a = model[i](z)
        if found:  # one step of the recursion, from the layer above
            weight = model.get_parameter(f"{i + 2}.weight").detach()
            _, first, second = differentiate(model[i + 1], a)
            v = gradient @ weight
            carry = weight * first[:, None, :]
            linearized = carry.mT @ linearized @ carry
            whole = carry.mT @ whole @ carry + (second * v).diag_embed()
            gradient = first * v
        block = dense_block(model, F.cross_entropy, x, y, f"{i}.weight")
        exact = dense_curvatures(model[i + 1 :], F.cross_entropy, a, y)
        found.append(LayerParts(z, block, *exact, whole, linearized))
    return found[::-1]


def _error(found: Tensor, expected: Tensor) -> float:
    """Give the error relative to the norm of what is expected."""
    return float((found - expected).norm() / expected.norm())


def _spectrum(matrix: Float[Tensor, "n n"], scale: Float[Tensor, "n n"]) -> list[float]:
    """Give all eigenvalues, rising; zero where they are rounding errors on this scale."""
    eigenvalues = torch.linalg.eigvalsh(matrix)
    noise = eigenvalues.abs() < 1e-12 * scale.norm()
    return [rounded(float(value), 4) for value in eigenvalues.masked_fill(noise, 0.0)]


def _rank(matrix: Float[Tensor, "n n"]) -> int:
    return int(torch.linalg.matrix_rank(matrix, hermitian=True, rtol=1e-10))
