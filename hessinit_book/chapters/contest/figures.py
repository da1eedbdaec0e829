"""Figures of the experiment `contest`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hessinit_book.drawing.differences import signed
from hessinit_book.drawing.style import COLORS, note_data, style, subplots
from hessinit_book.records.records import Record, look_up
from hessinit_book.statistics.best_rate import median
from hessinit_book.statistics.intervals import Interval

LABELS = {
    "torch": "PyTorch's default",
    "lecun": "LeCun",
    "glorot": "Glorot",
    "he": "He",
    "geometric": "geometric mean",
    "orthogonal": "orthogonal",
    "lsuv": "LSUV",
    "metainit": "MetaInit",
    "gradinit": "GradInit",
    "fixup": "Fixup",
    "skipinit": "SkipInit",
    "zero": "ZerO",
    "tailored": "TAT",
    "looks_linear": "looks linear",
    "usual_sized": "He or LeCun, logits set",
    "orthogonal_sized": "orthogonal, logits set",
    "looks_linear_sized": "looks_linear_",
    "hessian": "hessian_, equal norms",
}
PUBLISHED = tuple(list(LABELS)[: list(LABELS).index("looks_linear") + 1])
SIZED = ("usual_sized", "orthogonal_sized", "looks_linear_sized")
PARTS = (
    ("usual", "usual_sized", "size of the logits, usual weights"),
    ("orthogonal", "orthogonal_sized", "size of the logits, orthogonal"),
    ("looks_linear", "looks_linear_sized", "size of the logits, looks linear"),
    ("orthogonal_sized", "looks_linear_sized", "mirrored around the activation"),
    ("looks_linear_sized", "hessian", "equal Hessian norms"),
)
"""What is added: to which start, which makes of it what, in words."""

NETWORKS = {
    "relu_30": "ReLU, 30 layers",
    "relu_100": "ReLU, 100 layers",
    "gelu_30": "GELU, 30 layers",
    "tanh_30": "tanh, 30 layers",
    "tanh_100": "tanh, 100 layers",
    "resnet": "ResNet, no normalization",
    "vgg": "VGG, no normalization",
    "gpt": "small GPT",
}


def final_losses(records: Sequence[Record]) -> Figure:
    """Draw the final loss of every scheme at the rate it chose, a panel a network.

    Dots are seeds, bars medians; a cross stands for a scheme that diverged in some seed.
    """
    networks = list(records[0].values)
    present = dict.fromkeys(name for network in networks for name in records[0].values[network])
    # A scheme that a reader adds has no label yet: it is drawn first, under its own name.
    schemes = [*(name for name in present if name not in LABELS),
               *(name for name in LABELS if name in present)]  # fmt: skip
    columns = min(4, len(networks))
    rows = -(-len(networks) // columns)
    with style():
        figure, axes = subplots(
            rows, columns, figsize=(9.8, 0.5 + 3.9 * rows), sharey=True, squeeze=False
        )
        for ax, network in zip(axes.flat, networks, strict=False):
            for y, scheme in enumerate(schemes):
                if scheme not in records[0].values[network]:
                    continue
                losses = _found(records, network, scheme, "final")
                color = COLORS[_group(scheme)]
                seen = losses[np.isfinite(losses)]
                ax.plot(seen, np.full(len(seen), y), "o", color=color, markersize=4, alpha=0.6)
                if len(seen):
                    ax.plot([np.median(seen)] * 2, [y - 0.35, y + 0.35], color=color, linewidth=2)
                if len(seen) < len(losses):
                    ax.plot(1.0, y, "x", color="#000000", transform=ax.get_yaxis_transform(),
                            clip_on=False)  # fmt: skip
            ax.set_title(NETWORKS[network], fontsize=10)  # else two run into each other
            ax.set_xlabel("final loss [nat]")
        for ax in axes.flat[len(networks) :]:
            ax.set_visible(False)
        axes[0, 0].set_yticks(range(len(schemes)), [_label(scheme) for scheme in schemes])
        axes[0, 0].invert_yaxis()
        marks = [
            *(Line2D([], [], color=COLORS[k], marker="o", linewidth=2, label=label)
              for k, label in enumerate(("published", "size of the logits set", "Hessian norms"))),
            Line2D([], [], color="#000000", marker="x", linestyle="none", label="diverged"),
        ]  # fmt: skip
        figure.legend(handles=marks, loc="outside upper center", ncols=4)
        note_data(figure, records, "training examples")
    return figure


def standings(records: Sequence[Record], network: str) -> pd.DataFrame:
    """Tabulate the schemes on one network: medians over seeds, the range in brackets.

    Each seed at the rate that its scheme chose on other weights and data. Steps that were not
    enough count as the budget; "-" where no seed got there.
    """
    budget = records[0].parameters["steps"]
    rows = {}
    for scheme in records[0].values[network]:
        rates = [r for r in look_up(records, f"values.{network}.{scheme}.rate") if np.isfinite(r)]
        steps = _found(records, network, scheme, "steps")
        final = _found(records, network, scheme, "final")
        tried = [each for row in look_up(records, f"values.{network}.{scheme}.tried.diverged")
                 for each in row]  # fmt: skip
        rows[_label(scheme)] = {
            "rates chosen": _span(rates),
            "at an end": sum(_at_an_end(record, network, scheme) for record in records),
            "steps to the loss": "-"
            if (steps == budget).all()
            else f"{np.median(steps):.0f} [{steps.min():.0f}, {steps.max():.0f}]",
            "final loss [nat]": "{} [{}, {}]".format(
                *(_written(loss, 3) for loss in (median(final), final.min(), final.max()))
            ),
            "diverged": f"{np.mean(~np.isfinite(final)):.0%}",
            "of those tried": f"{np.mean(tried):.0%}" if tried else "-",
            "cost [training steps]": (
                f"{np.nanmedian(look_up(records, f'values.{network}.{scheme}.cost')):.2g}"
                if rates
                else "-"
            ),
        }
    return pd.DataFrame(rows).T.rename_axis("scheme")


def against_published(records: Sequence[Record], ours: str, what: str = "final") -> pd.DataFrame:
    """Compare a start with the best published one on each network, paired by seeds.

    The difference (ours less theirs) has an interval by Student's t that holds for all networks
    at once, by Bonferroni's correction: "tied" where it holds 0, "nobody" where no scheme got
    to the loss. The best published start is picked on the very seeds that are shown, which
    favors it. A network where ours or all rivals are missing has no row.

    Args:
        records: of the contest.
        ours: key of `LABELS`.
        what: "final", losses [nat], or "steps", where those that were not enough count as
            the budget.
    """
    digits = _DIGITS[what]
    rows = {}
    for network, row in records[0].values.items():
        rivals = {
            name: _found(records, network, name, what)
            for name in row
            if name not in (ours, *SIZED, "hessian")
        }
        if ours not in row or not rivals:  # a reader may choose the schemes
            continue
        found = _found(records, network, ours, what)
        best = min(rivals, key=lambda name: (median(rivals[name]), rivals[name].mean()))
        there = what == "final" or (rivals[best] < records[0].parameters["steps"]).any()
        verdict, difference = _verdict(found, rivals[best], len(records[0].values))
        if what == "steps" and not there and (found == rivals[best]).all():
            verdict = "nobody"
        rows[NETWORKS[network]] = {
            _label(ours): _written(median(found), digits),
            "best published": f"{_label(best)}, {_written(median(rivals[best]), digits)}"
            if there
            else "none",
            "difference": _difference(difference, digits),
            "verdict": verdict,
        }
    return pd.DataFrame(rows).T.rename_axis("network")


def parts(records: Sequence[Record], what: str = "final") -> pd.DataFrame:
    """Tabulate what each part of a start adds, network by network, paired by seeds.

    Differences with intervals as in `against_published`; "-" where a run diverged or a start is
    missing.
    """
    rows = {}
    for before, after, words in PARTS:
        rows[words] = {
            NETWORKS[network]: _difference(difference, _DIGITS[what])
            for network in records[0].values
            for difference in [_added(records, network, before, after, what)]
        }
    return pd.DataFrame(rows).T.rename_axis("what is added")


def summary(records: Sequence[Record]) -> str:
    """Say in words what came out: the library's start, and what equal norms add to it."""
    against = against_published(records, "looks_linear_sized")
    lines = []
    if len(against):
        lines.append(
            f"On final loss `looks_linear_` is {_counts(against['verdict'])} of {len(against)} "
            "networks, each time against the strongest published start there."
        )
    changes = {
        network: _added(records, network, "looks_linear_sized", "hessian", "final")
        for network in records[0].values
    }
    words = [_word(each) for each in changes.values() if each is not None]
    if words:
        lines.append(
            f"Equal Hessian norms on top of it end {_counts(pd.Series(words))} of {len(words)} "
            "networks in which they can be had."
        )
    return " ".join(lines)


_DIGITS = {"final": 3, "steps": 0}


def _span(rates: Sequence[float]) -> str:
    if not rates:
        return "-"
    return f"{min(rates):g}" + f" to {max(rates):g}" * (max(rates) > min(rates))


def _label(scheme: str) -> str:
    return LABELS.get(scheme, scheme)


def _group(scheme: str) -> int:
    return 2 if scheme == "hessian" else 1 if scheme in SIZED else 0


def _found(records: Sequence[Record], network: str, scheme: str, what: str) -> np.ndarray:
    """Give a scheme's losses or steps by seed; a run that diverged has an infinite loss."""
    values = np.array(look_up(records, f"values.{network}.{scheme}.{what}"), dtype=float)
    values = np.nan_to_num(values, nan=np.inf)
    if what == "steps":
        return np.minimum(values, records[0].parameters["steps"])
    lost = np.array(look_up(records, f"values.{network}.{scheme}.diverged"), dtype=bool)
    return np.where(lost, np.inf, values)


def _at_an_end(record: Record, network: str, scheme: str) -> bool:
    row = record.values[network][scheme]
    return row["rate"] in row["tried"]["rates"][:1] + row["tried"]["rates"][-1:]


def _verdict(ours: np.ndarray, theirs: np.ndarray, networks: int) -> tuple[str, Interval | None]:
    if not np.isfinite([ours, theirs]).all():
        lost = np.isinf(ours).mean(), np.isinf(theirs).mean()
        return ("first" if lost[0] < lost[1] else "behind" if lost[0] > lost[1] else "tied"), None
    difference = Interval.of((ours - theirs).tolist(), level=1 - 0.05 / networks)
    return (_word(difference, ("first", "tied", "behind")) if len(ours) > 1 else "one seed",
            difference)  # fmt: skip


def _added(
    records: Sequence[Record], network: str, before: str, after: str, what: str
) -> Interval | None:
    if before == "usual":
        before = "lecun" if network.startswith(("tanh", "gpt")) else "he"
    if not {before, after} <= set(records[0].values[network]):
        return None
    ours, theirs = (_found(records, network, name, what) for name in (after, before))
    return _verdict(ours, theirs, len(records[0].values))[1]


def _word(
    difference: Interval, words: tuple[str, str, str] = ("lower", "no different", "higher")
) -> str:
    if difference.high < 0:
        return words[0]
    return words[2] if difference.low > 0 else words[1]


def _counts(words: pd.Series) -> str:
    """Count words in the order in which they say less: "first on 3, tied on 2"."""
    order = ("first", "tied", "behind", "lower", "no different", "higher", "one seed")
    there = [word for word in order if (words == word).any()]
    return ", ".join(f"{word} on {(words == word).sum()}" for word in there)


def _written(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "diverged"


def _difference(difference: Interval | None, digits: int) -> str:
    return "-" if difference is None else signed(difference, digits)
