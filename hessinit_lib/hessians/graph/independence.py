"""Does a sample's row of the logits depend on that sample's part of each layer alone?

The norms need it: they are put together from per-sample factors.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.graph.conditions import inputs_first
from hessinit_lib.hessians.graph.segments import edge_shape

# Autograd nodes that keep samples apart where the first axis holds B of them, or B blocks of
# as many entries, before and after. Entry by entry, or along other axes:
_NAMES = """
Relu LeakyRelu Threshold Hardtanh Hardshrink Softshrink Abs Neg Clamp ClampMin ClampMax
Maximum Minimum Add Sub Mul Div Clone ToCopy Alias Cat Slice NativeDropout
MaxPool2DWithIndices AvgPool2D AdaptiveAvgPool2D AdaptiveMaxPool2D MkldnnMaxPool2D
MkldnnAdaptiveAvgPool2D ReflectionPad2D ReplicationPad2D
"""
_ENTRYWISE = frozenset(_NAMES.split())
# In row-major order.
_RESHAPING = ("View", "Reshape", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze")
# Linear in the argument of that index, row by row.
_BY_ROW = {"Convolution": 0, "Mm": 0, "Addmm": 1, "NativeBatchNorm": 0, "PreluKernel": 0}
# Over the axes that are saved.
_REDUCING = ("Mean", "Sum")


def check_independence(logits: Float[Tensor, "b c"], layers: list[CapturedLayer]) -> None:
    """Make sure that a sample's logits depend on that sample's part of each layer alone.

    The nodes of the graph tell in most networks. Where they do not, one backward pass does:
    the gradient of some of the samples' logits has to vanish, exactly, on all the others.

    Args:
        logits: with their graph.
        layers: those that the logits depend on.

    Raises:
        NotImplementedError: samples are mixed; the message names the layer.

    Example:
        >>> from hessinit_lib.hessians.graph.capture import capture
        >>> layers, outputs = capture(torch.nn.Linear(4, 3), torch.ones(2, 4))
        >>> check_independence(outputs.relu(), layers)
        >>> try:
        ...     check_independence(outputs.flip(0), layers)
        ... except NotImplementedError as error:
        ...     print(str(error).split(":")[0])
        the model mixes the samples of the batch above weight, or its output does not have...
    """
    if not _apart(logits, layers):
        _check_by_gradient(logits, layers)


def _apart(logits: Float[Tensor, "b c"], layers: list[CapturedLayer]) -> bool:
    """Tell whether every node between the layers and the logits is known to keep them apart."""
    batch = len(logits)
    outlets = {layer.edge[:2] for layer in layers if layer.edge is not None}
    above: set[Node] = set()
    assert logits.grad_fn is not None
    for node in inputs_first(logits.grad_fn):
        sources = {
            place: GradientEdge(following, index)
            for place, (following, index) in enumerate(node.next_functions)
            if following is not None and ((following, index) in outlets or following in above)
        }
        if not sources:
            continue
        above.add(node)
        edges = [GradientEdge(node, 0), *sources.values()]
        if not all(_in_blocks(edge, batch) for edge in edges):
            return False
        if not _keeps_apart(node, {place: edge_shape(edge) for place, edge in sources.items()}):
            return False
    return all(layer.edge is not None and _in_blocks(layer.edge, batch) for layer in layers)


def _in_blocks(edge: GradientEdge, batch: int) -> bool:
    shape = edge_shape(edge)
    return bool(shape) and shape[0] % batch == 0


def _keeps_apart(node: Node, sources: dict[int, tuple[int, ...]]) -> bool:
    short = node.name().rstrip("0123456789").removesuffix("Backward")
    if short in _RESHAPING:
        return True
    shape = edge_shape(GradientEdge(node, 0))
    if any(source[0] != shape[0] for source in sources.values()):
        return False
    if short in _BY_ROW:
        return list(sources) == [_BY_ROW[short]]
    # An axis that is added comes first, and moves the samples to the second.
    same = all(len(source) == len(shape) for source in sources.values())
    if short == "ConstantPadNd":
        amounts = getattr(node, "_saved_pad", [0] * 2 * len(shape))
        return same and len(amounts) < 2 * len(shape)  # none at the first axis
    if short in _REDUCING:
        axes = getattr(node, "_saved_dim", None) or (0,)  # none stand for all
        (source,) = sources.values()
        # Negative axes are saved modulo 2^64.
        return all((axis - 2**64 if axis >= 2**63 else axis) % len(source) for axis in axes)
    return same and short in _ENTRYWISE


def _check_by_gradient(logits: Float[Tensor, "b c"], layers: list[CapturedLayer]) -> None:
    batch = len(logits)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(batch, generator=generator) < 0.5
    chosen[0], chosen[-1] = True, batch == 1
    direction = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    direction = (direction * chosen[:, None]).to(logits)
    edges = [layer.edge for layer in layers if layer.edge is not None]
    gradients = torch.autograd.grad(logits, edges, direction, retain_graph=True)
    for layer, gradient in zip(layers, gradients, strict=True):
        mixed = gradient.shape[0] % batch != 0
        if not mixed:
            per_sample = gradient.reshape(batch, -1)
            mixed = bool(per_sample[~chosen.to(gradient.device)].any())
        if mixed:
            raise NotImplementedError(
                f"the model mixes the samples of the batch above {layer.name}, or its output "
                "does not have them in the first axis: norms need independent samples"
            )
