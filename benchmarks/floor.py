"""The floor: how long the arithmetic of the exact Frobenius norms must take on this machine.

The operations of the exact route's matrix products are counted by formula, with symmetric
products counted once, and divided by the rate at which the machine multiplies matrices.
Element by element work, memory traffic and the cost of calls come on top in practice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.rows import Problem
from hessinit_lib.hessians.numerics.precision import fast_products

SIZE = 1536  # of the matrices that tell the machine's rate
ON_GPU = 8192


@dataclass(frozen=True)
class Shape:
    """Of a layer: it maps m inputs to n outputs at each of some positions of each sample.

    Attributes:
        m: fan-in.
        n: number of output units or channels.
        positions: 1 for a fully connected layer, the output's pixels for a convolution.
    """

    m: int
    n: int
    positions: int


def operations(shapes: list[Shape], batch: int, classes: int, smooth: bool) -> float:
    r"""Count the floating-point operations of the matrix products.

    With B samples, C classes and r = C - 1 columns of the factor of the output's Hessian:

    - carrying the columns down: 2 r B m n for each layer and position but the first layer;
    - fully connected: B^2 m for the products of inputs, and for the pair sums the cheaper
      of B^2 n (n + 1) / 2 (with B r n^2 to form the blocks) and B^2 n r (r + 1) / 2;
    - smooth: the blocks in any case, and 2 B m n (m + n) to carry them down;
    - convolution: 2 r B m n for each position to form the Jacobian, and the symmetric
      product of its r B rows or its m n columns, whichever are fewer.

    Args:
        shapes: of the layers, in order.
        batch: B.
        classes: C.
        smooth: whether blocks have a residual.

    Example:
        >>> operations([Shape(4, 3, 1)], batch=2, classes=3, smooth=False)
        52.0
    """
    r = classes - 1
    total = 0.0
    for index, shape in enumerate(shapes):
        m, n, positions = shape.m, shape.n, shape.positions
        if index:
            total += 2.0 * r * batch * positions * m * n
        if positions > 1:
            rows, columns = r * batch, m * n
            total += 2.0 * rows * positions * columns + min(rows, columns) ** 2 * max(rows, columns)
            continue
        blocks = batch**2 * n * (n + 1) / 2 + batch * r * n**2
        if smooth:
            carried = 2.0 * batch * m * n * (m + n) if index else 0.0
            total += batch**2 * m + blocks + carried
        else:
            total += batch**2 * m + min(blocks, batch**2 * n * r * (r + 1) / 2)
    return total


def shapes_of(problem: Problem) -> tuple[list[Shape], int]:
    """Run the network once to find its layers' shapes and the number of classes."""
    shapes: list[Shape] = []

    def note(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        shapes.append(Shape(weight[0].numel(), len(weight), math.prod(output.shape[2:])))

    layers = [m for m in problem.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [module.register_forward_hook(note) for module in layers]
    try:
        with torch.no_grad():
            classes = problem.model(problem.inputs).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    return shapes, classes


def size_on(device: torch.device) -> int:
    """Give the size of the matrices that tell a device's rate: they must fill it."""
    return ON_GPU if device.type == "cuda" else SIZE


def matrix_product(device: torch.device) -> Callable[[], object]:
    """Make a product of square float32 matrices, to be timed.

    Nothing is rounded, but it is made by the library that is fastest, as ours are.
    """
    stream, size = torch.Generator().manual_seed(0), size_on(device)
    left, right = (torch.randn(size, size, generator=stream).to(device) for _ in range(2))
    out = torch.empty(size, size, device=device)

    def multiply() -> None:
        with fast_products(torch.float32, 0.0, size**3):
            torch.mm(left, right, out=out)

    return multiply


def floor(problem: Problem, step: float, product: float) -> dict[str, float]:
    """Give the operations of a problem and the least cost they have here.

    Args:
        problem: network and batch.
        step: duration of a training step [s].
        product: duration of `matrix_product` [s].

    Returns:
        Operations [GFLOP], the machine's rate [GFLOP/s], and the cost in steps.
    """
    shapes, classes = shapes_of(problem)
    count = operations(shapes, len(problem.inputs), classes, problem.smooth)
    rate = 2 * size_on(problem.inputs.device) ** 3 / product
    return {"gflop": count / 1e9, "gflop_per_s": rate / 1e9, "steps": count / rate / step}


def roofline(gflop: float, took: float, rates: Mapping[str, float]) -> dict[str, float]:
    """Give how many times as long as its arithmetic a call takes, at each rate of products.

    Args:
        gflop: operations of its matrix products [GFLOP].
        took: its duration [s].
        rates: what `device.rates` gives.

    Example:
        >>> roofline(10.0, 0.5, {"float32": 100.0, "copy": 7.0})
        {'float32': 5.0}
    """
    return {name: took * rate / gflop for name, rate in rates.items() if name != "copy"}
