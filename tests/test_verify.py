"""`make verify` sees a record edited by hand, a change of the library, and a stale page."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from verify_project import (
    NAME,
    compute_otherwise,
    copy_sources,
    findings,
    make_project,
    record_file,
    rewrite,
)

from hessinit_book import verify
from hessinit_book.records import expected, freshness, records, sampling, stamps

ROOT = Path(__file__).resolve().parent.parent
MADE_APART = expected.MADE_APART

pytestmark = pytest.mark.usefixtures("nothing_made_apart")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one small record and one executed page of it."""
    root = tmp_path_factory.mktemp("project")
    make_project(root)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    shutil.copytree(made, root)
    return root


def problems(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Verify without computing; give the lines before the count."""
    count = verify.verify(root, sample=0, budget=0.0)
    *lines, last = findings(capsys.readouterr().out)
    assert last == f"verify: 1 records, 1 pages, {count} problems"
    assert len(lines) == count
    return lines


def test_all_is_well(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(project, capsys) == []


def test_record_edited_by_hand(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = record_file(project)
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1', 1))
    found = problems(project, capsys)
    assert found[0].endswith("the content does not match its checksum (altered by hand?)")
    assert "the full-scale records have changed" in found[1]


def test_library_changed(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "ROOT", copy_sources(project))
    assert problems(project, capsys) == []
    compute_otherwise(project / "hessinit_book/word2vec/skip_gram_hessian.py")
    in_record, *on_page = problems(project, capsys)
    assert in_record.endswith("the code has changed since it was made; run or confirm it again")
    assert any("the experiment's code has changed since it ran" in line for line in on_page)


def test_stale_notebook(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = project / "notebooks" / f"{NAME}.ipynb"
    notebook = json.loads(source.read_bytes())
    notebook["cells"][0]["source"] = ["# Another title"]
    source.write_text(json.dumps(notebook))
    (found,) = problems(project, capsys)
    assert found.endswith("the notebook's cells have changed since it ran")


def test_page_edited_after_it_ran(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = project / "_build/src/notebooks" / f"{NAME}.ipynb"
    page.write_text(page.read_text().replace("seeds = None", "seeds = 7"))
    (found,) = problems(project, capsys)
    assert found.endswith("its cells were edited after it ran")


def test_page_without_a_stamp(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copyfile(project / "run.ipynb", project / "_build/src/notebooks" / f"{NAME}.ipynb")
    (found,) = problems(project, capsys)
    assert found.endswith("it carries no stamp of the code that ran it")


def test_a_run_of_another_source_gets_no_stamp(project: Path) -> None:
    source = project / "notebooks" / f"{NAME}.ipynb"
    source.write_text(source.read_text().replace("profile", "profil"))
    with pytest.raises(ValueError, match="is not a run of"):
        freshness.stamp_page(source, project / "run.ipynb", project / "page.ipynb")
    assert not (project / "page.ipynb").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 3}, f"is the record of paper/{NAME}/seed-3.json"),
        ({"experiment": "gone"}, "there is no experiment 'gone'"),
        ({"parameters": {"profile": "paper", "stepz": 1}}, "unknown parameter 'stepz'; known: "),
        ({"parameters": {"profile": "paper"}}, "its parameters are not those of the experiment"),
    ],
)
def test_record_that_does_not_fit(project: Path, changes: Any, expected: str) -> None:
    rewrite(record_file(project), **changes)
    assert expected in " ".join(verify.record_problems(record_file(project)))


def test_recomputed_numbers_agree_or_are_named(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verify.verify(project, sample=1, budget=math.inf) == 0
    said = capsys.readouterr().out
    assert f"{NAME} seed 0: computed again, the same\n" in said
    assert re.search(r"  [\d,]+ values within 1%, 1 rounding errors below their bounds", said)
    twisted = json.loads(json.dumps(records.read(record_file(project)).values))
    twisted["saddle"]["frequency_cosine"] *= 1.1
    value = twisted["saddle"]["frequency_cosine"]
    rewrite(record_file(project), values=twisted)  # by code: the checksum fits
    monkeypatch.setattr(verify, "page_problems", lambda *_: [])
    assert verify.verify(project, sample=1, budget=math.inf) == 1
    expected = f"  values.saddle.frequency_cosine: {value!r} in the record, "
    assert expected in capsys.readouterr().out


def test_choice_is_seeded_and_within_the_budget(project: Path) -> None:
    record = records.read(record_file(project))
    many = [record.model_copy(update={"seed": k, "duration_s": 1.0 + k}) for k in range(20)]
    chosen = sampling.choose(many, 5, 30.0)
    assert chosen == sampling.choose(many[::-1], 5, 30.0)
    assert chosen != sampling.choose(many, 6, 30.0)
    assert len(chosen) == 2  # of 10.5 s, the median: what each states itself does not count
    assert sampling.choose(many, 5, 0.0) == []
    drawn = {record.seed for k in range(200) for record in sampling.choose(many, k, 30.0)}
    assert drawn == set(range(20))


def test_time_really_spent_ends_it(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that state too short a duration do not keep a reader waiting."""
    rewrite(record_file(project), duration_s=0.0)
    shutil.rmtree(project / "_build")
    now = iter([0.0, 9.0])
    monkeypatch.setattr(verify.time, "monotonic", lambda: next(now))
    assert verify.verify(project, sample=1, budget=5.0) == 0
    said = capsys.readouterr().out
    assert f"  not computed again: 1, drawn, but the time was up: 1 {NAME} (0 s)\n" in said


def test_the_sample_is_drawn_anew_and_can_be_repeated(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = []
    monkeypatch.setattr(verify, "verify", lambda root, sample, budget: samples.append(sample))
    for chosen in ([], [], ["--sample", "7"]):
        with pytest.raises(SystemExit):
            verify.main(["--root", str(project), *chosen])
        assert f"verify: sample {samples[-1]} (once more by SAMPLE=" in capsys.readouterr().out
    assert samples[0] != samples[1]
    assert samples[2] == 7


@pytest.mark.parametrize(
    ("arguments", "expected_words"),
    [
        (["--root", "no such folder"], "--root: got 'no such folder', expected the project's"),
        (["--budget", "nan"], "--budget: got 'nan', expected seconds, 0 or more"),
        (["--budget", "-1"], "--budget: got '-1', expected seconds, 0 or more"),
        (["--budget", "soon"], "--budget: got 'soon', expected seconds, 0 or more"),
    ],
)
def test_wrong_arguments_are_told_first(
    arguments: list[str], expected_words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        verify.main(arguments)
    assert ended.value.code == 2
    assert expected_words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "runs.yaml cannot be read:"),
        ("profiles: [", "runs.yaml, line 1: no YAML (expected"),
        ("profiles: {paper: {no_such: {}}}", "line 1: paper: experiment: got 'no_such'"),
        (f"profiles: {{paper: {{{NAME}: {{seeds: []}}}}}}", f"line 1: paper, {NAME}: seeds: got"),
        ("profiles: {quick: {}}", "an extra record"),
    ],
)
def test_runs_that_cannot_be_read(
    content: str | None, words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = project / "runs.yaml"
    runs.unlink() if content is None else runs.write_text(content)
    (found,) = problems(project, capsys)
    assert words in found


def test_made_apart_names_what_is_there() -> None:
    folders = {path.name for path in (ROOT / "results" / "paper").iterdir()}
    made_apart = {name for name in folders if stamps.is_made_apart(name)}
    assert set(MADE_APART) == made_apart


def test_command_ends_with_its_verdict(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--root", str(project), "--budget", "0", "--sample", "3"]
    with pytest.raises(SystemExit) as ended:
        verify.main(arguments)
    assert ended.value.code == 0
    record_file(project).write_text("{")
    with pytest.raises(SystemExit) as ended:
        verify.main(arguments)
    assert ended.value.code == 1
    assert "is not a whole JSON file" in capsys.readouterr().out
