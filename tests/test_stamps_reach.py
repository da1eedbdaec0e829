"""What a stamp covers, held against what runs: no function is called that it does not reach."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import FrameType

import pytest

from hessinit_book.chapters import parameters_of
from hessinit_book.records import stamps
from hessinit_book.records.bare import Bare
from hessinit_book.records.definitions import PACKAGES, Key, Sources

Place = tuple[str, int]
"""A module and a line in it."""


def called_by_a_run(experiment: str, results_dir: Path) -> set[Place]:
    """Run the smallest profile, and note where each function of this project begins."""
    sources = tuple(str(stamps.ROOT / name) for name in PACKAGES)
    found: set[Place] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(sources) and code.co_name != "<module>":
            file = Path(code.co_filename).relative_to(stamps.ROOT).with_suffix("")
            found.add((".".join(file.parts).removesuffix(".__init__"), code.co_firstlineno))

    module = importlib.import_module(stamps.module_of(experiment) or "")
    given = parameters_of(experiment).check(profile="smoke", device="cpu", results_dir=results_dir)
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        module.run(given)
    finally:
        sys.setprofile(before)
    return found


def covered_lines(experiment: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[range]]:
    """List the lines of the definitions that a stamp is made from, by module."""
    written: list[tuple[Sources, Key]] = []
    bare = Sources.bare

    def note(sources: Sources, key: Key) -> Bare:
        written.append((sources, key))
        return bare(sources, key)

    monkeypatch.setattr(Sources, "bare", note)
    stamps._experiment_stamp.cache_clear()
    stamps.code_stamp(experiment)
    found: dict[str, list[range]] = {}
    for sources, key in written:
        module = sources.module(key.module)
        assert module is not None
        if key.statement is not None:
            statement = module.statements[key.statement]
            decorators = getattr(statement, "decorator_list", [])
            first = min(node.lineno for node in (statement, *decorators))
            lines = range(first, (statement.end_lineno or first) + 1)
            found.setdefault(key.module, []).append(lines)
    return found


@pytest.mark.parametrize("experiment", ["word_pair_saddle", "mnist_tracking"])
def test_all_that_a_run_calls_is_in_its_stamp(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    covered = covered_lines(experiment, monkeypatch)
    called = called_by_a_run(experiment, tmp_path)
    assert len(called) > 50
    missed = {
        (module, line)
        for module, line in called
        if not module.startswith(stamps.BOOKKEEPING)
        and not any(line in lines for lines in covered.get(module, []))
    }
    assert missed == set()
