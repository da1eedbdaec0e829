"""What the exact norms of a graph rest on, checked in the autograd graph above the layers.

A layer's Hessian block is its Gauss-Newton block (almost everywhere) where the logits are a
piecewise-linear function of the layer's output, and it is a mean over samples where each
sample's logits depend on that sample alone. Every node between the two is looked up here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from hessinit_lib.hessians.graph.capture import CapturedLayer
from hessinit_lib.hessians.graph.nodes import edge_shape, inputs_first, operation

# Operations, named as `operation` names their autograd nodes.
_PIECEWISE_LINEAR_NAMES = """
Relu LeakyRelu Threshold Hardtanh Hardsigmoid Hardshrink Softshrink Abs Neg Sign
RreluWithNoise Clamp ClampMin ClampMax Where MaskedFill Maximum Minimum Max Min Amax Amin
Sort Topk Kthvalue Gather Median
Add Sub Rsub Sum Mean Cumsum Cat Stack Clone Copy CopyBackwards ToCopy Alias
View Reshape UnsafeView ReshapeAlias Permute Transpose T Mt Squeeze Unsqueeze Expand Slice
Select Split SplitWithSizes UnsafeSplit UnsafeSplitWithSizes Chunk UnsafeChunk Unbind Narrow
AsStrided Diagonal Unfold Flip Roll Repeat Index IndexSelect MaskedSelect
ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D
ReplicationPad1D ReplicationPad2D ReplicationPad3D
MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D
AvgPool2D AvgPool3D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnMaxPool2D MkldnnMaxPool3D
MkldnnAdaptiveAvgPool2D MaxUnpool2D MaxUnpool3D
UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleLinear1D UpsampleBilinear2D
UpsampleTrilinear3D UpsampleBicubic2D PixelShuffle PixelUnshuffle ChannelShuffle
NativeChannelShuffle Im2Col Col2Im
NativeDropout FusedDropout
"""
_PIECEWISE_LINEAR = frozenset(_PIECEWISE_LINEAR_NAMES.split())

# Products: linear in each of these arguments, so at most one may depend on a layer's output.
_PRODUCTS = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Mv", "Dot", "Linear", "MkldnnLinear"), (0, 1)),
    **dict.fromkeys(("Convolution", "PreluKernel"), (0, 1)),
    **dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"), (0, 1)),
    **dict.fromkeys(("Addmm", "Addmv", "Baddbmm", "Addbmm", "Addcmul"), (1, 2)),
}
# Linear in the numerator alone: the divisor, of that index, may not depend on it.
_QUOTIENTS = {"Div": 1}

# Operations that mix no samples where the first axis holds B of them, or B blocks of as many
# entries, before and after. Entry by entry, or along other axes:
_SAMPLEWISE_NAMES = """
Relu LeakyRelu Threshold Hardtanh Hardshrink Softshrink Abs Neg Clamp ClampMin ClampMax
Maximum Minimum Add Sub Mul Div Clone ToCopy Alias Cat Slice NativeDropout
MaxPool2DWithIndices AvgPool2D AdaptiveAvgPool2D AdaptiveMaxPool2D MkldnnMaxPool2D
MkldnnAdaptiveAvgPool2D ReflectionPad2D ReplicationPad2D
"""
_SAMPLEWISE = frozenset(_SAMPLEWISE_NAMES.split())
# In row-major order.
_RESHAPING = ("View", "Reshape", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze")
# Linear in the argument of that index, row by row.
_BY_ROW = {"Convolution": 0, "Mm": 0, "Addmm": 1, "PreluKernel": 0}
_BY_ROW |= dict.fromkeys(("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm"), 0)
# Over the axes that are saved.
_REDUCING = ("Mean", "Sum")


def check_exact(outputs: Tensor, layers: list[CapturedLayer]) -> set[str]:
    """Make sure that every layer's block is exactly its Gauss-Newton block.

    Gives the names of the layers that the outputs depend on.

    Raises:
        NotImplementedError: a node between a layer and the logits that is not linear or
            piecewise linear, or a weight used elsewhere than in its layer; the message
            names the node and the layer.

    Example:
        >>> import torch
        >>> from hessinit_lib.hessians.graph.capture import capture
        >>> layers, outputs = capture(torch.nn.Linear(4, 3), torch.ones(2, 4))
        >>> check_exact(outputs.relu(), layers)
        {'weight'}
    """
    outlets = {layer.edge[:2]: layer.name for layer in layers if layer.edge is not None}
    uses = dict.fromkeys((id(layer.weight) for layer in layers), 0)
    # For each node one of the layers it depends on, the highest that was met first.
    below: dict[Node, str | None] = {}
    reached: set[str] = set()
    root = outputs.grad_fn
    if root is None:
        return reached
    source = outlets.get((root, outputs.output_nr))
    if source is not None:
        reached.add(source)
    for node in inputs_first(root):
        sources: list[str | None] = []
        for following, index in node.next_functions:
            if following is None:
                sources.append(None)
                continue
            variable = getattr(following, "variable", None)
            if variable is not None and id(variable) in uses:
                uses[id(variable)] += 1
            source = outlets.get((following, index))
            if source is not None:
                reached.add(source)
            sources.append(source or below[following])
        below[node] = next((source for source in sources if source is not None), None)
        _check_node(node, sources)
    for layer in layers:
        _check_uses(layer, uses[id(layer.weight)])
    return reached


def _check_node(node: Node, sources: list[str | None]) -> None:
    layer = next((source for source in sources if source is not None), None)
    if layer is None:
        return
    kind = operation(node)
    if kind in _PRODUCTS:
        factors = [i for i in _PRODUCTS[kind] if i < len(sources) and sources[i] is not None]
        allowed = len(factors) <= 1
    elif kind in _QUOTIENTS:
        allowed = sources[_QUOTIENTS[kind]] is None
    else:
        allowed = kind in _PIECEWISE_LINEAR
    if kind.endswith("CopySlices"):  # the operation itself is not to be seen in the graph
        raise NotImplementedError(
            f"an operation in place on a view above {layer} hides what it does: "
            "make it out of place"
        )
    if not allowed:
        raise NotImplementedError(
            f"{node.name()} above {layer}: exact norms need a graph that is piecewise linear above "
            "each layer (ReLU, pooling, sums, concatenation, normalization in evaluation mode)"
        )
    if kind.endswith("BatchNorm") and getattr(node, "_saved_training", False):
        raise NotImplementedError(
            f"{node.name()} in training mode above {layer}: batch statistics couple the samples; "
            "model.eval() gives the exact norms of the network with frozen statistics"
        )


def _check_uses(layer: CapturedLayer, uses: int) -> None:
    if layer.edge is None and uses:
        raise NotImplementedError(f"{layer.name} is used outside its layer: this is not covered")
    if uses > 1:
        raise NotImplementedError(
            f"{layer.name} is used more than once in a forward pass: "
            "repeated weights are not covered"
        )
    if layer.inputs is not None and layer.inputs._version != layer.version:
        raise NotImplementedError(
            f"the inputs of {layer.name} are changed in place after their use: "
            "make that operation out of place"
        )


def check_independence(logits: Float[Tensor, "b c"], layers: list[CapturedLayer]) -> None:
    """Make sure that a sample's logits depend on that sample's part of each layer alone.

    The nodes of the graph tell in most networks. Where they do not, one backward pass does:
    the gradient of some of the samples' logits has to vanish, exactly, on all the others.

    Raises:
        NotImplementedError: samples are mixed; the message names the layer.
    """
    if not _known_independent(logits, layers):
        _check_by_gradient(logits, layers)


def _known_independent(logits: Float[Tensor, "b c"], layers: list[CapturedLayer]) -> bool:
    """Tell whether every node between the layers and the logits is known to mix no samples."""
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
        shapes = {place: edge_shape(edge) for place, edge in sources.items()}
        if not _is_samplewise(node, shapes):
            return False
    return all(layer.edge is not None and _in_blocks(layer.edge, batch) for layer in layers)


def _in_blocks(edge: GradientEdge, batch: int) -> bool:
    shape = edge_shape(edge)
    return bool(shape) and shape[0] % batch == 0


def _is_samplewise(node: Node, sources: dict[int, tuple[int, ...]]) -> bool:
    kind = operation(node)
    if kind in _RESHAPING:
        return True
    shape = edge_shape(GradientEdge(node, 0))
    if any(source[0] != shape[0] for source in sources.values()):
        return False
    if kind in _BY_ROW:
        return list(sources) == [_BY_ROW[kind]]
    # An axis that is added comes first, and moves the samples to the second.
    same = all(len(source) == len(shape) for source in sources.values())
    if kind == "ConstantPadNd":
        amounts = getattr(node, "_saved_pad", [0] * 2 * len(shape))
        return same and len(amounts) < 2 * len(shape)  # none at the first axis
    if kind in _REDUCING:
        axes = getattr(node, "_saved_dim", None) or (0,)  # none stand for all
        (source,) = sources.values()
        # Negative axes are saved modulo 2^64.
        return all((axis - 2**64 if axis >= 2**63 else axis) % len(source) for axis in axes)
    return same and kind in _SAMPLEWISE


def _check_by_gradient(logits: Float[Tensor, "b c"], layers: list[CapturedLayer]) -> None:
    batch = len(logits)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(batch, generator=generator, device="cpu") < 0.5
    chosen[0], chosen[-1] = True, batch == 1
    direction = torch.randn(logits.shape, generator=generator, dtype=torch.float64, device="cpu")
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
