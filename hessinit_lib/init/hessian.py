"""`hessian_`: initialize a model by the curvature of its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.loss import LossFn, OutputCurvature, on_logits
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.hessians.numerics.random import random_signs
from hessinit_lib.hessians.options import NORMS
from hessinit_lib.init.forward_graph import (
    ForwardGraph,
    forward_graph,
    last_layers,
    refuse_batch_statistics,
)
from hessinit_lib.init.layers import Layer, other_weights, restored_on_failure, weight_layers
from hessinit_lib.init.mirrored import branch_factors, draw_directions
from hessinit_lib.init.report import ScalingReport
from hessinit_lib.init.scaling import meet_norms
from hessinit_lib.init.schemes import SCHEMES, draw_layers

LEVEL = 0.1
"""Second-order term of the loss in the initial outputs, over the loss of zero outputs."""

_RULES = ("level", "equal")
_PROBES = 2
_ROUNDS = 5  # to set a level: one where the outputs are linear in the last layer
_FADED = 100  # times the last layer's weights: pooling takes a few, an average of 49 pixels 7


@entry
def hessian_(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Inputs,
    targets: Tensor,
    *,
    target: float | str | Mapping[str, float] = "level",
    directions: str = "draw",
    level: float = LEVEL,
    norm: str = "frobenius",
    tolerance: float = 0.05,
    rounds: int = 10,
    generator: torch.Generator | None = None,
) -> ScalingReport:
    r"""Initialize a model by the curvature of its loss on a batch, in place.

    First the directions of the weights are drawn: orthogonal maps with zero biases, mirrored
    around ReLU, GELU, SiLU, sigmoid and the like, of which at first only the odd part acts
    (`hessinit_lib.init.mirrored`). Then the layers are scaled to the target:

    - `"level"`, the default and what trained best of what was tried: let
      $\kappa = \frac1B \sum_b z_b^\top D^2 \ell_b(0) \, z_b$ be the curvature along the
      outputs z. In a positively homogeneous chain $\kappa$ is, at small outputs, the
      curvature $W_k^\top H_k W_k$ that *every* layer has along its own weights, however the
      layers are scaled against each other. The last layer sets it: the second-order share
      $\frac12 \kappa / L(0)$ becomes `level`. The last layer of each of N residual branches
      is multiplied by $1 / \sqrt N$, so that the branches add up to one layer.
    - `"equal"`: the same norm $\|H_k\|$ in all layers, at unchanged outputs where the
      network is positively homogeneous.
    - a number, or one for each layer by its weight's name: these norms $\|H_k\|$.

    Of what the default gains over usual weights, nearly all comes from the directions in the
    book's ReLU and GELU networks, and about half from the level in its tanh networks (the
    page "A contest of initializations").

    Norms are met in closed form where the network is positively homogeneous, and by Newton's
    method where it is not: then a layer's response costs one evaluation of all norms.

    Args:
        model: any whose weights multiply its signals (Linear, convolutions, attention's packed
            and bare parameters, gates of recurrent layers, each an own matrix; also inputs
            first or parametrized) or are added to them (tables: drawn as an Embedding, no
            layers). Gains and frozen parameters, gradients, buffers and modes are left, and so
            is the global random state if a generator is given. Computed in float32 or float64.
        loss_fn: function of (outputs, targets) that gives one number.
        inputs: shape (B, ...); or several tensors in a tuple, or in a dict by keyword.
        targets: what the loss takes, B of them.
        target: see above.
        directions: "draw", or "keep" to scale the weights as they are. A level makes up for
            signals that fade in these by a large last layer, and then gradients explode.
        level: of the rule "level".
        norm: "frobenius" or "spectral", for targets other than "level".
        tolerance: relative error allowed in the norms (the level).
        rounds: how often the scales may be changed.
        generator: source of randomness for the directions; the global one if None.

    Returns:
        What was done: norms before and after scaling, scale of each layer. It prints as a
        table. For the rule "level" the norms are traces of the Gauss-Newton parts,
        estimated.

    Raises:
        NotImplementedError: a trainable weight that is used in another way (a function of it
            multiplies, say), or batch normalization in training mode.
        ValueError: a value out of range, outputs that are not finite, a layer whose Hessian
            is zero, signals that fade on the way through the network, a target that cannot
            be met. The model is left as it was.

    Source: arXiv 2004.09506 for the principle; derivation in the book, statement 10.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(32, 4, generator=generator)
        >>> y = torch.randint(3, (32,), generator=generator)
        >>> report = hessian_(
        ...     model, nn.CrossEntropyLoss(), x, y, target=0.5, generator=generator
        ... )
        >>> [round(norm, 1) for norm in report.after.values()]
        [0.5, 0.5]
    """
    model = Case.checked(model, loss_fn, inputs, targets, paired=False).model
    refuse_batch_statistics(model)
    layers = _layers(model, inputs)
    wanted = _check(target, directions, level, norm, tolerance, rounds, layers)
    drawn = directions == "draw"
    work = _Work(model, loss_fn, inputs, targets, layers, norm, tolerance, drawn, generator)
    with restored_on_failure(model, generator):
        return work.set_level(level) if wanted is None else work.set_norms(wanted, rounds)


@dataclass
class _Work:
    """One call of `hessian_`: its case, and the scales and counts so far."""

    model: nn.Module
    loss_fn: LossFn
    inputs: Inputs
    targets: Tensor
    layers: list[Layer]
    norm: str
    tolerance: float
    drawn: bool
    generator: torch.Generator | None
    evaluations: int = 0
    passes: float = 0.0

    def __post_init__(self) -> None:
        self.scales = {layer.name: 1.0 for layer in self.layers}

    def set_level(self, level: float) -> ScalingReport:
        """Set the curvature along the outputs."""
        graph = self._draw()
        before = self._traces(graph)
        if self.drawn and (factors := branch_factors(graph)):
            self._scale(factors)
            graph = self._run()
        last = last_layers(graph)
        needed = math.sqrt(level / self._share(graph))
        if self.drawn and needed > _FADED:
            raise ValueError(
                f"the signals fade on the way to {', '.join(sorted(last))}: expected a network "
                f"that keeps them, but the level takes weights {needed:.0f} times as large there, "
                "and its gradients would explode; this network's activations or gates want "
                "their own gain, or normalization"
            )
        changes = 0
        while abs(needed - 1) > self.tolerance / 2:
            if changes == _ROUNDS:
                raise ValueError(
                    f"the level does not follow the scale of {', '.join(sorted(last))}: "
                    "expected outputs that do, with no normalization, softmax or sigmoid behind it"
                )
            self._scale(dict.fromkeys(last, needed), biases=True)
            graph = self._run()
            needed = math.sqrt(level / self._share(graph))
            changes += 1
        after = self._traces(graph)
        counts = changes, self.evaluations, self.passes
        rule = f"outputs add {level:g} of the loss"
        return ScalingReport(rule, "trace", before, after, self.scales, *counts)

    def set_norms(self, wanted: Mapping[str, float] | str, rounds: int) -> ScalingReport:
        """Give each layer's Hessian the norm that is wanted."""
        self._draw()
        start = self._norms()
        for name, value in zip(self.scales, start, strict=True):
            if not 0 < value < math.inf:
                raise ValueError(
                    f"{name}: the norm of its Hessian is {value:g}, expected a finite number "
                    "above 0, which scales can change"
                )
        if isinstance(wanted, str):
            mean = math.exp(sum(map(math.log, start)) / len(start))
            wanted = dict.fromkeys(self.scales, mean)
        names = list(self.scales)
        reached, changes = meet_norms(
            self._norms,
            lambda steps: self._scale(
                {name: math.exp(step) for name, step in zip(names, steps, strict=True)}
            ),
            start,
            [wanted[name] for name in names],
            tolerance=self.tolerance,
            rounds=rounds,
        )
        values = sorted(set(wanted.values()))
        rule = f"norms of {values[0]:.4g}" + (f" to {values[-1]:.4g}" if values[1:] else "")
        before, after = (dict(zip(names, norms, strict=True)) for norms in (start, reached))
        counts = changes, self.evaluations
        return ScalingReport(rule, self.norm, before, after, self.scales, *counts)

    def _draw(self) -> ForwardGraph:
        """Draw the directions, or keep them, and run the model."""
        if self.drawn:
            # The weights as given may be anything: zero ones would make all look like ReLUs.
            others = other_weights(self.model)
            covered = weight_layers(self.model, others=bool(others))
            draw_layers(covered, SCHEMES["lecun"](), self.generator)
            for _ in range(2 if others else 1):  # others are drawn where their place is known
                draw_directions(self._run(), generator=self.generator)
        graph = self._run()
        if not torch.isfinite(graph.outputs).all():
            raise ValueError("the model's outputs are not finite: expected finite ones to scale")
        return graph

    def _run(self) -> ForwardGraph:
        self.passes += 1
        return forward_graph(self.model, self.inputs)

    def _share(self, graph: ForwardGraph) -> float:
        """Compute half the curvature along the outputs, over the loss of zero outputs."""
        z = graph.outputs.detach()
        loss_fn = on_logits(self.loss_fn, graph.log_softmax)
        parameters = dict(self.model.named_parameters())
        at_zero = OutputCurvature(loss_fn, torch.zeros_like(z), self.targets, None, parameters)
        curvature, loss = (z * at_zero.hvp(z)).sum().item(), at_zero.value.item()
        share = curvature / (2 * loss) if loss else math.inf
        if not 0 < share < math.inf:
            raise ValueError(
                f"at outputs of 0 the loss is {loss:g} and its curvature along the outputs "
                f"{curvature:g}, expected both above 0: logits for a cross-entropy, "
                "targets other than 0 for a squared error, outputs that are not 0"
            )
        return share

    def _traces(self, graph: ForwardGraph) -> dict[str, float]:
        self.evaluations += 1
        self.passes += 2 * _PROBES
        # tr G = E <J'e, J'A e> for signs e, of any loss: two backward passes for each.
        outputs, weights = graph.outputs, list(graph.weights.values())
        curvature = OutputCurvature(
            on_logits(self.loss_fn, graph.log_softmax), outputs, self.targets
        )
        back = partial(torch.autograd.grad, retain_graph=True, materialize_grads=True)
        traces, fixed = dict.fromkeys(self.scales, 0.0), torch.Generator().manual_seed(0)
        for _ in range(_PROBES):
            signs = random_signs(outputs.shape, fixed, outputs)
            sides = (back(outputs, weights, vector) for vector in (signs, curvature.hvp(signs)))
            for name, left, right in zip(graph.weights, *sides, strict=True):
                traces[name] += (left * right).sum().item() / _PROBES
        return traces

    def _norms(self) -> list[float]:
        self.evaluations += 1
        with without_noise(self.model, self.inputs):
            report = layer_hessians(
                self.model,
                self.loss_fn,
                self.inputs,
                self.targets,
                norms=(self.norm,),
                parts=False,
                tolerance=self.tolerance / 5,
                layers=[*self.scales],
            )
        return [getattr(report[name], self.norm) for name in self.scales]

    @torch.no_grad()
    def _scale(self, factors: Mapping[str, float], biases: bool = False) -> None:
        for layer in self.layers:
            if layer.name in factors:
                factor = factors[layer.name]
                layer.put(layer.weight.detach().mul_(factor))
                self.scales[layer.name] *= factor
                if biases and layer.bias is not None:
                    layer.bias.mul_(factor)


def _layers(model: nn.Module, inputs: Inputs) -> list[Layer]:
    """List the layers in model order, those that only the graph shows included."""
    if not (others := other_weights(model)):
        return weight_layers(model)
    graph = forward_graph(model, inputs)
    found = {each.name: each for each in (*weight_layers(model, others=True), *graph.layers)}
    if not found:
        raise NotImplementedError(f"{next(iter(others))}: expected a weight that multiplies inputs")
    return [found[name] for name, _ in model.named_parameters() if name in found]


def _check(
    target: float | str | Mapping[str, float],
    directions: str,
    level: float,
    norm: str,
    tolerance: float,
    rounds: int,
    layers: Sequence[Layer],
) -> Mapping[str, float] | str | None:
    """Check what is asked for; give the norms by layer, "equal", or None for the level."""
    if directions not in ("draw", "keep"):
        raise ValueError(f"directions={directions!r}: expected 'draw' or 'keep'")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}: expected one of {', '.join(NORMS)}")
    for name, value in (("level", level), ("tolerance", tolerance)):
        if not _is_positive(value):
            raise ValueError(f"{name}={value!r}: expected a number above 0")
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r}: expected a whole number, 1 or more")
    if isinstance(target, str):
        if target not in _RULES:
            raise ValueError(f"target={target!r}: expected a number, or one of {', '.join(_RULES)}")
        return target if target == "equal" else None
    names = [layer.name for layer in layers]
    wanted = dict.fromkeys(names, target) if not isinstance(target, Mapping) else dict(target)
    if set(wanted) != set(names):
        unknown, missing = sorted(set(wanted) - set(names)), sorted(set(names) - set(wanted))
        what = f"unknown weight {unknown[0]!r}" if unknown else f"{missing[0]!r} is missing"
        raise ValueError(f"target: {what}; expected {', '.join(names)}")
    for name, value in wanted.items():
        if not _is_positive(value):
            raise ValueError(f"target of {name}: got {value!r}, expected a number above 0")
    return wanted


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf
