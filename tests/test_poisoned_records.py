"""What comes from records stays text: nothing that a record holds puts markup on a page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hessinit_book.chapters.contest import figures as contest
from hessinit_book.chapters.init_targets import figures as init_targets
from hessinit_book.chapters.mnist_depth import reading
from hessinit_book.chapters.word2vec.verdict import verdict
from hessinit_book.drawing.tables import captioned
from hessinit_book.records.records import Record, read_all
from hessinit_book.statistics import families

ROOT = Path(__file__).resolve().parent.parent
POISON = "<img src=x onerror=alert(1)>"
ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"


def poisoned(experiment: str, name: str, poison: str = POISON) -> list[Record]:
    """Full-scale records in which a name is markup, wherever it stands."""
    found = []
    for record in read_all(ROOT / "results", "paper", experiment):
        text = json.dumps(record.model_dump()).replace(f'"{name}"', json.dumps(poison))
        found.append(Record.model_validate(json.loads(text)))
    return found


def test_all_of_a_table_is_escaped() -> None:
    table = pd.DataFrame(
        [[POISON, 1.5]], index=pd.Index([POISON], name=POISON), columns=[POISON, "number"]
    ).rename_axis(columns=POISON)
    page = captioned(table, POISON).to_html()
    assert "<img" not in page
    assert page.count(ESCAPED) == 6
    assert "1.500000" in page
    assert "<img" not in (table._repr_html_() or "")  # as a notebook shows it without a caption


@pytest.mark.parametrize(
    ("experiment", "name", "table"),
    [
        ("contest", "he", lambda found: contest.standings(found, "relu_30")),
        (
            "contest",
            "looks_linear",
            lambda found: contest.against_published(found, "looks_linear_sized"),
        ),
        ("init_targets", "he", lambda found: init_targets.summary(found, "relu_10")),
    ],
)
def test_table_of_a_poisoned_record(experiment: str, name: str, table: Any) -> None:
    page = captioned(table(poisoned(experiment, name)), experiment).to_html()
    assert "<img" not in page
    assert ESCAPED in page


@pytest.mark.parametrize("poison", [POISON, f"`{POISON}`"])
def test_verdict_on_a_poisoned_record(poison: str) -> None:
    """It is Markdown, in which HTML stays HTML."""
    said = verdict(poisoned("word2vec", "matched", poison)[:1])
    assert "<img" not in said
    assert ESCAPED in said


def test_reading_of_a_poisoned_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The activation that is left out is named."""
    monkeypatch.setattr(families, "REPETITIONS", 20)
    found = poisoned("mnist_depth", "sigmoid")
    said = reading.reading(found, reading.contests(found))
    assert "<img" not in said
    assert ESCAPED in said


def test_notebooks_show_records_in_no_other_way() -> None:
    """A `Styler` by itself escapes nothing; Markdown and HTML are shown as they are."""
    code = [
        line.strip()
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        for cell in json.loads(path.read_bytes())["cells"]
        for line in cell["source"]
        if cell["cell_type"] == "code" and re.search(r"\.style\b|HTML\(|Markdown\(", line)
    ]
    assert sorted(code) == [
        ').style.hide(axis="index")',  # the rules of `diagnose`, no records
        'display(Markdown(f"Shown: profile **{shown[0].profile}**, {len(shown)} seed(s)."))',
        "display(Markdown(figures.nearness(full_scale)))",  # numbers alone
        "display(Markdown(figures.reading(full_scale)))",
        "display(Markdown(figures.reading(full_scale, held)))",  # of two notebooks
        "display(Markdown(figures.reading(full_scale, held)))",
        "display(Markdown(figures.summary(full_scale, stage)))",  # numbers alone
        "display(Markdown(figures.summary(records)))",
        "display(Markdown(figures.summary(shown)))",
        "display(Markdown(verdict(full_scale)))",
        "display(Markdown(verdict(records)))",
    ]
