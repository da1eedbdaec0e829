"""Use a machine with a GPU that is there for half an hour: bare, without a network.

Before: `pack` makes for each stage the folder that its call carries. There: a stage by its name,
or all of them; its records, logs and what is done go into one archive, from which a later call
goes on. At toy size all stages run on any machine in two minutes. After: `unpack` puts the records
in place.

usage: python tools/lease.py STAGE ... [--out DIR] [--carried DIR] [--limit SECONDS] [--toy]
       python tools/lease.py pack DIR [--stage STAGE]
       python tools/lease.py unpack ARCHIVE ... [--results DIR] [--replace]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing is installed there
from leasing import carried, results, runs
from leasing.carried import ROOT

HOME = Path(tempfile.gettempdir(), "hessinit_lease")
NAMES = ("keep", *carried.DATA)


def main(arguments: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else [*arguments]
    commands = {"pack": pack, "unpack": unpack}
    if words and words[0] in commands:
        commands[words[0]](words[1:])
    else:
        run(words)


def pack(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="lease.py pack", description="Make what calls carry.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=carried.DATA, help="one of them; by default all")
    given = parser.parse_args(words)
    travels = carried.pack(given.folder, [given.stage] if given.stage else [*carried.DATA])
    for stage, size in travels.items():
        print(f"{stage:10} {size / 2**20:6.1f} MiB travel, of {carried.LIMIT / 2**20:.0f}")


def unpack(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="lease.py unpack", description="Put records in place.")
    parser.add_argument("archives", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--replace", action="store_true", help="other records that are there")
    given = parser.parse_args(words)
    for path in results.unpack(given.archives, given.results, replace=given.replace):
        print(path)


def run(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="lease.py", description="Make the runs of stages.")
    parser.add_argument("stages", nargs="+", choices=(*NAMES, "all"), metavar="STAGE")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "_build/lease"))
    parser.add_argument("--carried", type=Path, default=ROOT / ".lease", help="as `pack` made it")
    parser.add_argument("--home", type=Path, default=HOME, help="kept from call to call")
    parser.add_argument("--limit", type=float, help="seconds for each stage")
    parser.add_argument("--device", default="auto", help="auto (the default), cpu or cuda")
    parser.add_argument("--toy", action="store_true", help="everything as small as can be")
    given = parser.parse_args(words)
    chosen = NAMES if "all" in given.stages else given.stages
    outcomes = [outcome for stage in chosen for outcome in run_stage(stage, given)]
    print(runs.table(outcomes))
    sys.exit(any(not outcome.how.startswith("done") for outcome in outcomes))


def run_stage(name: str, given: argparse.Namespace) -> list[runs.Outcome]:
    """Take in what was carried, make the runs of a stage, and keep what they leave."""
    begun = time.monotonic()
    for line in carried.install(given.carried / name, given.home):
        print(line)
    # A process that has asked for the device cannot share it with those that it starts.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    from leasing import stages

    stages.prepare()
    stage = stages.STAGES[name]
    if given.toy:
        stage = stages.toy(stage)
    archive = f"{name}-toy.tar.gz" if given.toy else f"{name}.tar.gz"
    with tempfile.TemporaryDirectory(prefix="lease-") as folder:
        work = Path(folder)
        results.resume([given.out / archive, given.carried / name / archive], work)
        own = os.environ.get("HESSINIT_DATA")
        data = Path(own) if own else given.home / "data"
        place = runs.Place(work, data, given.device, given.toy)

        def keep() -> None:
            results.keep(work, given.out / archive)

        outcomes: list[runs.Outcome] = []
        for some, jobs in (((stage.first,) if stage.first else (), 1), (stage.runs, stage.jobs)):
            left = (given.limit or stage.limit) - (time.monotonic() - begun)
            outcomes += runs.make(some, place, left, jobs, keep)
    return outcomes


if __name__ == "__main__":
    main()
