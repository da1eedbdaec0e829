"""`Way`: how a library gets at a norm of one layer's Hessian block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from benchmarks.rows import Problem

Norm = Literal["frobenius", "spectral"]
Estimate = Callable[[int], float]
Pull = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Stepwise:
    """A way that comes closer the more it is given: iterations, products, basis vectors.

    Attributes:
        name: of the way, a key of the record.
        norm: which norm it gives.
        prepare: takes the problem and a layer's name; gives a function from the effort (a
            number of iterations or products) to the norm. All random numbers are torch's
            global ones.
        efforts: what may be given, rising.
        draws: how many random draws the error is taken over.
        fits: whether an effort fits into memory, from the problem; always by default.
    """

    name: str
    norm: Norm
    prepare: Callable[[Problem, str], Estimate]
    efforts: tuple[int, ...]
    draws: int = 1
    fits: Callable[[Problem, int], bool] = lambda _problem, _effort: True


@dataclass(frozen=True)
class Average:
    """Hutchinson's way: an average of ||H v||^2 over random v of +-1, one product each.

    Its error falls as the square root of the number of products, so that the number for 1 %
    follows from the error of few.

    Attributes:
        name: of the way, a key of the record.
        prepare: takes the problem and a layer's name; gives a function from a number of
            products to an estimate of the *squared* Frobenius norm.
    """

    name: str
    prepare: Callable[[Problem, str], Estimate]


@dataclass(frozen=True)
class AllAtOnce:
    """A way without sampling that gives both norms of all layers in one call.

    Attributes:
        name: of the way, a key of the record.
        norms: takes the problem; gives (Frobenius, spectral) for each layer.
        refuses: says why a problem is left out, or None.
    """

    name: str
    norms: Callable[[Problem], dict[str, tuple[float, float]]]
    refuses: Callable[[Problem], str | None]


@dataclass(frozen=True)
class PerSample:
    """A way to the gradients of each sample, for all layers at once.

    Of two draws of random signs they give all Gauss-Newton blocks' norms: with v_b = S_b e_b,
    where S_b S_b^T is the Hessian of the sample's loss in its outputs, the square sum of the
    products of one draw's J_b^T v_b with the other's has the mean N^2 ||G||_F^2.

    Attributes:
        name: of the way, a key of the record.
        prepare: takes the problem and the layers' names; gives a function from e, of the
            logits' shape, to J_b^T v_b for each layer, shape (B, *weight).
    """

    name: str
    prepare: Callable[[Problem, Sequence[str]], Pull]


Way = Stepwise | Average | AllAtOnce
GgnWay = Stepwise | Average | PerSample

ITERATIONS = (3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300)
"""Efforts of iterative eigenvalue methods: steps of a half."""


def root_times(logits: Tensor, e: Tensor) -> Tensor:
    """Multiply a root S of softmax cross-entropy's Hessian, S S^T = diag(p) - p p^T, by e."""
    p = logits.softmax(-1)
    part = p.sqrt() * e
    return part - p * part.sum(-1, keepdim=True)


def columns_that_fit(problem: Problem, bytes_allowed: float) -> int:
    """Count the vectors that fit into memory when products are vectorized over them.

    Each needs some six tensors of the size of all of the network's activations.
    """
    sizes: list[int] = []

    def note(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        # Recurrent layers give more than one tensor; the first holds all positions.
        sizes.append((output if isinstance(output, Tensor) else output[0]).numel())

    hooks = [
        module.register_forward_hook(note)
        for module in problem.model.modules()
        if not list(module.children())
    ]
    try:
        problem.model(problem.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, int(bytes_allowed / (6 * 4 * sum(sizes))))
