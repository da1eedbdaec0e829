"""Statement 5 on networks so small that Hessians can be formed: checks of `linearization_error`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_book.chapters.linearization_error.residual import layer_residuals
from hessinit_book.networks.dense import critical_network
from hessinit_book.networks.dense_hessians import dense_block, dense_curvatures
from hessinit_book.randomness import generator
from hessinit_book.statistics.rounding import rounded

POOL = 4  # pixels a side that are averaged into one: 28 x 28 becomes 7 x 7
HIDDEN, CLASSES = (10, 6), 10


def checks(
    activations: tuple[str, ...], seed: int, images: Tensor, labels: Tensor
) -> dict[str, dict[str, Any]]:
    """Check statement 5 on small networks with dense Hessians, in float64."""
    x = F.avg_pool2d(images, POOL).flatten(1).double()
    identity, bound, exact, average = [], [], [], []
    for name in activations:
        widths = (x.shape[1], *HIDDEN, CLASSES)
        weights = generator(seed, "weights")
        model = critical_network(name, widths, weights, dtype=torch.float64).to(x.device)
        terms = layer_residuals(model, F.cross_entropy, x, labels)[:-1]
        for layer in terms:
            dense = dense_block(model, F.cross_entropy, x, labels, layer.name)
            if not layer.terms:  # piecewise linear
                exact.append(float(dense.residual.norm() / dense.hessian.norm()))
                continue
            above = int(layer.name.partition(".")[0]) + 1
            with torch.no_grad():
                a = model[:above](x)
            whole, linearized = dense_curvatures(model[above:], F.cross_entropy, a, labels)
            residual = whole - linearized
            identity.append(float((layer.residuals() - residual).norm() / residual.norm()))
            norms = (dense.residual.norm(), torch.linalg.matrix_norm(dense.residual, 2))
            bound += [float(n) / most for n, most in zip(norms, layer.bounds(), strict=True)]
        if not any(layer.terms for layer in terms):
            continue
        average.append(label_average_error(model, x[:2]))
    found = {}
    for key, what, errors, allowed in (
        ("", "residual of each sample: the sum over the layers above", identity, 1e-12),
        ("_bound", "residual of the batch over its bound, either norm", bound, 1.0),
        ("_exact", "residual of piecewise linear networks, over the Hessian", exact, 1e-12),
        ("_labels", "labels drawn from the predictions: mean and mean square", average, 1e-12),
    ):
        if errors:
            found[f"statement_05{key}"] = {
                "what": what,
                "value": rounded(max(errors)),
                "allowed": allowed,
            }
    return found


def label_average_error(model: nn.Sequential, x: Float[Tensor, "2 m"]) -> float:
    r"""Check part 4 of statement 5 on the second layer, by going through all labels.

    Args:
        model: Linear, activation, Linear, activation, ...
        x: two samples, of which every pair of labels is formed.

    Returns:
        The largest of $\|E R_b\|_F$ and the error of $E \|R\|_F^2$, relative.
    """
    with torch.no_grad():
        z = model[:2](x)
        a, p = model[2](z), model(x).softmax(1)
    every = torch.arange(CLASSES, device=x.device)
    blocks, squares = [], []  # of the samples, each for all labels
    for b in range(2):
        labelled = a[b].expand(CLASSES, -1)
        whole, linearized = dense_curvatures(model[3:], F.cross_entropy, labelled, every)
        residuals = whole - linearized
        outer = z[b, :, None] * z[b]
        blocks.append(torch.stack([torch.kron(r, outer).flatten() for r in residuals]))
        squares.append(z[b].norm() ** 4 * (p[b] @ residuals.flatten(1).square().sum(1)))
    means = [(p[b] @ blocks[b]).norm() / squares[b].sqrt() for b in range(2)]
    pairs = (blocks[0][:, None] + blocks[1][None]) / 2
    found = p[0] @ pairs.square().sum(2) @ p[1]
    expected = (squares[0] + squares[1]) / 4
    return max(map(float, (*means, (found / expected - 1).abs())))
