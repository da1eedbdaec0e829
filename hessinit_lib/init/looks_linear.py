"""`looks_linear_`: orthogonal directions that keep signals, and outputs of a given size."""

from __future__ import annotations

import math

import torch
from torch import nn

from hessinit_lib.hessians.functional import unwrapped
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.init.forward_graph import (
    ForwardGraph,
    all_layers,
    forward_graph,
    last_layers,
    refuse_batch_statistics,
)
from hessinit_lib.init.layers import other_weights, restored_on_failure, weight_layers
from hessinit_lib.init.mirrored import branch_factors, draw_directions
from hessinit_lib.init.schemes import SCHEMES, draw_layers

OUTPUT_RMS = 0.7
"""Root mean square of the outputs that `looks_linear_` sets."""

_TOLERANCE = 0.02  # relative, of the root mean square
_ROUNDS = 5  # one where the outputs are linear in the last layer
_FADED = 100  # times the last layer's weights: pooling takes a few, an average of 49 pixels 7


@entry
def looks_linear_(
    model: nn.Module,
    inputs: Inputs,
    *,
    output_rms: float = OUTPUT_RMS,
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    r"""Draw orthogonal weights that make a model linear at first, with outputs of a given size.

    A first-order rule, in place; no loss and no Hessian enters:

    1. Every layer becomes an orthogonal map that keeps the mean square of its signals, mirrored
       around ReLU, GELU, SiLU, sigmoid and the like, of which at first only the odd part acts
       (`hessinit_lib.init.mirrored`); biases become zero.
    2. The last layer of each of N residual branches is multiplied by $1 / \sqrt N$, so that the
       branches add up to one layer.
    3. The last layer is scaled until the model's outputs have the root mean square
       `output_rms`, see `scale_outputs_`.

    The book's page "A contest of initializations" compares it with others.

    Args:
        model: any whose weights multiply its signals (Linear, convolutions, attention's packed
            and bare parameters, gates of recurrent layers, each an own matrix; also inputs
            first or parametrized) or are added to them (tables: drawn as an Embedding, no
            layers). Gains and frozen parameters, gradients, buffers and modes are left, and so
            is the global random state if a generator is given.
        inputs: shape (B, ...); or several tensors in a tuple, or in a dict by keyword.
        output_rms: of the logits, or in the units of the targets.
        generator: source of randomness; the global one if None.

    Returns:
        The factor by which each weight was scaled after it was drawn, by name.

    Raises:
        NotImplementedError: a trainable weight that is used in another way (a function of it
            multiplies, say), or batch normalization in training mode.
        ValueError: a value out of range, outputs that are not finite or do not follow the last
            layer, signals that fade on the way through the network. The model is left as it was.

    Source: Saxe, McClelland and Ganguli, arXiv 1312.6120 (orthogonal); Balduzzi and others,
        arXiv 1702.08591 (mirrored, "looks linear"); Mishkin and Matas, ICLR 2016 (size of
        outputs from a batch); put together here.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(32, 4, generator=generator)
        >>> _ = looks_linear_(model, x, generator=generator)
        >>> round(model(x).square().mean().sqrt().item(), 2)
        0.7
        >>> torch.allclose(model(-x), -model(x), atol=1e-5)
        True
    """
    model = unwrapped(model)
    refuse_batch_statistics(model)
    _check_size(output_rms)
    layers = all_layers(model, inputs)
    scales = dict.fromkeys((layer.name for layer in layers), 1.0)
    with restored_on_failure(model, generator):
        graph = draw_linear(model, inputs, generator, scales)
        needed = output_rms / _size(graph)
        if needed > _FADED:
            raise ValueError(
                f"the signals fade on the way to {', '.join(sorted(last_layers(graph)))}: expected "
                f"a network that keeps them, but outputs of {output_rms:g} take weights "
                f"{needed:.0f} times as large there, and its gradients would explode; this "
                "network's activations or gates want their own gain, or normalization"
            )
        _bring(model, inputs, graph, output_rms, scales)
    return scales


@entry
def scale_outputs_(
    model: nn.Module, inputs: Inputs, *, output_rms: float = OUTPUT_RMS
) -> dict[str, float]:
    r"""Scale a model's last layer until its outputs have a given root mean square, in place.

    $\bigl(\frac1{BC} \sum_{bc} z_{bc}^2\bigr)^{1/2}$ over all outputs z of the batch: logits of
    0.7, say, are those of a network that is still unsure. All other weights are kept. It makes
    up for signals that fade in them by a large last layer, and then gradients explode.

    Args:
        model: see `looks_linear_`.
        inputs: the same.
        output_rms: of the logits, or in the units of the targets.

    Returns:
        The factor of each weight, by name.

    Raises:
        NotImplementedError: see `looks_linear_`.
        ValueError: a value out of range, outputs that are not finite or do not follow the last
            layer. The model is left as it was.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        >>> _ = scale_outputs_(model, x, output_rms=0.1)
        >>> round(model(x).square().mean().sqrt().item(), 2)
        0.1
    """
    model = unwrapped(model)
    refuse_batch_statistics(model)
    _check_size(output_rms)
    scales = dict.fromkeys((layer.name for layer in all_layers(model, inputs)), 1.0)
    with restored_on_failure(model, None):
        _bring(model, inputs, forward_graph(model, inputs), output_rms, scales)
    return scales


def draw_linear(
    model: nn.Module,
    inputs: Inputs,
    generator: torch.Generator | None,
    scales: dict[str, float] | None = None,
) -> ForwardGraph:
    """Draw all weights anew and damp residual branches: steps 1 and 2 of `looks_linear_`.

    Returns:
        The graph of a run of the model, as it is then; the factors of branches are in `scales`.

    Raises:
        ValueError: outputs that are not finite.
    """
    # The weights as given may be anything: zero ones would make all look like ReLUs.
    others = bool(other_weights(model))
    draw_layers(weight_layers(model, others=others), SCHEMES["lecun"](), generator)
    for _ in range(2 if others else 1):  # others are drawn where their place is known
        draw_directions(forward_graph(model, inputs), generator=generator)
    graph = forward_graph(model, inputs)
    if factors := branch_factors(graph):
        _scale(graph, factors, scales)
        graph = forward_graph(model, inputs)
    _size(graph)
    return graph


def _bring(
    model: nn.Module,
    inputs: Inputs,
    graph: ForwardGraph,
    output_rms: float,
    scales: dict[str, float],
) -> None:
    """Scale the last layers until the outputs have the size that is wanted."""
    last = last_layers(graph)
    for _ in range(_ROUNDS):
        needed = output_rms / _size(graph)
        if abs(needed - 1) <= _TOLERANCE / 2:
            return
        _scale(graph, dict.fromkeys(last, needed), scales, biases=True)
        graph = forward_graph(model, inputs)
    if abs(output_rms / _size(graph) - 1) > _TOLERANCE:
        raise ValueError(
            f"the outputs do not follow the scale of {', '.join(sorted(last))}: "
            "expected some that do, with no normalization, softmax or sigmoid behind it"
        )


def _size(graph: ForwardGraph) -> float:
    """Compute the root mean square of the outputs."""
    outputs = graph.outputs.detach()
    if not torch.isfinite(outputs).all():
        raise ValueError("the model's outputs are not finite: expected finite ones to scale")
    return max(outputs.square().mean().sqrt().item(), torch.finfo(outputs.dtype).tiny)


@torch.no_grad()
def _scale(
    graph: ForwardGraph,
    factors: dict[str, float],
    scales: dict[str, float] | None,
    biases: bool = False,
) -> None:
    for layer in graph.layers:
        if layer.name in factors:
            layer.put(layer.weight.detach().mul_(factors[layer.name]))
            if scales is not None:
                scales[layer.name] *= factors[layer.name]
            if biases and layer.bias is not None:
                layer.bias.mul_(factors[layer.name])


def _check_size(output_rms: float) -> None:
    if not isinstance(output_rms, int | float) or not 0 < output_rms < math.inf:
        raise ValueError(f"output_rms={output_rms!r}: expected a number above 0")
