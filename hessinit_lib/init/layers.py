"""The layers of a model whose weights an initializer sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hessinit_lib.hessians.case import check_model
from hessinit_lib.hessians.kinds import TRANSPOSED, covered_weights, fans


@dataclass(frozen=True)
class Layer:
    """A layer with a trainable weight.

    Attributes:
        name: the weight's name in the model.
        module: a Linear, convolution, transposed convolution or Embedding.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> Tensor:
        """The weight parameter itself."""
        return self.module.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The trainable bias, if there is one."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) and bias.requires_grad else None

    def fans(self) -> tuple[int, int]:
        """Give fan_in and fan_out, see `hessinit_lib.hessians.kinds.fans`."""
        return fans(self.module)

    def matrices(self) -> Float[Tensor, "groups out in ..."]:
        """View the weight as one block (out, in, ...) for each group of channels.

        Embeddings are seen as they are stored: rows are what a token reads.

        Example:
            >>> Layer("weight", nn.ConvTranspose2d(6, 4, 3, groups=2)).matrices().shape
            torch.Size([2, 2, 3, 3, 3])
        """
        weight = self.weight.detach()
        groups = getattr(self.module, "groups", 1)
        blocks = weight.unflatten(0, (groups, -1))
        return blocks.transpose(1, 2) if isinstance(self.module, TRANSPOSED) else blocks


def weight_layers(model: nn.Module) -> list[Layer]:
    """List the layers whose weights are trained, in model order.

    A tied weight is listed once, with the layer that has the largest fan_in: what an
    Embedding shares with the output layer is drawn as the output layer's.

    Args:
        model: any module. Parameters with fewer than two axes (biases, the gains of
            normalization layers) and frozen ones are passed over.

    Raises:
        NotImplementedError: a trainable weight of another kind of module, or none at all;
            the message names it.
        ValueError: a weight of a lazy module that has not seen its inputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> [layer.name for layer in weight_layers(model)]
        ['0.weight', '2.weight']
    """
    check_model(model)
    found: dict[int, Layer] = {}
    for name, module in covered_weights(model):
        layer = Layer(name, module)
        first = found.setdefault(id(layer.weight), layer)
        if layer.fans()[0] > first.fans()[0]:
            found[id(layer.weight)] = Layer(first.name, layer.module)
    if not found:
        raise NotImplementedError(
            "no trainable weight: expected a Linear, convolution or Embedding layer"
        )
    return list(found.values())


@contextmanager
def restored_on_failure(model: nn.Module, generator: torch.Generator | None) -> Iterator[None]:
    """Put weights, buffers and random states back where an initialization is not finished.

    Args:
        model: any module.
        generator: that draws; the global one if None.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = model.weight.detach().clone()
        >>> try:
        ...     with restored_on_failure(model, None):
        ...         _ = nn.init.zeros_(model.weight)
        ...         raise KeyboardInterrupt
        ... except KeyboardInterrupt:
        ...     torch.equal(model.weight, before)
        True
    """
    tensors = [x for x in (*model.parameters(), *model.buffers()) if not is_lazy(x)]
    if any(x.is_inference() for x in tensors) and not torch.is_inference_mode_enabled():
        raise ValueError(
            "model: made under torch.inference_mode(), so that its weights cannot be changed: "
            "expected one made outside of it"
        )
    kept = [tensor.detach().clone() for tensor in tensors]
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    drawn = generator.get_state() if isinstance(generator, torch.Generator) else None
    random = torch.get_rng_state(), {card: torch.cuda.get_rng_state(card) for card in devices}
    try:
        yield
    except BaseException:  # an interrupt, too
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        torch.set_rng_state(random[0])
        for card, state in random[1].items():
            torch.cuda.set_rng_state(state, card)
        if drawn is not None and generator is not None:
            generator.set_state(drawn)
        raise
