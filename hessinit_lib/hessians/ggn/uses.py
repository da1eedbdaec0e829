"""Where the weights enter the graph of a model, and which axis holds the samples there.

The graph that autograd made is what is differentiated, so it is looked at and not the modules:
any parameter of any module is found at the nodes that read it, also after views, transposes or
reparametrizations of it. Along which axis a node's output holds the samples is tried: a backward
pass from some samples' outputs alone leaves exact zeros at all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from hessinit_lib.hessians.graph.nodes import edge_shape, inputs_first, operation

MEETINGS = frozenset(["Addmm", "Mm", "Bmm", "Convolution", "Embedding"])
"""Operations that bring a weight and samples together."""

_NAMES = """T Transpose Permute View UnsafeView ReshapeAlias Alias Clone Slice Select Split
    SplitWithSizes Unbind Squeeze Unsqueeze ToCopy"""
REARRANGING = frozenset(_NAMES.split())
"""Operations on one tensor that bring no samples in."""

_LONGEST = 24  # nodes between a weight and the place where it meets the samples

Edge = tuple[Node, int]
"""An output of a node."""


class Layout(NamedTuple):
    """Where a tensor has its samples: `axis` has `inner` rows a sample, or samples a row."""

    axis: int
    samples: int
    inner: int
    sample_first: bool

    def split(self, tensor: Tensor, axis: int | None = None) -> Tensor:
        """Bring the samples to the front: shape (B, inner, ...). They may be on another axis."""
        moved = tensor.movedim(self.axis if axis is None else axis, 0)
        if self.sample_first:
            return moved.unflatten(0, (self.samples, self.inner))
        return moved.unflatten(0, (self.inner, self.samples)).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Use:
    """A node where a parameter, or what is made of parameters alone, meets the samples.

    Attributes:
        node: reads it.
        outlet: which of its outputs is used.
        place: as which of its inputs.
        read: what it reads.
        layout: of the node's output.
    """

    node: Node
    outlet: int
    place: int
    read: Edge
    layout: Layout


class Plan(NamedTuple):
    """What a graph was found to be, for others of the same kind.

    Attributes:
        operations: of all nodes, inputs first.
        edges: where weights are read, as place of the node and outlet.
        shapes: of these edges.
        layouts: of these edges.
        softmax: the axis that the loss takes a softmax over, see `OutputHessian`.
    """

    operations: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[Layout | None, ...]
    softmax: int | None = None


class Graph:
    r"""The graph between weights and outputs.

    Args:
        outputs: shape (n, ...), n a multiple of `samples`, with the graph from the weights.
        weights: leaves of the graph, by name.
        samples: B.
        plan: of the same model, on other samples or before: where these are is not tried again.
        gradients: whether those of the weights are wanted, of a trial without a plan.

    Attributes:
        uses: of each weight, in the order of the graph; of those alone whose uses are all known.
        unknown: names of the other weights that the outputs depend on.
        tried: a vector u, of some samples, and $J^\top u$ for each weight, if `gradients`.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> graph = Graph(layer(torch.ones(4, 3)), dict(layer.named_parameters()), 4)
        >>> {name: len(uses) for name, uses in graph.uses.items()}, graph.unknown
        ({'weight': 1, 'bias': 1}, [])
    """

    def __init__(
        self,
        outputs: Tensor,
        weights: Mapping[str, Tensor],
        samples: int,
        plan: Plan | None = None,
        *,
        gradients: bool = False,
    ) -> None:
        self._outputs, self._samples = outputs, samples
        names = {id(weight): name for name, weight in weights.items()}
        self._readers: dict[Node, list[tuple[Node, int]]] = {}
        self._made: dict[Node, int] = {}  # of weights alone, perhaps, and how far from them
        self._outlets: dict[Node, set[int]] = {}
        leaves: dict[str, Node] = {}
        root = outputs.grad_fn
        assert root is not None
        self._outlets[root] = {outputs.output_nr}
        self._nodes = list(inputs_first(root))
        for node in self._nodes:
            variable = getattr(node, "variable", None)
            if variable is None:
                self._add(node)
            elif id(variable) in names:
                leaves[names[id(variable)]] = node
                self._made[node] = 0
        readers = dict.fromkeys(node for pairs in self._readers.values() for node, _ in pairs)
        # What only rearranges weights has no samples.
        tried = [n for n in readers if n not in self._made or operation(n) not in REARRANGING]
        self._edges = [(node, min(self._outlets[node])) for node in tried]
        self._operations = tuple(map(operation, self._nodes))
        self._wanted = [*weights.values()] if gradients else []
        self.tried: tuple[Tensor, list[Tensor]] | None = None
        self._layouts = (plan and self._layouts_by(plan)) or self._find_layouts()
        self.uses: dict[str, list[Use]] = {}
        self.unknown: list[str] = []
        for name in (name for name in weights if name in leaves):
            found = self._uses_of(leaves[name])
            if found is None:
                self.unknown.append(name)
            else:
                self.uses[name] = found

    def _add(self, node: Node) -> None:
        below = [source for source, _ in node.next_functions if source is not None]
        made = [self._made[source] for source in below if source in self._made]
        for place, (source, outlet) in enumerate(node.next_functions):
            if source is not None:
                self._outlets.setdefault(source, set()).add(outlet)
            if source in self._made:
                self._readers.setdefault(source, []).append((node, place))
        alone = below and len(made) == len(below)
        if alone and operation(node) not in MEETINGS and max(made) < _LONGEST:
            self._made[node] = max(made) + 1

    def _find_layouts(self) -> dict[Edge, Layout | None]:
        """Find the layouts of all places where weights are read, by one backward pass or two."""
        chosen = torch.arange(self._samples, device="cpu") % 2 == 0
        layouts: dict[Edge, Layout | None] = {}
        edges, left = self._edges, dict[Edge, list[Layout]]()
        for some in (chosen, ~chosen):
            found = self._gradients_of(some, edges)
            for edge, gradient in zip(edges, found, strict=True):
                shape = edge_shape(GradientEdge(*edge))
                left[edge] = find_layouts(shape, gradient, some, left.get(edge))
                layouts[edge] = left[edge][0] if left[edge] else None
            edges = [edge for edge in edges if len(left[edge]) > 1]  # the others tell
            if not edges:
                break
        return layouts

    @property
    def plan(self) -> Plan:
        """What was found."""
        places = {node: place for place, node in enumerate(self._nodes)}
        return Plan(
            self._operations,
            tuple((places[node], outlet) for node, outlet in self._edges),
            tuple(edge_shape(GradientEdge(*edge)) for edge in self._edges),
            tuple(self._layouts[edge] for edge in self._edges),
        )

    def _layouts_by(self, plan: Plan) -> dict[Edge, Layout | None] | None:
        """Take over what was found, if the graph is the same but for the number of samples."""
        edges = [(self._nodes[n], i) for n, i in plan.edges if n < len(self._nodes)]
        if plan.operations != self._operations or edges != self._edges:
            return None
        layouts: dict[Edge, Layout | None] = {}
        for edge, known, layout in zip(edges, plan.shapes, plan.layouts, strict=True):
            shape = list(known)
            if layout is not None:
                layout = layout._replace(samples=self._samples)
                shape[layout.axis] = layout.inner * self._samples
            if tuple(shape) != edge_shape(GradientEdge(*edge)):
                return None
            layouts[edge] = layout
        return layouts

    def _gradients_of(self, samples: Tensor, edges: list[Edge]) -> list[Tensor | None]:
        """Go back from the outputs of some samples."""
        z = self._outputs
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randn(z.shape, generator=generator, device="cpu")
        kept = samples.repeat_interleave(len(z) // self._samples).view(-1, *[1] * (z.ndim - 1))
        vector = (drawn * kept).to(z)
        wanted = [] if self.tried else self._wanted
        found = backward(z, edges, vector, wanted)
        if wanted:
            own = zip(found[: len(wanted)], wanted, strict=True)
            self.tried = vector, [torch.zeros_like(w) if g is None else g for g, w in own]
        return found[len(wanted) :]

    def _uses_of(self, leaf: Node) -> list[Use] | None:
        found: dict[tuple[Node, int], Use] = {}
        waiting, done = [leaf], {leaf}
        while waiting:
            source = waiting.pop()
            if source not in self._readers:
                return None  # the outputs are made of weights alone
            for node, place in self._readers[source]:
                outlet = min(self._outlets[node])
                layout = self._layouts.get((node, outlet))
                if layout is not None and len(self._outlets[node]) > 1:
                    return None  # samples come out at several places
                if layout is not None:
                    read = node.next_functions[place]
                    assert read[0] is not None
                    found[node, place] = Use(node, outlet, place, (read[0], read[1]), layout)
                elif node not in self._made:
                    return None
                elif node not in done:
                    done.add(node)
                    waiting.append(node)
        return list(found.values())


def find_layouts(
    shape: tuple[int, ...],
    gradient: Tensor | None,
    chosen: Tensor,
    among: Sequence[Layout] | None = None,
) -> list[Layout]:
    """Find the axes along which a gradient may have the samples: it vanishes for all but some.

    Of several, as where it vanishes at most positions, those that see most of these samples.

    Args:
        shape: of the gradient.
        gradient: None if it vanishes everywhere.
        chosen: for which of the samples it need not vanish, shape (B,).
        among: those to choose from; all that there are if None.

    Example:
        >>> chosen = torch.tensor([True, False, True])
        >>> rows = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
        >>> find_layouts((6, 1), rows[:, None], chosen)
        [Layout(axis=0, samples=3, inner=2, sample_first=False)]
    """
    samples = len(chosen)
    if among is None:
        among = [
            Layout(axis, samples, size // samples, first)
            for axis, size in enumerate(shape)
            if size and size % samples == 0
            for first in ((True, False) if size > samples > 1 else (True,))
        ]
    found: list[Layout] = []
    most = -1
    sizes = None if gradient is None else gradient.abs()
    seen: dict[int, Tensor] = {}
    for layout in among:
        axis = layout.axis
        if found and found[0].axis != axis and most == int(chosen.sum()):
            break  # all of the samples are seen along another axis
        if axis not in seen:
            rest = [other for other in range(len(shape)) if other != axis]
            seen[axis] = torch.zeros(shape[axis], device="cpu")
            if sizes is not None:
                seen[axis] = (sizes.sum(rest) if rest else sizes).cpu()
        by_sample = layout._replace(axis=0).split(seen[axis]).any(1)
        count = int(by_sample.sum())
        if not by_sample[~chosen].any() and count >= most:
            found = [*(found if count == most else ()), layout]
            most = count
    return found


def backward(
    outputs: Tensor, edges: Iterable[Edge], vector: Tensor, weights: Sequence[Tensor] = ()
) -> list[Tensor | None]:
    """Multiply a vector by the Jacobians of the outputs in weights and in what stood at edges."""
    places = [*weights, *(GradientEdge(*edge) for edge in edges)]
    if not places:
        return []
    return list(torch.autograd.grad(outputs, places, vector, retain_graph=True, allow_unused=True))
