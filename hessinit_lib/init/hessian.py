"""`hessian_`: scale a model's layers until their Hessians have given norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hessinit_lib.errors import needed
from hessinit_lib.hessians.case import Case
from hessinit_lib.hessians.inputs import Inputs
from hessinit_lib.hessians.isolation import entry
from hessinit_lib.hessians.layers import layer_hessians
from hessinit_lib.hessians.loss import LossFn
from hessinit_lib.hessians.noise import without_noise
from hessinit_lib.hessians.options import CURVATURES, NORMS
from hessinit_lib.init.forward_graph import all_layers, forward_graph, refuse_batch_statistics
from hessinit_lib.init.layers import Layer, restored_on_failure
from hessinit_lib.init.looks_linear import draw_linear, looks_linear_
from hessinit_lib.init.scaling import meet_norms
from hessinit_lib.tables import text_table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScalingReport:
    """What `hessian_` did.

    Attributes:
        rule: the target, in words.
        norm: the norm of the layers' Hessians that is shown: "frobenius" or "spectral".
        before: norm of each layer's Hessian before scaling, with the weights that were drawn
            or kept.
        after: the same in the model as it is now.
        scales: the factor of each weight.
        iterations: how often the scales were changed.
        evaluations: how often Hessian norms were computed.

    Example:
        >>> print(ScalingReport("all 1", "frobenius", {"a": 4.0}, {"a": 1.0}, {"a": 0.5}))
        target: all 1; 0 iterations, 0 evaluations
        frobenius  before  after  scale
        a               4      1    0.5
    """

    rule: str
    norm: str
    before: dict[str, float]
    after: dict[str, float]
    scales: dict[str, float] = field(default_factory=dict)
    iterations: int = 0
    evaluations: int = 0

    def to_frame(self) -> pd.DataFrame:
        """Make a pandas table, one row a layer: norms before and after, scale.

        Raises:
            ImportError: pandas is not installed (the package's extra `report`).
        """
        pd = needed("pandas", "report.to_frame()")
        columns = {"before": self.before, "after": self.after, "scale": self.scales}
        return pd.DataFrame(columns).rename_axis(self.norm, axis=1)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [(self.norm, "before", "after", "scale")]
        for name, before in self.before.items():
            numbers = before, self.after[name], self.scales[name]
            rows.append((name, *map("{:.4g}".format, numbers)))
        counts = f"{self.iterations} iterations, {self.evaluations} evaluations"
        return "\n".join([f"target: {self.rule}; {counts}", *text_table(rows)])


@entry
def hessian_(
    model: nn.Module,
    loss_fn: LossFn,
    inputs: Inputs,
    targets: Tensor,
    *,
    target: float | str | Mapping[str, float] = "equal",
    directions: str = "draw",
    norm: str = "frobenius",
    curvature: str = "hessian",
    tolerance: float = 0.05,
    rounds: int = 10,
    generator: torch.Generator | None = None,
) -> ScalingReport:
    r"""Scale a model's layers until their Hessians have given norms on a batch, in place.

    The paper's principle as an algorithm. First the directions of the weights are drawn, as by
    `looks_linear_`; then the layers are scaled to the target:

    - `"equal"`: the same norm $\|H_k\|$ in all layers, at unchanged outputs where the
      network is positively homogeneous.
    - a number, or one for each layer by its weight's name: these norms $\|H_k\|$.

    Norms are met in closed form where the network is positively homogeneous, and by Newton's
    method where it is not: then a layer's response costs one evaluation of all norms, and in a deep
    network of smooth activations the targets may not be found, which is an error. To train
    well is another matter: on the book's page "A contest of initializations", `looks_linear_`
    with no Hessian at all is set beside this.

    Args:
        model: see `looks_linear_`. Computed in float32 or float64.
        loss_fn: function of (outputs, targets) that gives one number.
        inputs: shape (B, ...); or several tensors in a tuple, or in a dict by keyword.
        targets: what the loss takes, B of them.
        target: see above.
        directions: "draw", or "keep" to scale the weights as they are.
        norm: "frobenius" or "spectral".
        curvature: "hessian"; or "ggn" for the norms of $G_k$, which are quickly estimated in
            any network (see `layer_hessians`).
        tolerance: relative error allowed in the norms.
        rounds: how often the scales may be changed.
        generator: source of randomness for the directions; the global one if None.

    Returns:
        What was done: norms before and after scaling, scale of each layer. It prints as a
        table.

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
    layers = all_layers(model, inputs)
    wanted = _check(target, directions, norm, curvature, tolerance, rounds, layers)
    measure = partial(
        _norms, model, loss_fn, inputs, targets,
        norms=(norm,), curvature=curvature, tolerance=tolerance / 5,
        layers=[layer.name for layer in layers],
    )  # fmt: skip
    with restored_on_failure(model, generator):
        if directions == "keep":
            outputs = forward_graph(model, inputs).outputs
            if not torch.isfinite(outputs).all():
                raise ValueError("the model's outputs are not finite: expected finite ones")
        elif target == "equal":
            looks_linear_(model, inputs, generator=generator)
        else:  # the norms say how large the outputs are
            draw_linear(model, inputs, generator)
        return _set_norms(layers, measure, wanted, norm, tolerance, rounds)


def _set_norms(
    layers: Sequence[Layer],
    measure: Callable[[], list[float]],
    wanted: Mapping[str, float] | None,
    norm: str,
    tolerance: float,
    rounds: int,
) -> ScalingReport:
    """Scale the layers until `measure` gives what is wanted, or equal norms if None."""
    scales = {layer.name: 1.0 for layer in layers}
    evaluations = 0
    bar = tqdm(desc="scaling layers", unit="evaluation", delay=3, leave=False)

    def evaluate() -> list[float]:
        nonlocal evaluations
        evaluations += 1
        bar.update()
        return measure()

    @torch.no_grad()
    def scale(steps: Sequence[float]) -> None:
        for layer, step in zip(layers, steps, strict=True):
            layer.put(layer.weight.detach().mul_(math.exp(step)))
            scales[layer.name] *= math.exp(step)

    start = evaluate()
    for name, value in zip(scales, start, strict=True):
        if not 0 < value < math.inf:
            raise ValueError(
                f"{name}: the norm of its Hessian is {value:g}, expected a finite number "
                "above 0, which scales can change"
            )
    targets = None if wanted is None else [wanted[name] for name in scales]
    with bar:
        reached, changes = meet_norms(
            evaluate, scale, start, targets, tolerance=tolerance, rounds=rounds
        )
    rule = "equal norms"
    if targets is not None:
        least, largest = min(targets), max(targets)
        rule = f"norms of {least:.4g}" + (f" to {largest:.4g}" if largest > least else "")
    before, after = (dict(zip(scales, norms, strict=True)) for norms in (start, reached))
    return ScalingReport(rule, norm, before, after, scales, changes, evaluations)


def _norms(
    model: nn.Module, loss_fn: LossFn, inputs: Inputs, targets: Tensor, **options: Any
) -> list[float]:
    """Compute the norm of each layer's Hessian."""
    with without_noise(model, inputs):
        report = layer_hessians(model, loss_fn, inputs, targets, parts=False, **options)
    return [getattr(report[name], options["norms"][0]) for name in options["layers"]]


def _check(
    target: float | str | Mapping[str, float],
    directions: str,
    norm: str,
    curvature: str,
    tolerance: float,
    rounds: int,
    layers: Sequence[Layer],
) -> Mapping[str, float] | None:
    """Check what is asked for; give the norms by layer, or None for equal ones."""
    if directions not in ("draw", "keep"):
        raise ValueError(f"directions={directions!r}: expected 'draw' or 'keep'")
    for option, value, known in (("norm", norm, NORMS), ("curvature", curvature, CURVATURES)):
        if value not in known:
            raise ValueError(f"{option}={value!r}: expected one of {', '.join(known)}")
    if not _is_positive(tolerance):
        raise ValueError(f"tolerance={tolerance!r}: expected a number above 0")
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r}: expected a whole number, 1 or more")
    if target == "equal":
        return None
    if isinstance(target, str):
        more = "; looks_linear_ sets a size of the outputs" if target == "level" else ""
        raise ValueError(f"target={target!r}: expected a number, or 'equal'{more}")
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
