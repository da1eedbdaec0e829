"""LSUV: layer-sequential unit variance."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from hessinit_lib.hessians.functional import plain_errors, unwrapped
from hessinit_lib.hessians.inputs import Inputs, fresh, sample_count
from hessinit_lib.hessians.isolation import entry, random_state_kept
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.init.forward_graph import refuse_batch_statistics
from hessinit_lib.init.layers import Layer, restored_on_failure, weight_layers
from hessinit_lib.init.schemes import apply


@entry
def lsuv_(
    model: nn.Module, inputs: Inputs, *, generator: torch.Generator | None = None
) -> dict[str, float]:
    r"""Draw orthogonal weights, then divide each by the deviation of its layer's outputs.

    Layer by layer in the order of the forward pass, until every output has variance 1 over
    the batch, units and positions together. The paper repeats a forward pass for each layer
    up to ten times, until the variance is within 0.1 of 1; with zero biases the output is
    linear in the weight, so that once is exact, and one forward pass does for all layers.

    Args:
        model: any module with layers that `hessinit_lib.init.apply` covers.
        inputs: shape (B, ...), or several in a tuple, or in a dict by keyword.
        generator: source of randomness; the global one if None.

    Returns:
        The deviation of each layer's outputs before it was divided out, by weight.

    Raises:
        NotImplementedError: a weight of another kind of module, or batch normalization in
            training mode.
        ValueError: a layer whose outputs do not vary.

    Source: Mishkin and Matas, "All you need is a good init", ICLR 2016, algorithm 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x = torch.randn(32, 9, generator=generator)
        >>> _ = lsuv_(model, x, generator=generator)
        >>> round(model[0](x).var().item(), 4), round(model(x).var().item(), 4)
        (1.0, 1.0)
    """
    model = unwrapped(model)
    refuse_batch_statistics(model)
    sample_count(inputs)
    layers = {id(layer.module): layer for layer in weight_layers(model)}
    deviations: dict[str, float] = {}

    def rescale(layer: Layer, output: Tensor) -> Tensor:
        if layer.name in deviations:  # a layer that is called again
            return output
        deviation = output.float().std()
        if not deviation > 0:
            raise ValueError(f"{layer.name}: its outputs do not vary, expected some variance")
        deviations[layer.name] = deviation.item()
        layer.weight.div_(deviation)
        return output / deviation.to(output)

    with restored_on_failure(model, generator), ExitStack() as stack, torch.no_grad():
        apply(model, "orthogonal", generator=generator)
        stack.enter_context(without_noise(model, inputs))
        for module in model.modules():
            layer = layers.get(id(module))
            if layer is None:
                continue

            def hook(_: nn.Module, args: tuple, output: Tensor, layer: Layer = layer) -> Tensor:
                return rescale(layer, output)

            stack.callback(module.register_forward_hook(hook, prepend=True).remove)
        stack.enter_context(random_state_kept(model.parameters()))
        arguments, keywords = fresh(inputs)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with plain_errors(inputs):
            torch.func.functional_call(model, buffers, arguments, keywords)
    return deviations
