"""Measure, print a table, write a record for each row.

usage: python -m benchmarks [--rows ROW ...] [--quick] [--budget SECONDS] [--device cuda]

The libraries of `requirements.txt` are measured where they are installed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import compare, floor, memory, ours, peers
from benchmarks.device import rates
from benchmarks.recording import Recording, add_recording
from benchmarks.rows import ROWS, Row
from benchmarks.ways import Average, Way
from hessinit_book.records.machine import describe_device

THREADS = 2
BUSY = 0.5  # load average from which on other work disturbs: two threads wait for each other
MEMORY_ROWS = ("mlp512_b1024", "cnn_b128", "resnet20_b64")
LAW_ROW, LAW_PRODUCTS = "mlp30_b32", 32


def measure(
    name: str, row: Row, ways: Sequence[Way], budget: float, device: torch.device
) -> dict[str, Any]:
    """Measure all there is about a row: the record's values."""
    problem = row.problem().to(device)
    exact = ours.reference(problem)
    least, calls = ours.measure(problem, exact, budget, beside=floor.matrix_product(device))
    step = least["step"]
    values: dict[str, Any] = {
        "title": row.title,
        "batch": row.batch,
        "parameters": sum(p.numel() for p in problem.model.parameters()),
        "layers": len(exact),
        "step_ms": step * 1e3,
        "floor": floor.floor(problem, step, least["beside"]),
        "ours": calls,
        "peers": compare.compare(ways, problem, exact, step, budget),
    }
    values["best"] = best(values)
    if device.type == "cuda":
        took = least["exact_frobenius"]
        values["roofline"] = floor.roofline(values["floor"]["gflop"], took, rates(device))
    averages = [way for way in ways if isinstance(way, Average)]
    if name == LAW_ROW and averages:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            values["law"] = compare.check_law(averages[0], problem, exact, LAW_PRODUCTS)
    if name in MEMORY_ROWS:
        values["memory_mib"] = {**memory.peaks(name, device), "max_memory": memory.BOUND_MIB}
    return values


def best(values: dict[str, Any]) -> dict[str, Any]:
    """Find for each norm our cheapest call within 1 %, the cheapest peer's, and their ratio."""
    sides = {
        "frobenius": ["exact", "exact_frobenius", "estimate_frobenius"],
        "spectral": ["exact", "spectral"],
    }
    found: dict[str, Any] = {}
    for norm, names in sides.items():
        mine = {
            name: values["ours"][name]["steps"]
            for name in names
            if values["ours"][name].get("error", 1.0) <= compare.ACCURACY
        }
        offered = {w: v for w, v in values["peers"].items() if norm in v.get("norms", ())}
        theirs = {way: value["steps"] for way, value in offered.items() if value["reached"]}
        # A way that ran out of time may still be the cheapest: its cost so far bounds it.
        least = min((value["steps"] for value in offered.values()), default=0.0)
        if mine:
            call = min(mine, key=lambda name: mine[name])
            found[norm] = {"ours": call, "steps": mine[call]}
        if mine and theirs:
            way = min(theirs, key=lambda name: theirs[name])
            found[norm] |= {
                "peer": way,
                "ratio": theirs[way] / found[norm]["steps"],
                "at_least": least / found[norm]["steps"],
            }
    return found


def show(values: dict[str, Any]) -> None:
    """Print a row."""
    print(f"\n{values['title']}, B = {values['batch']}: step {values['step_ms']:.2f} ms", end="; ")
    print(f"floor of the exact Frobenius norms {values['floor']['steps']:.2g} steps")
    for side in ("ours", "peers"):
        for name, value in values[side].items():
            if "steps" not in value:
                print(f"  {side:6}{name:22}{value['note']}")
                continue
            sign = " " if value.get("reached", True) else ">"
            scaled = value.get("layers", values["layers"]) < values["layers"]
            note = f"from {value['layers']} of {values['layers']} layers" if scaled else ""
            cost = f"{sign}{value['steps']:10.2f} steps, error {value['error']:.1e}"
            print(f"  {side:6}{name:22}{cost} {note}")
    for norm, value in values["best"].items():
        if "ratio" in value:
            print(f"  {norm}: {value['peer']} / {value['ours']} = {value['ratio']:.2g}")
    for what in ("roofline", "law", "memory_mib"):
        if what in values:
            print(f"  {what}: {values[what]}")


def prepare(device: torch.device) -> dict[str, str]:
    """Set the threads, say what is there and whether the machine is busy; give the libraries."""
    torch.set_num_threads(THREADS)
    libraries = peers.installed()
    print(describe_device(device), libraries or "")
    absent = [package for package in peers.DISTRIBUTIONS.values() if package not in libraries]
    if absent:
        print(f"left out, not installed: {', '.join(absent)}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > BUSY:
        print(f"warning: the machine is busy (load {load:.1f}); timings may be far off")
    return libraries


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS], metavar="ROW")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds for each way; quick: 1")
    add_recording(parser)
    chosen = parser.parse_args(arguments)
    budget = 1.0 if chosen.quick else chosen.budget

    ways, libraries = peers.load_ways(), prepare(chosen.device)
    for name in chosen.rows:
        recording = Recording(name, chosen)
        row = ROWS[name]
        values = measure(name, row, ways, budget, chosen.device)
        parameters = {
            "row": [*ROWS].index(name),
            "batch": row.batch,
            "threads": THREADS,
            "budget_s": budget,
        }
        show(values)
        recording.write(values, parameters, row.problem().dataset, libraries)


if __name__ == "__main__":
    main()
