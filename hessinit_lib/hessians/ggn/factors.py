r"""What a weight's per-sample gradients are made of, by the node that reads it.

At most nodes they are sums over positions of products of what comes in and the gradient of what
comes out (`Products`); at others they are computed as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hessinit_lib.hessians.ggn.uses import Use
from hessinit_lib.hessians.graph.nodes import edge_shape, operation
from hessinit_lib.hessians.graph.patches import windows

_OTHER = {"Addmm": ("_saved_mat2", "_saved_mat1"), "Mm": ("_saved_mat2", "_saved_self")}
_OTHER["Bmm"] = _OTHER["Mm"]
_BROADCASTING = frozenset(
    ["Add", "Sub", "Rsub", "Mul", "Div", "Addcmul", "Where", "Maximum", "Minimum", "Expand"]
)


class Products(NamedTuple):
    """Gradients as sums over positions of products, of G groups of rows and columns.

    Attributes:
        rows: for each vector at the outputs s, shape (B, G, T, q).
        columns: x, shape (B, G, T, p); or which of p columns it is, shape (B, T), -1 for none.
        width: p.
        transposed: whether the weight has columns first: shape (G p, q) in place of (G q, p).
    """

    rows: tuple[Tensor, ...]
    columns: Tensor
    width: int
    transposed: bool

    @property
    def indexed(self) -> bool:
        """Whether columns are told by their index."""
        return self.columns.dtype == torch.int64

    @property
    def positions(self) -> int:
        """T."""
        return self.rows[0].shape[2]

    @property
    def shape(self) -> tuple[int, int]:
        """That of the weight, with two axes."""
        groups, height = self.rows[0].shape[1], self.rows[0].shape[3]
        first, second = (self.width, height) if self.transposed else (height, self.width)
        return groups * first, second

    def gradients(self, index: int, piece: slice) -> Tensor:
        """Give some rows of the per-sample gradients for one vector, shape (B, rows, rest)."""
        s, x = self.rows[index], self.columns
        if self.indexed:
            start, stop, _ = piece.indices(self.width)
            inside = (x >= start) & (x < stop)
            sample = torch.arange(len(x), device=x.device)[:, None].expand_as(x)
            found = s.new_zeros(len(x) * (stop - start), s.shape[3])
            places = sample * (stop - start) + (x - start)
            found.index_add_(0, places[inside], s[:, 0][inside])
            return found.view(len(x), stop - start, -1)
        left, right = (x, s) if self.transposed else (s, x)
        if left.shape[1] == 1:
            return (left[..., piece].mT @ right)[:, 0]
        start, stop, _ = piece.indices(self.shape[0])
        first, last = start // left.shape[3], -(-stop // left.shape[3])
        found = (left[:, first:last].mT @ right[:, first:last]).flatten(1, 2)
        return found[:, start - first * left.shape[3] : stop - first * left.shape[3]]

    def of(self, samples: Tensor) -> Products:
        """Leave out other samples."""
        rows = tuple(each[samples] for each in self.rows)
        return self._replace(rows=rows, columns=self.columns[samples])

    def sides(self, index: int) -> tuple[Tensor, Tensor]:
        """Give s for one vector, and x, at all positions of the one group, (B, T, .) each."""
        return self.rows[index][:, 0], self.columns if self.indexed else self.columns[:, 0]


def products_of(use: Use, gradients: Sequence[Tensor]) -> Products | None:
    """Bring the gradients at a use, of several vectors, into the form of products if there is one.

    Args:
        use: where a weight is read.
        gradients: at the output of the node.
    """
    kind, node = operation(use.node), cast(Any, use.node)
    layout, first = use.layout, gradients[0]
    if kind in _OTHER:
        place = use.place - (kind == "Addmm")
        axis = first.ndim - 2 if place == 1 else first.ndim - 1
        if place < 0 or layout.axis != axis:
            return None
        other = getattr(node, _OTHER[kind][place])
        scale = float(node._saved_alpha) if kind == "Addmm" else 1.0

        def grouped(matrix: Tensor) -> Tensor:
            """Give (B, G, T, features) of a matrix with positions first."""
            split = layout.split(matrix, matrix.ndim - 2)  # (B, T, G?, features)
            return split.transpose(1, 2) if matrix.ndim == 3 else split[:, None]

        if place == 0:
            other, gradients = other.mT, [g.mT for g in gradients]
        rows = tuple(grouped(g if scale == 1.0 else scale * g) for g in gradients)
        return Products(rows, grouped(other), other.shape[-1], place == 1)
    if layout.axis == 0 and kind == "Convolution" and use.place == 1:
        if _is_depthwise(use, node):
            return None
        return _of_convolution(use, node, gradients)
    if kind == "Embedding" and layout.axis < first.ndim - 1 and not node._saved_scale_grad_by_freq:
        axis = layout.axis
        seen = layout.split(node._saved_indices.long()).flatten(1)
        padding = node._saved_padding_idx
        seen = seen.masked_fill(seen == padding, -1) if padding >= 0 else seen
        rows = tuple(layout.split(g).flatten(1, -2)[:, None] for g in gradients)
        return Products(rows, seen, edge_shape(GradientEdge(*use.read))[0], True)
    return None


def _of_convolution(use: Use, node: Any, gradients: Sequence[Tensor]) -> Products:
    """Give the patches under the kernel and the gradients, or the other way round if transposed."""
    shape, groups, layout = edge_shape(GradientEdge(*use.read)), node._saved_groups, use.layout
    kernel, stride, dilation = shape[2:], node._saved_stride, node._saved_dilation
    around = _around(node)

    def grouped(tensor: Tensor) -> Tensor:
        """Turn (N, C, kernel..., positions...) into (B, G, T, features)."""
        split = layout.split(tensor).unflatten(2, (groups, -1))  # (B, inner, G, C / G, ...)
        split = split.movedim(1, -1 - len(kernel))
        features = split.ndim - 3 - len(kernel)
        return split.flatten(2, 1 + features).flatten(3).mT

    def patches(tensor: Tensor, counts: Sequence[int]) -> Tensor:
        if max(kernel) == max(stride) == 1 and not any(around):
            return tensor
        return windows(F.pad(tensor, around), kernel, stride, dilation, counts)

    inputs = node._saved_input
    if node._saved_transposed:
        # a_p is the sum of W_k z_q over p = stride q + dilation k - padding.
        rows = tuple(grouped(patches(g, inputs.shape[2:])) for g in gradients)
        return Products(rows, grouped(inputs), shape[0] // groups, True)
    columns = grouped(patches(inputs, gradients[0].shape[2:]))
    return Products(tuple(map(grouped, gradients)), columns, columns.shape[3], False)


def _around(node: Any) -> list[int]:
    """Give the padding of a convolution as `F.pad` takes it."""
    return [p for padding in reversed(node._saved_padding) for p in (padding, padding)]


def _is_depthwise(use: Use, node: Any) -> bool:
    """Tell whether each channel is convolved by itself, in one image a sample."""
    alone = node._saved_groups == node._saved_input.shape[1]
    return alone and use.layout.inner == 1 and not node._saved_transposed


def _of_depthwise(use: Use, node: Any, gradient: Tensor) -> Tensor:
    """Convolve each channel of each sample with the gradient there: (B, C, 1, kernel...)."""
    shape, inputs = edge_shape(GradientEdge(*use.read)), node._saved_input
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(shape) - 3]
    channels = inputs.shape[0] * inputs.shape[1]
    found = convolve(
        F.pad(inputs, _around(node)).flatten(0, 1)[None],
        gradient.flatten(0, 1)[:, None],
        stride=node._saved_dilation,
        dilation=node._saved_stride,
        groups=channels,
    )
    # What the stride leaves over at the end makes the kernel too long.
    kept = (0, slice(None), *map(slice, shape[2:]))
    return found[kept].reshape(len(inputs), *shape)


def gradients_of(use: Use, gradients: Sequence[Tensor]) -> Tensor:
    """Give the per-sample gradients at a use of any kind, shape (n, B, *shape of what is read).

    Where the node broadcasts, its gradient still has the samples; else it is asked for each.
    """
    shape = edge_shape(GradientEdge(*use.read))
    layout, kind, node = use.layout, operation(use.node), cast(Any, use.node)
    found = []
    for gradient in gradients:
        whole = None
        if kind == "Expand":
            whole = gradient
        elif kind == "Addmm" and use.place == 0:
            whole = float(node._saved_beta) * gradient
        elif kind in _BROADCASTING:
            whole = _called(use, gradient)
        if whole is not None and whole.shape == gradient.shape:
            samples = layout.split(whole).movedim(1, 1 + layout.axis)  # each as the whole is
        elif kind == "Convolution" and use.place == 1 and _is_depthwise(use, node):
            samples = _of_depthwise(use, node, gradient)
        elif kind == "Convolution" and use.place == 2:
            samples = layout.split(gradient).flatten(3).sum((1, 3))
        else:
            one, place = torch.zeros_like(gradient), layout.split(gradient)
            samples = []
            for sample in range(layout.samples):
                layout.split(one)[sample] = place[sample]
                samples.append(_called(use, one).sum_to_size(shape))
                layout.split(one)[sample] = 0
            samples = torch.stack(samples)
        found.append(_sum_to(samples, shape))
    return torch.stack(found)


def _called(use: Use, gradient: Tensor) -> Tensor:
    node = cast(Any, use.node)
    gradients: list[Tensor | None] = [None] * len(node._input_metadata)
    gradients[use.outlet] = gradient
    found = node(*gradients)
    return found[use.place] if isinstance(found, tuple) else found


def _sum_to(samples: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum each sample to a shape that broadcasts to its own."""
    if leading := tuple(range(1, samples.ndim - len(shape))):
        samples = samples.sum(leading)
    axes = [1 + a for a, n in enumerate(shape) if n == 1 and samples.shape[1 + a] > 1]
    return samples.sum(axes, keepdim=True) if axes else samples


def merged(products: Sequence[Products]) -> list[Products]:
    """Join products of the same kind, as those of a recurrent weight, along the positions."""
    kinds: dict[tuple[object, ...], list[Products]] = {}
    for each in products:
        shapes = (each.transposed, each.indexed, each.shape, each.rows[0].shape[1])
        kinds.setdefault(shapes, []).append(each)
    return [
        same[0]
        if len(same) == 1
        else same[0]._replace(
            rows=tuple(torch.cat(rows, 2) for rows in zip(*(p.rows for p in same), strict=True)),
            columns=torch.cat([p.columns for p in same], -1 if same[0].indexed else 2),
        )
        for same in kinds.values()
    ]
