"""`diagnose`: what is wrong with a network's initialization, and what would fix it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from hessinit_lib.diagnosis.causes import causes
from hessinit_lib.diagnosis.curvature import layer_curvatures, model_curvature
from hessinit_lib.diagnosis.layer import LayerDiagnosis
from hessinit_lib.diagnosis.noise import biased_noise
from hessinit_lib.diagnosis.rate import STEPS, Trial, optimizer_maker, try_halves
from hessinit_lib.diagnosis.remedies import advised, forgetting
from hessinit_lib.diagnosis.report import Diagnosis, Fault
from hessinit_lib.diagnosis.rules import Finding, judge_all
from hessinit_lib.diagnosis.signals import Pass, Signal, observe
from hessinit_lib.errors import first_line
from hessinit_lib.hessians.case import Case, what_is_not_finite
from hessinit_lib.hessians.estimate.hessians import estimated_hessians, model_hessian
from hessinit_lib.hessians.functional import FROZEN, by_batch_statistics
from hessinit_lib.hessians.ggn.hessians import Known
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.layers import exact_or_ggn, layer_hessians
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.hessians.options import Options
from hessinit_lib.hessians.report import HessianReport
from hessinit_lib.theory.steps import best_rate

CURVATURES = ("auto", "all", "layers", "ggn", "none")

_BUDGET = 4.0  # training steps for Gauss-Newton norms


@entry
def diagnose(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Inputs,
    targets: Tensor,
    *,
    curvature: str = "auto",
    tolerance: float = 0.1,
    generator: torch.Generator | None = None,
    max_memory: int | None = None,
    optimizer: Optimizer | Callable[..., Optimizer] | str | None = None,
    lr: float | None = None,
) -> Diagnosis:
    r"""Look at a network before training: is it well initialized, and if not, what is wrong?

    Each layer is judged vanishing, balanced or exploding by the rules of
    `hessinit_lib.diagnosis.rules`: the gain of its weights, dead and saturated units, and
    what becomes of signals and gradients on the way to it, all against a well-scaled network.
    Faults are what is left when consequences are told from causes.

    Noise such as dropout is off while norms are computed, and looked at by itself: its mean
    in training must be what evaluation does. Batch normalization stays in its mode. The
    model, its gradients, buffers and mode and the global random state are left as found.
    Computed on the model's device, in float64 if parameters are float64, else in float32.

    Args:
        model: any module with one tensor of outputs, on the device of the inputs.
        loss_fn: a scalar function of (outputs, targets).
        inputs: a batch, shape (B, ...), of a few dozen samples; or several tensors in a
            tuple, or in a dict by keyword.
        targets: shape (B, ...), what the loss takes.
        curvature: what to compute of second order: "layers" (their Hessian norms and
            predicted gains), "all" (also the largest eigenvalue of the Hessian of all
            weights, for the learning rates: most of the time on convolutional networks, and
            20 training steps for each rate that is tried), "ggn" (norms and gains by the
            Gauss-Newton blocks alone: some 5 training steps on any network), or "none"; "auto"
            is "all" for networks of up to a million parameters with an exact route, and "ggn"
            for all others. Verdicts and faults do not depend on it.
        tolerance: relative standard error allowed for norms that must be estimated, and
            error of the largest eigenvalue.
        generator: for the random numbers of estimates; the same at each call if None.
        max_memory: bytes for what is of second order, see `hessinit_lib.layer_hessians`.
        optimizer: one over the model's parameters, a class such as `torch.optim.Adam` (or a
            `functools.partial` of it), or its name: is its rate too high? One of its kind
            takes 20 steps on a copy, on this batch, without noise; as long as the loss grows,
            again at half the rate, 12 times at most.
        lr: is this rate too high? In place of the optimizer's; of plain SGD if there is none.

    Returns:
        Numbers of each layer, faults and learning rates: `print` it, show it in a notebook,
        `.plot()` it, or keep its `.to_json()`.

    Raises:
        ValueError: no trainable weight, batches that do not fit, outputs that are not one
            tensor, a loss that is not one number, an option that is not allowed, an optimizer
            that is over other parameters, or needs a closure.

    Source: arXiv 2004.09506 for the principle of controlling Hessian norms; the rules are
        this library's own.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 3))
        >>> x = torch.randn(32, 20, generator=generator)
        >>> y = torch.randint(3, (32,), generator=generator)
        >>> diagnose(model, nn.CrossEntropyLoss(), x, y).verdict
        'balanced'
        >>> diagnose(model, nn.CrossEntropyLoss(), x, y, optimizer="adam", lr=3.0).faults[0].kind
        'rate'
        >>> with torch.no_grad():
        ...     _ = model[0].weight.mul_(100)
        >>> [fault.where for fault in diagnose(model, nn.CrossEntropyLoss(), x, y).faults]
        ['0.weight']
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature={curvature!r}: expected one of {', '.join(CURVATURES)}")
    chosen = {"tolerance": tolerance, "generator": generator, "max_memory": max_memory}
    options = Options(norms=("frobenius",), parts=False, **chosen)
    case = Case.checked(model, loss_fn, inputs, targets)
    make = optimizer_maker(case, optimizer, lr)
    asked = optimizer is not None or lr is not None
    with without_noise(case.model, inputs):
        found = observe(case)
        tried = try_halves(case, make) if asked and math.isfinite(found.loss) else []
        findings = judge_all(found)
        curved = _Curvature.of(case, found, options, curvature)
        noise = {} if math.isnan(found.loss) else biased_noise(case.model, inputs)
        faults, scheme = advised(case, found, causes(found, findings, noise))
        kept = forgetting(case, found)
    faults += _rate_faults(tried)
    notes = [*curved.notes, *_mode_notes(case.model), *kept]
    if not (math.isfinite(found.loss) and math.isfinite(found.outputs.rms)):
        notes.insert(0, f"no curvature: {what_is_not_finite(case)}")
    return Diagnosis(
        layers=tuple(_layer(s, findings[s.name], curved) for s in found.signals),
        faults=tuple(faults),
        loss=found.loss,
        samples=case.samples,
        largest_eigenvalue=curved.eigenvalue,
        largest_stable_rate=2 / curved.eigenvalue if curved.eigenvalue else math.inf,
        suggested_rate=curved.suggested_rate,
        scheme=scheme,
        notes=tuple(notes),
        trials=(*curved.trials, *tried),
        curvature=curved.norms.curvature,
    )


@dataclass(frozen=True)
class _Curvature:
    """Everything of second order; NaN where there is none."""

    norms: HessianReport
    along_gradients: dict[str, float]
    eigenvalue: float
    suggested_rate: float
    trials: list[Trial]
    notes: list[str]

    @classmethod
    def of(cls, case: Case, found: Pass, options: Options, curvature: str) -> _Curvature:
        """Compute it; a function without a second derivative is noted, and no error."""
        none = cls(HessianReport([]), {}, math.nan, math.nan, [], [])
        finite = math.isfinite(found.loss) and math.isfinite(found.outputs.rms)
        if curvature == "none" or not finite:
            return none
        gradients = found.gradients
        try:
            norms = _norms(case, found, options, curvature)
            if norms.curvature == "ggn":
                notes = [*filter(None, [_GAUSS_NEWTON, norms.why_estimated])]
                return cls(norms, dict(norms.along), math.nan, math.nan, [], notes)
            along = layer_curvatures(case, gradients, options.max_memory)
            eigenvalue = rate = math.nan
            if curvature != "layers":
                spectral = {**vars(options), "norms": ("spectral",)}
                eigenvalue = model_hessian(*case[:4], **spectral).spectral
                square = sum(g.double().square().sum().item() for g in gradients.values())
                best = best_rate(square, model_curvature(case, gradients, options.max_memory))
                rate = min(best, 1 / eigenvalue) if eigenvalue > 0 else best
        except RuntimeError as error:
            if not isinstance(error, NotImplementedError) and "derivative" not in str(error):
                raise
            none.notes.append(f"no curvature: {first_line(error)}")
            return none
        why = norms.why_estimated
        notes = [f"Hessian norms are estimated: {why}"] if why else []
        trials: list[Trial] = []
        if 0 < rate < math.inf:
            trials = try_halves(case, optimizer_maker(case, None, rate))
        rate = trials[-1].rate if trials and trials[-1].falls else math.nan
        return cls(norms, along, eigenvalue, rate, trials, notes)


_GAUSS_NEWTON = (
    "norms and gains are of Gauss-Newton blocks, estimated, which leave out the curvature of the "
    'network itself; curvature="all" gives those of the Hessian, and learning rates'
)


def _norms(case: Case, found: Pass, options: Options, curvature: str) -> HessianReport:
    """Compute the norms of the layers' Hessians, or of their Gauss-Newton blocks alone."""
    if curvature in ("auto", "ggn"):
        ggn = replace(options, curvature="ggn", budget=_BUDGET)
        weights = {name: g for name, g in found.gradients.items() if name in case.weights}
        known = Known(exact=curvature == "auto" and found.output_axes == 2)
        with suppress(*[NotImplementedError] if curvature == "auto" else []):
            return exact_or_ggn(case, options, ggn, known, weights)
    if found.output_axes != 2:  # tokens, pixels: no exact route takes these
        why = f"outputs of {found.output_axes} axes"
        return estimated_hessians(case, options, why)
    return layer_hessians(*case[:4], **vars(options))


def _layer(signal: Signal, findings: list[Finding], curved: _Curvature) -> LayerDiagnosis:
    hessian = curved.norms.get(signal.name)
    along = curved.along_gradients.get(signal.name, math.nan)
    square = signal.gradient.norm**2
    gain = math.nan
    if not math.isnan(along):
        gain = 0.0 if square == 0 else square**2 / (2 * along) if along > 0 else math.inf
    activation = signal.activation
    return LayerDiagnosis(
        name=signal.name,
        shape=signal.shape,
        order=signal.order,
        gain=signal.gain,
        input_mean=signal.inputs.mean,
        input_std=signal.inputs.std,
        input_rms=signal.inputs.rms,
        input_zeros=signal.inputs.zeros,
        output_rms=signal.outputs.rms,
        dead=activation.dead if activation else 0.0,
        saturated=activation.flat if activation else 0.0,
        output_gradient=signal.output_gradients.norm,
        gradient_norm=signal.gradient.norm,
        gradient_mean=signal.gradient.mean,
        gradient_std=signal.gradient.std,
        gradient_zeros=signal.gradient.zeros,
        hessian_norm=hessian.frobenius if hessian else math.nan,
        hessian_error=hessian.stderr if hessian else math.nan,
        hessian_gain=gain,
        verdict=findings[0].verdict if findings else "balanced",
        reasons=tuple(finding.reason for finding in findings),
    )


def _rate_faults(trials: list[Trial]) -> list[Fault]:
    """Name a rate as too high if the loss grows, with the half of it that does not as remedy."""
    if not trials or not trials[0].grows:
        return []
    last = trials[-1]
    remedy = f"look at weights and batch first: no rate down to {last.rate:.2g} lowers the loss"
    if last.falls:
        remedy = f"lower it to {last.rate:.3g}: loss {last.losses[0]:.4g} to {last.end:.4g}"
    reason = f"the rate is too high: tried for {STEPS} steps on a copy, {trials[0]}"
    return [Fault("rate", "", "exploding", reason, remedy, last.falls)]


def _mode_notes(model: nn.Module) -> list[str]:
    """Say what the mode of batch normalization makes of the numbers."""
    batch_norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    notes = []
    if by_batch_statistics(batch_norms):
        notes.append(FROZEN)
    if any(
        not module.training
        and module.num_batches_tracked is not None
        and not module.num_batches_tracked.any()
        for module in batch_norms
    ):
        notes.append(
            "batch normalization is in evaluation mode, with running statistics that have seen "
            "no batch: training starts from another network; call model.train() first"
        )
    return notes
