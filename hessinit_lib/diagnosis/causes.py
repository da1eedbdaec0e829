"""What is wrong with a network, given what is out of bounds in its layers; what would fix it.

One bad layer makes others look bad. So causes are told from consequences: a weight that is
out of scale explains dead and saturated units, and all of these explain what signals and
gradients do over the depth of the network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn

from hessinit_lib.diagnosis.rules import (
    ACCUMULATED,
    FADED,
    RESIDUAL_SUMS,
    Finding,
    Sizes,
    Verdict,
    in_order,
    judge_all,
)
from hessinit_lib.diagnosis.signals import Pass, observe
from hessinit_lib.hessians.case import Case
from hessinit_lib.init import apply, hessian_

CauseKind = Literal[
    "scale",
    "recurrent",
    "detached",
    "dead",
    "saturated",
    "noise",
    "inputs",
    "targets",
    "softmax",
    "outputs",
    "residual",
    "depth",
    "nonfinite",
]

REDRAWN = ("scale", "dead", "saturated", "residual", "depth")
"""Kinds that another draw of the weights may mend."""

_LARGE_INPUTS, _LARGE_TARGETS, _LARGE_LOSS = 20.0, 100.0, 5.0
"""Root mean squares, and the loss over that of zero outputs: from here on faults."""


class Cause(NamedTuple):
    """Something that is wrong.

    Attributes:
        kind: see `hessinit_lib.diagnosis.report.Fault`.
        where: the weight, or the module of noise; "" for the whole network.
        verdict: "vanishing" or "exploding".
        reason: in words.
        remedy: what would fix it, in words.
    """

    kind: CauseKind
    where: str
    verdict: Verdict
    reason: str
    remedy: str


_BY_PRECEDENCE: tuple[tuple[CauseKind, ...], ...] = (
    ("scale",),
    ("nonfinite",),
    ("recurrent", "detached"),
    ("dead", "saturated"),
)


def causes(
    found: Pass,
    findings: Mapping[str, Sequence[Finding]],
    noise: Mapping[str, float],
    scheme: str,
) -> list[Cause]:
    """Name what is wrong with a network, without what follows from it.

    Args:
        found: what a forward and backward pass showed.
        findings: what is out of bounds in each layer, by the name of its weight.
        noise: modules of noise that change the mean of their inputs, and by what factor.
        scheme: the remedy to name, see `working_scheme`.
    """
    named = [_noise(where, factor) for where, factor in noise.items()]
    named += _of_the_batch(found)
    if any(cause.kind == "nonfinite" for cause in named):
        return named
    for kinds in _BY_PRECEDENCE:
        here = [
            Cause(kind, name, finding.verdict, finding.reason, _remedy(kind, scheme))
            for name, listed in findings.items()
            for finding in listed
            for kind in kinds
            if finding.kind == kind
        ]
        if here:
            return named + here
    return (named + _through_depth(found, findings, scheme)) or _of_the_outputs(found)


def fitting_scheme(found: Pass) -> str:
    """Name the scheme that fits the activations: He's for ReLU and the like, else LeCun's."""
    kinds = [signal.activation.kind for signal in found.signals if signal.activation is not None]
    bounded = sum(kind in ("tanh", "sigmoid") for kind in kinds)
    return "he" if kinds and 2 * bounded < len(kinds) else "lecun"


def working_scheme(case: Case, fitting: str) -> str:
    """Find the simplest scheme after which nothing is wrong, tried on copies of the model.

    The usual scheme that fits the activations is tried first, then `hessian_`: in deep
    networks of narrow layers or smooth activations, only the latter may keep the signals.

    Args:
        case: a model, which is left as it is, its loss and a batch.
        fitting: the usual scheme, see `hessinit_lib.init.apply`.

    Returns:
        The scheme that was given, or `"hessian_"`, or "" if neither works.

    Example:
        >>> layers = [layer for _ in range(60) for layer in (nn.Linear(8, 8), nn.GELU())]
        >>> model = nn.Sequential(*layers, nn.Linear(8, 2))
        >>> x, y = torch.randn(16, 8), torch.arange(16) % 2
        >>> working_scheme(Case(model, nn.CrossEntropyLoss(), x, y), "he")
        'hessian_'
    """
    schemes: dict[str, Callable[[nn.Module, torch.Generator], object]] = {
        fitting: lambda tried, source: apply(tried, fitting, generator=source),
        "hessian_": lambda tried, source: hessian_(tried, *case[1:], generator=source),
    }
    for name, initialize in schemes.items():
        try:
            tried = copy.deepcopy(case.model)
            initialize(tried, torch.Generator().manual_seed(0))
        except (RuntimeError, ValueError):  # a network that cannot be copied, or not treated
            continue
        found = observe(case._replace(model=tried))
        if not causes(found, judge_all(found), {}, fitting):
            return name
    return ""


def _of_the_batch(found: Pass) -> list[Cause]:
    """Name what is wrong with the inputs, the targets, or how the loss takes the outputs."""
    called = in_order(found)
    named = []
    if not math.isfinite(found.loss):
        reason = f"the loss is {found.loss:g}"
        remedy = "look for what is not finite in inputs, weights and targets"
        named.append(Cause("nonfinite", "", "exploding", reason, remedy))
    if called and called[0].inputs.rms > _LARGE_INPUTS:
        reason = f"the inputs have a root mean square of {called[0].inputs.rms:.2g}"
        remedy = "normalize the inputs to mean 0 and deviation 1"
        named.append(Cause("inputs", "", "exploding", reason, remedy))
    if found.alike:
        reason, remedy = "all samples of the inputs are the same", "look at how inputs are read"
        named.append(Cause("inputs", "", "vanishing", reason, remedy))
    if found.targets.rms > _LARGE_TARGETS:
        reason = f"the targets have a root mean square of {found.targets.rms:.2g}"
        remedy = "normalize the targets"
        named.append(Cause("targets", "", "exploding", reason, remedy))
    if found.softmax:
        reason = "the outputs are probabilities, and the cross-entropy takes a softmax again"
        named.append(Cause("softmax", "", "vanishing", reason, "give the logits to the loss"))
    return named


def _of_the_outputs(found: Pass) -> list[Cause]:
    """Say what is wrong with the outputs where nothing else explains it."""
    called = in_order(found)
    if found.constant and called and called[-1].gain > 0:
        reason, remedy = "the outputs are the same for all samples", "look for scales of zero"
        return [Cause("outputs", "", "vanishing", reason, remedy)]
    if not (found.loss > _LARGE_LOSS * found.zero_loss > 0 and math.isnan(found.targets.rms)):
        return []
    reason = f"the loss is {found.loss:.3g}, that of outputs of zero {found.zero_loss:.3g}"
    remedy = "scale the last layer's weights and biases down"
    return [Cause("outputs", called[-1].name if called else "", "exploding", reason, remedy)]


_REMEDIES = {
    "recurrent": "draw it by torch.nn.init.orthogonal_",
    "detached": "look for detach(), no_grad() or numbers taken out of tensors on the way",
    "nonfinite": "look at what was loaded or drawn",
}


def _remedy(kind: CauseKind, scheme: str) -> str:
    if kind in _REMEDIES:
        return _REMEDIES[kind]
    if not scheme and kind == "scale":
        return "scale it to a gain of about 1, as torch.nn.init.xavier_uniform_ does (not tried)"
    if not scheme:
        return "draw the weights and biases before it anew (no scheme that was tried does)"
    if kind == "dead":
        return f"set the biases before it to zero and draw its weights by {scheme!r}"
    return f"draw its weights by {scheme!r}"


def _noise(where: str, factor: float) -> Cause:
    verdict = "vanishing" if factor < 1 else "exploding"
    reason = f"in training it multiplies its inputs by {factor:.2f} on average, in evaluation by 1"
    return Cause("noise", where, verdict, reason, "divide its output by the share that it keeps")


def _through_depth(
    found: Pass, findings: Mapping[str, Sequence[Finding]], scheme: str
) -> list[Cause]:
    """Judge the depth as a whole, where no layer is to blame by itself."""
    sizes = Sizes.of(found)
    worst: list[tuple[float, str, str]] = []
    if sizes.signal > 0 and math.isfinite(found.outputs.rms):
        for name, rms in [(s.name, s.inputs.rms) for s in in_order(found)] + [
            ("the outputs", found.outputs.rms)
        ]:
            worst.append((sizes.forward(rms) / sizes.signal, "signals", name))
    if len(found.sums) >= RESIDUAL_SUMS and found.sums[0][0] > 0:
        growth = found.sums[-1][1] / found.sums[0][0]
        worst.append((growth, "signals", "the last residual sum"))
    if sizes.gradient > 0:
        worst += [
            (sizes.backward(signal) / sizes.gradient, "gradients", signal.name)
            for signal in in_order(found)
        ]
    far = [entry for entry in worst if entry[0] > ACCUMULATED or entry[0] < 1 / FADED]
    if not far:
        return []
    ratio, what, name = max(far, key=lambda entry: _factor(entry[0]))
    verdict = "exploding" if ratio > 1 else "vanishing"
    residual = verdict == "exploding" and len(found.sums) >= RESIDUAL_SUMS
    reason = f"{what} change by {ratio:.1e} over the depth of the network, at {name}"
    if residual:
        reason += f"; {len(found.sums)} residual sums add up"
        remedy = (
            f"scale the ends of the branches by 1/sqrt({len(found.sums)}), or start them at zero"
        )
        return [Cause("residual", "", verdict, reason, remedy)]
    return [Cause("depth", "", verdict, reason, _remedy_of_all(scheme))]


def _remedy_of_all(scheme: str) -> str:
    if scheme == "hessian_":
        return "initialize the network by hessinit_lib.init.hessian_"
    if not scheme:
        return "no start that was tried mends it; put normalization or residual sums between"
    return f"draw all weights by {scheme!r}"


def _factor(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf
