"""A sweep on a SLURM of one node: a job is killed, and the same command does what is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pipeline import copy_sources

from hessinit_book.records import records
from tests import slurm_cluster

EXPERIMENT = "mnist_tracking"
SEEDS = range(8)
PATIENCE = 1200  # seconds, after which the sweep hangs
COMMAND = [
    *("-m", "snakemake", "records", "--config", "profile=smoke"),
    *("--workflow-profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "1"),
]


def contents(root: Path) -> dict[str, bytes]:
    folder = root / "results" / "smoke" / EXPERIMENT
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Sweep:
    """A sweep of eight jobs, one of which is killed; then the same command again."""

    def __init__(self, root: Path) -> None:
        self.root = copy_sources(root)
        runs = f"profiles: {{smoke: {{{EXPERIMENT}: {{seeds: {list(SEEDS)}, steps: 30}}}}}}\n"
        (root / "runs.yaml").write_text(runs)
        self.log = root / "sweep.log"
        start = time.monotonic()
        with slurm_cluster.cluster() as self.environment:
            self.environment |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
            tools = str(Path(sys.executable).parent)
            self.environment["PATH"] = f"{tools}{os.pathsep}{self.environment['PATH']}"
            process = self.start()
            self.killed = self.kill_a_job(process)
            self.first = process.wait(PATIENCE)
            self.after_first = contents(root)
            self.say(f"== after {time.monotonic() - start:.0f} s: the same command ==")
            self.again = self.start().wait(PATIENCE)
            self.after_again = contents(root)
            self.say(f"== after {time.monotonic() - start:.0f} s: the end ==")
        self.parts = re.split("^== .*\n", self.log.read_text(), flags=re.MULTILINE)

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *COMMAND],
                cwd=self.root,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def say(self, line: str) -> None:
        with self.log.open("a") as log:
            print(line, file=log)

    def kill_a_job(self, process: subprocess.Popen[bytes]) -> int:
        """Kill the first job whose notebook has begun, with all its processes; give its seed."""
        queue = ("squeue", "-h", "--states=RUNNING", "-o", "%i %k")
        end = time.monotonic() + PATIENCE
        while True:
            for line in slurm_cluster.ask(self.environment, *queue):
                job, comment = line.split(maxsplit=1)
                seed = int(re.findall(r"\d+", comment)[-1])
                if (self.root / f"_build/logs/smoke/{EXPERIMENT}/seed-{seed}.ipynb").exists():
                    slurm_cluster.ask(self.environment, "scancel", "--signal=KILL", "--full", job)
                    return seed
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, "no job has begun"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs the extra `slurm`")
    if missing := slurm_cluster.absent():
        pytest.skip(f"no {', '.join(missing)}: in Debian's packages slurm-wlm and munge")
    try:
        return Sweep(tmp_path_factory.mktemp("slurm"))
    except slurm_cluster.NotStartedError as error:
        pytest.skip(str(error))


@pytest.mark.slurm
def test_a_killed_job_costs_its_own_record_only(sweep: Sweep) -> None:
    names = [f"seed-{seed}.json" for seed in SEEDS]
    assert sweep.first != 0
    assert len(re.findall("submitted with SLURM jobid", sweep.parts[0])) == len(SEEDS)
    assert list(sweep.after_first) == [n for n in names if n != f"seed-{sweep.killed}.json"]
    assert re.findall("SLURM-job '.*' failed", sweep.parts[0])


@pytest.mark.slurm
def test_the_same_command_runs_the_killed_job_alone(sweep: Sweep) -> None:
    assert sweep.again == 0, sweep.parts[1]
    assert len(re.findall("submitted with SLURM jobid", sweep.parts[1])) == 1
    assert sweep.after_again.items() > sweep.after_first.items()
    found = records.read_all(sweep.root / "results", "smoke", EXPERIMENT)
    assert [record.seed for record in found] == list(SEEDS)
