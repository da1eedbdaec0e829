"""How much memory the fully connected route takes, and the size of its pieces under a bound."""

from __future__ import annotations

from hessinit_lib.hessians.chain.network import LinearStage, Stage
from hessinit_lib.hessians.losses import LossCurvature
from hessinit_lib.hessians.options import Options

# Entries of what is made in pieces: as many as stay near the cores.
_PIECE = 1 << 21

# Lanczos vectors for which room is left.
_STEPS = 30


def piece_size(stages: list[Stage], loss: LossCurvature, options: Options, *, dense: bool) -> int:
    """Give the entries that tensors made in pieces may have.

    Args:
        stages: the network.
        loss: factor at the logits.
        options: `max_memory`, norms and parts.
        dense: whether residuals are dense matrices, (B, n, n).

    Raises:
        ValueError: `max_memory` is less than what cannot be made in pieces.
    """
    limit = options.max_memory
    if limit is None:
        return _PIECE
    linear = [stage for stage in stages if isinstance(stage, LinearStage)]
    batch, rank, _ = loss.factor.shape
    widest = max(max(stage.weight.shape) for stage in linear[1:]) if linear[1:] else 0
    outputs = loss.factor.shape[2]
    # Factors above and below a layer, and the copy that its products are made of.
    entries = 3 * batch * rank * max(widest, outputs)
    # The Gram matrix of the inputs, its squares, sums over pairs of samples.
    entries += 4 * batch**2
    if dense:
        entries += 4 * batch * widest**2
    if options.spectral:
        chains = 1 if not (dense and options.parts) else 3
        vectors = [stage.weight.shape[0] * min(batch, stage.weight.shape[1]) for stage in linear]
        entries += _STEPS * (chains * max(vectors) if dense else batch * rank)
        entries += max(stage.inputs.numel() for stage in linear)
    size = loss.factor.element_size()
    # Pieces of at least a sixteenth of the rows: many small ones are slow.
    least = size * (entries + 4 * batch * max(widest, outputs) * (-(-widest // 16) if dense else 1))
    if limit < least:
        raise ValueError(f"max_memory={limit}: at least {least} bytes are needed")
    return min(_PIECE, (limit - size * entries) // (4 * size))
