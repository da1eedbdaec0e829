"""Models that take several inputs, as models that take one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int64
from torch import Tensor, nn

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]
"""What a model takes: one tensor, several in order, or several by keyword."""

PREFIX = "module."
"""What stands before the names of the parameters of a model in a bundle."""


class Bundle(nn.Module):
    """A model with a batch of its inputs, which takes the places of samples in that batch.

    What computes Hessians hands over one tensor, and parts of it where memory is short. A
    bundle takes those rows of every input. The inputs are buffers, so that whoever computes
    in another precision converts them with the parameters.

    Args:
        model: takes several tensors whose first axis is the batch.
        inputs: in order, or by keyword.

    Example:
        >>> model = nn.Bilinear(2, 3, 1)
        >>> bundle = Bundle(model, (torch.ones(4, 2), torch.ones(4, 3)))
        >>> bundle(torch.arange(4)).shape, [name for name, _ in bundle.named_parameters()]
        (torch.Size([4, 1]), ['module.weight', 'module.bias'])
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.module = model
        self.training = model.training  # a new module is in training mode, its model may not be
        self._keywords: list[str | None] = []
        named = (
            inputs.items() if isinstance(inputs, Mapping) else ((None, tensor) for tensor in inputs)
        )
        for index, (keyword, tensor) in enumerate(named):
            self._keywords.append(keyword)
            self.register_buffer(f"input_{index}", tensor, persistent=False)

    def forward(self, places: Int64[Tensor, " b"]) -> object:
        """Call the model with some rows of its inputs."""
        rows = [self.get_buffer(f"input_{i}")[places] for i in range(len(self._keywords))]
        ordered = [row for key, row in zip(self._keywords, rows, strict=True) if key is None]
        named = {key: row for key, row in zip(self._keywords, rows, strict=True) if key is not None}
        return self.module(*ordered, **named)


def single_input(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Tensor, str]:
    """Make a model of one input of any model.

    Args:
        model: any module.
        inputs: what it takes; tensors with as many rows.

    Returns:
        A model, its one input, shape (B, ...), and what now stands before names of parameters.

    Raises:
        ValueError: no tensors, or not as many rows in each; the message names them.

    Example:
        >>> two = torch.ones(4, 2), torch.ones(4, 3)
        >>> _, rows, prefix = single_input(nn.Bilinear(2, 3, 1), two)
        >>> rows.tolist(), prefix
        ([0, 1, 2, 3], 'module.')
    """
    if isinstance(inputs, Tensor):
        return model, inputs, ""
    if not isinstance(inputs, Mapping | tuple | list) or not inputs:
        raise ValueError(
            f"inputs: got {type(inputs).__name__}, expected a tensor, or tensors in a tuple or dict"
        )
    tensors = list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.ndim == 0:
            raise ValueError(
                f"inputs: got {tensor!r} among them, expected tensors of shape (B, ...)"
            )
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"inputs: got {lengths} samples, expected as many in each")
    places = torch.arange(lengths[0], device=tensors[0].device)
    return Bundle(model, inputs), places, PREFIX
