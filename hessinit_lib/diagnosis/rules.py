r"""The rules of a verdict: few, and each against what a well-scaled network would do.

By statement 6 a layer multiplies the size of independent inputs by $s \sqrt{n_\mathrm{in}}$,
its gain. Every usual scheme makes that a number near 1 ($\sqrt 2$ for He, 1 for LeCun,
$1/\sqrt 3$ for PyTorch's own), and what goes in and comes back at the other end keeps its
size. How far from that is too far is a convention; the constants below are it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Literal

from hessinit_lib.diagnosis.signals import Pass, Signal, Span

LARGEST_GAIN, SMALLEST_GAIN = 10.0, 0.01
"""A gain beyond these is a fault wherever it stands. Small ones are more common: narrow
outputs of wide layers, 1/n for output layers, branches that are scaled down."""

HEAD = 3.0
"""What a layer may have more that gives outputs: drawn by its fan_out, of few classes, it does.
It may also be as small as it likes: heads often start small, or at zero, and grow at once."""

SMALLEST_TABLE, LARGEST_TABLE = 1e-3, 5.0
"""The same for a table that is looked up, whose entries are its outputs: 0.01 to 1 is usual."""

ODD = 30.0
"""The factor between a layer's gain and the median of the network's that is a fault: the
median tells what the scheme is, even if that gives small gains throughout."""

ACCUMULATED = 100.0
"""The factor on signals or gradients over the whole depth that is a fault. Hessian norms go
with its square."""

FADED = 1000.0
"""The same where they get smaller: small heads, and sums over positions, take some of it."""

DEAD = 0.75
"""Share of dead units. With zero biases at most half of the units are negative for all
samples by chance, even if all samples look the same."""

FLAT_SHARE = 0.5
"""Share of values on the flat parts of tanh or sigmoid, or of rows of a softmax."""

RESIDUAL_SUMS = 2
"""Sums of branches from which on a network counts as residual."""

GROWN, FORGOTTEN, REMEMBERED = 1e4, 1e-12, 1e-8
"""The factors of gradients over the time of a recurrent layer that are faults; with gates only the
first is one, below the last there is a note. In the trials of `tests/test_diagnose_recurrent.py`
next to nothing is learned from 6e3 on. torch's own LSTM and GRU have 1e-6 over 28 steps and 1e-20
over 100, and recall well what was 5 steps ago; what was 28 steps ago at 5e-3, and not at 1e-6."""

_FEWEST = 3  # layers from which on a median tells which of them is odd

Verdict = Literal["vanishing", "balanced", "exploding"]


@dataclass(frozen=True)
class Finding:
    """Something about a layer that is out of bounds.

    Attributes:
        kind: "symmetric", "scale", "recurrent", "detached", "unused", "dead", "saturated",
            "forward", "backward" or "nonfinite".
        verdict: "vanishing" or "exploding".
        reason: in words.
    """

    kind: Literal[
        "symmetric",
        "scale",
        "recurrent",
        "detached",
        "unused",
        "dead",
        "saturated",
        "forward",
        "backward",
        "nonfinite",
    ]
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Sizes:
    """What signals and gradients are compared with.

    Attributes:
        gain: the median gain; NaN of two layers or one, where it would not tell the odd one.
        signal: root mean square of what the first layer gets; 1 if it looks up a table, whose
            size says little: embeddings of 0.02 are usual, and normalized next.
        gradients: norm of the gradient that each layer's is compared with, by weight.
        waiting: when weights run that are zero throughout, and small heads: signals after them
            are small, and gradients before them, only until they move.
        below: the largest gradient at the outputs of the layers called before, by weight.
        above: the largest signal at the layers called later, and at the outputs, by order.
    """

    gain: float
    signal: float
    gradients: Mapping[str, float] = field(default_factory=dict)
    waiting: Sequence[Span] = ()
    below: Mapping[str, float] = field(default_factory=dict)
    above: Mapping[int | float, float] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Pass) -> Sizes:
        """Take them from a pass."""
        called = in_order(found)
        gains = [signal.gain for signal in found.signals if not signal.table and signal.gain > 0]
        first = called[0] if called else None
        source = math.nan
        if first is not None:
            source = 1.0 if math.isnan(first.inputs.rms) else first.inputs.rms
        middle = median_low(gains) if len(gains) >= _FEWEST else math.nan
        below: dict[str, float] = {}
        largest = 0.0
        for signal in called:
            below[signal.name] = largest
            largest = max(largest, signal.output_gradients.norm)
        above: dict[int | float, float] = {}
        largest = found.outputs.rms
        for signal in reversed(called):
            above[signal.order or 0] = largest
            largest = max(largest, signal.inputs.rms)  # NaN, of tokens, is not larger
        heads = [s.order or 0 for s in called if s.head and s.gain < SMALLEST_GAIN]
        waiting = [*found.waiting.values(), *(Span(order, order + 1) for order in heads)]
        return cls(middle, source, _references(found, called), waiting, below, above)

    def forward(self, rms: float, order: float | int = math.inf) -> float:
        """Give the size of what a layer gets, or NaN where it may be small: near-zero branches.

        What later layers get goes around this one, or is normalized again: gates, say.

        Args:
            rms: its size.
            order: of the layer that gets it; infinite for the outputs.
        """
        if not rms < self.signal:
            return rms
        waits = any(span.start <= order for span in self.waiting)
        return math.nan if waits else max(rms, self.above.get(order, 0.0))

    def conducts(self, signal: Signal) -> bool:
        """Tell whether a small table moves the loss: divided by its size next, say.

        One that is added or multiplied without a call may start small anyway, as layer scale does.
        """
        return signal.order is None or signal.gain * signal.output_gradients.norm * FADED >= (
            self.gradients.get(signal.name, math.inf)
        )

    def smallest(self, signal: Signal) -> float:
        """Give the least gain that is no fault.

        Any is sound in a head, and where layers below get their gradients around this one, or
        by a normalization after it; before a batch normalization, the median tells nothing.
        """
        reference = self.gradients.get(signal.name, math.nan)
        if signal.head or self.below.get(signal.name, 0.0) * ODD >= reference:
            return 0.0
        return SMALLEST_GAIN if math.isnan(reference) else max(SMALLEST_GAIN, self.gain / ODD)

    def backward(self, signal: Signal) -> float:
        """Give the gradient that gets to a layer over what it is compared with, or NaN.

        There is none where the layer only waits. What gets to the layers below goes around
        this one: attention's queries and keys. A large one at outputs that are small is the work
        of what divides by their size next, and counts as much less.
        """
        reference = self.gradients.get(signal.name, math.nan)
        norm = signal.output_gradients.norm
        if norm < reference:
            order = math.inf if signal.order is None else signal.order
            if any(span.end > order for span in self.waiting):
                return math.nan
            norm = max(norm, min(self.below.get(signal.name, 0.0), reference))
        ratio = norm / reference if reference > 0 else math.nan
        if ratio > 1 and signal.outputs.rms < self.signal:
            return max(1.0, ratio * signal.outputs.rms / self.signal)
        return ratio


def _references(found: Pass, called: list[Signal]) -> dict[str, float]:
    """Compare gradients with the last layer's, and before batch normalization with those there.

    Gradients change by a factor at each batch normalization, and training bears it: so the
    layers after the last one are compared, and those before the first one.
    """
    starts = [span.start for span in found.normalized] or [0]
    first = [s for s in called if s.order is not None and s.order < min(starts)]
    last = [s for s in called if s.order is not None and s.order >= max(starts)]
    return {s.name: part[-1].output_gradients.norm for part in (first, last) for s in part}


def in_order(found: Pass) -> list[Signal]:
    """List the signals of the layers that were called, in the order of the calls."""
    called = [(signal.order, signal) for signal in found.signals if signal.order is not None]
    return [signal for _, signal in sorted(called, key=lambda pair: pair[0])]


def judge_all(found: Pass) -> dict[str, list[Finding]]:
    """Find what is out of bounds in each layer of a network, by the name of its weight."""
    sizes = Sizes.of(found)
    findings = {signal.name: judge(signal, sizes) for signal in found.signals}
    # Of experts, a batch may leave some out.
    used = {_place(signal) for signal in found.signals if signal.called}
    for signal in found.signals:
        if not signal.called and _place(signal) in used:
            findings[signal.name] = [f for f in findings[signal.name] if f.kind != "unused"]
    return findings


def _place(signal: Signal) -> tuple[str, tuple[int, ...]]:
    return re.sub(r"\d+", "*", signal.name), signal.shape


def judge(signal: Signal, sizes: Sizes) -> list[Finding]:
    """Find what is out of bounds in a layer, causes first.

    Example:
        >>> signal = Signal("0.weight", (9, 9), True, False, gain=140.0)
        >>> judge(signal, Sizes(gain=1.4, signal=1.0))[0].verdict
        'exploding'
    """
    if not math.isfinite(signal.gain) or not _finite(signal):
        return [Finding("nonfinite", "exploding", "not all numbers are finite")]
    if signal.reached and signal.trainable and not math.isfinite(signal.gradient.norm):
        return [Finding("nonfinite", "exploding", "its gradient is not finite")]
    found = [
        _symmetric(signal),
        _scale(signal, sizes),
        _recurrent(signal),
        _detached(signal),
        _dead(signal),
        _saturated(signal),
    ]
    if signal.order is not None and sizes.signal > 0:
        forward = sizes.forward(signal.inputs.rms, signal.order) / sizes.signal
        found.append(_ratio("forward", "its inputs are", "the network's", forward))
    back, what = sizes.backward(signal), "the gradient at its outputs is"
    found.append(_ratio("backward", what, "the last layer's", back))
    return [finding for finding in found if finding is not None]


def _finite(signal: Signal) -> bool:
    seen = signal.outputs.rms if signal.order is not None else 0.0
    return math.isfinite(seen)


def _scale(signal: Signal, sizes: Sizes) -> Finding | None:
    gain = signal.gain
    if gain == 0 or signal.free:  # on purpose: the ends of branches, output layers
        return None
    if signal.table:
        least = 0.0 if sizes.conducts(signal) else SMALLEST_TABLE
        if least <= gain <= LARGEST_TABLE:
            return None
        verdict = "exploding" if gain > LARGEST_TABLE else "vanishing"
        return Finding("scale", verdict, f"its entries are of size {gain:.2g}, 0.01 to 1 is usual")
    largest = LARGEST_GAIN * (HEAD if signal.head else 1.0)
    if gain > largest or gain > ODD * sizes.gain:
        verdict = "exploding"
    elif gain < sizes.smallest(signal):
        verdict = "vanishing"
    else:
        return None
    usual = "well scaled is about 1"
    if not math.isnan(sizes.gain):
        usual = f"the network's median is {sizes.gain:.2g}, {usual}"
    return Finding("scale", verdict, f"its weights multiply a signal by {gain:.3g}; {usual}")


def _recurrent(signal: Signal) -> Finding | None:
    """Judge a recurrent layer by what it makes of gradients over time."""
    ratio = signal.over_time
    if ratio <= GROWN and (signal.gated or ratio >= FORGOTTEN):
        return None
    verdict = "exploding" if ratio > 1 else "vanishing"
    reason = f"the gradient at the first of {signal.steps} steps is {ratio:.1g} times the last's"
    return Finding("recurrent", verdict, reason)


def _dead(signal: Signal) -> Finding | None:
    activation = signal.activation
    # A layer that is fed nothing but zeros is not to blame for what it gives.
    if activation is None or activation.dead <= DEAD or signal.inputs.rms == 0:
        return None
    reason = f"{activation.dead:.0%} of its units are dead: zero for every sample"
    return Finding("dead", "vanishing", reason)


def _detached(signal: Signal) -> Finding | None:
    if not signal.trainable or signal.reached:
        return None
    if not signal.called:
        return Finding("unused", "vanishing", "it is trainable, but no part of this loss")
    return Finding("detached", "vanishing", "it is trainable and used, but gets no gradient")


def _symmetric(signal: Signal) -> Finding | None:
    if not signal.same:
        return None
    reason = f"its {signal.shape[0]} units have the same weights and gradients: they stay the same"
    return Finding("symmetric", "vanishing", reason)


def _saturated(signal: Signal) -> Finding | None:
    activation = signal.activation
    if signal.attention > FLAT_SHARE:
        rows = f"{signal.attention:.0%} of its rows of attention look at one position only"
        return Finding("saturated", "exploding", rows)
    if activation is None or activation.flat <= FLAT_SHARE:
        return None
    reason = f"{activation.flat:.0%} of its {activation.kind} values are saturated"
    return Finding("saturated", "exploding", reason)


def _ratio(
    kind: Literal["forward", "backward"], what: str, whose: str, ratio: float
) -> Finding | None:
    if math.isnan(ratio) or 1 / FADED <= ratio <= ACCUMULATED:
        return None
    verdict = "exploding" if ratio > ACCUMULATED else "vanishing"
    return Finding(kind, verdict, f"{what} {ratio:.1e} times {whose}")
