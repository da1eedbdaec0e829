"""What is wrong with a network, given what is out of bounds in its layers.

One bad layer makes others look bad. So causes are told from consequences: a weight that is
out of scale explains dead and saturated units, and all of these explain what signals and
gradients do over the depth of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from hessinit_lib.diagnosis.rules import (
    ACCUMULATED,
    DEAD,
    FADED,
    RESIDUAL_SUMS,
    Finding,
    Sizes,
    Verdict,
    in_order,
)
from hessinit_lib.diagnosis.signals import Pass

CauseKind = Literal[
    "symmetric",
    "scale",
    "recurrent",
    "detached",
    "unregistered",
    "unused",
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
    "rate",
]

REDRAWN = ("symmetric", "scale", "dead", "saturated", "residual", "depth")
"""Kinds that another draw of the weights may mend."""

_LARGE_INPUTS, _LARGE_TARGETS, _LARGE_LOSS, _LARGE_SQUARE = 20.0, 100.0, 5.0, 100.0
"""Root mean squares, and the loss over that of zero outputs: from here on faults. A loss that
grows with the square of the outputs is the larger one where they are ten times too large."""

_SMALL_INPUTS = 0.01
"""The largest value from which down on all inputs are small."""

_BEYOND = 0.1
"""The share of targets that the outputs cannot reach."""

_ODD_FEATURE = 30.0
"""The same for one feature over the median of all."""


class Cause(NamedTuple):
    """Something that is wrong.

    Attributes:
        kind: see `hessinit_lib.diagnosis.report.Fault`.
        where: the weight, or the module of noise; "" for the whole network.
        verdict: "vanishing" or "exploding".
        reason: in words.
        remedy: what mends just this, if its kind does not tell.
    """

    kind: CauseKind
    where: str
    verdict: Verdict
    reason: str
    remedy: str = ""


_BY_PRECEDENCE: tuple[tuple[CauseKind, ...], ...] = (
    ("symmetric", "scale"),
    ("nonfinite",),
    ("recurrent", "detached"),
    ("dead", "saturated"),
)


def causes(
    found: Pass,
    findings: Mapping[str, Sequence[Finding]],
    noise: Mapping[str, float],
) -> list[Cause]:
    """Name what is wrong with a network, without what follows from it.

    Args:
        found: what a forward and backward pass showed.
        findings: what is out of bounds in each layer, by the name of its weight.
        noise: modules of noise that change the mean of their inputs, and by what factor.
    """
    named = [_noise(where, factor) for where, factor in noise.items()]
    named += _of_the_batch(found) + _unused(findings)
    if any(cause.kind == "nonfinite" for cause in named):
        return named
    dead = [
        f"{name.rpartition('.')[0]}.bias"
        for name, listed in findings.items()
        if any(finding.kind == "dead" for finding in listed)
    ]
    vectors = [
        Cause("scale", name, "exploding", f"its entries are of size {size:.3g}")
        for name, size in found.vectors.items()
        if name not in dead
    ]
    for kinds in _BY_PRECEDENCE:
        here = [
            Cause(kind, name, finding.verdict, finding.reason)
            for name, listed in findings.items()
            for finding in listed
            for kind in kinds
            if finding.kind == kind
        ] + [cause for cause in vectors if cause.kind in kinds]
        if here:
            return named + here
    return (named + _through_depth(found)) or _of_the_outputs(found)


def _of_the_batch(found: Pass) -> list[Cause]:
    """Name what is wrong with the inputs, the targets, or how the loss takes the outputs."""
    called, batch = in_order(found), found.batch
    named = []
    if not math.isfinite(found.loss):
        reason = f"the loss is {found.loss:g}"
        named.append(Cause("nonfinite", "", "exploding", reason))
    if batch.largest_input < _SMALL_INPUTS:
        reason = f"the largest of the inputs is {batch.largest_input:.2g}"
        named.append(Cause("inputs", "", "vanishing", reason))
    if called and _LARGE_INPUTS < called[0].inputs.rms < math.inf:
        reason = f"the inputs have a root mean square of {called[0].inputs.rms:.2g}"
        named.append(Cause("inputs", "", "exploding", reason))
    elif math.inf > batch.feature_rms > max(_LARGE_INPUTS, _ODD_FEATURE * batch.usual_rms):
        reason = f"feature {batch.feature} of the inputs has a root mean square of "
        reason += f"{batch.feature_rms:.2g}, their median is {batch.usual_rms:.2g}"
        named.append(Cause("inputs", "", "exploding", reason))
    if batch.alike:
        reason = "all samples of the inputs are the same"
        named.append(Cause("inputs", "", "vanishing", reason))
    if batch.targets.rms > _LARGE_TARGETS:
        reason = f"the targets have a root mean square of {batch.targets.rms:.2g}"
        named.append(Cause("targets", "", "exploding", reason))
    for name in found.crossed:
        reason = f"{name} belongs to a layer without batch_first, which mixes the samples: it "
        reason += "takes their axis for time"
        remedy = "give it batch_first=True, or inputs of shape (time, samples, features)"
        named.append(Cause("inputs", "", "vanishing", reason, remedy))
    if found.unregistered:
        shapes = ", ".join(map(str, found.unregistered))
        reason = (
            f"tensors of shapes {shapes} require gradients, but are not parameters of the model"
        )
        named.append(Cause("unregistered", "", "vanishing", reason))
    for name, p in found.dropped.items():
        named.append(
            Cause("noise", name, "vanishing", f"dropout of {p:.0%} of its inputs", "drop less")
        )
    for name in found.dropped_last:
        reason = "dropout of the outputs themselves"
        named.append(Cause("noise", name, "vanishing", reason, "drop nothing after the last layer"))
    if batch.beyond > _BEYOND:
        low, high = batch.bounds
        reason = f"the outputs are from {low:g} to {high:g}, "
        reason += f"and {batch.beyond:.0%} of the targets are not"
        remedy = "scale the targets into that range, or leave out the last activation"
        named.append(Cause("targets", "", "exploding", reason, remedy))
    if batch.one_class:
        remedy = "look at how batches are drawn"
        reason = "all targets are the same class"
        named.append(Cause("targets", "", "vanishing", reason, remedy))
    sigmoids = (s.head and s.activation and s.activation.kind == "sigmoid" for s in found.signals)
    if not batch.applied and batch.bounded and any(sigmoids):
        reason = "the outputs went through a sigmoid, and the loss takes a softmax of them"
        named.append(Cause("softmax", "", "vanishing", reason))
    # Of convolutions, an average comes next: so SqueezeNet ends.
    rectified = (
        len(s.shape) == 2 and s.activation.kind == "relu" and s.activation.dead <= DEAD
        for s in found.signals
        if s.head and s.activation
    )
    if batch.rectified and any(rectified):
        reason = f"the outputs went through a ReLU: {batch.rectified:.0%} of them are zero"
        named.append(Cause("softmax", "", "vanishing", reason))
    if batch.applied:
        reason = f"the outputs went through a {batch.applied}, and the loss expects them without"
        named.append(Cause("softmax", "", "vanishing", reason))
    return named


def _unused(findings: Mapping[str, Sequence[Finding]]) -> list[Cause]:
    """Name what is no part of the loss, all of it at once."""
    unused = [
        (name, finding)
        for name, listed in findings.items()
        for finding in listed
        if finding.kind == "unused"
    ]
    if not unused:
        return []
    name, finding = unused[0]
    others = f", and so are {', '.join(n for n, _ in unused[1:])}" if unused[1:] else ""
    return [Cause("unused", name, finding.verdict, finding.reason + others)]


def _of_the_outputs(found: Pass) -> list[Cause]:
    """Say what is wrong with the outputs where nothing else explains it."""
    called, batch = in_order(found), found.batch
    if batch.constant and called and called[-1].gain > 0:
        where = next(iter(found.waiting), "")
        reason = "the outputs are the same for all samples"
        reason += ", and it is zero" if where else ""
        return [Cause("outputs", where, "vanishing", reason)]
    largest = _LARGE_SQUARE if batch.quadratic else _LARGE_LOSS
    if not found.loss > largest * batch.zero_loss > 0:
        return []
    reason = f"the loss is {found.loss:.3g}, that of outputs of zero {batch.zero_loss:.3g}"
    return [Cause("outputs", called[-1].name if called else "", "exploding", reason)]


def _noise(where: str, factor: float) -> Cause:
    verdict = "vanishing" if factor < 1 else "exploding"
    reason = f"in training it multiplies its inputs by {factor:.2f} on average, in evaluation by 1"
    return Cause("noise", where, verdict, reason)


def _through_depth(found: Pass) -> list[Cause]:
    """Judge the depth as a whole, where no layer is to blame by itself."""
    sizes = Sizes.of(found)
    worst: list[tuple[float, str, str]] = []
    if sizes.signal > 0 and math.isfinite(found.outputs.rms):
        sizes_of = [(s.name, sizes.forward(s.inputs.rms, s.order or 0)) for s in in_order(found)]
        sizes_of.append(("the outputs", sizes.forward(found.outputs.rms)))
        worst += [(rms / sizes.signal, "signals", name) for name, rms in sizes_of]
    if len(found.sums) >= RESIDUAL_SUMS and found.sums[0][0] > 0:
        growth = found.sums[-1][1] / max(found.sums[0][0], sizes.signal)
        worst.append((growth, "signals", "the last residual sum"))
    worst += [(sizes.backward(s), "gradients", s.name) for s in in_order(found)]
    far = [entry for entry in worst if entry[0] > ACCUMULATED or entry[0] < 1 / FADED]
    if not far:
        return []
    ratio, what, name = max(far, key=lambda entry: _factor(entry[0]))
    verdict = "exploding" if ratio > 1 else "vanishing"
    residual = verdict == "exploding" and len(found.sums) >= RESIDUAL_SUMS
    reason = f"{what} change by {ratio:.1e} over the depth of the network, at {name}"
    if residual:
        reason += f"; {len(found.sums)} residual sums add up"
        return [Cause("residual", "", verdict, reason)]
    return [Cause("depth", "", verdict, reason)]


def _factor(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf
