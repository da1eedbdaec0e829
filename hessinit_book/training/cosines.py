"""How far apart the directions are in which a layer sends different samples."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ALIKE = 1e-9  # cosine distance below which float32 tells no samples apart


@torch.no_grad()
def cosine_distance(outputs: Float[Tensor, "b ..."]) -> float:
    r"""Compute one minus the mean cosine between the outputs of different samples.

    At the edge of chaos, signals of different samples neither grow alike (0) from layer to layer
    nor unlike. Outputs that are all zero have a direction of their own.

    Args:
        outputs: of a layer, for at least two samples.

    Source: the correlation that Poole et al. (2016) and Schoenholz et al. (2017) follow
    through the layers.

    Example:
        >>> cosine_distance(torch.eye(3)), cosine_distance(torch.ones(3, 2))
        (1.0, 0.0)
    """
    z = outputs.flatten(1).double()  # squares of small numbers are no zeros
    norms = z.norm(dim=1, keepdim=True)
    nothing = norms == 0
    directions = torch.cat([z / norms.where(~nothing, torch.ones_like(norms)), nothing], 1)
    # The mean of |u - v|^2 / 2 over pairs of unit vectors is their total variance.
    return directions.var(0).sum().item()
