"""Is a layer's Hessian block its Gauss-Newton block? The autograd graph tells.

It is where the logits are a piecewise-linear function of the layer's output (almost
everywhere). Every node of the graph between the two is looked up here.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.autograd.graph import Node

from hessinit_lib.hessians.graph.capture import CapturedLayer

# Names of autograd nodes, without "Backward" and the overload's number.
_NAMES = """
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
_PIECEWISE_LINEAR = frozenset(_NAMES.split())

# Products: linear in each of these arguments, so at most one may depend on a layer's output.
_PRODUCTS = {
    "Mul": (0, 1),
    "Mm": (0, 1),
    "Bmm": (0, 1),
    "Mv": (0, 1),
    "Dot": (0, 1),
    "Linear": (0, 1),
    "MkldnnLinear": (0, 1),
    "Convolution": (0, 1),
    "PreluKernel": (0, 1),
    "Addmm": (1, 2),
    "Addmv": (1, 2),
    "Baddbmm": (1, 2),
    "Addbmm": (1, 2),
    "Addcmul": (1, 2),
    "NativeBatchNorm": (0, 1),
    "CudnnBatchNorm": (0, 1),
    "MiopenBatchNorm": (0, 1),
}
_QUOTIENTS = {"Div": 1}


def check_exact(outputs: Tensor, layers: list[CapturedLayer]) -> set[str]:
    """Make sure that every layer's block is exactly its Gauss-Newton block.

    Args:
        outputs: the logits, with their graph.
        layers: the layers found in that graph.

    Returns:
        The names of the layers that the logits depend on.

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
        >>> try:
        ...     check_exact(outputs.tanh(), layers)
        ... except NotImplementedError as error:
        ...     print(str(error).split(":")[0])
        TanhBackward0 above weight
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


def inputs_first(root: Node) -> Iterator[Node]:
    """Walk the graph below a node, each node after those it depends on."""
    done: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
            continue
        if node in done:
            continue
        done.add(node)
        stack.append((node, True))
        stack.extend(
            (following, False)
            for following, _ in node.next_functions
            if following is not None and following not in done
        )


def _check_node(node: Node, sources: list[str | None]) -> None:
    layer = next((source for source in sources if source is not None), None)
    if layer is None:
        return
    name = node.name()
    short = name.rstrip("0123456789").removesuffix("Backward")
    if short in _PRODUCTS:
        factors = [i for i in _PRODUCTS[short] if i < len(sources) and sources[i] is not None]
        allowed = len(factors) <= 1
    elif short in _QUOTIENTS:
        allowed = sources[_QUOTIENTS[short]] is None
    else:
        allowed = short in _PIECEWISE_LINEAR
    if short.endswith("CopySlices"):  # the operation itself is not to be seen in the graph
        raise NotImplementedError(
            f"an operation in place on a view above {layer} hides what it does: "
            "make it out of place"
        )
    if not allowed:
        raise NotImplementedError(
            f"{name} above {layer}: exact norms need a graph that is piecewise linear above "
            "each layer (ReLU, pooling, sums, concatenation, normalization in evaluation mode)"
        )
    if short.endswith("BatchNorm") and getattr(node, "_saved_training", False):
        raise NotImplementedError(
            f"{name} in training mode above {layer}: batch statistics couple the samples; "
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
