"""Records of several devices: side by side, neither replaced by the other, each verified."""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from verify_project import NAME, make_project, record_file, rewrite

from hessinit_book import verify
from hessinit_book.chapters.word_pair_saddle.run import WordPairSaddleParameters
from hessinit_book.errors import RecordError
from hessinit_book.parameters import Parameters
from hessinit_book.records import confirm, confirmations, expected, freshness, machine, records
from hessinit_book.records import runs as runs_module
from hessinit_book.records.confirmations import Confirmation, Repetition
from hessinit_book.records.records import DatasetInfo
from hessinit_book.records.runs import Parts, clear_parts, run_seeds

DATASET = DatasetInfo(name="MNIST", kind="sample", train_size=20, test_size=5, sha256="ab")
GPU = "cuda: NVIDIA H100"


class Few(Parameters):
    """An experiment of no parameters."""

    EXPERIMENT = "mnist_tracking"
    BY_PROFILE = {p: {"seeds": (0,)} for p in ("smoke", "quick", "paper")}  # noqa: RUF012


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine have a GPU, by name; nothing computes on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")


def run(folder: Path, device: str) -> list[str]:
    """Run, and give the devices that were computed on."""
    ran: list[str] = []

    def one(seed: int, device: torch.device, bar: Any) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            ran.append(device.type)
            return {"on": device.type}

        return Parts(parameters, DATASET, seed, device).get("part", compute)

    parameters = Few.check(profile="smoke", device=device, results_dir=folder)
    (record,) = run_seeds(parameters, DATASET, one, ticks=1)
    clear_parts(parameters)
    assert record.values["on"] == records.kind_of(record)
    return ran


def test_runs_on_two_devices_keep_both_records(two_devices: None, tmp_path: Path) -> None:
    assert [run(tmp_path, device) for device in ("cpu", "cuda", "cpu", "auto")] == [
        ["cpu"],
        ["cuda"],
        [],
        [],
    ]
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json"))
    assert found == [f"smoke/mnist_tracking/{place}seed-0.json" for place in ("cuda/", "")]
    for kind in ("cpu", "cuda"):
        (record,) = records.read_all(tmp_path, "smoke", "mnist_tracking", kind)
        assert records.kind_of(record) == kind
    assert records.kind_of(records.read_all(tmp_path, "smoke", "mnist_tracking")[0]) == "cpu"
    records.record_path(tmp_path, "smoke", "mnist_tracking", 0).unlink()
    assert records.kind_of(records.read_all(tmp_path, "smoke", "mnist_tracking")[0]) == "cuda"


def test_an_interrupted_run_goes_on_with_parts_of_its_own_device(
    two_devices: None, tmp_path: Path
) -> None:
    chosen = {
        d: Few.check(profile="smoke", device=d, results_dir=tmp_path) for d in ("cpu", "cuda")
    }
    for name, parameters in chosen.items():
        parts = Parts(parameters, DATASET, 0, torch.device(name))
        assert parts.get("part", lambda name=name: {"on": name}) == {"on": name}
    for name, parameters in chosen.items():
        again = Parts(parameters, DATASET, 0, torch.device(name)).get("part", dict)
        assert again == {"on": name}


@pytest.mark.parametrize(
    ("device", "place"), [("cpu: a processor", "cuda/seed-0.json"), (GPU, "seed-0.json")]
)
def test_a_record_in_the_place_of_another_device_is_named(
    device: str, place: str, project: Path
) -> None:
    path = record_file(project).parent / place
    records.write(records.read(record_file(project)).model_copy(update={"device": device}), path)
    with pytest.raises(
        RecordError, match=r"is the record of paper/word_pair_saddle/(cuda/)?seed-0"
    ):
        records.read_in_place(path)


# Verification


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    make_project(root)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, nothing_made_apart: None) -> Path:
    return Path(shutil.copytree(made, tmp_path / "project"))


def add_gpu_record(root: Path, seed: int = 0, **changes: Any) -> Path:
    path = records.record_path(root / "results", "paper", NAME, seed, "cuda")
    record = records.read(record_file(root))
    records.write(record.model_copy(update={"device": GPU, "seed": seed, **changes}), path)
    return path


def verified(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    problems = verify.verify(root, sample=1, budget=math.inf)
    return problems, capsys.readouterr().out


def test_a_gpu_record_is_no_problem_where_there_is_no_gpu(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(verify, "run_again", lambda record: record)
    add_gpu_record(project, duration_s=5000.0)
    monkeypatch.setattr(verify, "page_problems", lambda *_: [])  # it shows no such records
    problems, said = verified(project, capsys)
    assert problems == 0, said
    assert "computed again: 1, the same: 1" in said
    assert f"not computed again: 1, no GPU here: 1 {NAME}/cuda (5000 s)" in said
    add_gpu_record(project, values={})
    rewrite(record_file(project), device=GPU)
    assert (
        "is the record of paper/word_pair_saddle/cuda/seed-0.json" in verified(project, capsys)[1]
    )


def test_a_gpu_record_is_computed_again_where_there_is_one(
    project: Path,
    two_devices: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def again(record: records.Record) -> records.Record:
        asked.append(confirm.parameters_again(record, None).device)
        return record

    monkeypatch.setattr(verify, "run_again", again)
    add_gpu_record(project)
    assert "computed again: 2, the same: 2" in verified(project, capsys)[1]
    assert sorted(asked) == ["cpu", "cuda"]


def test_what_was_not_asked_for_is_extra_on_any_device(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "run_again", lambda record: record)
    path = add_gpu_record(project, seed=7)
    assert f"{path}: an extra record" in verified(project, capsys)[1]
    path.unlink()
    stray = path.parent.parent / "gpu" / "seed-0.json"
    records.write(records.read(record_file(project)), stray)
    said = verified(project, capsys)[1]
    assert f"{stray}: an extra record" in said
    assert f"{stray}: is the record of paper/word_pair_saddle/seed-0.json" in said


@pytest.mark.parametrize(("device", "place"), [("auto", ""), ("cpu", ""), ("cuda:1", "cuda/")])
def test_runs_say_which_device_is_expected(device: str, place: str, project: Path) -> None:
    runs = {"profiles": {"paper": {NAME: {"seeds": [0], "device": device}}}}
    (project / "runs.yaml").write_text(json.dumps(runs))
    (path,) = expected.expected_files(project)
    assert path == project / "results" / "paper" / NAME / f"{place}seed-0.json"


def test_pages_follow_the_records_of_all_devices(project: Path) -> None:
    before = freshness.page_stamp(project / "notebooks" / f"{NAME}.ipynb")
    add_gpu_record(project)
    after = freshness.page_stamp(project / "notebooks" / f"{NAME}.ipynb")
    assert before["records"] != after["records"]


# Confirmations


def test_a_confirmation_is_of_all_devices(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = add_gpu_record(project), records.read(record_file(project)).code
    for file in (path, record_file(project)):
        rewrite(file, code="1" * 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    chosen: list[str] = []

    def again(record: records.Record) -> records.Record:
        chosen.append(record.device)
        return record.model_copy(update={"code": now})

    monkeypatch.setattr(confirm, "run_again", again)
    record, _ = confirm.confirm_by_computing(project / "results", NAME)
    assert chosen == [record.device]
    assert record.device.startswith("cpu: ")
    for file in (path, record_file(project)):
        assert freshness.is_current(records.read(file), confirmations.read(file.parent))
    assert confirmations.problems(record_file(project).parent, [record]) == []
    record_file(project).unlink()
    with pytest.raises(RecordError, match="no device here as in its records: cuda: NVIDIA H100"):
        confirm.confirm_by_computing(project / "results", NAME)


def test_the_record_that_a_gpu_repeated_is_looked_for_in_its_place(project: Path) -> None:
    path = add_gpu_record(project, code="1" * 64)
    record = records.read(path)
    repetition = Repetition(
        seed=0,
        record=confirmations.checksum(path) or "",
        device="cuda: NVIDIA H200",
        versions=record.versions,
        duration_s=1.0,
        compared={"exact": 1},
        tolerance=0.01,
        largest=0.0,
        where=None,
    )
    confirmation = Confirmation(
        experiment=NAME,
        codes=["1" * 64],
        code="2" * 64,
        commit=None,
        finished="2026-01-01T00:00:00+00:00",
        repetition=repetition,
    )
    written = confirmations.write(confirmation, path.parent)
    assert written == path.parent.parent / "confirmed.json"
    assert confirmations.problems(written.parent, [record]) == []
    path.unlink()
    assert "not the record" in confirmations.problems(written.parent, [record])[0]


# Machines


def test_a_device_that_is_named_need_not_be_here(two_devices: None) -> None:
    assert [machine.device_kind(name) for name in ("auto", "cpu", "cuda:3", "mps")] == [
        *("cuda", "cpu", "cuda", "mps")
    ]
    assert [machine.is_here(kind) for kind in ("cpu", "cuda")] == [True, True]


def test_versions_without_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare machine with nothing but the checkout on its path still says what computed."""
    there = machine.library_versions()

    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", nothing)
    monkeypatch.delitem(machine.sys.modules, "torchvision", raising=False)
    found = machine.library_versions()
    project = Path(machine.__file__).parents[2] / "pyproject.toml"
    assert f'version = "{found["hessinit_lib"]}"' in project.read_text(encoding="utf-8")
    assert {name: found[name] for name in ("python", "torch", "numpy")} == {
        name: there[name] for name in ("python", "torch", "numpy")
    }
    assert "torchvision" not in found
    monkeypatch.setitem(machine.sys.modules, "torchvision", ModuleType("torchvision"))
    assert machine.holds_now(machine.library_versions())


def test_later_parameters_are_named_only_where_they_matter() -> None:
    """Records that were made before a parameter existed stay as they are."""

    class Later(Few):
        LATER = {"trainer": "old"}  # noqa: RUF012

        trainer: str = "old"

    assert Later.check().bearing() == Few.check().bearing()
    assert Later.check(trainer="new").bearing() == {**Few.check().bearing(), "trainer": "new"}
    assert "device" not in WordPairSaddleParameters.check().bearing()
    assert runs_module.choose_device("cpu").type == "cpu"
