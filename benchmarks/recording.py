"""Timings become records, with all that is known of how they were made; the options of all."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from hessinit_book.errors import ParameterError
from hessinit_book.records import records
from hessinit_book.records.machine import (
    choose_device,
    current_commit,
    describe_device,
    library_versions,
)
from hessinit_book.records.records import DatasetInfo
from hessinit_book.records.stamps import code_stamp


def add_device(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark take `--device`: one that is there."""

    def device(name: str) -> torch.device:
        try:
            return choose_device(name)
        except (ParameterError, RuntimeError) as error:
            raise argparse.ArgumentTypeError(str(error).splitlines()[0]) from None

    parser.add_argument("--device", type=device, default="cpu", help="cpu (the default) or cuda")


def add_recording(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark take the options of a `Recording`."""
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="shorter, separate records")
    parser.add_argument("--results", type=Path, default=Path("results"))


class Recording:
    """A benchmark under way; made when it starts.

    Args:
        name: of the benchmark.
        chosen: the options, see `add_recording`.
    """

    def __init__(self, name: str, chosen: argparse.Namespace) -> None:
        self._name, self._chosen = f"benchmark_{name}", chosen
        self._start, self._commit = time.perf_counter(), current_commit()

    def write(
        self,
        values: dict[str, Any],
        parameters: dict[str, Any],
        dataset: DatasetInfo,
        libraries: Mapping[str, str] | None = None,
    ) -> None:
        """Write the record, and say where it is.

        Args:
            values: what was measured.
            parameters: with which it was.
            dataset: on which data.
            libraries: versions of other libraries that took part.
        """
        duration = time.perf_counter() - self._start
        device: torch.device = self._chosen.device
        record = records.Record(
            experiment=self._name,
            profile="quick" if self._chosen.quick else "paper",
            seed=0,
            parameters=parameters,
            dataset=dataset,
            device=describe_device(device),
            versions={**library_versions(), **(libraries or {})},
            commit=self._commit,
            code=code_stamp(self._name),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            duration_s=round(duration, 3),
            values=values,
        )
        names = record.profile, record.experiment
        path = records.record_path(self._chosen.results, *names, 0, device.type)
        records.write(record, path)
        print(f"  {duration:.0f} s, {path}", flush=True)
