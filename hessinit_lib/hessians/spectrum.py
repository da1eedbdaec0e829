"""Spectra of layer Hessians and of the whole model's: all eigenvalues, or their density."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.case import Case, what_is_not_finite
from hessinit_lib.hessians.derivatives import check_derivatives
from hessinit_lib.hessians.estimate.products import BlockProducts
from hessinit_lib.hessians.graph.backward import layer_grams
from hessinit_lib.hessians.graph.capture import capture_logits
from hessinit_lib.hessians.graph.conditions import check_exact, check_independence
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.loss import LossFn, loss_curvature
from hessinit_lib.hessians.numerics.quadrature import lanczos_quadrature
from hessinit_lib.hessians.numerics.random import cpu_generator, random_signs
from hessinit_lib.hessians.options import Options

MATRICES = {"hessian": (1.0, 1.0), "linearization": (1.0, 0.0), "residual": (0.0, 1.0)}
"""What a spectrum can be of, as a sum of G and R."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and how many times each counts.

    Attributes:
        name: the parameter, or "model".
        size: number of eigenvalues, the parameters of the block.
        values: eigenvalues, ascending, or nodes of a quadrature, shape (k,).
        weights: how many eigenvalues each stands for, shape (k,); they sum to `size`.
        exact: whether these are the eigenvalues themselves.

    Example:
        >>> spectrum = Spectrum("w", 3, np.array([0.0, 2.0]), np.array([2.0, 1.0]), exact=True)
        >>> spectrum.trace, spectrum.frobenius
        (2.0, 2.0)
    """

    name: str
    size: int
    values: Float[np.ndarray, " k"]
    weights: Float[np.ndarray, " k"]
    exact: bool

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.weights @ self.values)

    @property
    def frobenius(self) -> float:
        """Root of the sum of their squares."""
        return math.sqrt(self.weights @ self.values**2)

    @property
    def spectral(self) -> float:
        """The largest in absolute value."""
        return float(np.abs(self.values).max(initial=0.0))

    def density(self, grid: Float[np.ndarray, " g"], width: float) -> Float[np.ndarray, " g"]:
        """Smooth the spectrum into eigenvalues per unit, by a normal kernel.

        Args:
            grid: where to evaluate, shape (g,).
            width: standard deviation of the kernel.

        Raises:
            ValueError: the width is not positive.
        """
        if not width > 0:
            raise ValueError(f"width={width!r}: expected a positive number")
        z = (np.asarray(grid)[:, None] - self.values) / width
        return np.exp(-(z**2) / 2) @ self.weights / (width * math.sqrt(2 * math.pi))


@entry
def spectrum(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Inputs,
    targets: Tensor,
    *,
    name: str | None = None,
    matrix: str = "hessian",
    method: str = "auto",
    probes: int = 4,
    steps: int = 50,
    generator: torch.Generator | None = None,
) -> Spectrum:
    r"""Compute the spectrum of a layer's Hessian block, or of the Hessian of all weights.

    All eigenvalues where there is an exact route to them: the linearization, or a Hessian
    that equals it, of a network that `hessinit_lib.hessians.graph.hessians` covers, if its Gram
    matrix is small enough, or blocks of at most `steps` parameters. Else the density of the
    eigenvalues, by stochastic Lanczos quadrature.

    Args:
        model: any module with one tensor of outputs, differentiable twice.
        loss_fn: any scalar function of (outputs, targets).
        inputs: shape (B, ...).
        targets: what the loss takes.
        name: a parameter of two or more axes; None for all of these together.
        matrix: "hessian" ($H$), "linearization" ($G$) or "residual" ($R = H - G$).
        method: "exact", "estimate", or "auto": exact where it can be.
        probes: random vectors to average over.
        steps: products for each, and vectors of the block's size that are held.
        generator: for the random vectors; the same at each call if None.

    Returns:
        Nodes and weights that stand for all eigenvalues.

    Raises:
        NotImplementedError: `method="exact"` where there is no exact route.
        ValueError: a name, a matrix or a method that there is not, counts below 1, outputs that are
            not finite.

    Source: Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature.

    Example:
        >>> x, y = torch.ones(8, 4), torch.zeros(8, 2)
        >>> found = spectrum(nn.Linear(4, 2), nn.MSELoss(), x, y, name="weight")
        >>> found.size, found.exact, round(found.spectral, 3)
        (8, True, 4.0)
    """
    case = Case.checked(model, loss_fn, inputs, targets)
    Options(method=method, generator=generator)  # checked before work starts
    if matrix not in MATRICES:
        raise ValueError(f"matrix={matrix!r}: expected one of {', '.join(MATRICES)}")
    for key, value in {"probes": probes, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"{key}={value!r}: expected a whole number, at least 1")
    sizes = {key: weight.numel() for key, weight in case.weights.items()}
    if name is not None and name not in sizes:
        raise ValueError(f"name={name!r}: expected one of {', '.join(sizes)}")
    size = sizes[name] if name else sum(sizes.values())
    if method != "estimate" and size > steps:
        try:
            found = gram_eigenvalues(case, name, matrix)
            return _with_zeros(name or "model", size, found.cpu().numpy())
        except NotImplementedError:
            if method == "exact":
                raise
    check_derivatives(case, twice=True)
    blocks = {name or "model": [name] if name else list(sizes)}
    products = BlockProducts(case, blocks)
    if not products.finite:
        raise ValueError(f"there is no spectrum: {what_is_not_finite(case)}")
    return _by_products(products, matrix, probes, steps, generator)


def _with_zeros(label: str, size: int, values: Float[np.ndarray, " k"]) -> Spectrum:
    """Put the eigenvalues that are zero for sure at their place, as one value."""
    values = values[-size:]  # J J^T has zeros of its own, if it is the larger matrix
    rest = size - len(values)
    if not rest:
        return Spectrum(label, size, values, np.ones(size), exact=True)
    place = int(np.searchsorted(values, 0.0))
    return Spectrum(
        label,
        size,
        np.insert(values, place, 0.0),
        np.insert(np.ones(len(values)), place, rest),
        exact=True,
    )


@torch.no_grad()
def _by_products(
    products: BlockProducts, matrix: str, probes: int, steps: int, generator: torch.Generator | None
) -> Spectrum:
    """Multiply the one block with unit vectors, if they are few, or with random ones."""
    ((label, size),) = products.sizes.items()
    g, r = MATRICES[matrix]

    def operator(v: Tensor) -> Tensor:
        linear, residual = products.apply({label: v})[label]
        return g * linear + r * residual

    if size <= steps:
        dense = operator(torch.eye(size, dtype=products.like.dtype, device=products.like.device))
        values = torch.linalg.eigvalsh(((dense + dense.mT) / 2).double())
        return Spectrum(label, size, values.cpu().numpy(), np.ones(size), exact=True)
    generator = cpu_generator(generator)
    nodes, shares = [], []
    for _ in range(probes):
        # A vector of signs has the same length at each draw: no noise in the sum of weights.
        signs = random_signs((size,), generator, products.like)
        found = lanczos_quadrature(operator, signs, steps)
        nodes.append(found[0])
        shares.append(found[1] / probes)
    values, order = torch.cat(nodes).sort()
    return Spectrum(
        label, size, values.cpu().numpy(), torch.cat(shares)[order].cpu().numpy(), exact=False
    )


# Side of the largest matrix whose eigenvalues are computed: half a minute on two cores.
_LARGEST = 6000


def gram_eigenvalues(case: Case, name: str | None, matrix: str) -> Float[Tensor, " k"]:
    r"""Compute the eigenvalues of $G_k$, or of G of all weights, that can differ from zero.

    $G = B^{-1} J^\top J$ has the nonzero eigenvalues of $B^{-1} J J^\top$; the rows of J for
    all weights are those of the layers side by side, so their Gram matrices add up.

    The layers of every trainable weight must be of a kind that `graph_hessians` covers. What
    lies above them may be smooth for the matrix "linearization", not for "hessian", which is to
    be the same. The eigenvalues are float64 and ascend.

    Raises:
        NotImplementedError: not covered, or a Gram matrix that is too large.

    Example:
        >>> x, y = torch.ones(8, 4), torch.zeros(8, 2)
        >>> case = Case(nn.Linear(4, 2), nn.MSELoss(), x, y)
        >>> values = gram_eigenvalues(case, None, "hessian")
        >>> round(float(values[-1]), 3)
        4.0
    """
    batch = case.samples
    layers, outputs, loss_fn = capture_logits(case)
    if outputs.ndim != 2 or len(outputs) != batch:
        raise NotImplementedError("expected outputs of shape (B, C)")
    if matrix == "residual" or (matrix == "hessian" and name is None and len(layers) > 1):
        raise NotImplementedError(f"matrix={matrix!r} is no Gauss-Newton matrix")
    chosen = [layer for layer in layers if name in (None, layer.name) and layer.edge is not None]
    if matrix == "hessian":
        check_exact(outputs, chosen)
    check_derivatives(case)
    if not chosen or not torch.isfinite(outputs).all():
        raise NotImplementedError(f"the outputs do not depend on {name}, or are not finite")
    check_independence(outputs, chosen)
    with torch.no_grad():
        loss = loss_curvature(loss_fn, outputs.detach(), case.targets, case.parameters)
        if not torch.isfinite(loss.gradient).all():
            raise NotImplementedError("the gradient of the loss is not finite")
        columns = loss.factor.transpose(0, 1)
        rows = columns.shape[0] * columns.shape[1]
        if min(rows, chosen[0].weight.numel() if name else rows) > _LARGEST:
            raise NotImplementedError(f"a Gram matrix of side {rows}: at most {_LARGEST}")
        grams = layer_grams(outputs, chosen, columns, by_rows=name is None)
        total = sum(gram.matrix() for gram in grams)
        assert isinstance(total, Tensor)
        return torch.linalg.eigvalsh(total.double()) / batch
