"""runs.yaml is checked whole: each slip gives one line that names its line of the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hessinit_book.chapters import parameters_of
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import PROFILES
from hessinit_book.records.planned import read_planned

ROOT = Path(__file__).resolve().parent.parent


def runs(entry: str, experiment: str = "mnist_tracking") -> str:
    """A file whose fourth line is the entry; each profile but the first is sound."""
    return f"profiles:\n  quick:\n    {experiment}:\n      {entry}\n  paper: {{}}\n"


SLIPS = [
    # The layout of the file.
    ("", "runs.yaml: is empty, expected `profiles:`"),
    ("- 1\n", "line 1: the file: got a list, expected `name: ...`, or {} for none"),
    ("profiles: 3\n", "line 1: profiles: got '3', expected"),
    ("profiles:\n", "line 1: profiles: got nothing, expected"),
    ("profile:\n  quick: {}\n", "line 1: got 'profile', expected nothing but `profiles:`"),
    ("profiles:\n  quik: {}\n", "line 2: got 'quik', expected one of smoke, quick, paper"),
    ("profiles:\n  quick:\n", "line 2: quick: got nothing, expected"),
    ("profiles:\n  quick: {}\n  quick: {}\n", "line 3: profiles: 'quick' stands there twice"),
    ("profiles:\n  quick: {a: 1\n", "line 3: no YAML (expected ',' or '}'"),
    ("profiles:\n\tquick: {}\n", "line 2: no YAML ("),
    ("profiles: &a\n  quick: *b\n", "line 2: no YAML (found undefined alias"),
    ("profiles: \0\n", "runs.yaml: no YAML ("),
    ("[" * 3000, "nested too deep"),
    # Experiments.
    (
        "profiles:\n  quick:\n    mnist_trackin: {}\n",
        "line 3: quick: experiment: got 'mnist_trackin'",
    ),
    (
        "profiles:\n  quick:\n    ../x: {}\n",
        "line 3: quick: experiment: got '../x', expected one of",
    ),
    ("profiles:\n  quick:\n    1: {}\n", "line 3: quick: experiment: got '1', expected one of"),
    ("profiles:\n  quick:\n    [a]: {}\n", "line 3: quick: a name is text"),
    ("profiles:\n  quick:\n    contest:\n", "line 3: quick, contest: got nothing, expected"),
    ("profiles:\n  quick:\n    contest: []\n", "line 3: quick, contest: got a list, expected"),
    # Parameters.
    (runs("profile: smoke"), "line 4: quick, mnist_tracking: profile is not set here: it is the"),
    (runs("results_dir: /tmp"), "line 4: quick, mnist_tracking: results_dir is not set here: rec"),
    (runs("seeds:"), "line 4: quick, mnist_tracking: seeds: got nothing; leave it out"),
    (runs("seeds: [0, null]"), "line 4: quick, mnist_tracking: seeds: got nothing; leave it out"),
    (runs("seeds: 3"), "line 4: quick, mnist_tracking: seeds: got 3, expected a list"),
    (runs("seeds: []"), "line 4: quick, mnist_tracking: seeds: got (), expected at least one"),
    (runs("seeds: [1, 1]"), "line 4: quick, mnist_tracking: seeds: got [1, 1], expected each once"),
    (runs("seeds: [0, one]"), "line 4: quick, mnist_tracking: seeds[1]: got 'one', expected"),
    (runs("seeds: [010]"), "line 4: quick, mnist_tracking: seeds: 010 means 8 in YAML"),
    (runs("steps: 1:30"), "line 4: quick, mnist_tracking: steps: 1:30 means 90 in YAML"),
    (
        runs("steps: yes"),
        "line 4: quick, mnist_tracking: steps: got True, expected a valid integer",
    ),
    (runs("steps: 2026-11-28"), "line 4: quick, mnist_tracking: steps: got datetime.date("),
    (runs("steps: {a: 1}"), "line 4: quick, mnist_tracking: steps: got {'a': 1}, expected a valid"),
    (runs("stepz: 3"), "line 4: quick, mnist_tracking: unknown parameter 'stepz'; known: profile"),
    (runs("cls: 3"), "line 4: quick, mnist_tracking: unknown parameter 'cls'"),
    (runs("1: 3"), "line 4: quick, mnist_tracking: unknown parameter '1'"),
    (runs("steps: 3\n      steps: 4"), "line 5: quick, mnist_tracking: 'steps' stands there twice"),
    (runs("steps: !!python/name:os.system"), "line 4: no YAML (could not determine a constructor"),
    (runs("deviations: &a [*a]"), "nested too deep"),
    (runs("deviations: [1, -1]"), "line 4: quick, mnist_tracking: deviations[1]: got -1, expected"),
    (runs("batch_size: 2001"), "line 4: quick, mnist_tracking: batch_size: got 2001, expected at"),
    (runs("data_dir: nowhere"), "line 4: quick, mnist_tracking: data_dir: got 'nowhere', expected"),
    (
        runs("corpus: text9", "word2vec"),
        "line 4: quick, word2vec: corpus: got 'text9', expected 's",
    ),
    (runs("seeds: [4294967296]", "word2vec"), "line 4: quick, word2vec: seeds[0]: got 4294967296"),
]


@pytest.mark.parametrize(("text", "expected"), SLIPS)
def test_slips_are_refused_with_their_line(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.yaml"
    file.write_text(text)
    with pytest.raises(ParameterError) as caught:
        read_planned(file)
    message = str(caught.value)
    assert expected in message
    assert "runs.yaml" in message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"none cannot be read: .*No such file"):
        read_planned(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"profiles: \xff")
    with pytest.raises(ParameterError, match="bytes cannot be read: 'utf-8' codec"):
        read_planned(tmp_path / "bytes")


def test_what_is_planned(tmp_path: Path) -> None:
    (tmp_path / "runs.yaml").write_text(
        "profiles:\n"
        "  quick:\n"
        "    mnist_tracking: &base {seeds: [3], learning_rate: 1e-3}\n"
        "    step_gain: {device: cuda}\n"
        "  smoke:\n"
        "    mnist_tracking: {<<: *base, seeds: [4]}\n"
    )
    assert read_planned(tmp_path / "runs.yaml") == {
        "quick": {
            "mnist_tracking": {"seeds": [3], "device": "auto", "learning_rate": "1e-3"},
            "step_gain": {"seeds": [0, 1], "device": "cuda"},
        },
        "smoke": {"mnist_tracking": {"seeds": [4], "device": "auto", "learning_rate": "1e-3"}},
    }


def test_no_rule_makes_a_record_of_nothing() -> None:
    """Where a notebook wrote its record elsewhere, the job fails: `touch` made an empty file."""
    rules = (ROOT / "Snakefile").read_text(encoding="utf-8")
    assert re.findall(r"touch.*\{output\}", rules) == ["touch -c {output}"]


def test_the_projects_own_file() -> None:
    planned = read_planned(ROOT / "runs.yaml")
    assert tuple(planned) == PROFILES
    whole = yaml.safe_load((ROOT / "runs.yaml").read_text(encoding="utf-8"))["profiles"]
    for profile, experiments in planned.items():
        assert list(experiments) == list(whole[profile])
        for experiment, chosen in experiments.items():
            found = parameters_of(experiment).check(profile=profile)
            assert chosen == {"seeds": list(found.seeds), "device": found.device}
