"""The initializations that meet in the contest, each one function of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessinit_book.rivals.fixup import fixup_
from hessinit_book.rivals.gradinit import gradinit_
from hessinit_book.rivals.metainit import metainit_
from hessinit_lib.init import apply, hessian_, lsuv_
from hessinit_lib.init.forward_graph import forward_graph
from hessinit_lib.init.mirrored import branch_factors, draw_directions


@dataclass(frozen=True)
class Entry:
    """What a scheme may use.

    Attributes:
        model: to be initialized, in place.
        batches: gives the inputs and targets of an initialization's step.
        classes: number of classes.
        linear: the scheme for activations of slope 1 at zero: LeCun's, not He's.
        adaptive: whether the network will be trained by Adam and not by SGD.
        rounds: iterations of the schemes that learn.
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


def _metainit(entry: Entry) -> None:
    """As in the paper: standard normal inputs, random labels; text stays text."""
    entry.start()
    made = []
    for step in range(entry.rounds):
        inputs, targets = entry.batches(step)
        if inputs.is_floating_point():
            # Drawn on the CPU like the weights: the same numbers on each device.
            drawn = torch.randn(inputs.shape, generator=entry.generator)
            labels = torch.randint(entry.classes, targets.shape, generator=entry.generator)
            inputs, targets = drawn.to(inputs), labels.to(targets)
        made.append((inputs, targets))
    metainit_(entry.model, F.cross_entropy, made)


def _gradinit(entry: Entry) -> None:
    entry.start()
    gradinit_(
        entry.model,
        F.cross_entropy,
        [entry.batches(step) for step in range(entry.rounds + 1)],
        adaptive=entry.adaptive,
        # For SGD as in the paper; for Adam a step that is sound for the transformer here.
        step_size=1e-3 if entry.adaptive else 0.1,
        bound=1e3 if entry.adaptive else 1.0,
    )


def _fixup(entry: Entry) -> None:
    fixup_(entry.model, entry.batches(0)[0], generator=entry.generator)


def _level(entry: Entry) -> None:
    """Half of ours: the usual weights, with the level of curvature set."""
    entry.start()
    hessian_(entry.model, F.cross_entropy, *entry.batches(0), directions="keep")


def _directions(entry: Entry) -> None:
    """The other half: what `hessian_` draws, before it sets the level."""
    inputs = entry.batches(0)[0]
    apply(entry.model, "lecun", generator=entry.generator)
    draw_directions(forward_graph(entry.model, inputs), generator=entry.generator)
    with torch.no_grad():
        for name, factor in branch_factors(forward_graph(entry.model, inputs)).items():
            entry.model.get_parameter(name).mul_(factor)


def _hessian(entry: Entry) -> None:
    hessian_(entry.model, F.cross_entropy, *entry.batches(0), generator=entry.generator)


SCHEMES: dict[str, Callable[[Entry], None]] = {
    "torch": partial(_named, scheme="torch"),
    "lecun": partial(_named, scheme="lecun"),
    "glorot": partial(_named, scheme="glorot"),
    "he": partial(_named, scheme="he"),
    "orthogonal": _orthogonal,
    "lsuv": _lsuv,
    "metainit": _metainit,
    "gradinit": _gradinit,
    "fixup": _fixup,
    "level": _level,
    "directions": _directions,
    "hessian": _hessian,
}
"""All that take part, in the order of the figures; "fixup" for residual networks only.

"level" and "directions" are the two halves of "hessian": no rivals, but what it is made of.
"""
