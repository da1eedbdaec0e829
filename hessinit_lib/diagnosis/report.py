"""What a diagnosis gives back: plain numbers and words, as a table, as HTML, as JSON."""

from __future__ import annotations

import html
import json
import math
import textwrap
from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from hessinit_lib.diagnosis.causes import CauseKind
from hessinit_lib.diagnosis.layer import LayerDiagnosis
from hessinit_lib.diagnosis.rate import STEPS, Trial
from hessinit_lib.diagnosis.rules import Verdict
from hessinit_lib.errors import UserError
from hessinit_lib.tables import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUMBERS = {
    "gain": "factor of its weights on a signal",
    "input rms": "root mean square of its inputs",
    "zeros": "share of its inputs that is zero",
    "dead": "share of its units that are zero for every sample",
    "flat": "share of its values that are saturated",
    "gradient": "norm of the gradient in its weight",
    "Hessian": "norm of the Hessian in its weight",
    "best step": "loss that the best step of this layer alone is predicted to gain",
}
_TITLES = ("layer", *_NUMBERS, "verdict")


# JSON has no such numbers: they are written as strings.
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a network, and not only a consequence.

    Attributes:
        kind: "scale" (a weight far too large or small), "symmetric" (equal units), "dead"
            (ReLUs), "saturated" (tanh, sigmoid), "recurrent" (over time), "detached" (no
            gradient), "unused" (no part of the loss), "unregistered" (used, but no parameter),
            "noise" (dropout that changes the mean), "inputs", "targets", "softmax" (taken
            twice), "outputs" (a loss far above that of zero outputs), "residual" (branches
            that add up), "depth" (no layer by itself, but all in a row), "nonfinite", "rate"
            (too high, where asked).
        where: the weight's or module's name; "" for the whole network.
        verdict: what it makes of signals or gradients.
        reason: in words.
        remedy: what would fix it.
        tried: whether that was tried on a copy: nothing was wrong then.
    """

    kind: CauseKind
    where: str
    verdict: Verdict
    reason: str
    remedy: str
    tried: bool = False

    def __str__(self) -> str:
        tried = "" if self.tried else " (not tried)"
        where = self.where or "the network"
        return f"{where}: {self.verdict}: {self.reason}. Mend: {self.remedy}{tried}."


@dataclass(frozen=True)
class Diagnosis:
    r"""A network before training, see `hessinit_lib.diagnose`.

    Attributes:
        layers: its weights, in model order.
        faults: what is wrong with it; empty for a sound initialization.
        loss: of the batch.
        samples: in the batch.
        largest_eigenvalue: the spectral norm $\lambda$ of the Hessian of all trainable weights.
        largest_stable_rate: $2 / \lambda$: plain gradient descent on the quadratic model
            diverges with a larger one.
        suggested_rate: of plain gradient descent on this batch: the smaller of $1 / \lambda$
            and the rate of the best step along the gradient, $\|g\|^2 / g^\top H g$, halved
            until 20 steps on a copy lower the loss; NaN where none does.
        scheme: name of the scheme that would fix it, see `hessinit_lib.init.apply`, or
            `"looks_linear_"` for `hessinit_lib.init.looks_linear_`; "" where nothing is wrong, or
            neither works. Of faults that belong to no single layer, each is tried on a copy.
        notes: what to know about how the numbers were found.
        trials: the rates that were tried: the suggested one, that which was asked about, and
            halves of them.
        curvature: "hessian"; or "ggn" where norms and predicted gains of layers are those of
            the Gauss-Newton blocks.

    Example:
        >>> empty = Diagnosis(
        ...     layers=(), faults=(), loss=2.3, samples=8, largest_eigenvalue=4.0,
        ...     largest_stable_rate=0.5, suggested_rate=0.25, scheme="", notes=(),
        ... )
        >>> empty.verdict, Diagnosis.from_json(empty.to_json()) == empty
        ('balanced', True)
    """

    layers: tuple[LayerDiagnosis, ...]
    faults: tuple[Fault, ...]
    loss: float
    samples: int
    largest_eigenvalue: float
    largest_stable_rate: float
    suggested_rate: float
    scheme: str
    notes: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    curvature: str = "hessian"

    @property
    def verdict(self) -> Verdict:
        """That of the first fault; "balanced" if there is none."""
        return self.faults[0].verdict if self.faults else "balanced"

    def __getitem__(self, name: str) -> LayerDiagnosis:
        """Give the layer of a parameter.

        Raises:
            KeyError: there is no weight of that name.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(
            f"{name!r}: expected one of {', '.join(layer.name for layer in self.layers)}"
        )

    def summary(self) -> list[str]:
        """Say in some lines of text what was found."""
        lines = [f"Verdict: {self.verdict}"]
        lines += [f"Fault: {fault}" for fault in self.faults]
        if self.scheme:
            lines.append(f"Scheme that fits: {self.scheme!r}")
        lines.append(f"Loss: {self.loss:.4g} on {self.samples} samples")
        if not math.isnan(self.largest_eigenvalue):
            suggested = f"{self.suggested_rate:.2g}, for plain SGD"
            if math.isnan(self.suggested_rate):
                suggested = "none, as none that was tried lowers the loss"
            stable = f"Largest stable learning rate (2/λ): {self.largest_stable_rate:.2g}"
            lines.append(f"{stable}; suggested: {suggested}")
        for before, trial in zip((None, *self.trials), self.trials, strict=False):
            if not (before and before.grows and trial.grows):  # of halves, the last alone
                lines.append(f"Tried, {STEPS} steps on a copy: {trial}")
        return lines + [f"Note: {note}" for note in self.notes]

    def rows(self) -> list[tuple[str, ...]]:
        """Give the table of layers as text, titles first."""
        titles = tuple(self._words(title) for title in _TITLES)
        return [titles, *(_row(layer) for layer in self.layers)]

    def _words(self, text: str) -> str:
        if self.curvature == "hessian":
            return text
        return text.replace("the Hessian in", "the Gauss-Newton block of").replace("Hessian", "GGN")

    def __str__(self) -> str:
        rows = self.rows()
        numbers = text_table([row[:-1] for row in rows])
        lines = [f"{line}  {row[-1]}" for line, row in zip(numbers, rows, strict=True)]
        reasons = [f"{layer.name}: {reason}" for layer in self.layers for reason in layer.reasons]
        legend = [self._words(f"{name}: {what}") for name, what in _NUMBERS.items()]
        blocks = [lines, reasons, self.summary(), textwrap.wrap("; ".join(legend), 100)]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        titles, *rows = self.rows()
        head = "".join(
            f"<th scope='col' title='{self._words(_NUMBERS.get(name, name))}'>"
            f"{html.escape(title)}</th>"
            for name, title in zip(_TITLES, titles, strict=True)
        )
        body = "".join(
            f"<tr title='{html.escape('; '.join(layer.reasons), quote=True)}'>"
            f"<th scope='row'>{html.escape(row[0])}</th>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for layer, row in zip(self.layers, rows, strict=True)
        )
        said = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{said}</ul>"

    def plot(self) -> Figure:
        """Draw gains, signals, gradients and Hessian norms against the layers.

        Raises:
            ImportError: matplotlib is not installed (the package's extra `report`).
        """
        from hessinit_lib.diagnosis.plot import draw

        return draw(self.layers, self.curvature)

    def to_json(self) -> str:
        """Write it as JSON, every number in full."""
        plain = _to_plain(asdict(self))
        return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Diagnosis:
        """Read what `to_json` wrote.

        Raises:
            UserError: it is something else; the message says what is amiss.
        """
        try:
            return _from_plain(json.loads(text), cls, "")
        except (ValueError, OverflowError) as error:  # of which JSONDecodeError is one
            raise UserError(f"not the JSON of a diagnosis: {error}") from None


def _to_plain(value: Any) -> Any:
    """Replace what JSON does not have."""
    if isinstance(value, dict):
        return {name: _to_plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_to_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_plain(value: Any, kind: Any, where: str) -> Any:
    """Make a value of a type from what JSON holds.

    Raises:
        ValueError: it does not fit; the message says where, and what was expected.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _from_fields(value, kind, f"{where}." if where else "")
    if origin is tuple and isinstance(value, list):
        return tuple(_from_plain(v, parts[0], f"{where}.{i}") for i, v in enumerate(value))
    if kind is float and (type(value) in (int, float) or value in _NOT_FINITE):
        return float(value)
    fits = value in parts if origin is Literal else type(value) in (kind, *parts)
    if origin is tuple or not fits:
        expected = kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")
        raise ValueError(f"{where or 'all'}: got {value!r:.60}, expected {expected}")
    return value


def _from_fields(value: dict[str, Any], kind: Any, where: str) -> Any:
    kinds = get_type_hints(kind)
    for name in (*kinds, *value):
        if name not in value or name not in kinds:
            what = "Field required" if name in kinds else "unknown field"
            raise ValueError(f"{where}{name}: {what}")
    return kind(**{name: _from_plain(value[name], kinds[name], where + name) for name in kinds})


def _row(layer: LayerDiagnosis) -> tuple[str, ...]:
    hessian = _short(layer.hessian_norm)
    if layer.hessian_error > 0:
        hessian += f" ± {layer.hessian_error / layer.hessian_norm:.0%}"
    return (
        layer.name,
        _short(layer.gain),
        _short(layer.input_rms),
        _share(layer.input_zeros),
        _share(layer.dead),
        _share(layer.saturated),
        _short(layer.gradient_norm),
        hessian,
        _short(layer.hessian_gain),
        layer.verdict,
    )


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"
