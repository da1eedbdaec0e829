"""Kinds of layers that are covered, and their fans."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COVERED = (nn.Linear, nn.Embedding, *CONVOLUTIONS, *TRANSPOSED)
"""Layers whose weights are measured and initialized; of exactly these types."""


def fans(layer: nn.Module) -> tuple[int, int]:
    """Count the inputs that an output sums, and the outputs that an input reaches.

    In a convolution a fan counts kernel positions and is that of a group. An Embedding reads
    one row at a time, a one-hot input: its fan_in is 1.

    Args:
        layer: of a type in `COVERED`.

    Returns:
        fan_in, fan_out.

    Example:
        >>> fans(nn.Linear(5, 3)), fans(nn.Conv2d(4, 6, 3, groups=2)), fans(nn.Embedding(100, 8))
        ((5, 3), (18, 27), (1, 8))
    """
    if isinstance(layer, nn.Embedding):
        return 1, layer.embedding_dim
    weight = layer.get_parameter("weight")
    # As stored: each entry of the first axis meets all of the second, those of its group.
    first = weight.shape[0] * weight[0, 0].numel() // getattr(layer, "groups", 1)
    second = weight[0].numel()
    return (first, second) if isinstance(layer, TRANSPOSED) else (second, first)


def owned_parameters(
    modules: Iterable[tuple[str, nn.Module]],
) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Walk through the parameters of named modules; a tied one comes more than once.

    Example:
        >>> [name for name, _, _ in owned_parameters(nn.Linear(1, 1).named_modules())]
        ['weight', 'bias']
    """
    for path, module in modules:
        for key, parameter in module.named_parameters(recurse=False):
            yield f"{path}.{key}" if path else key, module, parameter


def covered_weights(
    model: nn.Module, chosen: Collection[str] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Walk through the trainable weights and the modules that own them, in model order.

    Parameters with fewer than two axes (biases, the gains of normalization layers) and frozen
    ones are passed over, and all but the chosen ones, if any are; a tied weight comes more than
    once.

    Raises:
        NotImplementedError: a weight of another kind of module; the message names it.

    Example:
        >>> [name for name, _ in covered_weights(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))]
        ['0.weight']
    """
    for name, module, parameter in owned_parameters(model.named_modules()):
        if not parameter.requires_grad or parameter.ndim < 2:
            continue
        if chosen is not None and name not in chosen:
            continue
        # A subclass may compute anything, so the exact type decides.
        if type(module) not in COVERED or name.rpartition(".")[2] != "weight":
            raise NotImplementedError(
                f"{name} belongs to a {type(module).__name__}: expected weights of "
                f"{', '.join(kind.__name__ for kind in COVERED)}; "
                "requires_grad_(False) leaves a parameter out"
            )
        yield name, module
