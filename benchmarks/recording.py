"""Timings become records, with all that is known of how they were made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch

from hessinit_book.records import records
from hessinit_book.records.machine import current_commit, describe_device, library_versions
from hessinit_book.records.records import DatasetInfo
from hessinit_book.records.stamps import code_stamp


class Recording:
    """A benchmark under way; made when it starts.

    Args:
        name: of the benchmark.
        results: folder of the records.
        profile: of the record.
    """

    def __init__(
        self, name: str, results: Path, profile: Literal["quick", "paper"] = "paper"
    ) -> None:
        self._name, self._results = f"benchmark_{name}", results
        self._profile: Literal["quick", "paper"] = profile
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
        record = records.Record(
            experiment=self._name,
            profile=self._profile,
            seed=0,
            parameters=parameters,
            dataset=dataset,
            device=describe_device(torch.device("cpu")),
            versions={**library_versions(), **(libraries or {})},
            commit=self._commit,
            code=code_stamp(self._name),
            finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            duration_s=round(duration, 3),
            values=values,
        )
        path = records.record_path(self._results, self._profile, self._name, 0)
        records.write(record, path)
        print(f"  {duration:.0f} s, {path}", flush=True)
