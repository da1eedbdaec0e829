"""Verdicts follow from the records, and a claim without records is not tested."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_records import make_record

from hessinit_book.claims import CLAIMS, Claim, images, initialization
from hessinit_book.claims.findings import (
    NOT_REPRODUCED,
    NOT_TESTED,
    PARTLY,
    REPRODUCED,
    VERDICTS,
    Finding,
    counted,
)
from hessinit_book.claims.images import useful
from hessinit_book.records import records
from hessinit_book.statistics import families
from hessinit_book.statistics.families import Score

ROOT = Path(__file__).resolve().parent.parent


def claim(start: str) -> Claim:
    (found,) = (c for c in CLAIMS if c.text.startswith(start))
    return found


def test_without_records_nothing_is_tested(tmp_path: Path) -> None:
    assert {c.finding(tmp_path).verdict for c in CLAIMS} == {NOT_TESTED}


def test_each_verdict_comes_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "REPETITIONS", 20)
    for one in CLAIMS:
        found = one.finding(ROOT / "results")
        assert found.verdict in VERDICTS
        assert bool(found.figure) == (found.verdict != NOT_TESTED)


def test_claims_say_what_they_mean_and_where_they_are_made() -> None:
    """Sources as the abstracts have it: the preprint names MNIST, CIFAR and Word2Vec alone."""
    assert len({c.text for c in CLAIMS}) == len(CLAIMS)
    for one in CLAIMS:
        assert bool(one.form) == (one.judge is not None)
        later = ("chain rule", "Fashion", "SVHN", "Flowers", "GoogleNet", "ResNet", "EfficientNet")
        if any(name in one.text for name in later):
            assert one.source == "conference"


def test_verdicts_are_counted() -> None:
    verdicts = [c.finding(ROOT / "results").verdict for c in CLAIMS]
    line = counted(verdicts)
    assert line.startswith(f"{len(CLAIMS)} claims: ")
    parts = [part.split(" ", 1) for part in line.split(": ")[1].split(", ")]
    assert sum(int(count) for count, _ in parts) == len(CLAIMS)
    assert {verdict for _, verdict in parts} == set(verdicts)


def test_authors_findings_turn_with_the_records(tmp_path: Path) -> None:
    name, explodes = "mnist_tracking", claim("A large first-layer deviation")
    shutil.copytree(ROOT / "results/paper" / name, tmp_path / "paper" / name)
    assert explodes.finding(tmp_path).verdict == PARTLY
    for record in records.read_all(tmp_path, "paper", name):
        values: dict[str, Any] = record.values
        large = values["std_1e+0"]
        large["tracked"]["layers"]["layer_1"]["frobenius"][0] = 1e6
        large["final_loss_spread"] = 1e6
        path = records.record_path(tmp_path, "paper", name, record.seed)
        records.write(record.model_copy(update={"values": values}), path)
    assert explodes.finding(tmp_path).verdict == REPRODUCED


def test_the_start_that_is_judged_was_chosen_on_other_networks() -> None:
    losses = {"a": (0.5, 0.1, 0.4), "b": (0.5, 0.6, 0.4)}  # of He and of two others
    rivals = ("equal_frobenius", "all_one")
    found = []
    for seed in range(3):
        values: dict[str, Any] = {}
        for network, (he, *others) in losses.items():
            ends = dict.fromkeys(initialization.CONTROLLED, 0.9) | dict(
                zip(rivals, others, strict=True)
            )
            values[network] = {
                start: {"final": [loss + 0.001 * seed], "diverged": [False]}
                for start, loss in {"he": he, **ends}.items()
            }
        found.append(make_record(experiment="init_targets", seed=seed, values=values))
    # On network a, equal_frobenius is best by far; network b speaks for all_one.
    judged = initialization.control_helps(found)
    assert "a: all_one, +0.10" in judged.figure
    assert "b: equal_frobenius, -0.10" in judged.figure
    assert judged.verdict == PARTLY


def test_a_claim_needs_the_records_of_all_its_experiments(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results/paper/init_targets", tmp_path / "paper/init_targets")
    one = claim("Controlling the Hessian norm helps to initialize weights rigorously: image")
    assert one.finding(tmp_path).verdict != NOT_TESTED
    assert replace(one, beside=("mnist_depth",)).finding(tmp_path).verdict == NOT_TESTED


@pytest.mark.parametrize(
    ("own", "transferred", "expected"),
    [
        (REPRODUCED, 0.6, REPRODUCED),
        (REPRODUCED, 0.4, PARTLY),
        (PARTLY, 0.6, PARTLY),
        (PARTLY, 0.4, NOT_REPRODUCED),
    ],
)
def test_clothes_ask_for_what_was_learned_on_digits(
    own: str, transferred: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Score((), np.array([0.7, transferred, 0.8]))
    monkeypatch.setattr(images, "diagnostic", lambda _: Finding(own, "own"))
    monkeypatch.setattr(images, "_tables", lambda _: {0.1: pd.DataFrame()})
    monkeypatch.setattr(images.mnist_depth, "transfer", lambda *_: {"Hessian": score})
    judged = images.on_clothes([], [])
    assert judged.verdict == expected
    assert judged.figure.startswith("own; learned on MNIST (rate 0.1): 0.70 [0.")


@pytest.mark.parametrize(
    ("score", "rival", "verdict"),
    [
        ([0.5, 0.4, 0.6], [0.3, 0.2, 0.4], NOT_REPRODUCED),
        ([0.7, 0.6, 0.8], [0.7, 0.7, 0.7], PARTLY),
        ([0.7, 0.6, 0.8], [0.6, 0.5, 0.7], REPRODUCED),
        ([math.nan] * 3, [0.6, 0.5, 0.7], NOT_REPRODUCED),
    ],
)
def test_a_diagnostic_must_beat_its_rivals(
    score: list[float], rival: list[float], verdict: str
) -> None:
    own, hard, easy = (Score((), np.array(v)) for v in (score, rival, [0.3, 0.2, 0.3]))
    assert useful({"": (own, {"easy": easy, "hard": hard})}).verdict == verdict


@pytest.mark.parametrize(
    ("lead", "verdict"), [(0.6, REPRODUCED), (0.12, NOT_REPRODUCED), (-0.1, NOT_REPRODUCED)]
)
def test_leads_of_which_one_is_enough_have_wider_intervals(
    lead: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With a deviation of 0.05, 0.12 is clear by itself, but not as one of four.
    draws = np.concatenate([[0.0], np.random.default_rng(0).normal(0, 0.05, 2000)])
    scores = {"Hessian": Score((), lead + draws), "variance": Score((), 0 * draws)}
    assert scores["Hessian"].ahead_of(scores["variance"]).low > 0 or lead < 0
    monkeypatch.setattr(images, "_tables", lambda _: {0.02: pd.DataFrame(), 0.1: pd.DataFrame()})
    monkeypatch.setattr(images.mnist_depth, "contest", lambda *_: scores)
    assert images.beyond_variances([]).verdict == verdict
