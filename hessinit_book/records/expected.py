"""Which full-scale records there should be: the seeds of `runs.yaml`, the benchmarks, the zoo."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hessinit_book.records import records
from hessinit_book.records.machine import device_kind
from hessinit_book.records.planned import read_planned

# Made by `make bench` and `make zoo`, each with one record, of seed 0.
MADE_APART = (
    "benchmark_architectures",
    "benchmark_cnn_b128",
    "benchmark_lenet_b128",
    "benchmark_mlp30_b1024",
    "benchmark_mlp30_b32",
    "benchmark_mlp512_b1024",
    "benchmark_mlp512_b128",
    "benchmark_modern",
    "benchmark_resnet20_b64",
    "benchmark_resnet8_b64",
    "benchmark_tanh_b128",
    "benchmark_training",
    "zoo",
)


def record_files(root: Path) -> list[Path]:
    """List what lies where full-scale records are expected, whatever it is."""
    folders = sorted((root / "results" / "paper").glob("*/"))
    return [path for folder in folders for path in records.files_in(folder)]


def expected_files(root: Path) -> set[Path]:
    """List the records that there should be: of the CPU, but where `runs.yaml` names a device.

    Args:
        root: the project's folder.

    Raises:
        ParameterError: `runs.yaml` is missing, or not what it should be.
    """
    planned = read_planned(root / "runs.yaml").get("paper", {})
    runs = {name: {"seeds": [0], "device": "cpu"} for name in MADE_APART} | planned
    return {
        records.record_path(root / "results", "paper", experiment, seed, _kind(run["device"]))
        for experiment, run in runs.items()
        for seed in run["seeds"]
    }


def _kind(device: str) -> str:
    """Give the kind of device that full-scale records are expected of, on any machine."""
    return "cpu" if device == "auto" else device_kind(device)


def problems(there: Collection[Path], expected: Collection[Path]) -> list[str]:
    """Say which records are missing and which nobody asked for; one line for each.

    Beside a record that was asked for there may be those of the same seed from other devices.
    """
    seeds = {_seed_place(path) for path in expected}
    said = [
        f"{path}: missing; runs.yaml, make bench or make zoo asks for it"
        for path in sorted(set(expected) - set(there))
    ]
    return said + [
        f"{path}: an extra record, which neither runs.yaml nor make bench or make zoo asks for"
        for path in sorted(path for path in there if _seed_place(path) not in seeds)
    ]


def _seed_place(path: Path) -> Path:
    """Give the place that the record of a seed has, whatever the device."""
    return records.home(path.parent) / path.name
