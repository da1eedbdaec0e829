"""The layers of a model whose weights an initializer sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from hessinit_lib.hessians.case import check_model
from hessinit_lib.hessians.isolation import cards, random_states, set_random_states
from hessinit_lib.hessians.kinds import COVERED, TRANSPOSED, covered_weights, fans, owned_parameters


@dataclass(frozen=True)
class Layer:
    """A layer with a trainable weight.

    Attributes:
        name: the weight's name in the model; of a parametrized one its largest part's.
        module: that owns it; a Linear, convolution, transposed convolution or Embedding if
            there are no `axes`.
        key: the weight's name there.
        axes: of the weight, in the order blocks, outputs, inputs, kernel positions.
        blocks: how many axes there are of blocks.
        groups: of channels.
        factor: by which the weight is multiplied where it is used.
    """

    name: str
    module: nn.Module
    key: str = "weight"
    axes: tuple[int, ...] = ()
    blocks: int = 0
    groups: int = 1
    factor: float = 1.0

    @property
    def weight(self) -> Tensor:
        """The weight parameter itself; computed where it is parametrized."""
        return getattr(self.module, self.key)

    def put(self, weight: Tensor) -> None:
        """Give a parametrized weight a value; others were changed in place.

        Raises:
            NotImplementedError: the parametrization does not give this value back.
        """
        if is_parametrized(self.module, self.key):
            setattr(self.module, self.key, weight)
            if not torch.allclose(self.weight, weight, rtol=0.02, atol=1e-4):
                raise not_placed(self.name, "its parametrization does not take any value")

    @property
    def bias(self) -> Tensor | None:
        """The trainable bias, if there is one."""
        bias = self.module._parameters.get(self.key.replace("weight", "bias"))
        return bias if bias is not None and bias.requires_grad and bias.ndim == 1 else None

    def fans(self) -> tuple[int, int]:
        """Give fan_in and fan_out, see `hessinit_lib.hessians.kinds.fans`."""
        return fans(self.module)

    def matrices(self, weight: Tensor | None = None) -> Float[Tensor, "groups out in ..."]:
        """View the weight, or another of its shape, as blocks (out, in, ...).

        There is one for each group of channels, and each of several stacked matrices.
        Embeddings are seen as they are stored: rows are what a token reads.

        Example:
            >>> Layer("weight", nn.ConvTranspose2d(6, 4, 3, groups=2)).matrices().shape
            torch.Size([2, 2, 3, 3, 3])
        """
        weight = self.weight.detach() if weight is None else weight
        stacked = next((n for kind, n in _STACKED.items() if isinstance(self.module, kind)), 1)
        groups = stacked if self.key.startswith(_STACKS) else getattr(self.module, "groups", 1)
        if self.axes:
            weight = weight.permute(self.axes).unflatten(self.blocks, (groups * self.groups, -1))
            return weight.view(-1, *weight.shape[self.blocks + 1 :])
        blocks = weight.unflatten(0, (groups, -1))
        return blocks.transpose(1, 2) if isinstance(self.module, TRANSPOSED) else blocks


_STACKED = {nn.MultiheadAttention: 3, nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
_STACKS = ("in_proj_weight", "weight_ih", "weight_hh")


def not_placed(name: str, why: str) -> NotImplementedError:
    """Say that a weight cannot be drawn, and what to do."""
    return NotImplementedError(
        f"{name}: {why}; expected a weight that multiplies the inputs or is added to them; "
        "requires_grad_(False) leaves a parameter out"
    )


def other_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Name the trainable weights that `weight_layers` refuses, and the modules that own them."""
    seen = {id(m._parameters.get("weight")) for m in model.modules() if type(m) in COVERED}
    found = {}
    for name, module, weight in owned_parameters(model.named_modules()):
        if weight.requires_grad and weight.ndim > 1 and id(weight) not in seen:
            seen.add(id(weight))
            found[name] = module
    return found


def weight_layers(model: nn.Module, *, others: bool = False) -> list[Layer]:
    """List the layers whose weights are trained, in model order.

    A tied weight is listed once, with the layer that has the largest fan_in: what an
    Embedding shares with the output layer is drawn as the output layer's.

    Args:
        model: any module. Parameters with fewer than two axes (biases, the gains of
            normalization layers) and frozen ones are passed over.
        others: whether to pass over the weights of other kinds of modules, too.

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
    names = {id(weight): name for name, weight in model.named_parameters()}
    chosen = set(names.values()) - set(other_weights(model)) if others else None
    for _, module in covered_weights(model, chosen):
        layer = Layer(names[id(module.weight)], module)
        first = found.setdefault(id(layer.weight), layer)
        if layer.fans()[0] > first.fans()[0]:
            found[id(layer.weight)] = Layer(first.name, layer.module)
    if not found and not others:
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
    devices = cards(tensors)
    drawn = generator.get_state() if isinstance(generator, torch.Generator) else None
    random = random_states(devices)
    try:
        yield
    except BaseException:  # an interrupt, too
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        set_random_states(random, devices)
        if drawn is not None and generator is not None:
            generator.set_state(drawn)
        raise
