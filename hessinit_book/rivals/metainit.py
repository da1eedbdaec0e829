"""MetaInit: norms of the weights by descent on the gradient quotient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hessinit_book.rivals.descent import Batches, LossFn, Lowest, ParameterLoss
from hessinit_lib.errors import first_line
from hessinit_lib.hessians.functional import unwrapped
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.init.layers import restored_on_failure


def gradient_quotient(loss: Tensor, parameters: Mapping[str, Tensor], eps: float = 1e-5) -> Tensor:
    r"""Compute how much a gradient step changes the gradient, by the curvature.

    $$GQ = \frac1P \Bigl\lVert \frac{g - H g}{g + \epsilon} - 1 \Bigr\rVert_1 ,$$

    with $\epsilon$ taken with the sign of the entry of $g$.

    Args:
        loss: with its graph.
        parameters: P numbers in all, leaves of the graph.
        eps: keeps the quotient finite.

    Returns:
        The quotient, differentiable.

    Source: Dauphin and Schoenholz, "MetaInit", NeurIPS 2019, equation 1.

    Example:
        >>> w = torch.tensor([2.0, -1.0], requires_grad=True)
        >>> round(gradient_quotient(0.3 * w.square().sum(), {"w": w}).item(), 4)  # H = 0.6 I
        0.6
    """
    leaves = list(parameters.values())
    gradients = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    half = sum(g.square().sum() for g in gradients) / 2
    assert isinstance(half, Tensor)
    products = torch.autograd.grad(half, leaves, create_graph=True, materialize_grads=True)
    total = loss.new_zeros(())
    for g, hg in zip(gradients, products, strict=True):
        signed = eps * torch.where(g >= 0, 1.0, -1.0)
        total = total + ((g - hg) / (g + signed) - 1).abs().sum()
    return total / sum(leaf.numel() for leaf in leaves)


@entry
def metainit_(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Batches,
    *,
    rate: float = 0.1,
    momentum: float = 0.9,
    eps: float = 1e-5,
    patience: int | None = None,
) -> list[float]:
    r"""Descend on the gradient quotient in the norm of each weight, by its sign, in place.

    Directions are kept. Each step moves every norm by `rate` down the sign of its
    derivative $\langle W, D_W GQ \rangle / \|W\|$, with momentum. The paper takes 500 steps
    on standard normal inputs with random labels.

    Args:
        model: initialized, by He's scheme say; biases and gains of normalization layers are
            in the quotient and stay as they are.
        loss_fn: function of (outputs, targets).
        batches: one for each step.
        rate: change of a norm in a step.
        momentum: share of the last change that is added.
        eps: see `gradient_quotient`.
        patience: steps without a new lowest quotient, averaged over `WINDOW`, after which it
            stops and goes back to that; None to take all steps and keep the last, as in the paper.

    Returns:
        The gradient quotient before each step.

    Source: Dauphin and Schoenholz, "MetaInit: Initializing learning by learning to
        initialize", NeurIPS 2019, with the constants of its appendix.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> x, y = torch.randn(16, 4, generator=generator), torch.arange(16) % 3
        >>> quotients = metainit_(model, nn.CrossEntropyLoss(), [(x, y)] * 3)
        >>> len(quotients)
        3
    """
    model = unwrapped(model)
    loss = ParameterLoss(model, loss_fn)
    parameters = {name: value.clone().requires_grad_() for name, value in loss.start.items()}
    weights = {name: value for name, value in parameters.items() if value.ndim > 1}
    speed = dict.fromkeys(weights, 0.0)
    quotients, best = [], Lowest(weights, patience)
    for inputs, targets in batches:
        value = loss(parameters, inputs, targets)
        try:
            quotient = gradient_quotient(value, parameters, eps)
            slopes = torch.autograd.grad(quotient, list(weights.values()), materialize_grads=True)
        except RuntimeError as error:
            raise NotImplementedError(
                f"the gradient quotient takes three derivatives: {first_line(error)}"
            ) from error
        quotients.append(quotient.item())
        if best.seen(quotients):
            break
        with torch.no_grad():
            for (name, weight), slope in zip(weights.items(), slopes, strict=True):
                norm = weight.norm().item()
                if norm == 0:
                    continue
                sign = torch.sign((weight * slope).sum()).item()
                speed[name] = momentum * speed[name] - rate * sign
                weight.mul_((norm + speed[name]) / norm)
    with restored_on_failure(model, None), torch.no_grad():
        for name, weight in (weights if patience is None else best.values).items():
            model.get_parameter(name).copy_(weight)
    return quotients
