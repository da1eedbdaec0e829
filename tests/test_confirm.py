"""Records of earlier code hold once the present code is seen to give the same, and only then."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

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
from hessinit_book.records import confirm, confirmations, freshness, records, stamps
from hessinit_book.records.records import Record

EARLIER = "0" * 64
HESSIAN = "hessinit_book/word2vec/skip_gram_hessian.py"

pytestmark = pytest.mark.usefixtures("nothing_made_apart")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose record was made by earlier code."""
    root = tmp_path_factory.mktemp("project")
    make_project(root)
    shutil.rmtree(root / "_build")
    rewrite(record_file(root), code=EARLIER)
    return root


@pytest.fixture(scope="module")
def repeated(made: Path) -> Path:
    """The same project, confirmed by computing."""
    root = made.parent / "confirmed"
    shutil.copytree(made, root)
    assert verify.confirm(root, NAME, seed=None, commit=None) == 0
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project"))


@pytest.fixture
def confirmed(repeated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(repeated, tmp_path / "project"))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages' sources in their place."""
    copy = copy_sources(tmp_path / "checkout")
    monkeypatch.setattr(stamps, "ROOT", copy)
    return copy


def file(root: Path) -> Path:
    return record_file(root).parent / "confirmed.json"


def problems(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Verify without computing; give the lines before the count."""
    capsys.readouterr()
    count = verify.verify(root, sample=0, budget=0.0)
    *lines, last = findings(capsys.readouterr().out)
    assert last == f"verify: 1 records, 0 pages, {count} problems"
    return lines


STALE = "the code has changed since it was made; run or confirm it again"


def test_a_record_of_earlier_code_holds_once_confirmed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stale,) = problems(project, capsys)
    assert stale.endswith(STALE)
    before = record_file(project).read_bytes()
    assert verify.confirm(project, NAME, seed=0, commit=None) == 0
    said = capsys.readouterr().out
    assert f"{NAME} seed 0: computed again, the same\n" in said
    assert said.endswith(f"{NAME}: confirmed\n")
    assert problems(project, capsys) == []
    assert record_file(project).read_bytes() == before


def test_what_a_confirmation_says(confirmed: Path) -> None:
    found = confirmations.read(file(confirmed).parent)
    assert found is not None
    assert (found.experiment, found.codes) == (NAME, [EARLIER])
    assert found.code == stamps.code_stamp(NAME)
    assert (found.source, found.version) == (None, 1)
    again = found.repetition
    assert again is not None
    assert again.record == json.loads(record_file(confirmed).read_bytes())["sha256"]
    assert (again.seed, again.tolerance) == (0, 0.01)
    assert again.compared["exact"] > 1000
    assert again.compared["rounding"] == 1
    assert 0 <= again.largest <= again.tolerance
    assert again.device.startswith("cpu: ")
    assert again.versions["torch"]


def test_the_shortest_record_is_computed_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record_file(project)
    for seed, duration in ((1, 0.01), (2, 0.1)):
        shutil.copyfile(path, path.with_name(f"seed-{seed}.json"))
        rewrite(path.with_name(f"seed-{seed}.json"), seed=seed, duration_s=duration)
    rewrite(path.with_name("seed-2.json"), code="1" * 64)  # of another generation
    monkeypatch.setattr(
        confirm, "run_again", lambda r: r.model_copy(update={"code": stamps.code_stamp(NAME)})
    )
    assert verify.confirm(project, NAME, seed=None, commit=None) == 0
    found = confirmations.read(path.parent)
    assert found is not None
    assert found.repetition is not None
    assert found.repetition.seed == 1
    assert found.codes == [EARLIER, "1" * 64]
    assert all(
        freshness.is_current(r, found) for r in records.read_all(project / "results", "paper", NAME)
    )


def test_some_of_its_networks_confirm_a_record(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"vgg": {"final": 1.0}, "gpt": {"final": 2.0}, "all": {"seen": {"vgg": 3, "gpt": 4}}}
    path = record_file(project)
    rewrite(path, parameters={"networks": ["vgg", "gpt"]}, values=values)
    asked = []

    def run_again(record: Record) -> Record:
        asked.append(record.parameters)
        found = {"gpt": {"final": 2.0}, "all": {"seen": {"gpt": 4}}}
        return record.model_copy(update={"code": stamps.code_stamp(NAME), "values": found})

    monkeypatch.setattr(confirm, "run_again", run_again)
    assert verify.confirm(project, NAME, None, None, ["resnet"]) == 1
    assert "got resnet, expected some of vgg, gpt" in capsys.readouterr().out
    assert verify.confirm(project, NAME, None, None, ["gpt"]) == 0
    assert asked == [{"networks": ["gpt"]}]
    found = confirmations.read(path.parent)
    assert found is not None
    assert found.repetition is not None
    assert (found.repetition.networks, found.repetition.compared) == (["gpt"], {"exact": 2})
    assert verify.confirm(project, NAME, None, None, ["vgg"]) > 0  # what came out is another's


def test_other_values_confirm_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(json.dumps(records.read(record_file(project)).values))
    values["saddle"]["frequency_cosine"] *= 1.02
    rewrite(record_file(project), values=values)
    assert verify.confirm(project, NAME, seed=None, commit=None) == 1
    said = capsys.readouterr().out
    assert "  values.saddle.frequency_cosine: " in said
    assert said.endswith(f"{NAME}: not confirmed\n")
    assert not file(project).exists()
    (stale,) = problems(project, capsys)
    assert stale.endswith(STALE)


def test_a_failed_attempt_leaves_no_older_confirmation_that_holds(
    confirmed: Path, sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = sources / HESSIAN
    compute_otherwise(changed)
    (stale,) = problems(confirmed, capsys)
    assert stale.endswith(STALE)


@pytest.mark.parametrize(
    ("old", "new"), [('"seed": 0', '"seed": 1'), ('"codes": [', '"codes": [\n  "ab",'), ("{", "")]
)
def test_confirmation_edited_by_hand(
    old: str, new: str, confirmed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file(confirmed).read_text()
    assert old in text
    file(confirmed).write_text(text.replace(old, new, 1))
    of_record, of_confirmation = problems(confirmed, capsys)
    assert of_record.endswith(STALE)
    assert str(file(confirmed)) in of_confirmation
    assert "by hand?" in of_confirmation or "not a whole JSON file" in of_confirmation


def test_confirmation_of_another_record(
    confirmed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(record_file(confirmed), duration_s=9.0)
    (found,) = problems(confirmed, capsys)
    assert found.endswith("seed 0 is not the record that was computed again")
    rewrite(record_file(confirmed), code=stamps.code_stamp(NAME))
    assert any(
        line.endswith("confirms records that are no longer there; delete it")
        for line in problems(confirmed, capsys)
    )


def test_confirmation_of_another_experiment(confirmed: Path) -> None:
    folder = confirmed / "results" / "paper" / "mnist_tracking"
    folder.mkdir()
    shutil.copyfile(file(confirmed), folder / "confirmed.json")
    (found,) = confirmations.problems(folder, [])
    assert found.endswith(f"confirms records of {NAME}")


def test_what_cannot_be_confirmed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(
        experiment: str,
        seed: int | None = None,
        commit: str | None = None,
        networks: Sequence[str] = (),
    ) -> str:
        assert verify.confirm(project, experiment, seed, commit, networks) == 1
        return capsys.readouterr().out

    assert "no record of seed 7" in refusal(NAME, seed=7)
    assert "no records in" in refusal("mnist_tracking")
    assert "not of several networks" in refusal(NAME, networks=["gpt"])
    assert "no commit nowhere of these sources" in refusal(NAME, commit="nowhere")
    rewrite(record_file(project), code=stamps.code_stamp(NAME))
    assert "all records were made by the present code" in refusal(NAME)
    rewrite(record_file(project), code=EARLIER, parameters={"stepz": 1})
    assert "unknown parameter 'stepz'" in refusal(NAME)
    assert not file(project).exists()


# The same code


@pytest.fixture
def checkout(sources: Path, own_git: None) -> Path:
    """A git repository of one commit, tagged "made", around the copy of the sources."""
    git(sources, "init", "-q")
    git(sources, "add", ".")
    git(sources, "commit", "-q", "-m", "Made")
    git(sources, "tag", "made")
    return sources


def git(root: Path, *words: str) -> None:
    subprocess.run(["git", "-C", root, *words], check=True, capture_output=True)


@pytest.mark.parametrize("theirs", [True, False])
def test_the_same_code_confirms(theirs: bool, project: Path, checkout: Path) -> None:
    earlier = rule_of_files(checkout)
    rewrite(record_file(project), code=earlier if theirs else EARLIER)
    for name in (HESSIAN, "hessinit_book/records/freshness.py"):
        text = (checkout / name).read_text(encoding="utf-8")
        (checkout / name).write_text(text + "# a remark\n", encoding="utf-8")
    assert verify.confirm(project, NAME, seed=None, commit="made") == (0 if theirs else 1)
    found = confirmations.read(file(project).parent)
    assert (found is not None) == theirs
    if found is not None:
        assert (found.codes, found.code) == ([earlier], stamps.code_stamp(NAME))
        assert found.repetition is None
        assert found.source is not None
        assert len(found.source) == 40
        assert freshness.is_current(records.read(record_file(project)), found)


def rule_of_files(checkout: Path) -> str:
    """Let the commit "made" have a rule of its own for stamps."""
    file = checkout / "hessinit_book" / "records" / "stamps.py"
    file.write_text("def code_stamp(experiment):\n    return 'of ' + experiment\n")
    git(checkout, "commit", "-q", "-a", "-m", "Made otherwise")
    git(checkout, "tag", "--force", "made")
    return f"of {NAME}"


def test_a_confirmation_is_confirmed_in_turn(confirmed: Path, checkout: Path) -> None:
    """What was computed again by one commit's code holds for code that computes the same."""
    before = confirmations.read(file(confirmed).parent)
    assert before is not None
    assert before.code == stamps.code_stamp(NAME)
    assert verify.confirm(confirmed, NAME, seed=None, commit="made") == 0
    found = confirmations.read(file(confirmed).parent)
    assert found is not None
    assert (found.codes, found.code) == ([EARLIER], before.code)
    assert found.repetition == before.repetition
    assert found.source is not None


def test_other_code_confirms_nothing(
    project: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(record_file(project), code=stamps.code_stamp(NAME))
    changed = checkout / HESSIAN
    compute_otherwise(changed)
    assert verify.confirm(project, NAME, seed=None, commit="made") == 1
    assert "the code has changed since made" in capsys.readouterr().out
    assert not file(project).exists()
