"""`make verify` finds whatever was done to the records: planted damages, each one found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from verify_project import rewrite

from hessinit_book import verify
from hessinit_book.chapters import parameters_of
from hessinit_book.records import records, sealed
from hessinit_book.records.records import DatasetInfo, Record

EXPERIMENTS = ("mnist_tracking", "width_scaling")
SEEDS = (0, 1, 2)
DATASET = DatasetInfo(name="MNIST", kind="full", train_size=20, test_size=5, sha256="ab")


def true_record(experiment: str, seed: int) -> Record:
    """What the experiment gives, in the place of computing it."""
    given = parameters_of(experiment).check(profile="paper", seeds=[seed])
    return Record(
        experiment=experiment,
        profile="paper",
        seed=seed,
        parameters=given.bearing(),
        dataset=DATASET,
        device="cpu: a processor",
        versions={"python": "3.11.7"},
        commit=None,
        code="cd",
        finished="2026-01-01T00:00:00+00:00",
        duration_s=1.0 + seed,
        values={"he": {"loss": [2.5, 2.0 + seed]}},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    (root / "notebooks").mkdir()
    runs = {name: {"seeds": [*SEEDS]} for name in EXPERIMENTS}
    (root / "runs.yaml").write_text(json.dumps({"profiles": {"paper": runs}}))
    for experiment in EXPERIMENTS:
        for seed in SEEDS:
            records.write(true_record(experiment, seed), place(root, seed, experiment))
    return root


@pytest.fixture
def project(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_made_apart: None
) -> Path:
    monkeypatch.setattr(verify, "is_current", lambda *_: True)
    monkeypatch.setattr(verify, "run_again", lambda r: true_record(r.experiment, r.seed))
    return Path(shutil.copytree(made, tmp_path / "project"))


def place(root: Path, seed: int, experiment: str = EXPERIMENTS[0]) -> Path:
    return records.record_path(root / "results", "paper", experiment, seed)


def verified(root: Path, capsys: pytest.CaptureFixture[str], budget: float = 60.0) -> str:
    """Verify as the command does, with whatever sample it draws; give what was said."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        verify.main(["--root", str(root), "--budget", str(budget)])
    said = capsys.readouterr().out
    assert ended.value.code == (0 if said.endswith("\n  problems: 0\n") else 1)
    return said


def test_nothing_was_done(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, count, summary, again, left = verified(project, capsys).splitlines()
    assert left == "  problems: 0"
    assert again == "  computed again: 6, the same: 6"
    assert summary == "summary: 6 records, 6 whole, 6 current"
    assert count == "  2 values within 1%"
    said = verified(project, capsys, budget=0.5)
    names = ", ".join(f"3 {name} (2 s)" for name in EXPERIMENTS)
    assert f"  not computed again: 6, longer than the budget of 0.5 s: {names}\n" in said


def resign(path: Path, **changes: Any) -> None:
    """Write what no record can hold, with a checksum that fits."""
    body = {**json.loads(path.read_bytes()), **changes}
    del body["sha256"]
    sealed.write(body, path)


def edit(path: Path, **changes: Any) -> None:
    rewrite(path, values={"he": {"loss": [2.5, 9.0]}}, **changes)


def forge(root: Path) -> None:
    shutil.copyfile(place(root, 1), place(root, 99))
    rewrite(place(root, 99), seed=99)


def make_pipe(root: Path) -> None:
    place(root, 1).unlink()
    os.mkfifo(place(root, 1))


LOSS = "  values.he.loss.1: 9.0 in the record, 3.0 now"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deleted seed": (
        lambda root: place(root, 1).unlink(),
        "seed-1.json: missing; runs.yaml",
    ),
    "deleted experiment": (
        lambda root: shutil.rmtree(place(root, 1).parent),
        "mnist_tracking/seed-2.json: missing; runs.yaml",
    ),
    "empty root": (
        lambda root: shutil.rmtree(root / "results"),
        "results/paper: no records",
    ),
    "forged extra seed": (
        forge,
        "seed-99.json: an extra record, which neither",
    ),
    "forged extra benchmark": (
        lambda root: shutil.copytree(
            place(root, 1).parent, place(root, 1, "benchmark_mlp30").parent
        ),
        "benchmark_mlp30/seed-1.json: an extra record",
    ),
    "duplicated seed": (
        lambda root: shutil.copyfile(place(root, 1), place(root, 77)),
        "seed-77.json: is the record of paper/mnist_tracking/seed-1.json (copied",
    ),
    "seed in the place of another": (
        lambda root: shutil.copyfile(place(root, 1), place(root, 2)),
        "seed-2.json: is the record of paper/mnist_tracking/seed-1.json (copied",
    ),
    "renamed seed": (
        lambda root: place(root, 1).rename(place(root, 5)),
        "seed-1.json: missing; runs.yaml",
    ),
    "record of another experiment": (
        lambda root: shutil.copyfile(place(root, 1, EXPERIMENTS[1]), place(root, 1)),
        "seed-1.json: is the record of paper/width_scaling/seed-1.json",
    ),
    "record of another profile": (
        lambda root: rewrite(place(root, 1), profile="smoke"),
        "seed-1.json: is the record of smoke/mnist_tracking/seed-1.json",
    ),
    "parameters of another profile": (
        lambda root: rewrite(place(root, 1), parameters={"profile": "quick"}),
        "seed-1.json: its parameters are not those of the experiment now",
    ),
    "edited value": (
        lambda root: place(root, 1).write_text(place(root, 1).read_text().replace("3.0", "9.0")),
        "seed-1.json: the content does not match its checksum",
    ),
    "edited value with a new checksum": (
        lambda root: edit(place(root, 1)),
        LOSS,
    ),
    "edited value, three days": (
        lambda root: edit(place(root, 1), duration_s=3 * 86400.0),
        LOSS,
    ),
    "edited value, thirty years": (
        lambda root: edit(place(root, 1), duration_s=1e9),
        "seed-1.json: duration_s: got 1e+09, expected 604,800 s or less",
    ),
    "edited value, no duration": (
        lambda root: resign(place(root, 1), duration_s="NaN"),
        "seed-1.json: duration_s: Input should be",
    ),
    "truncated file": (
        lambda root: os.truncate(place(root, 1), 300),
        "seed-1.json is not a whole JSON file",
    ),
    "touched file": (
        lambda root: os.truncate(place(root, 1), 0),
        "seed-1.json is not a whole JSON file",
    ),
    "pipe": (
        make_pipe,
        "seed-1.json is no plain file",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant, words = DAMAGES[damage]
    plant(project)
    said = verified(project, capsys)
    assert words in said
    assert "Traceback" not in said
    assert not said.endswith("\n  problems: 0\n")


def test_another_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = verified(tmp_path, capsys)
    assert "results/paper: no records" in said
    assert said.endswith("\n  problems: 2\n")
