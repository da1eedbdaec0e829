"""Which full-scale records there should be: the seeds of `runs.yaml`, the benchmarks, the zoo."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from hessinit_book.chapters import parameters_of
from hessinit_book.errors import RecordError
from hessinit_book.records import records
from hessinit_lib.errors import UserError

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
        RecordError: `runs.yaml` is missing, or does not say which seeds are run.
    """
    seeds = {**dict.fromkeys(MADE_APART, (0,)), **_asked_for(root / "runs.yaml")}
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


def _asked_for(file: Path) -> dict[str, tuple[int, ...]]:
    """Read which seeds of which experiment are run at full scale."""
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        runs = {name: chosen or {} for name, chosen in content["profiles"]["paper"].items()}
        given = {name: chosen.get("seeds") for name, chosen in runs.items()}
    except OSError as error:
        raise RecordError(f"{file}: {error.strerror}; expected the runs of the profiles") from None
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise RecordError(f"{file}: not the runs of the profile paper ({why})") from None
    try:
        return {
            name: parameters_of(name).check(profile="paper", seeds=seeds).seeds
            for name, seeds in given.items()
        }
    except UserError as error:
        raise RecordError(f"{file}, paper: {error}") from None
