"""The initializations that meet in the contest, each one function of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.chapters.contest.networks import Block
from hessinit_book.rivals.fixup import fixup_
from hessinit_book.rivals.gradinit import gradinit_
from hessinit_book.rivals.metainit import metainit_
from hessinit_book.rivals.tailored import tailor_
from hessinit_book.rivals.zero import zero_
from hessinit_lib.init import apply, hessian_, looks_linear_, lsuv_, scale_outputs_
from hessinit_lib.init.looks_linear import draw_linear

PATIENCE = 100  # iterations without progress after which a scheme that learns stops


@dataclass(frozen=True)
class Entry:
    """What a scheme may use.

    Attributes:
        model: to be initialized, in place.
        batches: gives the inputs and targets of an initialization's step.
        classes: number of classes.
        linear: the scheme for activations of slope 1 at zero: LeCun's, not He's.
        adaptive: whether the network will be trained by Adam and not by SGD.
        rounds: most iterations of the schemes that learn.
        generator: source of randomness.
    """

    model: nn.Module
    batches: Callable[[int], tuple[Tensor, Tensor]]
    classes: int
    linear: bool
    adaptive: bool
    rounds: int
    generator: torch.Generator

    def start(self) -> None:
        """Draw the weights from which the schemes that learn start."""
        apply(self.model, "lecun" if self.linear else "he", generator=self.generator)


def _named(entry: Entry, scheme: str) -> None:
    apply(entry.model, scheme, generator=entry.generator)


def _orthogonal(entry: Entry) -> None:
    gain = 1.0 if entry.linear else 2**0.5
    apply(entry.model, "orthogonal", gain=gain, generator=entry.generator)


def _lsuv(entry: Entry) -> None:
    lsuv_(entry.model, entry.batches(0)[0], generator=entry.generator)


def _geometric(entry: Entry) -> None:
    """He's or LeCun's deviation with the geometric mean of the fans."""
    scheme = "lecun" if entry.linear else "he"
    apply(entry.model, scheme, fan="geometric", generator=entry.generator)


def _metainit(entry: Entry) -> None:
    """As in the paper: standard normal inputs, random labels; text stays text."""
    entry.start()

    def noise(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = entry.batches(step)
        if not inputs.is_floating_point():
            return inputs, targets
        # Drawn on the CPU like the weights: the same numbers on each device.
        drawn = torch.randn(inputs.shape, generator=entry.generator)
        labels = torch.randint(entry.classes, targets.shape, generator=entry.generator)
        return drawn.to(inputs), labels.to(targets)

    made = map(noise, range(entry.rounds))
    metainit_(entry.model, F.cross_entropy, made, patience=PATIENCE)


def _gradinit(entry: Entry) -> None:
    entry.start()
    gradinit_(
        entry.model,
        F.cross_entropy,
        map(entry.batches, range(entry.rounds + 1)),
        adaptive=entry.adaptive,
        # For SGD as in the paper; for Adam a step that is sound for the transformer here.
        step_size=1e-3 if entry.adaptive else 0.1,
        bound=1e3 if entry.adaptive else 1.0,
        patience=PATIENCE,
    )


def _fixup(entry: Entry) -> None:
    fixup_(entry.model, entry.batches(0)[0], generator=entry.generator)


def _skipinit(entry: Entry) -> None:
    """He's weights, and multipliers of the branches that start from zero."""
    entry.start()
    with torch.no_grad():
        for module in entry.model.modules():
            if isinstance(module, Block):
                module.multiplier.zero_()


def _zero(entry: Entry) -> None:
    zero_(entry.model, entry.batches(0)[0])


def _tailored(entry: Entry) -> None:
    assert isinstance(entry.model, nn.Sequential)
    tailor_(entry.model, entry.batches(0)[0], generator=entry.generator)


def _sized(entry: Entry, start: Callable[[Entry], None]) -> None:
    """Another start, with the last layer scaled so that the logits have a given size."""
    start(entry)
    scale_outputs_(entry.model, entry.batches(0)[0])


def _looks_linear(entry: Entry) -> None:
    """What `looks_linear_` draws, before it scales the last layer."""
    draw_linear(entry.model, entry.batches(0)[0], entry.generator)


def _looks_linear_sized(entry: Entry) -> None:
    looks_linear_(entry.model, entry.batches(0)[0], generator=entry.generator)


def _hessian(entry: Entry) -> None:
    """The same, then layers scaled to equal norms of their Hessians."""
    hessian_(
        entry.model, F.cross_entropy, *entry.batches(0), tolerance=0.1, generator=entry.generator
    )


SCHEMES: dict[str, Callable[[Entry], None]] = {
    "torch": partial(_named, scheme="torch"),
    "lecun": partial(_named, scheme="lecun"),
    "glorot": partial(_named, scheme="glorot"),
    "he": partial(_named, scheme="he"),
    "geometric": _geometric,
    "orthogonal": _orthogonal,
    "lsuv": _lsuv,
    "metainit": _metainit,
    "gradinit": _gradinit,
    "fixup": _fixup,
    "skipinit": _skipinit,
    "zero": _zero,
    "tailored": _tailored,
    "looks_linear": _looks_linear,
    "usual_sized": partial(_sized, start=Entry.start),
    "orthogonal_sized": partial(_sized, start=_orthogonal),
    "looks_linear_sized": _looks_linear_sized,
    "hessian": _hessian,
}
"""All that take part, in the order of the figures.

Up to "looks_linear" they are published; then come three with logits of a given size, of which the
last is the library's `looks_linear_`; and last the only one that a Hessian enters.
"""

ONLY = {
    "fixup": ("resnet",),
    "skipinit": ("resnet",),
    "zero": ("resnet", "vgg"),
    "tailored": ("relu", "gelu", "tanh", "vgg"),
    "hessian": ("relu", "gelu", "resnet", "vgg"),
}
"""Kinds of networks to which a scheme is confined.

Branches with multipliers; images whose first channels are not black; chains, whose activations can
be replaced; networks in which equal norms are met: in deep tanh networks they are not in ten
rounds, and the transformer has no exact route.
"""
