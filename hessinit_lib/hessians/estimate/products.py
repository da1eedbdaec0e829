r"""Products of Hessian blocks with vectors, for any model, over one shared graph.

With z the outputs (the logits, if the model ends in a log-softmax of these), J_k = D_{W^k} z
and u = D_z L, the gradient of block k is s_k = J_k^T u. At fixed u it still depends on the
weights, and that part of its derivative is the residual:

$$H_k v = G_k v + R_k v, \qquad G_k v = J_k^\top (D_z^2 L) J_k v, \qquad
  R_k v = D_{W^k} [ (J_k^\top u) \cdot v ]_{u\ \mathrm{fixed}} .$$

Since (J_k^T u) . v = u . (J_k v), its derivative in u is J_k v: one second backward pass
gives R v and J v, one more first backward pass gives G v. The graph of all s_k is made once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.functional import PureModel, one_tensor
from hessinit_lib.hessians.graph.nodes import inputs_first, operation
from hessinit_lib.hessians.inputs import Inputs, sample_count, take
from hessinit_lib.hessians.loss import OutputCurvature, on_logits
from hessinit_lib.hessians.numerics.lanczos import all_finite
from hessinit_lib.hessians.numerics.random import standard_normal

# Training steps that a product with the deepest block takes, as measured; with second derivatives
# of convolutions; and where a step has fused kernels that products do without.
_PRODUCT, _CONVOLUTIONAL, _RECURRENT = 1.25, 2.0, 3.8
_SHARE = 0.05  # of the nodes of a convolutional network
_CHUNKED = 1.3  # and to make the graph again

Blocks = Mapping[str, Sequence[str]]
"""Parameter names by block: one for a layer, all of them for the whole model."""


@dataclass(frozen=True)
class _Graph:
    """The graph of some samples: outputs, a stand-in for u, and all gradients J^T u."""

    outputs: Tensor
    direction: Tensor
    gradients: dict[str, Tensor | None]


class BlockProducts:
    """Multiply Hessian blocks by vectors.

    Args:
        case: any module with one tensor of outputs, differentiable twice, any scalar
            function of (outputs, targets), and a batch.
        blocks: which parameters make up each block.
        parts: whether products come in two parts, G v and R v, or as their sum.
        residual: whether R v is computed, or is taken for zero.
        chunk: samples whose graph is held at a time, which costs a forward and a backward
            pass for each call; None to hold the graph of all.

    Attributes:
        sizes: number of parameters of each block.
        finite: whether outputs, loss and its gradient are finite; if not, products mean nothing.
        like: an empty tensor of the type and device that vectors have.
        count: products computed, by block.
        cost: of a product, by block, in training steps, about.

    Raises:
        ValueError: outputs that are not a tensor, a loss that is not a number.
        NotImplementedError: chunks, but a loss that couples samples.

    Example:
        >>> x, y = torch.ones(2, 3), torch.zeros(2, 1)
        >>> case = Case(nn.Linear(3, 1), nn.MSELoss(), x, y)
        >>> products = BlockProducts(case, {"w": ["weight"]})
        >>> products.apply({"w": torch.eye(3)[:1]})["w"][0]  # G = 2 x x^T
        tensor([[2., 2., 2.]])
    """

    def __init__(
        self,
        case: Case,
        blocks: Blocks,
        *,
        parts: bool = True,
        residual: bool = True,
        chunk: int | None = None,
    ) -> None:
        wanted = list(dict.fromkeys(name for names in blocks.values() for name in names))
        self._model = PureModel(case.model, wanted)
        self._inputs, self._blocks, self._parts = case.inputs, blocks, parts
        self._samples, self._residual = case.samples, residual
        self._chunk = chunk if chunk and chunk < case.samples else None
        self._weights = {name: self._model.state[name] for name in wanted}
        with self._model.running():
            # Of all samples first, without a graph if it is too large to be held.
            with torch.set_grad_enabled(not self._chunk):
                outputs = self._forward(slice(None))
            if self._chunk and self._model.noisy:
                raise NotImplementedError(
                    "the model draws random numbers in its forward pass: they differ between "
                    "parts of the batch, which max_memory asks for"
                )
            # The loss is differentiated at the outputs, in a graph of its own.
            loss_fn = on_logits(case.loss_fn, self._axis)
            self._curvature = OutputCurvature(loss_fn, outputs, case.targets, None, case.parameters)
            self._held = None if self._chunk else self._gradients(outputs, slice(None))
        gradient = self._curvature.gradient
        self.like = gradient.new_empty(0)
        found = (outputs, gradient, self._curvature.value)
        self.finite = all_finite(*found)
        self.sizes = {
            block: sum(self._weights[name].numel() for name in names)
            for block, names in blocks.items()
        }
        self.count = dict.fromkeys(blocks, 0)
        self.cost = self._costs(outputs)

    def _costs(self, outputs: Tensor) -> dict[str, float]:
        """Estimate what a product costs: the deepest block's two steps, by the nodes above it."""
        chunked = _CHUNKED if self._chunk else 0.0
        each = _RECURRENT if self._model.recurrent else _PRODUCT
        if self._held is None or outputs.grad_fn is None:
            return dict.fromkeys(self.sizes, each + chunked)
        names = {id(weight): name for name, weight in self._weights.items()}
        first: dict[str, int] = {}
        nodes = list(inputs_first(outputs.grad_fn))
        convolutions = sum(operation(node) == "Convolution" for node in nodes)
        each = max(each, _CONVOLUTIONAL if convolutions > _SHARE * len(nodes) else 0.0)
        for place, node in enumerate(nodes):
            for source, _ in node.next_functions:
                name = names.get(id(getattr(source, "variable", None)))
                if name is not None:
                    first.setdefault(name, place)
        places = {
            block: min((first[n] for n in chosen if n in first), default=len(nodes))
            for block, chosen in self._blocks.items()
        }
        above = {block: len(nodes) - place for block, place in places.items()}
        deepest = max(1, *above.values()) if above else 1
        return {block: each * n / deepest for block, n in above.items()}

    def range_sketch(
        self, count: int, chosen: Sequence[str], generator: torch.Generator
    ) -> dict[str, Float[Tensor, "_ _"]]:
        """Draw vectors in the range of each G, for all blocks by the same backward passes.

        They are J^T D^2L w with w of independent normal entries, `count` for each chosen block.
        """
        drawn = standard_normal((count, *self._curvature.gradient.shape), generator, self.like)
        curved = torch.stack([self._hvp_at_outputs(w) for w in drawn])
        total = {block: self.like.new_zeros(count, self.sizes[block]) for block in chosen}
        names = list(dict.fromkeys(name for block in chosen for name in self._blocks[block]))
        weights = [self._weights[name] for name in names]
        for graph, samples in self._graphs():
            for row, w in enumerate(curved):
                products = dict(zip(names, _vjp(graph.outputs, weights, w[samples]), strict=True))
                for block in chosen:
                    total[block][row] += _flat([products[name] for name in self._blocks[block]])
        return total

    def apply(
        self, vectors: Mapping[str, Float[Tensor, "_ _"]]
    ) -> dict[str, Float[Tensor, "o _ _"]]:
        """Multiply some blocks by the rows of a matrix each, of shape (p, P).

        Gives G v and R v for each, shape (2, p, P), or with `parts=False` H v, shape (1, p, P).
        """
        kinds = 2 if self._parts else 1
        total = {block: v.new_zeros(kinds, *v.shape) for block, v in vectors.items()}
        for graph, samples in self._graphs():
            for block, rows in vectors.items():
                for row, v in enumerate(rows):
                    total[block][:, row] += self._product(graph, samples, block, v)
        for block, rows in vectors.items():
            self.count[block] += len(rows)
        return total

    def _product(
        self, graph: _Graph, samples: slice, block: str, vector: Float[Tensor, " _"]
    ) -> Float[Tensor, "o _"]:
        """Compute G v and R v, or their sum, of some samples."""
        names = self._blocks[block]
        weights = [self._weights[name] for name in names]
        pieces = vector.split([weight.numel() for weight in weights])
        paired = [
            (gradient, piece.view_as(weight))
            for name, weight, piece in zip(names, weights, pieces, strict=True)
            if (gradient := graph.gradients[name]) is not None
        ]
        if not paired:  # the outputs do not depend on the block
            return vector.new_zeros(2 if self._parts else 1, len(vector))
        sources, directions = zip(*paired, strict=True)
        below = weights if self._residual else []
        jvp, *residuals = _vjp(sources, [graph.direction, *below], directions)
        ggn = _vjp(graph.outputs, weights, self._hvp_at_outputs(jvp, samples))
        linear = _flat(ggn)
        residual = _flat(residuals) if self._residual else torch.zeros_like(linear)
        return torch.stack((linear, residual)) if self._parts else (linear + residual)[None]

    def _hvp_at_outputs(self, vector: Tensor, samples: slice = slice(None)) -> Tensor:
        """Multiply by D^2 L at the outputs; of some samples, if the loss does not couple them."""
        if not self._chunk:
            return self._curvature.hvp(vector)
        whole = torch.zeros_like(self._curvature.gradient)
        whole[samples] = vector
        product = self._curvature.hvp(whole)
        part = product[samples].clone()
        product[samples] = 0
        if product.any():
            raise NotImplementedError(
                "the loss couples the samples: max_memory needs a mean over samples"
            )
        return part

    def _graphs(self) -> Iterator[tuple[_Graph, slice]]:
        """Give the graph that is held, or one after the other."""
        if self._held:
            yield self._held, slice(None)
            return
        assert self._chunk
        for start in range(0, self._samples, self._chunk):
            samples = slice(start, start + self._chunk)
            with self._model.running(), torch.enable_grad():
                graph = self._gradients(self._forward(samples), samples)
            yield graph, samples

    def _forward(self, samples: slice) -> Tensor:
        outputs, self._axis = self._model.logits(take(self._inputs, samples))
        return one_tensor(outputs)

    def _gradients(self, outputs: Tensor, samples: slice) -> _Graph:
        direction = self._curvature.gradient[samples].clone().requires_grad_()
        gradients: Sequence[Tensor | None] = [None] * len(self._weights)
        if outputs.requires_grad:
            gradients = torch.autograd.grad(
                outputs,
                list(self._weights.values()),
                direction,
                create_graph=True,
                allow_unused=True,
            )
        return _Graph(outputs, direction, dict(zip(self._weights, gradients, strict=True)))


def _vjp(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    directions: Tensor | Sequence[Tensor],
) -> Sequence[Tensor]:
    """Vector-Jacobian products, with zeros for what the outputs do not depend on."""
    first = outputs if isinstance(outputs, Tensor) else outputs[0]
    if not first.requires_grad:
        return [torch.zeros_like(tensor) for tensor in inputs]
    return torch.autograd.grad(
        outputs, inputs, directions, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _flat(tensors: Sequence[Tensor]) -> Float[Tensor, " _"]:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def bytes_per_sample(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> float:
    """Measure what the graph of one sample keeps for products, on two samples of the batch.

    A graph that can be differentiated twice keeps about three times what a training step keeps:
    the forward pass, its backward pass, and what is under way.
    """
    pure, kept = PureModel(model, names), dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    few = take(inputs, slice(2))
    fixed = {value.untyped_storage().data_ptr() for value in pure.state.values()}
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with pure.running(), torch.enable_grad(), hooks:
        outputs = pure(few)
    del outputs
    return 3.0 * max(1, sum(n for key, n in kept.items() if key not in fixed)) / sample_count(few)
