"""Which full-scale records there should be: the seeds of `runs.yaml`, the benchmarks, the zoo."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hessinit_book.records import records
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
    return sorted((root / "results" / "paper").glob("*/seed-*.json"))


def expected_files(root: Path) -> set[Path]:
    """List the records that there should be.

    Args:
        root: the project's folder.

    Raises:
        ParameterError: `runs.yaml` is missing, or not what it should be.
    """
    planned = read_planned(root / "runs.yaml").get("paper", {})
    seeds = {name: [0] for name in MADE_APART} | {n: run["seeds"] for n, run in planned.items()}
    return {
        records.record_path(root / "results", "paper", experiment, seed)
        for experiment, chosen in seeds.items()
        for seed in chosen
    }


def problems(there: Collection[Path], expected: Collection[Path]) -> list[str]:
    """Say which records are missing and which nobody asked for; one line for each."""
    said = [
        f"{path}: missing; runs.yaml, make bench or make zoo asks for it"
        for path in sorted(set(expected) - set(there))
    ]
    return said + [
        f"{path}: an extra record, which neither runs.yaml nor make bench or make zoo asks for"
        for path in sorted(set(there) - set(expected))
    ]
