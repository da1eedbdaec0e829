"""The per-sample gradients of all weights for random vectors at the outputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel, one_tensor
from hessinit_lib.hessians.ggn.factors import Products, gradients_of, merged, products_of
from hessinit_lib.hessians.ggn.gradients import PIECE, SampleGradients
from hessinit_lib.hessians.ggn.outputs import OutputHessian
from hessinit_lib.hessians.ggn.uses import Edge, Graph, Plan, Use, backward
from hessinit_lib.hessians.graph.nodes import edge_shape, operation
from hessinit_lib.hessians.inputs import Inputs, take
from hessinit_lib.hessians.loss import on_logits
from hessinit_lib.hessians.numerics.lanczos import all_finite

MOST = 4
"""Vectors at a time: what they leave at each weight is held until the last."""

_GRADIENTS = 1 << 28  # bytes of gradients of single samples, where no bound is given

_SAME = 1e-3  # relative distance of outputs that are equal but for rounding


class Passes:
    """One forward pass, and backward passes from random vectors.

    Args:
        case: outputs of shape (n, ...), n a multiple of the number of samples B.
        max_memory: bytes to use beside the graph of the forward pass; None for no bound.
        plan: of the graph, as an earlier call or a look at a few samples found it.

    Attributes:
        finite: whether outputs, loss and its gradient are.
        hessian: of the loss in the outputs.
        samples: B.
        plan: of the graph, for a later call.
        unknown: names of the weights whose samples take a backward pass each.

    Raises:
        ValueError: outputs that are not one tensor, a loss that is not one number.
        NotImplementedError: the loss couples samples, or outputs that are no multiple of B.

    Example:
        >>> x, y = torch.ones(4, 3), torch.zeros(4, 2)
        >>> passes = Passes(Case(torch.nn.Linear(3, 2), torch.nn.MSELoss(), x, y))
        >>> ((name, gradients),) = passes.gradients(["weight"], [torch.ones(4, 2)])
        >>> gradients.inner_products([(0, 0)])[0][0][0, 0].item()  # all 6 entries are 1
        6.0
    """

    def __init__(self, case: Case, max_memory: int | None = None, plan: Plan | None = None) -> None:
        self._case, self._pure = case, PureModel(case.model, case.weights)
        outputs, axis = self._run(case.inputs)
        if outputs.ndim == 0 or not outputs.numel() or len(outputs) % case.samples:
            raise NotImplementedError(
                f"the model gave outputs of shape {tuple(outputs.shape)}: expected the "
                f"{case.samples} samples in the first axis"
            )
        self._outputs, self.samples, self._memory = outputs, case.samples, max_memory
        self._first = outputs.detach()
        self._weights = {name: self._pure.state[name] for name in case.weights}
        self.hessian = OutputHessian(
            case, on_logits(case.loss_fn, axis), outputs, plan and plan.softmax
        )
        self.finite = self.hessian.finite and all_finite(outputs)
        self._graph = Graph(outputs, self._weights, case.samples, plan)
        self.unknown = self._graph.unknown
        self.plan = self._graph.plan._replace(softmax=self.hessian.softmax)

    def _run(self, inputs: Inputs) -> tuple[Tensor, int | None]:
        with self._pure.running(twice=False), torch.enable_grad():
            outputs, axis = self._pure.logits(inputs)
            return one_tensor(outputs), axis

    def resample(self, samples: Tensor) -> bool:
        """Run the model on these samples from now on, some of them several times, if it can.

        Not if it wants the whole batch as it is: then on that, as before.
        """
        del self._outputs, self._graph  # make room for the new ones
        for chosen in (samples, torch.arange(len(self._first), device="cpu")):
            whole = chosen is not samples
            expected = self._first[chosen.to(self._first.device)]
            try:
                self._outputs = self._run(take(self._case.inputs, chosen))[0]
            except (ValueError, RuntimeError, IndexError):
                if whole:
                    raise
                continue
            same = self._outputs.shape == expected.shape
            if whole or (same and (self._outputs - expected).norm() <= _SAME * expected.norm()):
                break
        self.samples = len(chosen)
        self._graph = Graph(self._outputs, self._weights, self.samples, self.plan)
        return not whole

    def gradients(
        self, names: Sequence[str], vectors: Sequence[Tensor]
    ) -> Iterator[tuple[str, SampleGradients]]:
        """Go back from some vectors, and yield the per-sample gradients of some weights.

        As many weights at a time as `max_memory` allows; those that do not matter are left out.
        """
        uses = self._graph.uses
        for group in self._groups([name for name in names if name in uses], len(vectors)):
            if len(group) == 1 and self._better_formed(group[0], len(vectors)):
                yield group[0], self._vector_by_vector(group[0], vectors)
                continue
            left = Counter(edge for name in group for edge in self._edges(name))
            found = [
                dict(zip(left, backward(self._outputs, left, v), strict=True)) for v in vectors
            ]
            for name in group:
                yield name, self._collected(name, found)
                for edge in self._edges(name):
                    left[edge] -= 1
                    for gradients in found if not left[edge] else ():
                        gradients.pop(edge)  # not held longer than needed
        yield from self._one_by_one([name for name in names if name in self.unknown], vectors)

    def _vector_by_vector(self, name: str, vectors: Sequence[Tensor]) -> SampleGradients:
        """Go back from one vector at a time, and keep the per-sample gradients of one weight."""
        weight = self._weights[name]
        rows = weight.new_zeros(len(vectors), self.samples, weight.numel())
        edges = self._edges(name)
        for index, vector in enumerate(vectors):
            found = dict(zip(edges, backward(self._outputs, edges, vector), strict=True))
            self._collected(name, [found]).formed(rows[index])
        return SampleGradients(self.samples, weight, [], [rows], self._piece)

    def _better_formed(self, name: str, vectors: int) -> bool:
        """Tell whether what all vectors leave at a weight is too much, and its gradients less."""
        needed, width = self._needed(name, vectors), self._outputs.element_size()
        formed = vectors * self.samples * self._weights[name].numel() * width
        return self._memory is not None and needed > max(self._memory / 2, formed)

    def _needed(self, name: str, vectors: int) -> int:
        """Count the bytes of the gradients at the outputs of the nodes that read a weight."""
        entries = sum(math.prod(edge_shape(GradientEdge(*edge))) for edge in self._edges(name))
        return vectors * self._outputs.element_size() * entries

    def _edges(self, name: str) -> list[Edge]:
        """List the outputs of the nodes that read a weight, each once."""
        return [*dict.fromkeys((use.node, use.outlet) for use in self._graph.uses[name])]

    def _groups(self, names: Sequence[str], vectors: int) -> Iterator[list[str]]:
        """Put weights together whose gradients at the outputs of their nodes fit into memory."""
        needed = {name: self._needed(name, vectors) for name in names}
        # Of many vectors no more at a time than of a few, with all weights.
        most = sum(needed.values()) * min(1.0, MOST / vectors)
        group: list[str] = []
        used, most = 0, most if self._memory is None else self._memory / 2
        for name in names:
            if group and used + needed[name] > most * (1 + 1e-9):
                yield group
                group, used = [], 0
            group.append(name)
            used += needed[name]
        yield group

    @property
    def _piece(self) -> int:
        width = self._outputs.element_size()
        return PIECE if self._memory is None else min(PIECE, self._memory // (8 * width))

    def _collected(self, name: str, found: list[dict[Edge, Tensor | None]]) -> SampleGradients:
        weight = self._weights[name]
        products: list[Products] = []
        others: list[Tensor] = []
        for use in self._graph.uses[name]:
            gradients = [each[use.node, use.outlet] for each in found]
            kept = [gradient for gradient in gradients if gradient is not None]
            if len(kept) < len(gradients):  # the outputs do not depend on it
                continue
            product, transposed = products_of(use, kept), _transposed(use.read[0], weight)
            if product is not None and transposed is not None:
                turned = product.transposed != transposed
                products.append(product._replace(transposed=turned))
                continue
            rows = gradients_of(use, kept) if product is None else _formed(product, use, len(found))
            others.append(rows if transposed is False else _carried(rows, use, weight))
        return SampleGradients(self.samples, weight, merged(products), others, self._piece)

    def _one_by_one(
        self, names: Sequence[str], vectors: Sequence[Tensor]
    ) -> Iterator[tuple[str, SampleGradients]]:
        """Go back from each sample alone: for weights whose places in the graph are not known."""
        waiting = list(names)
        while waiting:
            group = [waiting.pop(0)]
            size = self._weights[group[0]].numel()
            each = len(vectors) * self.samples * self._outputs.element_size()
            while waiting and (size + self._weights[waiting[0]].numel()) * each <= (
                self._memory or _GRADIENTS
            ):
                group.append(waiting.pop(0))
                size += self._weights[group[-1]].numel()
            weights = [self._weights[name] for name in group]
            shape = (len(vectors), self.samples)
            rows = [weight.new_zeros(*shape, *weight.shape) for weight in weights]
            for index, vector in enumerate(vectors):
                one = torch.zeros_like(vector)
                parts = zip(one.chunk(self.samples), vector.chunk(self.samples), strict=True)
                for sample, (place, part) in enumerate(parts):
                    place.copy_(part)
                    found = torch.autograd.grad(
                        self._outputs, weights, one, retain_graph=True, materialize_grads=True
                    )
                    for row, gradient in zip(rows, found, strict=True):
                        row[index, sample] = gradient
                    place.zero_()
            for name, weight, row in zip(group, weights, rows, strict=True):
                yield name, SampleGradients(self.samples, weight, [], [row], self._piece)


def _transposed(read: Any, weight: Tensor) -> bool | None:
    """Tell whether what is read is the weight (False), its transpose (True), or else (None)."""
    if getattr(read, "variable", None) is weight:
        return False
    kind, below = operation(read), [source for source, _ in read.next_functions]
    if weight.ndim != 2 or getattr(below[0], "variable", None) is not weight:
        return None
    # Axes are saved modulo 2^64: whether they are even stays.
    turned = kind == "T" or (
        (kind == "Transpose" and (read._saved_dim0 - read._saved_dim1) % 2 == 1)
        or (kind == "Permute" and read._saved_dims[0] % 2 == 1 and len(read._saved_dims) == 2)
    )
    return True if turned else None


def _formed(product: Products, use: Use, vectors: int) -> Tensor:
    """Give the per-sample gradients of what is read, shape (n, B, *shape)."""
    whole = slice(0, product.shape[0])
    rows = torch.stack([product.gradients(index, whole) for index in range(vectors)])
    return rows.view(*rows.shape[:2], *edge_shape(GradientEdge(*use.read)))


def _carried(rows: Tensor, use: Use, weight: Tensor) -> Tensor:
    """Bring gradients of what is read to the weight that it was made of."""

    def back(vectors: Tensor, batched: bool) -> Tensor:
        edges = [GradientEdge(*use.read)]
        (found,) = torch.autograd.grad(
            edges, [weight], [vectors], retain_graph=True, is_grads_batched=batched
        )
        return found

    flat = rows.flatten(0, 1)
    try:
        found = back(flat, True)
    except RuntimeError:  # an operation that cannot be batched
        found = torch.stack([back(row, False) for row in flat])
    return found.view(*rows.shape[:2], *weight.shape)
