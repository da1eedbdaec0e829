"""What the contest of numbers says, as a table and in words that follow the figures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from hessinit_book.chapters.mnist_depth.predictors import FAMILIES, PREDICTORS, RIVALS
from hessinit_book.chapters.mnist_depth.scores import (
    SPLITS,
    contest,
    copies,
    left_out,
    networks,
)
from hessinit_book.records.records import Record
from hessinit_book.statistics.families import RARE, Score
from hessinit_book.statistics.prediction import REPETITIONS, Estimate

OURS = "Hessian"


@dataclass(frozen=True)
class Contest:
    """All families on one test.

    Attributes:
        rate: learning rate.
        split: key of `SPLITS`.
        scores: of each family.
        left_out: folds that tell nothing.
    """

    rate: float
    split: str
    scores: Mapping[str, Score]
    left_out: Sequence[str]


def contests(records: Sequence[Record]) -> list[Contest]:
    """Hold the contest at each rate and on each split."""
    tables = {rate: networks(records, rate) for rate in records[0].parameters["learning_rates"]}
    return [
        Contest(rate, split, contest(table, split), left_out(table, split))
        for rate, table in tables.items()
        for split in SPLITS
    ]


def contest_table(held: Sequence[Contest]) -> pd.DataFrame:
    """Tabulate how well each family foretells, and how far the Hessian norms are ahead of it."""
    rows = {}
    for one in held:
        for family, score in one.scores.items():
            rows[f"{one.rate:g}", SPLITS[one.split], FAMILIES[family]] = {
                "chosen most": PREDICTORS[score.most_chosen].label if score.chosen else "",
                "balanced accuracy": str(score.estimate()),
                "Hessian norms ahead by": ""
                if family == OURS
                else _lead(one, family, _comparisons(held)).signed(),
            }
    return pd.DataFrame(rows).T.rename_axis(["rate", "tested on", "number"])


def reading(records: Sequence[Record], held: Sequence[Contest]) -> str:
    """Say in words what the table shows.

    Returns:
        Markdown: a list.
    """
    return "\n".join(f"- {line}" for line in _lines(records, held))


def _lines(records: Sequence[Record], held: Sequence[Contest]) -> Iterator[str]:
    own = [one.scores[OURS] for one in held if one.scores[OURS].chosen]
    if not own:
        yield "Nothing can be tested: nearly all networks of each kind end alike."
        return
    estimates = [score.estimate(len(own)) for score in own]
    values = [estimate.value for estimate in estimates]
    sure = sum(estimate.low > 0.5 for estimate in estimates)
    yield (
        "**Do Hessian norms tell who trains?** Their balanced accuracy is "
        f"{_span(values, '.2f')} in {_counted(len(own), 'test')}; guessing is ruled out in "
        f"{_of(sure, len(own))} (intervals widened for as many)."
    )
    for family in (*RIVALS, "gain"):
        yield _against(held, family)
    chosen = [name for score in own for name in score.chosen]
    best = max(set(chosen), key=chosen.count)
    yield (
        f'**Which norm?** "{PREDICTORS[best].label}" is chosen in '
        f"{_of(chosen.count(best), len(chosen))} folds."
    )
    yield _left_out(held)
    tables = [networks(records, rate) for rate in records[0].parameters["learning_rates"]]
    alike = [copies(table) for table in tables]
    if len(records) > 1:
        yield (
            "**Other seeds are no test**: of "
            f"{alike[0][1]} settings, {' and '.join(str(same) for same, _ in alike)} end alike in "
            "all seeds (one figure a rate). Who has seen one seed remembers the others."
        )
    units = tables[0]["shape"].nunique()
    yield (
        f"**Uncertainty**: 95 % intervals from {REPETITIONS:,} bootstrap samples of the {units} "
        "shapes, with number and interval chosen anew in each; those of the "
        f"{_comparisons(held)} differences are widened, so that all hold together (Bonferroni)."
    )


def _against(held: Sequence[Contest], family: str) -> str:
    leads = {
        f"{SPLITS[one.split]} (rate {one.rate:g})": _lead(one, family, _comparisons(held))
        for one in held
        if one.scores[OURS].chosen
    }
    ahead = [name for name, lead in leads.items() if lead.low > 0]
    behind = [name for name, lead in leads.items() if lead.high < 0]
    span = _span([lead.value for lead in leads.values()], "+.2f")
    clear = {"ahead": ahead, "behind": behind}
    said = [f"{word} on {', '.join(names)}" for word, names in clear.items() if names]
    result = "; ".join(said) if said else "no difference is clear"
    return f"**Against {FAMILIES[family]}** (difference {span}): {result}."


def _left_out(held: Sequence[Contest]) -> str:
    names = [f"{html.escape(name)} (rate {one.rate:g})" for one in held for name in one.left_out]
    if not names:
        return "No fold had to be left out."
    return (
        f"**Left out**: {', '.join(names)}. Of the networks tested there, fewer than {RARE:.0%} "
        "train, or fewer do not: what says the same of all of them would be right."
    )


def _comparisons(held: Sequence[Contest]) -> int:
    return sum(len(one.scores) - 1 for one in held if one.scores[OURS].chosen) or 1


def _lead(one: Contest, family: str, comparisons: int) -> Estimate:
    return one.scores[OURS].ahead_of(one.scores[family], comparisons)


def _span(values: Sequence[float], form: str) -> str:
    low, high = (f"{value:{form}}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _of(count: int, total: int) -> str:
    return f"all {total}" if count == total else f"{count or 'none'} of {total}"
