"""The build: once is enough, killed runs go on, and a slip in runs.yaml costs no computing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hessinit_book.records import records
from tools.kill_sweep import copy_project

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Snakemake 9 needs Python 3.11 or newer"
)

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "notebooks/mnist_tracking.ipynb"
RUNS = "profiles: {smoke: {mnist_tracking: {seeds: [0, 1], steps: 30}}}\n"
PATIENCE = 300  # seconds, after which a process hangs
MAKE = ("tools/build.py",)  # as `make` does
PLAIN = ("-m", "snakemake")


def command(how: tuple[str, ...], *arguments: str) -> list[str]:
    build = [sys.executable, *how, "records", "--config", "profile=smoke"]
    return [*build, "--cores", "1", *arguments]


def environment(root: Path) -> dict[str, str]:
    """The package is the copy in the folder, so that a test can edit it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PYTHONPATH": str(root), "PATH": path}


def build(root: Path, *arguments: str, how: tuple[str, ...] = MAKE) -> tuple[int, str]:
    """Build the records in a folder; gives the exit code and all that was said."""
    done = subprocess.run(
        command(how, *arguments),
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout


def copy_sources(root: Path) -> Path:
    """Copy what a build of records needs."""
    return copy_project(root, RUNS)


def record_file(root: Path, seed: int) -> Path:
    return records.record_path(root / "results", "smoke", "mnist_tracking", seed)


def contents(root: Path) -> dict[str, bytes]:
    """The folder of the records, whatever is in it."""
    return {path.name: path.read_bytes() for path in record_file(root, 0).parent.iterdir()}


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, f"the build ended without {path}"
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)


class Story:
    """What happened to a plain Snakemake that was killed in its second job and started again."""

    def __init__(self, root: Path) -> None:
        self.root = copy_sources(root)
        process = subprocess.Popen(
            command(PLAIN),
            cwd=root,
            env=environment(root),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(record_file(root, 0), process)
            os.killpg(process.pid, signal.SIGSTOP)  # it shall not end in the meantime
            self.during = {how: build(root, how=how) for how in (MAKE, PLAIN)}
            os.killpg(process.pid, signal.SIGCONT)
            wait_for(root / "_build/logs/smoke/mnist_tracking/seed-1.ipynb", process)
            process.kill()
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its orphaned job, so that none but ...
        self.killed = contents(root)
        self.again = build(root)  # ... this one can finish the second seed


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def built(story: Story, tmp_path: Path) -> Path:
    """A copy of the folder with both records, times of files and Snakemake's notes included."""
    root = tmp_path / "built"
    shutil.copytree(story.root, root)
    return root


def test_second_build_at_the_same_time_says_so(story: Story) -> None:
    line = "build: another build is running in this folder; wait for it or stop it"
    code, said = story.during[MAKE]
    assert code != 0
    assert said.splitlines() == [line]
    code, said = story.during[PLAIN]
    assert code != 0
    assert line in said.splitlines(), said
    assert "rule seed:" not in said


def test_killed_build_goes_on(story: Story) -> None:
    code, said = story.again
    assert code == 0, said
    after = contents(story.root)
    assert set(after) == {"seed-0.json", "seed-1.json"}
    assert after["seed-0.json"] == story.killed["seed-0.json"]
    for seed in (0, 1):
        record = records.read(record_file(story.root, seed))
        assert (record.seed, record.parameters["steps"]) == (seed, 30)


def test_next_build_does_nothing(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in record_file(built, 0).parent.iterdir()}
    code, said = build(built)
    assert (code, "Nothing to be done" in said) == (0, True), said
    assert {path: path.stat().st_mtime_ns for path in before} == before


def edit(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def test_edits_count_where_they_matter(built: Path) -> None:
    """A dry run says what would be done."""
    edit(built / "hessinit_book/chapters/mnist_tracking/landing.py", "# a remark\n")
    (built / "runs.yaml").write_text(f"# a remark\n{RUNS}")
    lanczos = built / "hessinit_lib/hessians/numerics/lanczos.py"
    edit(lanczos, "# a remark\n\n\ndef unused():\n    pass\n")
    code, said = build(built, "--dry-run")
    assert (code, "Nothing to be done" in said) == (0, True), said
    lanczos.write_text(lanczos.read_text(encoding="utf-8").replace("_STEPS = 400", "_STEPS = 401"))
    code, said = build(built, "--dry-run")
    assert code == 0, said
    assert said.count("rule seed:") == 2
    # Without Snakemake's notes, as in a fresh clone, and with records of a clock that was ahead.
    shutil.rmtree(built / ".snakemake")
    ahead = time.time() + 1e6
    for seed in (0, 1):
        os.utime(record_file(built, seed), (ahead, ahead))
    code, said = build(built, "--dry-run")
    assert code == 0, said
    assert said.count("rule seed:") == 2


def test_failed_jobs_keep_the_records(built: Path) -> None:
    before = contents(built)
    notebook = json.loads((built / NOTEBOOK).read_bytes())
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    whole = first["source"]
    first["source"] = ["raise OSError('broken on purpose')"]
    (built / NOTEBOOK).write_text(json.dumps(notebook))
    code, said = build(built)
    assert code != 0
    assert said.count("\nOSError: broken on purpose\n") == 2  # the second job is tried all the same
    assert contents(built) == before
    # Mended, it finds that they still hold.
    first["source"] = whole
    (built / NOTEBOOK).write_text(json.dumps(notebook))
    code, said = build(built)
    assert code == 0, said
    assert said.count("rule seed:") == 2
    assert contents(built) == before


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("pristine"))


@pytest.mark.parametrize(
    ("runs", "arguments", "expected"),
    [
        (
            RUNS.replace("steps: 30", "steps: 30, deviations: [1, -1]"),
            [],
            "runs.yaml, line 1: smoke, mnist_tracking: deviations[1]: got -1, expected greater "
            "than 0",
        ),
        (
            RUNS,
            ["--config", "profile=huge"],
            "profile: got 'huge', expected one of smoke",
        ),
    ],
    ids=["value", "profile"],
)
def test_slip_stops_before_any_job(
    runs: str, arguments: list[str], expected: str, pristine: Path
) -> None:
    (pristine / "runs.yaml").write_text(runs)
    code, said = build(pristine, *arguments)
    assert code != 0
    assert expected in said.splitlines(), said
    assert "Traceback" not in said
    assert not (pristine / "results").exists()
