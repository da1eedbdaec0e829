"""ZerO: weights of zeros and ones, by identities and Hadamard matrices."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy.linalg import hadamard
from torch import Tensor, nn

from hessinit_lib.hessians.functional import unwrapped
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.init.forward_graph import forward_graph, residual_branches
from hessinit_lib.init.layers import restored_on_failure, weight_layers


def identity_or_hadamard(fan_out: int, fan_in: int) -> Float[Tensor, "out in"]:
    r"""Make the matrix of a layer: a partial identity, or if it widens a Hadamard transform.

    $2^{-m/2} \, I H_m I$ with $2^m \ge$ `fan_out` between partial identities, so that rows are
    not all zero beyond the first `fan_in`.

    Example:
        >>> identity_or_hadamard(2, 3).tolist(), identity_or_hadamard(2, 1).tolist()
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.7071067690849304], [0.7071067690849304]])
    """
    if fan_out <= fan_in:
        return torch.eye(fan_out, fan_in)
    power = math.ceil(math.log2(fan_out))
    whole = torch.from_numpy(hadamard(2**power)).float() / 2 ** (power / 2)
    return whole[:fan_out, :fan_in].clone()


@entry
def zero_(model: nn.Module, inputs: Inputs) -> None:
    """Initialize a network by zeros and ones, in place: nothing is drawn.

    Of a convolution's kernel only the middle is not zero. The last layer of each residual branch
    is zero, so that blocks start as identities; biases are zero.

    Args:
        model: of Linear layers and convolutions.
        inputs: a few samples: the branches are read from a forward pass.

    Raises:
        NotImplementedError: a weight of a kind of module that is not covered, or batch
            normalization in training mode.

    Source: Zhao, Schäfer and Anandkumar, "ZerO initialization", TMLR 2022, arXiv 2110.12661,
        algorithm 1 and, for residual branches, its first version.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> zero_(model, torch.ones(4, 3))
        >>> model(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[1.0, 2.0]]
    """
    model = unwrapped(model)
    with restored_on_failure(model, None):
        layers = {layer.name: layer for layer in weight_layers(model)}
        with torch.no_grad():
            for layer in layers.values():
                weight = layer.weight
                middle = tuple(size // 2 for size in weight.shape[2:])
                weight.zero_()
                weight[(..., *middle)] = identity_or_hadamard(*weight.shape[:2]).to(weight)
                if layer.bias is not None:
                    layer.bias.zero_()
            for branch in residual_branches(forward_graph(model, inputs)):
                layers[branch[-1]].weight.zero_()
