"""Statement 12 on a vision transformer so small that all signs can be tried."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessinit_book.chapters.modern_linearization.networks import Vit
from hessinit_book.randomness import generator
from hessinit_book.statistics.rounding import rounded
from hessinit_book.theory.two_passes import pair_moments

_OUTPUTS = 4  # of ten, so that there are 2^8 choices of signs for two samples
_WEIGHTS = ("patches.weight", "blocks.0.self_attn.in_proj_weight", "blocks.0.linear1.weight")


def checks(seed: int, images: Float[Tensor, "2 3 32 32"]) -> dict[str, dict[str, Any]]:
    """Compare means and variances over all signs with the statement's, in float64.

    The gradients are those of backward passes; the formulas are given dense Jacobians.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "checked weights").initial_seed())
        model = Vit(4, 1).double()
    for weight in model.parameters():  # away from the start, where all but the head is small
        weight.data *= 20 if weight.ndim > 1 else 1
    x = images.double()
    means, variances, bounds = [], [], []
    for name in _WEIGHTS:
        factors, roots = _factors(model, name, x)
        moments = pair_moments(factors, len(x))
        signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2 * _OUTPUTS)))
        gradients = _passes(model, name, x, roots, signs.double())
        sketches = torch.einsum("sbi,sbj->sij", gradients, gradients).flatten(1) / len(x)
        pairs = sketches @ sketches.T  # for each choice in both passes
        traces = gradients.square().sum((1, 2)) / len(x)
        square, trace = moments.square, moments.trace
        means += [abs(float(pairs.mean()) / square - 1), abs(float(traces.mean()) / trace - 1)]
        variances += [
            abs(float(pairs.var(correction=0)) - moments.variance()) / square**2,
            abs(float(traces.var(correction=0)) - moments.trace_variance) / trace**2,
        ]
        most = 8 * float(moments.shares.square().sum()) * square**2
        bounds.append(moments.variance() / most)
    return {
        f"statement_12{key}": {"what": what, "value": rounded(max(errors)), "allowed": allowed}
        for key, what, errors, allowed in (
            ("", "means over all signs against dense blocks", means, 1e-12),
            ("_variance", "variances over all signs against the formulas", variances, 1e-12),
            ("_bound", "variance of a pair over its bound by shares", bounds, 1.0),
        )
    }


def _outputs(model: Vit, name: str, weight: Tensor, x: Tensor) -> Tensor:
    values = {key: value.detach() for key, value in model.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):  # its derivatives can be taken for many vectors at once
        return functional_call(model, {**values, name: weight}, (x,))[:, :_OUTPUTS]


def _factors(model: Vit, name: str, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Give each sample's Jacobian times the root of its softmax curvature, and the roots."""
    weight = model.get_parameter(name).detach()
    p = _outputs(model, name, weight, x).softmax(1)
    roots = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]
    jacobians = jacrev(lambda w: _outputs(model, name, w, x))(weight).flatten(2)
    return [j.T @ root for j, root in zip(jacobians, roots, strict=True)], roots


def _passes(
    model: Vit, name: str, x: Tensor, roots: Tensor, signs: Float[Tensor, "s r"]
) -> Float[Tensor, "s b m"]:
    """Give the gradient of each sample by a backward pass, for every choice of signs."""
    weight = model.get_parameter(name).detach().requires_grad_()
    vectors = torch.einsum("bij,sbj->sbi", roots, signs.view(len(signs), len(x), -1))
    found = []
    for b in range(len(x)):
        (outputs,) = _outputs(model, name, weight, x[b : b + 1])
        (gradients,) = torch.autograd.grad(outputs, weight, vectors[:, b], is_grads_batched=True)
        found.append(gradients.flatten(1))
    return torch.stack(found, 1)
