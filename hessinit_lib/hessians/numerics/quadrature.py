r"""The density of a symmetric matrix's eigenvalues, from products with random vectors.

For a random w with E w w^T = I, the measure sum_i (w . q_i)^2 delta(lambda_i) has mean
sum_i delta(lambda_i): the spectrum itself. Lanczos started at w gives the Gauss quadrature
of that measure, nodes and weights.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.numerics.lanczos import Operator


def lanczos_quadrature(
    operator: Operator, start: Float[Tensor, " d"], steps: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Compute nodes and weights of the measure that a vector gives to a spectrum.

    The operator multiplies rows by the matrix, shape (1, d), at most `steps` times.

    Returns:
        Nodes, ascending, and weights that sum to the squared length of the start, float64,
        shape (k,) with k of at most `steps`: fewer if the vector lies in a small invariant
        subspace.

    Example:
        >>> matrix = torch.diag(torch.tensor([1.0, 1.0, 4.0]))
        >>> nodes, weights = lanczos_quadrature(lambda v: v @ matrix, torch.ones(3), 5)
        >>> [round(x, 3) for x in nodes.tolist()], [round(x, 3) for x in weights.tolist()]
        ([1.0, 4.0], [2.0, 1.0])
    """
    steps = min(steps, len(start))
    basis = start.new_empty(steps, len(start))
    diagonal, off_diagonal = [], []
    rounding = 50 * torch.finfo(start.dtype).eps
    vector = start / start.norm()
    for step in range(steps):
        basis[step] = vector
        image = operator(vector[None])[0]
        diagonal.append(float(vector @ image))
        for _ in range(2):  # full reorthogonalization, twice: no copies of an eigenvalue
            image = image - (image @ basis[: step + 1].mT) @ basis[: step + 1]
        length = float(image.norm())
        largest = max(abs(entry) for entry in (*diagonal, *off_diagonal))
        if length <= rounding * largest or step == steps - 1:
            break
        off_diagonal.append(length)
        vector = image / length
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    if off_diagonal:
        beside = torch.diag(torch.tensor(off_diagonal, dtype=torch.float64, device="cpu"), 1)
        tridiagonal = tridiagonal + beside + beside.mT
    nodes, vectors = torch.linalg.eigh(tridiagonal)
    return nodes, vectors[0].square() * float(start.double().square().sum())
