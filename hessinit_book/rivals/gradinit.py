"""GradInit: scales of the parameters by descent on the loss after one step."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hessinit_book.rivals.descent import Batches, Inputs, LossFn, Lowest, ParameterLoss
from hessinit_lib.hessians.functional import unwrapped
from hessinit_lib.hessians.inputs import mapped, tensors_of
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.init.layers import restored_on_failure


@entry
def gradinit_(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Batches,
    *,
    step_size: float = 0.1,
    bound: float = 1.0,
    rate: float = 1e-2,
    least: float = 0.01,
    adaptive: bool = False,
    patience: int | None = None,
) -> list[float]:
    r"""Learn a scale for each parameter such that the first training step helps most, in place.

    With scaled parameters $\theta_m$ and their gradient g on a batch S,

    $$\min_m L_{\tilde S}(\theta_m - \eta A[g]) \quad \text{subject to} \quad \|g\|_p \le \gamma ,$$

    A the identity and p = 2 for SGD, the sign and p = 1 for Adam. Each iteration is a step
    of Adam in the scales m: down the norm $\|g\|_p$ where it exceeds the bound, else down the
    loss after the step. Half of the batch $\tilde S$ is new. As in the authors' code, g
    itself is held constant in that loss.

    Args:
        model: initialized, by He's scheme say.
        loss_fn: function of (outputs, targets).
        batches: two or more; one for each iteration, which takes half of the next one, too.
        step_size: $\eta$, of the step that is looked ahead.
        bound: $\gamma$.
        rate: of Adam, for the scales.
        least: scales of weights do not fall below it; those of vectors not below 0.
        adaptive: whether the model will be trained by Adam and not by SGD.
        patience: iterations without a new lowest loss after the step, averaged over `WINDOW`,
            after which it stops and goes back to that; None to take all iterations and keep the
            last, as in the paper.

    Returns:
        The gradient's norm before each iteration.

    Raises:
        ValueError: no batches.

    Source: Zhu and others, "GradInit: Learning to initialize neural networks for stable and
        efficient training", NeurIPS 2021, algorithm 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x, y = torch.randn(16, 4, generator=generator), torch.arange(16) % 3
        >>> len(gradinit_(model, nn.CrossEntropyLoss(), [(x, y)] * 4))
        3
    """
    model = unwrapped(model)
    loss = ParameterLoss(model, loss_fn)
    scales = {name: value.new_ones((), requires_grad=True) for name, value in loss.start.items()}
    lower = {name: least if value.ndim > 1 else 0.0 for name, value in loss.start.items()}
    adam = torch.optim.Adam(scales.values(), lr=rate)
    norms, ahead_losses, best = [], [], Lowest(scales, patience)
    for (inputs, targets), following in pairwise(batches):
        scaled = {name: scales[name] * value for name, value in loss.start.items()}
        value = loss(scaled, inputs, targets)
        gradients = torch.autograd.grad(
            value, list(scaled.values()), create_graph=True, materialize_grads=True
        )
        norm = _norm(gradients, adaptive)
        norms.append(norm.item())
        if norm > bound:
            objective = norm
        else:
            ahead = {
                name: scaled[name] - step_size * (g.sign() if adaptive else g).detach()
                for name, g in zip(scaled, gradients, strict=True)
            }
            objective = loss(ahead, *_half_new((inputs, targets), following)) / step_size
            ahead_losses.append(objective.item() * step_size)
            if best.seen(ahead_losses):
                break
        slopes = torch.autograd.grad(objective, list(scales.values()), materialize_grads=True)
        for scale, slope in zip(scales.values(), slopes, strict=True):
            scale.grad = slope
        adam.step()
        with torch.no_grad():
            for name, scale in scales.items():
                scale.clamp_(min=lower[name])
    if not norms:
        raise ValueError("fewer than two batches: expected one more than there are iterations")
    with restored_on_failure(model, None), torch.no_grad():
        kept = best.values if patience is not None and ahead_losses else scales
        for name, scale in kept.items():
            model.get_parameter(name).mul_(scale)
    return norms


def _norm(gradients: tuple[Tensor, ...], adaptive: bool) -> Tensor:
    parts = torch.stack([g.abs().sum() if adaptive else g.square().sum() for g in gradients])
    return parts.sum() if adaptive else parts.sum().sqrt()


def _half_new(old: tuple[Inputs, Tensor], new: tuple[Inputs, Tensor]) -> tuple[Inputs, Tensor]:
    """Put half of one batch and half of another together."""

    def join(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a[: len(a) // 2], b[len(b) // 2 :]))

    targets = join(old[1], new[1])
    others = iter(tensors_of(new[0]))
    return mapped(old[0], lambda a: join(a, next(others))), targets
