"""Try `hessinit_lib.diagnose` on the zoo, and count false alarms and misses.

Each setting is kept in a file of its own when it is done, so that a run that was stopped goes
on where it was; the last thing is the record, `results/paper/zoo/seed-0.json`.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from hessinit_book.data import load
from hessinit_book.records import records, sealed
from hessinit_book.records.machine import current_commit, describe_device, library_versions
from hessinit_book.records.stamps import code_stamp
from hessinit_book.zoo.advice import followed
from hessinit_book.zoo.faults import FAULTS
from hessinit_book.zoo.first_held_out import FIRST_FAULTS, FIRST_NETWORKS
from hessinit_book.zoo.held_out import FAULTS_HELD_OUT, NETWORKS_HELD_OUT
from hessinit_book.zoo.networks import NETWORKS, batch_for, seeded
from hessinit_book.zoo.second_held_out import SECOND_FAULTS, SECOND_NETWORKS
from hessinit_lib import diagnose
from hessinit_lib.diagnosis.report import Diagnosis

Result = dict[str, Any]

KNOWN_NETWORKS = {**NETWORKS, **FIRST_NETWORKS, **SECOND_NETWORKS}
KNOWN_FAULTS = {**FAULTS, **FIRST_FAULTS, **SECOND_FAULTS}
ALL_NETWORKS = {**KNOWN_NETWORKS, **NETWORKS_HELD_OUT}
ALL_FAULTS = {**KNOWN_FAULTS, **FAULTS_HELD_OUT}


def part_of(name: str) -> str:
    """Tell whether a network or a fault is held out, or was known while rules were written."""
    return "held-out" if name in NETWORKS_HELD_OUT or name in FAULTS_HELD_OUT else "dev"


def sound_setting(name: str, size: int, batch: int) -> Result:
    """Diagnose a sound network: any fault is a false alarm, and so is an error."""
    network = ALL_NETWORKS[name]
    model = seeded(lambda: network.make(size))
    inputs, targets = batch_for(network, size, batch)
    result, _ = _said(lambda: _diagnose(model, nn.CrossEntropyLoss(), inputs, targets))
    what = {"network": name, "size": size, "batch": batch, "part": part_of(name)}
    return {**what, **result, "alarm": bool(result["faults"] or result["error"])}


def fault_setting(name: str, training: bool = True) -> Result:
    """Diagnose a planted fault, and follow the advice."""
    planted = ALL_FAULTS[name]
    made = planted.make()
    result, found = _said(lambda: _diagnose(made.model, made.loss, made.inputs, made.targets))
    said = [*(f"{f['kind']} {f['where']} {f['reason']}" for f in result["faults"]), result["error"]]
    result["named"] = any(planted.is_named(text) for text in said if text)
    result["advice"] = {"skipped": "no diagnosis" if found is None else "without training"}
    if training and found is not None:
        result["advice"] = followed(planted, found)
    return {"fault": name, "part": part_of(name), **result}


def summary(sound: Iterable[Result], broken: Iterable[Result]) -> Result:
    """Count, for what was known while rules were written and for what was held out."""
    sound, broken = list(sound), list(broken)
    values: Result = {"sound": sound, "faults": broken}
    for key, part in (("dev", "dev"), ("held_out", "held-out")):
        settings = [one for one in sound if one["part"] == part]
        planted = [one for one in broken if one["part"] == part]
        values[key] = {
            "networks": len({one["network"] for one in settings}),
            "settings": len(settings),
            "alarms": sum(one["alarm"] for one in settings),
            "faults": len(planted),
            "named": sum(one["named"] for one in planted),
            **_helped(planted),
        }
    return values


def _helped(planted: list[Result]) -> dict[str, int]:
    tried = [one["advice"] for one in planted if "after" in one["advice"]]
    return {
        "tried": len(tried),
        "helped": sum(one["after"] < one["before"] for one in tried),
    }


def _diagnose(*problem: Any) -> Diagnosis:
    return diagnose(*problem, curvature="none")


def _said(call: Callable[[], Diagnosis]) -> tuple[Result, Diagnosis | None]:
    start, found, error = time.perf_counter(), None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = call()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"[:400]
    faults = [
        {"kind": f.kind, "where": f.where, "reason": f.reason, "remedy": f.remedy}
        for f in (found.faults[:4] if found else ())
    ]
    seconds = round(time.perf_counter() - start, 2)
    return {"faults": faults, "error": error, "seconds": seconds}, found


def _jobs(only: str, part: str, training: bool) -> dict[str, Callable[[], Result]]:
    jobs: dict[str, Callable[[], Result]] = {}
    for name in ALL_FAULTS:
        if only in name and part in ("", part_of(name)):
            jobs[f"fault {name}"] = lambda name=name: fault_setting(name, training)
    for name, network in ALL_NETWORKS.items():
        if only in name and part in ("", part_of(name)):
            for size, batch in network.settings:
                jobs[f"sound {name} {size} {batch}"] = lambda name=name, size=size, batch=batch: (
                    sound_setting(name, size, batch)
                )
    return jobs


def run(only: str, part: str, training: bool, results: Path) -> None:
    """Do what is left, and write the record if the whole zoo was asked for."""
    start, commit, code = time.perf_counter(), current_commit(), code_stamp("zoo")
    parts = results / "paper" / "zoo" / "parts"
    done: dict[str, Result] = {}
    earlier = 0.0  # seconds of diagnoses that are there already
    bar = tqdm(_jobs(only, part, training).items())
    for name, job in bar:
        bar.set_description(name[:40])
        path = parts / f"{sealed.digest({'name': name, 'code': code, 'training': training})}.json"
        if path.is_file():
            done[name] = records._decode(json.loads(path.read_text(encoding="utf-8")))
            earlier += done[name].get("seconds", 0.0)
            continue
        done[name] = job()
        sealed.write_atomically(path, json.dumps(records._encode(done[name])))
        if done[name].get("alarm") or done[name].get("named") is False:
            said = [f"{f['kind']} {f['where']}: {f['reason']}" for f in done[name]["faults"][:2]]
            tqdm.write(f"{name}: {said or done[name]['error'] or 'nothing was named'}")
    values = summary(
        [one for name, one in done.items() if name.startswith("sound")],
        [one for name, one in done.items() if name.startswith("fault")],
    )
    for key in ("dev", "held_out"):
        print(f"{key}: {values[key]}", flush=True)
    if only or part or not training:
        return
    record = records.Record(
        experiment="zoo", profile="paper", seed=0, parameters={"steps": 300, "curvature": "none"},
        dataset=load("cifar10", sample=True).info, device=describe_device(torch.device("cpu")),
        versions={**library_versions(), **_versions()}, commit=commit, code=code,
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        duration_s=round(time.perf_counter() - start + earlier, 3), values=values,
    )  # fmt: skip
    print(records.write(record, records.record_path(results, "paper", "zoo", 0)))


def _versions() -> dict[str, str]:
    installed = {found.name: found.version for found in distributions()}
    return {name: installed[name] for name in ("timm", "transformers") if name in installed}


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser("python -m hessinit_book.zoo", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="networks and faults with it")
    parser.add_argument("--split", default="", choices=["dev", "held-out"], help="one part only")
    parser.add_argument("--without-training", action="store_true", help="advice is not followed")
    parser.add_argument("--results", type=Path, default=Path("results"), help="records' folder")
    chosen = parser.parse_args()
    run(chosen.only, chosen.split, not chosen.without_training, chosen.results)
