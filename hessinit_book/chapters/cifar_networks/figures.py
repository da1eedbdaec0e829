"""Figures of the experiment `cifar_networks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hessinit_book.chapters.cifar_networks.scores import FAMILIES, contest, left_out, networks
from hessinit_book.drawing.style import COLORS, LINES, band, note_data, style, subplots
from hessinit_book.networks import TITLES
from hessinit_book.networks.starts import LABELS
from hessinit_book.records.records import Record, look_up

WINDOW = 10  # steps summed up in one point of the recorded loss curves


def norms_at_start(records: Sequence[Record]) -> Figure:
    """Draw every layer's Hessian norm before training, a panel a network, a line a scheme.

    Lines are medians over seeds, bands the range over seeds.
    """

    def draw(ax: Axes, network: str, scheme: str, index: int) -> None:
        rows = np.array(look_up(records, f"values.{network}.{scheme}.tracked.frobenius.0"))
        rows = np.where(rows > 0, rows, np.nan)
        band(ax, [*range(1, rows.shape[1] + 1)], rows, index)

    return _panels(records, draw, "layer, from the input", r"Hessian $\|H_k\|_F$ at step 0", True)


def loss_curves(records: Sequence[Record]) -> Figure:
    """Draw each scheme's training loss at its better rate, a panel a network.

    Lines are medians over seeds, bands the range over seeds.
    """

    def draw(ax: Axes, network: str, scheme: str, index: int) -> None:
        rows = np.array([_best_curve(record, network, scheme) for record in records])
        band(ax, [WINDOW * k for k in range(rows.shape[1])], rows, index)
        ax.set_ylim(1.5, 3.5)

    return _panels(records, draw, "training step", "loss [nat]", False)


def norms_in_training(records: Sequence[Record]) -> Figure:
    """Draw the largest Hessian norm of a layer over the steps, at each scheme's better rate."""

    def draw(ax: Axes, network: str, scheme: str, index: int) -> None:
        key = f"values.{network}.{scheme}.tracked"
        longest = max(look_up(records, f"{key}.steps"), key=len)
        rows = np.full((len(records), len(longest)), np.nan)
        for row, norms in zip(rows, look_up(records, f"{key}.frobenius"), strict=True):
            row[: len(norms)] = [max(layers) for layers in norms]
        band(ax, longest, np.where(rows > 0, rows, np.nan), index)

    return _panels(records, draw, "training step", r"largest $\|H_k\|_F$", True)


def summary(records: Sequence[Record], level: float = 2.2) -> pd.DataFrame:
    """Tabulate how each network ended from each scheme: medians over seeds.

    Args:
        records: of the experiment.
        level: loss [nat] to which steps are counted, from the curves of `WINDOW` steps each.
    """
    rows = {}
    for network, schemes in records[0].values.items():
        for scheme in schemes:
            key = f"values.{network}.{scheme}"
            curves = [_best_curve(record, network, scheme) for record in records]
            final = np.array(look_up(records, f"{key}.best.final_loss"))
            rows[TITLES[network], LABELS[scheme]] = {
                "rate": ", ".join(
                    f"{r:g}" for r in sorted(set(look_up(records, f"{key}.best.learning_rate")))
                ),
                "final loss [nat]": f"{np.median(final):.2f}",
                "range over seeds": f"{final.min():.2f} to {final.max():.2f}",
                f"steps to loss {level}": f"{np.median([_steps(c, level) for c in curves]):.0f}",
                "test accuracy": f"{np.median(look_up(records, f'{key}.best.test_accuracy')):.0%}",
                "diverged": str(int((~np.isfinite(final)).sum())),
            }
    return pd.DataFrame(rows).T.rename_axis(["network", "scheme"])


def contest_table(records: Sequence[Record]) -> pd.DataFrame:
    """Tabulate how well each number tells who trains, and how far Hessian norms are ahead of it."""
    found = contest(networks(records))
    own = found["hessian"]
    rows = {}
    for family, score in found.items():
        lead = own.ahead_of(score, len(found) - 1)
        rows[FAMILIES[family]] = {
            "chosen most": score.most_chosen.removeprefix(f"{family}_"),
            "balanced accuracy": str(score.estimate()),
            "Hessian norms ahead by": "" if score is own else lead.signed(),
        }
    return pd.DataFrame(rows).T.rename_axis("number")


def reading(records: Sequence[Record]) -> str:
    """Say in words what the table shows, and what it leaves out; Markdown."""
    table = networks(records)
    found, out = contest(table), [TITLES[name] for name in left_out(table)]
    tested = table.network.nunique() - len(out)
    own = found.pop("hessian")
    if not tested:
        return "Nothing can be tested: each network ends alike from nearly all starts."
    estimate = own.estimate()
    guess = "is more than guessing" if estimate.low > 0.5 else "may be that of guessing"
    leads = {FAMILIES[f]: own.ahead_of(score, len(found)) for f, score in found.items()}
    ahead = [name for name, lead in leads.items() if lead.low > 0]
    behind = [name for name, lead in leads.items() if lead.high < 0]
    said = [f"ahead of {', '.join(ahead)}"] * bool(ahead)
    said += [f"behind {', '.join(behind)}"] * bool(behind)
    rest = " and ".join(said) if said else "clearly ahead of or behind none of the rest"
    alone = f" Left out, since nearly all of it ends alike: {', '.join(out)}." if out else ""
    return (
        f"Hessian norms reach a balanced accuracy of {estimate} on {tested} networks, which "
        f"{guess}. They are {rest}.{alone}"
    )


def _best_curve(record: Record, network: str, scheme: str) -> list[float]:
    (found,) = look_up([record], f"values.{network}.{scheme}")
    return found["curves"][found["learning_rate"].index(found["best"]["learning_rate"])]


def _steps(curve: list[float], level: float) -> float:
    below = np.flatnonzero(np.array(curve) < level)
    return float(WINDOW * (below[0] + 1)) if len(below) else np.inf


def _panels(
    records: Sequence[Record],
    draw: Callable[[Axes, str, str, int], Any],
    xlabel: str,
    ylabel: str,
    log: bool,
) -> Figure:
    """Draw a panel for each network and in it something for each scheme; legend in the last."""
    networks = records[0].values
    with style():
        columns = 4
        rows = -(-(len(networks) + 1) // columns)
        figure, axes = subplots(rows, columns, figsize=(9.5, 0.4 + 2.5 * rows), squeeze=False)
        for ax, (network, schemes) in zip(axes.flat, networks.items(), strict=False):
            for scheme in schemes:
                draw(ax, network, scheme, [*LABELS].index(scheme))
            ax.set_title(TITLES[network], fontsize=9)
            ax.set_xlabel(xlabel, fontsize=9)
            if log:
                ax.set_yscale("log")
        for ax in axes[:, 0]:
            ax.set_ylabel(ylabel)
        for ax in axes.flat[len(networks) :]:
            ax.axis("off")
        for index, label in enumerate(LABELS.values()):
            axes.flat[-1].plot([], [], color=COLORS[index], linestyle=LINES[index], label=label)
        axes.flat[-1].legend(loc="center", title="scheme")
        note_data(figure, records)
    return figure
