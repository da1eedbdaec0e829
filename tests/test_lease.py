"""The command for a lent GPU: what travels, what runs, what comes back."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_records import make_record

from benchmarks.modern_networks import NETWORKS as MODERN
from benchmarks.rows import ROWS
from hessinit_book.chapters import parameters_of
from hessinit_book.records import records

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import lease
from leasing import carried, results, runs, stages
from leasing.runs import Place, Run

ROOT = Path(__file__).resolve().parent.parent


def place_in(tmp_path: Path, **changes: Any) -> Place:
    found = {"work": tmp_path / "work", "data": tmp_path / "data", "device": "cpu", "toy": True}
    return Place(**{**found, **changes})


def test_a_toy_stage_runs_whole_and_its_records_are_put_in_place(tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    words = ["--toy", "--device", "cpu", "--out", str(out), "--home", str(home)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def call(*chosen: str) -> list[list[str]]:
        done = subprocess.run(
            [sys.executable, "tools/lease.py", *chosen, *words],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.split() for line in done.stdout.splitlines()[1:]]

    rows = call("cifar", "word2vec")
    assert [(row[0], row[3]) for row in rows] == [
        ("pace", "done"),
        ("cifar_networks-0", "done"),
        ("word2vec-0", "done"),
    ]
    archives = sorted(out.iterdir())
    assert [path.name for path in archives] == ["cifar-toy.tar.gz", "word2vec-toy.tar.gz"]
    written = results.unpack(archives, tmp_path / "results")
    assert {records.read_in_place(path).experiment for path in written} == {
        "cifar_networks",
        "word2vec",
    }
    results.unpack(archives, tmp_path / "results")  # the same once more


def test_every_stage_asks_for_what_there_is(tmp_path: Path) -> None:
    place = place_in(tmp_path, toy=False)
    (tmp_path / "work").mkdir()
    pace = dict.fromkeys(stages.CIFAR_NETWORKS, 0.01)
    (tmp_path / "work" / "pace.json").write_text(json.dumps(pace))
    for experiment, options in {
        "mnist_tracking": {},
        "mnist_depth": stages.depth_options(place),
        "contest": stages.contest_options(place),
        "cifar_networks": stages.cifar_options(place),
        "word2vec": stages.word2vec_options(place),
    }.items():
        parameters = parameters_of(experiment).check(profile="paper", **options)
        named = [run.name for stage in stages.STAGES.values() for run in stage.runs]
        assert {f"{experiment}-{seed}" for seed in parameters.seeds} <= set(named)
    assert set(stages._MODERN) <= set(MODERN)
    assert {f"row-{row}" for row in ROWS} <= set(named)
    for name, stage in stages.STAGES.items():
        assert stage.limit <= 540, name
        assert name == "keep" or stages.toy(stage).runs
        assert len({run.name for run in stage.runs}) == len(stage.runs)


def test_more_time_or_a_faster_device_gives_more_epochs() -> None:
    pace = dict.fromkeys(stages.CIFAR_NETWORKS, 0.002)
    slow = {name: 100 * took for name, took in pace.items()}
    found = [stages.epochs(p, s, 5, 5) for p, s in ((pace, 500), (pace, 100), (slow, 100))]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 3
    assert found[-1] == 1


def sleep(seconds: float):
    return lambda _: time.sleep(seconds)


def fail(_: Place) -> None:
    print("as far as here")
    raise ValueError("broken")


def leave(place: Place) -> None:
    (place.work / "left").write_text("x")
    print("left\ra file")


def leave_children(place: Place) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (place.work / "child").write_text(str(child.pid))
    time.sleep(60)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_that_breaks_or_takes_too_long_stops_no_other(tmp_path: Path) -> None:
    place, kept = place_in(tmp_path, toy=False), []
    made = runs.make(
        [
            Run("broken", 9, fail),
            Run("long", 1.0, leave_children),
            Run("exits", 9, lambda _: sys.exit("no such thing")),
            Run("crashes", 9, lambda _: os.kill(os.getpid(), 15)),
            Run("short of data", 9, leave, ("MNIST/raw/x",)),
            Run("good", 9, leave),
        ],
        place,
        limit=60,
        jobs=2,
        keep=lambda: kept.append(1),
    )
    assert [(one.name, one.how, one.line) for one in made] == [
        ("broken", "failed", "ValueError: broken"),
        ("long", "stopped", ""),
        ("exits", "failed", "no such thing"),
        ("crashes", "failed", "ended by signal 15"),
        ("short of data", "failed", f"not in {place.data}: MNIST/raw/x"),
        ("good", "done", "a file"),
    ]
    assert len(kept) == 5
    child = Path(f"/proc/{(place.work / 'child').read_text()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"  # stopped with its parent
    assert "failed: ValueError: broken" in runs.table(made)

    again = runs.make([Run("good", 9, fail), Run("broken", 9, leave)], place, limit=60)
    assert [one.how for one in again] == ["done before", "done"]
    late = runs.make([Run("slow", 9, sleep(60)), Run("after", 9, leave)], place, limit=0.3)
    assert [one.how for one in late] == ["stopped", "not begun"]


def test_a_call_goes_on_from_the_archive_of_another(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for name in ("done/a.json", "records/smoke/x/parts/seed-0/p.json", "logs/a.txt", "other"):
        (before / name).parent.mkdir(parents=True, exist_ok=True)
        (before / name).write_text(name)
    (before / "records/smoke/x/.unfinished.part").write_text("")
    archive = tmp_path / "out" / "mnist.tar.gz"
    results.keep(before, archive)
    results.resume([archive, tmp_path / "absent.tar.gz"], after)
    found = sorted(p.relative_to(after).as_posix() for p in after.rglob("*") if p.is_file())
    assert found == ["done/a.json", "logs/a.txt", "records/smoke/x/parts/seed-0/p.json"]
    assert [path.name for path in archive.parent.iterdir()] == ["mnist.tar.gz"]


def record_bytes(tmp_path: Path, **changes: Any) -> bytes:
    record = make_record(**{"experiment": "contest", "profile": "paper", "seed": 0, **changes})
    return records.write(record, tmp_path / "made.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("records/paper/contest/seed-0.json", b"{}", "is no record"),
        ("records/paper/contest/seed-1.json", None, "is no record"),
        ("records/paper/contest/cuda/seed-0.json", None, "is no record"),
        ("records/paper/notes.txt", b"", "is no record"),
        ("../seed-0.json", None, "does not belong there"),
        ("records/../../seed-0.json", None, "does not belong there"),
        ("/etc/seed-0.json", None, "does not belong there"),
    ],
)
def test_what_is_no_record_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    good = record_bytes(tmp_path)
    archive = tmp_path / "back.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for each, found in (("records/paper/contest/seed-0.json", good), (name, content or good)):
            member = tarfile.TarInfo(each)
            member.size = len(found)
            opened.addfile(member, io.BytesIO(found))
    with pytest.raises(SystemExit, match=said) as raised:
        results.unpack([archive], tmp_path / "results")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "results").exists()


def test_another_record_is_replaced_only_if_asked_for(tmp_path: Path) -> None:
    work, place = tmp_path / "work", tmp_path / "results/paper/contest/seed-0.json"
    found = work / "records/paper/contest/seed-0.json"
    found.parent.mkdir(parents=True)
    found.write_bytes(record_bytes(tmp_path))
    results.keep(work, tmp_path / "contest.tar.gz")
    place.parent.mkdir(parents=True)
    place.write_bytes(record_bytes(tmp_path, values={"other": 1.0}))
    with pytest.raises(SystemExit, match="--replace"):
        results.unpack([tmp_path / "contest.tar.gz"], tmp_path / "results")
    results.unpack([tmp_path / "contest.tar.gz"], tmp_path / "results", replace=True)
    assert place.read_bytes() == found.read_bytes()
    (tmp_path / "broken.tar.gz").write_bytes(b"no archive")
    with pytest.raises(SystemExit, match=r"broken.tar.gz: no archive") as raised:
        lease.main(["unpack", str(tmp_path / "broken.tar.gz")])
    assert "\n" not in str(raised.value)


def test_data_travel_in_parts_and_come_out_byte_for_byte(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(carried, "_SIDE", 2)
    monkeypatch.setattr(carried, "download", lambda names, folder: None)
    monkeypatch.setattr(carried, "tree_bytes", lambda: 2**20)
    own, there = tmp_path / "own", tmp_path / "home"
    monkeypatch.setenv("HESSINIT_DATA", str(own))
    pixels = bytes(range(256)) * 48
    batch = b"head T" + b"T" + struct.pack("<I", len(pixels)) + pixels + b"labels"
    assert carried.decoded(carried.picture(batch)) == batch
    for file in {file for parts in carried.DATA.values() for file, _ in parts}:
        (own / file).parent.mkdir(parents=True, exist_ok=True)
        (own / file).write_bytes(batch if "batch" in file else file.encode())
    lease.main(["pack", str(tmp_path / "pack")])
    assert "probe         1.0 MiB travel, of 64" in capsys.readouterr().out

    monkeypatch.setattr(sys, "path", [*sys.path])
    whole = [carried.install(tmp_path / "pack" / stage, there) for stage in carried.DATA]
    assert len(whole[0]) == 5
    assert sum(map(len, whole)) == 15
    for file in own.rglob("*"):
        if file.is_file():
            assert (there / "data" / file.relative_to(own)).read_bytes() == file.read_bytes()

    broken = next((there / "parts").glob("wiki8.1of3*"))
    broken.write_bytes(b"?")
    (there / "data" / "wiki8").unlink()
    assert carried.install(tmp_path / "none", there) == ["wiki8: its parts are damaged"]

    monkeypatch.setattr(carried, "tree_bytes", lambda: 60 * 2**20)
    with pytest.raises(SystemExit, match=r"stage cifar: 60.0 MiB travel, expected at most 51.2"):
        lease.main(["pack", str(tmp_path / "pack"), "--stage", "cifar"])


def test_a_wheel_is_unpacked_once_and_found_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    wheels, site = tmp_path / "carried" / "wheels", tmp_path / "home" / "site"
    wheels.mkdir(parents=True)
    with zipfile.ZipFile(wheels / "some-1.0-py3-none-any.whl", "w") as opened:
        opened.writestr("some_library.so", "loaded")
    carried.install(tmp_path / "carried", tmp_path / "home")
    assert sys.path[0] == str(site)
    (site / "some_library.so").write_text("in use")
    carried.install(tmp_path / "carried", tmp_path / "home")
    assert (site / "some_library.so").read_text() == "in use"
    assert sys.path.count(str(site)) == 1


def test_the_working_tree_leaves_room_for_what_a_stage_carries() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    # A third of a file of CIFAR-10 takes 5.5 MiB, the wheels 4 MiB.
    thirds = max(sum("_batch" in file for file, _ in part) for part in carried.DATA.values())
    room = carried.LIMIT * (1 - carried.SPARE) - carried.tree_bytes()
    assert room > (5.5 * thirds + 4) * 2**20
