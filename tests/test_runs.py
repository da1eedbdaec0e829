"""Runs resume where they were interrupted; records say how they came about."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from hessinit_book.errors import ParameterError, RecordError
from hessinit_book.parameters import Parameters
from hessinit_book.randomness import generator
from hessinit_book.records import confirmations, records, runs, stamps
from hessinit_book.records import machine as provenance
from hessinit_book.records.confirmations import Confirmation
from hessinit_book.records.records import DatasetInfo
from hessinit_book.records.runs import committed_records, run_seeds

EXPERIMENT = "mnist_tracking"
DATASET = DatasetInfo(name="MNIST", kind="sample", train_size=20, test_size=5, sha256="ab")


class Few(Parameters):
    """An experiment of one parameter."""

    EXPERIMENT: ClassVar[str] = "mnist_tracking"
    BY_PROFILE = {p: {"seeds": (0, 1)} for p in ("smoke", "quick", "paper")}  # noqa: RUF012

    steps: int = 2


class Runner:
    """Counts the seeds that are really run."""

    def __init__(self, results_dir: Path) -> None:
        self.results_dir = str(results_dir)
        self.ran: list[int] = []
        self.fail_at: int | None = None

    def one(self, seed: int, device: torch.device, bar: Any) -> dict[str, Any]:
        if seed == self.fail_at:
            raise KeyboardInterrupt
        self.ran.append(seed)
        bar.update(2)
        return {"loss": [1.0 + seed, float("nan")], "device": device.type}

    def __call__(self, dataset: DatasetInfo = DATASET, **given: Any) -> list[int]:
        """Run, and give the seeds that were not read from records."""
        self.ran = []
        given = {"profile": "smoke", "device": "cpu", "results_dir": self.results_dir, **given}
        parameters = Few.check(**given)
        found = run_seeds(parameters, dataset, self.one, ticks=2)
        assert [record.seed for record in found] == list(parameters.seeds)
        return self.ran

    def path(self, seed: int) -> Path:
        return records.record_path(self.results_dir, "smoke", "mnist_tracking", seed)


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "results")


def test_each_seed_gives_a_record(run: Runner) -> None:
    assert run() == [0, 1]
    for seed in (0, 1):
        record = records.read(run.path(seed))
        assert (record.seed, record.profile, record.experiment) == (seed, "smoke", "mnist_tracking")
        assert record.values["loss"][0] == 1.0 + seed
        assert record.values["device"] == "cpu"
        assert record.parameters == {"profile": "smoke", "steps": 2}
        assert record.dataset == DATASET
        assert record.code == stamps.code_stamp(EXPERIMENT)
        assert record.commit == provenance.current_commit()
        assert record.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert record.device.startswith("cpu: ")
        assert record.duration_s >= 0


def test_second_run_reads(run: Runner) -> None:
    run()
    before = [run.path(seed).read_bytes() for seed in (0, 1)]
    assert run() == []
    assert run(seeds=[1, 2]) == [2]
    assert [run.path(seed).read_bytes() for seed in (0, 1)] == before


def test_interrupted_run_goes_on(run: Runner) -> None:
    run.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run.ran == [0]
    assert not run.path(1).exists()
    first = run.path(0).read_bytes()
    run.fail_at = None
    assert run() == [1]
    assert run.path(0).read_bytes() == first


def test_changed_parameter_runs_again(run: Runner) -> None:
    run()
    assert run(steps=3) == [0, 1]
    assert records.read(run.path(0)).parameters["steps"] == 3
    assert run(steps=3, seeds=[1]) == []


def test_changed_data_run_again(run: Runner) -> None:
    run()
    assert run(DATASET.model_copy(update={"sha256": "cd"})) == [0, 1]


@pytest.mark.parametrize("name", ["code_stamp", "describe_device"])
def test_changed_code_or_device_runs_again(
    name: str, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr(runs, name, lambda _: "another")
    assert run() == [0, 1]
    assert run() == []


def test_confirmed_records_hold(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    old = records.read(run.path(0)).code
    confirmation = Confirmation(
        experiment="mnist_tracking",
        codes=[old],
        code="later",
        commit=None,
        finished="2026-01-01T00:00:00+00:00",
        source="made",
    )
    confirmations.write(confirmation, run.path(0).parent)
    monkeypatch.setattr(runs, "code_stamp", lambda _: "later")
    assert run() == []
    assert run(seeds=[1, 2]) == [2]  # which is of the later code itself
    assert run(seeds=[2]) == []
    monkeypatch.setattr(runs, "describe_device", lambda _: "another")
    assert run() == [0, 1]
    monkeypatch.undo()
    monkeypatch.setattr(runs, "code_stamp", lambda _: "still later")
    assert run() == [0, 1]


def test_new_commit_alone_does_not_run_again(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(runs, "current_commit", lambda: "another")
    assert run() == []


def test_record_of_another_seed_does_not_hold(run: Runner) -> None:
    run(seeds=[0])
    shutil.copyfile(run.path(0), run.path(1))
    assert run() == [1]
    assert records.read(run.path(1)).seed == 1


def test_damaged_record_is_an_error(run: Runner) -> None:
    run()
    run.path(1).write_bytes(run.path(1).read_bytes()[:100])
    with pytest.raises(RecordError, match=r"seed-1\.json is not a whole JSON file"):
        run()
    assert run.ran == []


def test_committed_records(run: Runner) -> None:
    parameters = Few.check(profile="smoke", results_dir=run.results_dir)
    assert committed_records(parameters) == []
    run()
    assert committed_records(parameters) == []  # no full-scale ones among them
    folder = Path(run.results_dir, "paper", "mnist_tracking")
    folder.mkdir(parents=True)
    assert committed_records(parameters) == []
    run(profile="paper")
    found = committed_records(parameters)
    assert [(record.profile, record.seed) for record in found] == [("paper", 0), ("paper", 1)]
    run(profile="paper", steps=3, seeds=[1])
    assert [record.seed for record in committed_records(parameters)] == [0]  # 1 is another's
    run(profile="paper", steps=3)
    assert [record.seed for record in committed_records(parameters)] == [0, 1]  # there is no else
    (folder / "seed-0.json").write_text("{")
    with pytest.raises(RecordError, match="seed-0"):
        committed_records(parameters)


# Provenance


@pytest.fixture
def checkout(tmp_path: Path, own_git: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository in place of the project's."""
    root = tmp_path / "checkout"
    (root / "hessinit_lib").mkdir(parents=True)
    (root / "hessinit_lib" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(
        provenance, "__file__", str(root / "hessinit_book" / "records" / "machine.py")
    )
    return root


def git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_of_a_clean_and_a_dirty_tree(checkout: Path) -> None:
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "One")
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.current_commit() == head
    record = checkout / "results" / "smoke" / "seed-0.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")  # which a run is just writing
    assert provenance.current_commit() == head
    (checkout / "hessinit_lib" / "a.py").write_text("a = 2\n")
    assert provenance.current_commit() == f"{head}-dirty"
    git(checkout, "checkout", "-q", "hessinit_lib/a.py")
    (checkout / "hessinit_lib" / "b.py").touch()
    assert provenance.current_commit() == f"{head}-dirty"


def test_no_commit_outside_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout.parent, "init", "-q")  # a repository further up is somebody else's
    assert provenance.current_commit() is None
    git(checkout, "init", "-q")
    assert provenance.current_commit() is None  # no commit yet
    monkeypatch.setenv("PATH", str(checkout))
    assert provenance.current_commit() is None  # no git


def test_choose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert provenance.choose_device("auto") == torch.device(expected)
    assert provenance.choose_device("cuda:1") == torch.device("cuda", 1)
    for name in ("cuda:2", "mps"):
        with pytest.raises(ParameterError, match=f"device: got '{name}', which is not on this"):
            provenance.choose_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ParameterError, match=r"\(0 CUDA GPUs\); expected 'auto', 'cpu'"):
        provenance.choose_device("cuda")


def test_absent_device_stops_before_the_first_seed(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ParameterError, match="device: got 'cuda'"):
        run(device="cuda")
    assert run.ran == []


def test_versions_name_what_only_some_experiments_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gensim", raising=False)
    assert "gensim" not in provenance.library_versions()
    monkeypatch.setitem(sys.modules, "gensim", ModuleType("gensim"))
    assert provenance.library_versions()["gensim"] == version("gensim")


# Randomness


def draw(*arguments: Any) -> list[float]:
    return torch.randn(4000, generator=generator(*arguments), dtype=torch.float64).tolist()


def test_streams_repeat() -> None:
    assert draw(7, "weights") == draw(7, "weights")
    # As they were when the committed records were made.
    first = torch.randint(1000, (4,), generator=generator(0, "weights")).tolist()
    assert first == [283, 490, 118, 905]


def test_streams_are_independent() -> None:
    streams = [(0, "weights"), (0, "batches"), (1, "weights"), (11, "weights"), (1, "1/weights")]
    correlation = np.corrcoef([draw(*stream) for stream in streams])
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.08  # five deviations


def test_global_streams_are_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    torch.rand(3, generator=generator(0, "weights"))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
