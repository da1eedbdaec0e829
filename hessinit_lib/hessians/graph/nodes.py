"""Nodes and edges of the autograd graph, and what leaves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.overrides import TorchFunctionMode

_PLAIN = """torch::autograd::AccumulateGrad AdaptiveAvgPool2D Add Addcmul Addmm Alias Amax AvgPool2D
    Bmm Cat ClampMin Clone ConstantPadNd Convolution Div Elu Embedding Exp Expand Gelu
    Hardswish Hardtanh Index LeakyRelu LinalgVectorNorm LogSoftmax MaxPool2DWithIndices
    Mean MkldnnRnnLayer Mm Mul NativeBatchNorm NativeGroupNorm NativeLayerNorm Neg
    Permute Pow Relu Repeat ReshapeAlias Roll Rsqrt Rsub SafeSoftmax Select Sigmoid Silu
    Sin Slice Softmax Split SplitWithSizes Sqrt Squeeze Stack Sub Sum T Tanh Transpose
    Unbind UnsafeSplit UnsafeView Unsqueeze UpsampleNearest2D View"""
PLAIN = frozenset(_PLAIN.split())
"""Operations of torch whose second derivatives this library's tests have checked."""

PLAIN_ONCE = PLAIN | {"ScaledDotProductFlashAttentionForCpu"}
"""And those whose first derivatives they have."""


def inputs_first(root: Node) -> Iterator[Node]:
    """Yield the graph below a node in topological order: each node after those it depends on."""
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


def leaves_below(root: Node | None) -> Iterator[Any]:
    """Yield the tensors that are leaves of the graph below a node."""
    for node in inputs_first(root) if root else ():
        if (leaf := getattr(node, "variable", None)) is not None:
            yield leaf


def parameters_below(root: Node | None, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Name the parameters that are leaves of the graph below a node.

    Example:
        >>> import torch
        >>> w = nn.Parameter(torch.ones(2))
        >>> parameters_below(w.sum().grad_fn, {"w": w})
        ['w']
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [names[id(leaf)] for leaf in leaves_below(root) if id(leaf) in names]


def check_leaves(outputs: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    """Make sure that the weights in the graph of some outputs were read from their modules.

    Raises:
        ValueError: the outputs depend on no weight.
        NotImplementedError: a weight is read past its module; the message names it.
    """
    if outputs.grad_fn is None:
        raise ValueError(
            "the outputs depend on no trainable weight: expected some that do, without "
            "detach() or no_grad() on the way"
        )
    for name in parameters_below(outputs.grad_fn, parameters)[:1]:
        raise NotImplementedError(
            f"{name} is read past the module that owns it, from a list or an attribute, "
            "say: expected it to be read from the module in the forward pass"
        )


def edge_shape(edge: GradientEdge) -> tuple[int, ...]:
    """Give the shape of the tensor that stood at that place in the forward pass."""
    return tuple(edge.node._input_metadata[edge.output_nr].shape)


def operation(node: Node) -> str:
    """Give a node's name without "Backward" and the overload's number: "Relu", say."""
    return node.name().rstrip("0123456789").removesuffix("Backward")


class Watch(TorchFunctionMode):
    """See what leaves the graph, as by detach(); and keep float64 where a model asks for less.

    Args:
        double: whether to give float64 where float32 is asked for, as some normalizations do.

    Attributes:
        cut: whether a function of trained weights gave what autograd does not know from these.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with Watch() as watch:
        ...     _ = layer(torch.ones(2)).relu()
        ...     before = watch.cut
        ...     _ = layer(torch.ones(2)).detach()
        >>> before, watch.cut
        (False, True)
    """

    def __init__(self, *, double: bool = False) -> None:
        super().__init__()
        self.double, self.cut = double, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.double:
            args = [torch.float64 if a is torch.float32 else a for a in args]
            if kwargs.get("dtype") is torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
            func = Tensor.double if func is Tensor.float else func
        # Before the call: detach_() works in place.
        followed = not self.cut and (_is_followed(args) or _is_followed((*kwargs.values(),)))
        found = func(*args, **kwargs)
        if followed:
            # Without gradients, what is done in place leaves no trace.
            self.cut = not torch.is_grad_enabled() or (
                isinstance(found, (Tensor, float, list, tuple, np.ndarray))
                and not isinstance(found, torch.Size)
                and not _is_followed(found)
            )
        return found


def _is_followed(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_followed, value))
    return isinstance(value, Tensor) and value.requires_grad
