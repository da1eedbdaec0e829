r"""Norms of Gauss-Newton blocks, estimated from a few random sketches of the factors.

With independent random signs $\epsilon$, a sketch $j_b = \sum_i \epsilon_{bi} j_{bi}$ of a
sample's Jacobian rows takes one backward pass. For two independent sketches j and j'

$$\mathbb{E}\, (j_b \cdot j'_{b'})^2 = \sum_{i,i'} (j_{bi} \cdot j_{b'i'})^2,$$

so $B^{-2} \sum_{b,b'} (j_b \cdot j'_{b'})^2$ estimates $\|G\|_F^2$ without bias, and m
sketches give m (m - 1) such sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from hessinit_lib.hessians.graph.backward import layer_grams
from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.numerics.estimates import Sketch, sketch_of, sketched_norms
from hessinit_lib.hessians.numerics.precision import may_round
from hessinit_lib.hessians.numerics.random import cpu_generator, random_signs
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import BlockNorms

# Sketches to draw at a time: from fewer, the error is not known well enough.
_FEWEST = 4


def graph_sketched_norms(
    logits: Float[Tensor, "b c"],
    layers: list[CapturedLayer],
    columns: Float[Tensor, "r b c"],
    options: Options,
) -> dict[str, BlockNorms] | None:
    """Estimate Frobenius norms and traces of all blocks to the tolerance.

    None if the exact ones cost less.
    """
    rank, batch = columns.shape[:2]
    generator = cpu_generator(options.generator)

    def sketch(count: int, _: object) -> Iterator[tuple[str, list[Sketch]]]:
        signs = random_signs((count, batch, rank), generator, columns)
        for gram in layer_grams(
            logits,
            layers,
            torch.einsum("mbr,rbc->mbc", signs, columns),
            by_rows=True,
            rounded=may_round(logits, options.tolerance),
            limit=options.max_memory,
        ):
            products = gram.products()
            pairs = {(a, c): products[a, :, c] for a, c in combinations(range(count), 2)}
            own = [products[a, :, a].diagonal() for a in range(count)]
            yield gram.layer.name, [sketch_of(pairs, own)]

    # The exact norms take a backward pass for each factor.
    return sketched_norms(
        sketch, batch, options.tolerance, lambda done, needed: needed < rank, least=_FEWEST
    )
