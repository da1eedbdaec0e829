"""Result records: small, versioned JSON files that say how each number came about.

One record holds what one experiment gave for one seed, with all that is needed to
repeat it. Records are written atomically and checked when read:

    results/<profile>/<experiment>/seed-<seed>.json        computed on a CPU
    results/<profile>/<experiment>/cuda/seed-<seed>.json   on a GPU; neither replaces the other

JSON has no NaN or infinity, and a diverged run is an outcome worth keeping, so such
values are stored as the strings "NaN", "Infinity" and "-Infinity" and come back as floats.
Text that is one of these, a word in a corpus say, is stored as "text:NaN" and stays text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hessinit_book.errors import RecordError
from hessinit_book.records import sealed

DEEPEST = 100
"""How many lists and mappings of a record may lie in each other."""

KINDS = ("cuda", "mps")
"""Kinds of devices whose records lie in folders of their own, below those of the CPU."""

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TEXT = "text:"  # before text that would be taken for something else


class Strict(BaseModel):
    """A model that takes no other fields and converts no types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DatasetInfo(Strict):
    """Which data a run saw: a sample or another corpus is never labelled as the full set.

    Attributes:
        name: the data set, as users call it ("MNIST").
        kind: "full" or "sample".
        train_size: number of training examples.
        test_size: number of test examples.
        sha256: checksum of all images and labels in order.
    """

    name: str
    kind: Literal["full", "sample"]
    train_size: int
    test_size: int
    sha256: str


class Record(Strict):
    """What one experiment gave for one seed, and how.

    Attributes:
        version: version of this layout.
        experiment: name of the experiment, as its notebook is called.
        profile: "smoke", "quick" or "paper".
        seed: the run's seed.
        parameters: every parameter of the experiment that bears on the values.
        dataset: the data and its checksum.
        device: the machine's device, in words ("cpu: Intel ..., 1 thread", "cuda: NVIDIA ...").
        versions: of Python and of the libraries that computed.
        commit: git commit of the project, with "-dirty" if the tree had changes; or None.
        code: checksum of the library's source files that computed.
        finished: end of the run, UTC, ISO 8601.
        duration_s: duration of the run in seconds.
        values: the results: numbers, strings, lists and mappings of them.
    """

    version: Literal[1] = 1
    experiment: str
    profile: Literal["smoke", "quick", "paper"]
    seed: int
    parameters: dict[str, Any]
    dataset: DatasetInfo
    device: str
    versions: dict[str, str]
    commit: str | None
    code: str
    finished: str
    duration_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    values: dict[str, Any]


def record_path(
    results_dir: Path | str, profile: str, experiment: str, seed: int, kind: str = "cpu"
) -> Path:
    """Give the place of a record.

    Args:
        results_dir: folder of all results.
        profile: of the run.
        experiment: its name.
        seed: of the run.
        kind: of the device that computed: "cpu", "cuda" or "mps".

    Example:
        >>> record_path("results", "paper", "mnist_tracking", 3).as_posix()
        'results/paper/mnist_tracking/seed-3.json'
        >>> record_path("results", "paper", "mnist_tracking", 3, "cuda").as_posix()
        'results/paper/mnist_tracking/cuda/seed-3.json'
    """
    folder = Path(results_dir) / profile / experiment
    return (folder if kind == "cpu" else folder / kind) / f"seed-{seed}.json"


def kind_of(record: Record) -> str:
    """Tell the kind of the device that a record was computed on: "cpu", "cuda" or "mps"."""
    return record.device.partition(":")[0]


def source_of(record: Record) -> str:
    """Name the experiment of a record, and the kind of its device if that is no CPU.

    Records of one source can be told apart by their seeds, and take about the same time.
    """
    kind = kind_of(record)
    return record.experiment if kind == "cpu" else f"{record.experiment}/{kind}"


def home(folder: Path) -> Path:
    """Give the folder of an experiment, from it or from that of one kind of device in it.

    Example:
        >>> home(Path("paper/contest/cuda")).as_posix(), home(Path("paper/contest")).as_posix()
        ('paper/contest', 'paper/contest')
    """
    return folder.parent if folder.name in KINDS else folder


def files_in(folder: Path) -> list[Path]:
    """List what lies in an experiment's folder where records of any device are expected."""
    return sorted(folder.glob("seed-*.json")) + sorted(folder.glob("*/seed-*.json"))


def write(record: Record, path: Path | str) -> Path:
    """Write a record atomically: the file is whole or it is not there.

    Args:
        record: what to write.
        path: where; its folder is made.

    Returns:
        The path written.
    """
    return sealed.write(_encode(record.model_dump()), Path(path))


def read(path: Path | str) -> Record:
    """Read a record and check it.

    Raises:
        RecordError: the file is missing, not a plain one, not whole, of another version, lacks
            a field, or its content does not match its checksum.
    """
    path = Path(path)
    try:
        body = sealed.read(path)
    except FileNotFoundError:
        raise RecordError(f"no record at {path}") from None
    try:
        return sealed.validated(Record, _decode(body), path)
    except _TooDeepError:
        raise RecordError(f"{path}: nested more than {DEEPEST} deep") from None


def read_in_place(path: Path | str) -> Record:
    """Read a record, and make sure that it is the one that its place is for.

    Args:
        path: see `record_path`.

    Raises:
        RecordError: see `read`; or its seed, experiment, profile or device is another.
    """
    record = read(path)
    problem = misplaced(record, path)
    if problem:
        raise RecordError(problem)
    return record


def misplaced(record: Record, path: Path | str) -> str | None:
    """Say in one line whose place a record lies in, if that is not its own."""
    kind = kind_of(record)
    own = record_path("", record.profile, record.experiment, record.seed, kind)
    if Path(path).absolute().parts[-len(own.parts) :] == own.parts:
        return None
    return f"{path}: is the record of {own.as_posix()} (copied or renamed?)"


def read_all(
    results_dir: Path | str, profile: str, experiment: str, kind: str | None = None
) -> list[Record]:
    """Read all records of an experiment in a profile, in the order of their seeds.

    Args:
        results_dir: folder of all results.
        profile: of the runs.
        experiment: its name.
        kind: of the device, see `record_path`; None: the CPU, or if it has none another.

    Raises:
        RecordError: there is none, or one is not valid or not the one that its place is for.
    """
    folder = folder_of(results_dir, profile, experiment, kind)
    found = sorted(
        (read_in_place(path) for path in folder.glob("seed-*.json")), key=lambda r: r.seed
    )
    if not found:
        raise RecordError(f"no records in {folder}")
    return found


def folder_of(
    results_dir: Path | str, profile: str, experiment: str, kind: str | None = None
) -> Path:
    """Find the folder that `read_all` reads."""
    kinds = ("cpu", *KINDS) if kind is None else (kind,)
    folders = [record_path(results_dir, profile, experiment, 0, k).parent for k in kinds]
    return next((folder for folder in folders if any(folder.glob("seed-*.json"))), folders[0])


def look_up(records: Iterable[Record], key: str) -> list[Any]:
    """Collect the value at a dotted key from each record.

    Args:
        records: the records.
        key: fields joined by dots, list positions as numbers: "values.he.loss.-1".

    Raises:
        RecordError: a record has no such key; the message names what is there.

    Example:
        `look_up(records, "values.he.final_loss")` gives one number for each seed.
    """
    found = []
    for record in records:
        node: Any = dict(record)  # its fields as they are: a deep copy for each key would cost
        done: list[str] = []
        for part in key.split("."):
            try:
                node = node[int(part)] if isinstance(node, list) else node[part]
            except (KeyError, IndexError, ValueError, TypeError):
                there = ", ".join(map(str, node)) if isinstance(node, dict) else type(node).__name__
                raise RecordError(
                    f"{record.experiment} seed {record.seed}: no {part!r} in "
                    f"{'.'.join(done) or 'the record'}; there is: {there}"
                ) from None
            if isinstance(node, BaseModel):
                node = node.model_dump()
            done.append(part)
        found.append(node)
    return found


class _TooDeepError(ValueError):
    """A record's values lie deeper in each other than `DEEPEST`."""


def _encode(node: Any, depth: int = 0) -> Any:
    """Replace non-finite floats by their names; refuse what would not come back the same."""
    if depth > DEEPEST:
        raise _TooDeepError(f"a record's values are nested at most {DEEPEST} deep")
    if isinstance(node, float) and not math.isfinite(node):
        return "NaN" if math.isnan(node) else ("Infinity" if node > 0 else "-Infinity")
    if isinstance(node, str) and (node in _NON_FINITE or node.startswith(_TEXT)):
        return _TEXT + node
    if isinstance(node, dict):
        if not all(isinstance(key, str) for key in node):
            raise ValueError(f"a record's keys are text, got {[*node]}")
        return {key: _encode(value, depth + 1) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_encode(value, depth + 1) for value in node]
    return node


def _decode(node: Any, depth: int = 0) -> Any:
    """Undo `_encode`."""
    if depth > DEEPEST:
        raise _TooDeepError
    if isinstance(node, str):
        return _NON_FINITE.get(node, node.removeprefix(_TEXT))
    if isinstance(node, dict):
        return {key: _decode(value, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_decode(value, depth + 1) for value in node]
    return node
