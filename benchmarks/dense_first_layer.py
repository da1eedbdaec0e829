"""The authors' way against ours: one layer's Hessian, dense, and its norm without it.

The first layer of 784-30-30-10 has 23,520 weights. The authors' notebook forms their
Hessian as a dense matrix and takes its Frobenius norm. Here both are computed on the same
batch of 32 real MNIST images, checked against each other and timed side by side.

usage: python -m benchmarks.dense_first_layer [BATCH] [--device cuda]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.recording import add_device
from benchmarks.timing import seconds, timed, warm_up
from hessinit_book.chapters.mnist_tracking.run import make_network
from hessinit_book.data import load
from hessinit_book.records.machine import describe_device, library_versions
from hessinit_lib import layer_hessians

CHUNK = 512  # rows of the dense Hessian at once
TOLERANCE = 1e-5
AT_LEAST = 100


def dense_hessian(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Form the Hessian of the first kernel as a matrix, shape (23520, 23520), by autograd."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(kernel: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, {**parameters, "0.weight": kernel}, (inputs,))
        return F.cross_entropy(outputs, labels)

    kernel = parameters["0.weight"]
    rows = torch.func.jacrev(torch.func.grad(loss), chunk_size=CHUNK)(kernel)
    return rows.reshape(kernel.numel(), kernel.numel())


def frobenius(matrix: Tensor) -> float:
    """Take the norm with sums in float64: in float32 it comes out percents too low."""
    return math.sqrt(sum(float(row.double().square().sum()) for row in matrix.split(CHUNK)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, time, print; exit with 1 where the norms differ or the ratio is not reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense_first_layer")
    parser.add_argument("batch", nargs="?", type=int, default=32, help="images")
    add_device(parser)
    chosen = parser.parse_args(arguments)
    batch, device = chosen.batch, chosen.device
    data = load("mnist", sample=True)
    images, labels = data.tensors("train", device)
    inputs, labels = images[:batch].flatten(1), labels[:batch]
    model = make_network("he", torch.Generator().manual_seed(0)).to(device)

    def theirs() -> Tensor:
        return dense_hessian(model, inputs, labels)

    warm_up(theirs)
    dense, dense_seconds = timed(theirs)
    expected, single = frobenius(dense), float(dense.norm())
    del dense

    def ours() -> float:
        return layer_hessians(model, F.cross_entropy, inputs, labels)["0.weight"].frobenius

    got = ours()
    our_seconds = min(seconds(ours) for _ in range(10))
    error, ratio = abs(got / expected - 1), dense_seconds / our_seconds

    print(f"784-30-30-10, ReLU, B = {batch}, {data.name} {data.kind}, float32")
    print(describe_device(device), end=", ")
    print(f"torch {library_versions()['torch']}")
    print(f"dense, first layer     {dense_seconds:10.3f} s   norm {expected:.7g} (float64 sums)")
    print(f"                                      norm {single:.7g} (float32 sums)")
    print(f"ours, all three layers {our_seconds:10.5f} s   norm {got:.7g}")
    print(f"relative difference {error:.1e} (allowed {TOLERANCE:.0e}); ", end="")
    print(f"dense / ours = {ratio:,.0f} (at least {AT_LEAST})")
    sys.exit(0 if error <= TOLERANCE and ratio >= AT_LEAST else 1)


if __name__ == "__main__":
    main()
