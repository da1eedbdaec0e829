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
from hessinit_book.statistics.best_rate import at_best_rate, best_rate, median
from hessinit_book.statistics.intervals import Interval

LABELS = {
    "torch": "PyTorch's default",
    "lecun": "LeCun",
    "glorot": "Glorot",
    "he": "He",
    "orthogonal": "orthogonal",
    "lsuv": "LSUV",
    "metainit": "MetaInit",
    "gradinit": "GradInit",
    "fixup": "Fixup",
    "level": "level alone",
    "directions": "directions alone",
    "hessian": "hessian_ (ours)",
}
OURS = "hessian"
HALVES = ("level", "directions")  # what ours is put together from; no rivals of it
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
    """Draw the final loss of every scheme at its best rate, a panel a network.

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
            rows, columns, figsize=(9.8, 0.5 + 2.9 * rows), sharey=True, squeeze=False
        )
        for ax, network in zip(axes.flat, networks, strict=False):
            for y, scheme in enumerate(schemes):
                if scheme not in records[0].values[network]:
                    continue
                losses = at_best_rate(records, network, scheme, "final")
                diverged = at_best_rate(records, network, scheme, "diverged").astype(bool)
                color = COLORS[2 if scheme == OURS else 1 if scheme in HALVES else 0]
                seen = losses[~diverged]
                ax.plot(seen, np.full(len(seen), y), "o", color=color, markersize=4, alpha=0.6)
                if len(seen):
                    ax.plot([np.median(seen)] * 2, [y - 0.35, y + 0.35], color=color, linewidth=2)
                if diverged.any():
                    ax.plot(1.0, y, "x", color="#000000", transform=ax.get_yaxis_transform(),
                            clip_on=False)  # fmt: skip
            ax.set(title=NETWORKS[network], xlabel="final loss [nat]")
        for ax in axes.flat[len(networks) :]:
            ax.set_visible(False)
        axes[0, 0].set_yticks(range(len(schemes)), [_label(scheme) for scheme in schemes])
        axes[0, 0].invert_yaxis()
        marks = [
            Line2D([], [], color=COLORS[0], marker="o", linestyle="none", label="a seed"),
            Line2D([], [], color=COLORS[0], linewidth=2, label="median"),
            Line2D([], [], color="#000000", marker="x", linestyle="none", label="diverged"),
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=3)
        note_data(figure, records, "training examples")
    return figure


def standings(records: Sequence[Record], network: str) -> pd.DataFrame:
    """Tabulate the schemes on one network: medians over seeds, the range in brackets.

    All at the rate whose median final loss is lowest, but for the share of runs at all rates that
    diverged. Steps that were not enough count as the budget; "-" where no seed got there.
    """
    parameters = records[0].parameters
    budget = parameters["steps"]
    rates = parameters["adam_rates" if network == "gpt" else "rates"]
    rows = {}
    for scheme in records[0].values[network]:
        steps = _counted(records, network, scheme, "steps")
        final = _counted(records, network, scheme, "final")
        diverged = at_best_rate(records, network, scheme, "diverged").mean()
        everywhere = np.mean(look_up(records, f"values.{network}.{scheme}.diverged"))
        cost = np.median(look_up(records, f"values.{network}.{scheme}.cost"))
        rows[_label(scheme)] = {
            "best rate": f"{rates[best_rate(records, network, scheme)]:g}",
            "steps to the loss": "-"
            if (steps == budget).all()
            else f"{np.median(steps):.0f} [{steps.min():.0f}, {steps.max():.0f}]",
            "final loss [nat]": "{} [{}, {}]".format(
                *(_written(loss, 3) for loss in (median(final), final.min(), final.max()))
            ),
            "diverged": f"{diverged:.0%}",
            "at all rates": f"{everywhere:.0%}",
            "cost [training steps]": f"{cost:.2g}",
        }
    return pd.DataFrame(rows).T.rename_axis("scheme")


def verdicts(records: Sequence[Record], what: str = "final") -> pd.DataFrame:
    """Compare ours with the best other scheme on each network, paired by seeds.

    The difference (ours less theirs) with a 95 % interval by Student's t: "tied" where the
    interval holds 0, "nobody" where no scheme got to the loss with any seed. The two halves
    of ours are no rivals. A network where ours or a rival is missing has no row.

    Args:
        records: of the contest.
        what: "final", losses [nat], or "steps", where those that were not enough count as
            the budget.
    """
    digits = _DIGITS[what]
    rows = {}
    for network in records[0].values:
        found = {
            name: _counted(records, network, name, what) for name in records[0].values[network]
        }
        rivals = {name: row for name, row in found.items() if name not in (OURS, *HALVES)}
        if OURS not in found or not rivals:  # a reader may choose the schemes
            continue
        ours = found[OURS]
        best = min(rivals, key=lambda name: (median(rivals[name]), rivals[name].mean()))
        several, difference = len(ours) > 1, Interval.of((ours - rivals[best]).tolist())
        verdict = "first" if difference.mean < 0 else "behind"
        if difference.low <= 0 <= difference.high:
            verdict = "tied"
        there = what == "final" or (rivals[best] < records[0].parameters["steps"]).any()
        if what == "steps" and not there and (ours == rivals[best]).all():
            verdict = "nobody"
        rows[NETWORKS[network]] = {
            "ours": f"{median(ours):.{digits}f}",
            "best other": f"{_label(best)}, {median(rivals[best]):.{digits}f}" if there else "none",
            "difference": signed(difference, digits),
            "verdict": verdict if several else "one seed",
        }
    return pd.DataFrame(rows).T.rename_axis("network")


def halves(records: Sequence[Record], what: str = "final") -> pd.DataFrame:
    """Tabulate what the directions and what the level add, on each network.

    Medians over seeds of the usual weights (He's, or LeCun's for tanh and the transformer), of
    each half of ours alone, and of both; then what is added to the other half, paired by
    seeds, with a 95 % interval, or "-" where a run diverged.

    Args:
        records: of the contest.
        what: see `verdicts`.
    """
    digits = _DIGITS[what]
    rows = {}
    for network in records[0].values:
        usual = "lecun" if network.startswith(("tanh", "gpt")) else "he"
        names = [name for name in (usual, *HALVES, OURS) if name in records[0].values[network]]
        if len(names) < 4:
            continue
        start, level, directions, both = (_counted(records, network, name, what) for name in names)
        rows[NETWORKS[network]] = {
            "usual weights": f"{LABELS[usual]}, {_written(median(start), digits)}",
            "level alone": _written(median(level), digits),
            "directions alone": _written(median(directions), digits),
            "both": _written(median(both), digits),
            "directions add": _added(both, level, digits),
            "the level adds": _added(both, directions, digits),
        }
    return pd.DataFrame(rows).T.rename_axis("network")


_DIGITS = {"final": 3, "steps": 0}


def _label(scheme: str) -> str:
    return LABELS.get(scheme, scheme)


def _counted(records: Sequence[Record], network: str, scheme: str, what: str) -> np.ndarray:
    """Give a scheme's losses or steps by seed; steps that were not enough are the budget."""
    values = np.nan_to_num(at_best_rate(records, network, scheme, what), nan=np.inf)
    return np.minimum(values, records[0].parameters["steps"] if what == "steps" else np.inf)


def _written(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "diverged"


def _added(both: np.ndarray, other: np.ndarray, digits: int) -> str:
    if not np.isfinite([both, other]).all():
        return "-"
    return signed(Interval.of((both - other).tolist()), digits)
