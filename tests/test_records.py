"""Records come back as they were written, or a line says what is wrong with the file."""

from __future__ import annotations

import json
import math
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hessinit_book.errors import RecordError
from hessinit_book.records import records, sealed
from hessinit_book.records.records import DatasetInfo, Record

DATASET = DatasetInfo(name="MNIST", kind="sample", train_size=20, test_size=5, sha256="ab")


def make_record(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "experiment": "mnist_tracking",
        "profile": "smoke",
        "seed": 3,
        "parameters": {"steps": 7, "deviations": [1e-5, 1.0]},
        "dataset": DATASET,
        "device": "cpu: a processor",
        "versions": {"python": "3.11.7"},
        "commit": None,
        "code": "cd",
        "finished": "2026-01-01T00:00:00+00:00",
        "duration_s": 0.25,
        "values": {"he": {"loss": [2.5, 2.0, 1.5], "start": "he"}},
    }
    return Record(**{**fields, **changes})


def same(a: Any, b: Any) -> bool:
    """Equality of types and values that takes NaN for itself and tells -0.0 from 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def refusal(path: Path) -> str:
    """The error of reading a file: one line that names it."""
    with pytest.raises(RecordError) as caught:
        records.read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Round trips


def test_comes_back_the_same(tmp_path: Path) -> None:
    values = {
        "losses": [1.5, math.nan, math.inf, -math.inf, -0.0, 1e-300],
        "nested": [[1, [2, []]], {"a.b": [None, True]}, {}],
        "text": 'σ₁ = "1"\n\\ [1,   2] 𝟙',
        "large": 2**70,
    }
    record = make_record(values=values, commit="0a-dirty")
    path = records.write(record, tmp_path / "new" / "folder" / "seed-3.json")
    assert same(records.read(path).model_dump(), record.model_dump())


NAMES = st.text(st.characters(exclude_categories=["Cs"]))
TEXTS = NAMES | st.sampled_from(["NaN", "Infinity", "-Infinity", "text:", "text:NaN", "text:text:"])
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=20
)


@given(values=st.dictionaries(NAMES, VALUES))
def test_any_values_come_back_the_same(
    values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any-values.json"
    records.write(make_record(values=values), path)
    assert same(records.read(path).values, values)


def test_spaces_in_text_stay(tmp_path: Path) -> None:
    values = {"text": "[1,   2]", "quoted": '"[   ]', "slash": "\\", "list": [[1, 2], [3, 4]]}
    path = records.write(make_record(values=values), tmp_path / "seed-3.json")
    assert records.read(path).values == values
    assert "[ 1, 2 ]" in path.read_text()  # lists of numbers are on one line each


def test_text_that_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    values = {"neighbors": ["NaN", "1e5", "text:NaN"], "loss": math.nan}
    path = records.write(make_record(values=values), tmp_path / "seed-3.json")
    assert same(records.read(path).values, values)
    assert json.loads(path.read_bytes())["values"]["loss"] == "NaN"


def test_what_would_come_back_different_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a record's keys are text"):
        records.write(make_record(values={"map": {2: "a", 10: "b"}}), tmp_path / "seed-3.json")
    assert list(tmp_path.iterdir()) == []


def test_file_is_json_for_any_reader(tmp_path: Path) -> None:
    path = records.write(make_record(values={"loss": [math.nan, math.inf]}), tmp_path / "a.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    body = json.loads(path.read_bytes(), parse_constant=refuse)
    assert body["values"] == {"loss": ["NaN", "Infinity"]}


# Damaged files


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return records.write(make_record(), tmp_path / "seed-3.json")


def test_missing_file(tmp_path: Path) -> None:
    assert "no record" in refusal(tmp_path / "seed-0.json")


@pytest.mark.parametrize("kept", [0, 1, 0.5, -3])
def test_truncated_file(kept: float, good: Path) -> None:
    content = good.read_bytes()
    good.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    assert "not a whole JSON file" in refusal(good)


@pytest.mark.parametrize(
    "content",
    [
        b"a record\n",
        b"\xff\xfe\x00",
        b'{"version": 1, "values": {"loss": NaN}}',
        b'{"version": 1, "seed": -Infinity}',
        b'{"version": ' + b"1" * 5000 + b"}",
        b"",  # `touch`
        b'{"version": 1, "values": {"loss": 1e999}}',
        b'{"version": 1, "values": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"version": 1, "values": {"text": "\\ud800"}}',
        '{"version": 1}'.encode("utf-16"),
        '{"version": 1}'.encode("utf-8-sig"),
        '{"version": 1, "device": "é"}'.encode("latin-1"),
    ],
)
def test_not_json(content: bytes, good: Path) -> None:
    good.write_bytes(content)
    assert "not a whole JSON file" in refusal(good)


def test_nested_deeper_than_a_record_may_be(good: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(records.DEEPEST):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested at most 100 deep"):
        records.write(make_record(values={"a": deep}), good)
    resigned(good, lambda body: body["values"].update(a=deep))
    assert "nested more than 100 deep" in refusal(good)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device", "beside a file"])
def test_no_plain_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "seed-3.json"
    if kind == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        (tmp_path / "seed-3.json").touch()
        path = path / "seed-3.json"
    assert "expected a JSON file: remove it" in refusal(path)


def test_json_of_something_else(good: Path) -> None:
    good.write_text("[1, 2]")
    assert "expected a JSON object, got list" in refusal(good)


def resigned(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a record's content and make its checksum fit again."""
    body = json.loads(path.read_bytes())
    del body["sha256"]
    change(body)
    path.write_text(json.dumps({"sha256": sealed.digest(body), **body}))


@pytest.mark.parametrize("field", ["seed", "duration_s", "device", "sha256"])
def test_altered_by_hand(field: str, good: Path) -> None:
    body = json.loads(good.read_bytes())
    body[field] = 4 if field in ("seed", "duration_s") else "another"
    good.write_text(json.dumps(body))
    assert "does not match its checksum" in refusal(good)


def test_checksum_missing(good: Path) -> None:
    body = json.loads(good.read_bytes())
    del body["sha256"]
    good.write_text(json.dumps(body))
    assert "does not match its checksum" in refusal(good)


def test_layout_by_hand_does_not_matter(good: Path) -> None:
    good.write_text(json.dumps(json.loads(good.read_bytes()), indent=4, sort_keys=True))
    assert records.read(good) == make_record()


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_wrong_version(version: object, good: Path) -> None:
    resigned(good, lambda body: body.update(version=version))
    assert f"record version {version!r}, expected 1" in refusal(good)


@pytest.mark.parametrize("field", sorted(set(Record.model_fields) - {"version"}))
def test_missing_field(field: str, good: Path) -> None:
    resigned(good, lambda body: body.pop(field))
    assert f"{field}: Field required" in refusal(good)


def test_unknown_field(good: Path) -> None:
    resigned(good, lambda body: body["dataset"].update(size=1))
    assert "dataset.size: Extra inputs" in refusal(good)


@pytest.mark.parametrize("duration", ["NaN", "Infinity", -1.0])
def test_duration_that_no_run_has(duration: Any, good: Path) -> None:
    resigned(good, lambda body: body.update(duration_s=duration))
    assert "duration_s: Input should be" in refusal(good)


def test_field_of_another_type(good: Path) -> None:
    resigned(good, lambda body: body.update(seed="3"))
    assert "seed: Input should be a valid integer" in refusal(good)


# Writing


def fail(*_: object, **__: object) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace"])
def test_failed_write_leaves_the_old_file(
    step: str, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = good.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        with pytest.raises(OSError, match="no space left"):
            records.write(make_record(seed=4), good)
    assert good.read_bytes() == old
    assert list(good.parent.iterdir()) == [good]


def test_value_that_json_cannot_hold(good: Path) -> None:
    old = good.read_bytes()
    with pytest.raises(TypeError):
        records.write(make_record(values={"z": 1j}), good)
    assert good.read_bytes() == old
    assert list(good.parent.iterdir()) == [good]


def test_write_replaces(good: Path) -> None:
    records.write(make_record(seed=4), good)
    assert records.read(good).seed == 4
    assert list(good.parent.iterdir()) == [good]


def test_folder_that_another_process_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, make = tmp_path / "parts" / "seed-3.json", tempfile.mkstemp
    removed = []

    def remove_first(**options: Any) -> tuple[int, str]:
        if len(removed) < 3:
            removed.append(path.parent.rmdir())
        return make(**options)

    monkeypatch.setattr(tempfile, "mkstemp", remove_first)
    records.write(make_record(), path)
    assert len(removed) == 3
    assert [*path.parent.iterdir()] == [path]


def test_folder_that_is_gone_once_it_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mkdir` sees that a folder exists, looks whether it is one, and it no longer is there."""
    gone, is_dir = iter([False]), Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: next(gone, None) is None and is_dir(path))
    records.write(make_record(), tmp_path / "seed-3.json")
    assert next(gone, "asked") == "asked"


def test_what_a_killed_writer_left_is_removed(good: Path) -> None:
    others = [good.with_name(name) for name in (".seed-31.json.x.part", "seed-3.json.part")]
    for path in (good.with_name(".seed-3.json.ab_cd.part"), *others):
        path.touch()
    sealed.remove_unfinished(good)
    assert sorted(good.parent.iterdir()) == sorted([good, *others])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_mode_honors_the_umask(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        path = records.write(make_record(), tmp_path / "seed-3.json")
        assert os.umask(umask) == umask  # and is left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


# Many records


def test_read_all_in_the_order_of_seeds(tmp_path: Path) -> None:
    for seed in (10, 2, 0):
        path = records.record_path(tmp_path, "smoke", "mnist_tracking", seed)
        records.write(make_record(seed=seed), path)
    found = records.read_all(tmp_path, "smoke", "mnist_tracking")
    assert [record.seed for record in found] == [0, 2, 10]


def test_read_all_without_records(tmp_path: Path) -> None:
    folder = tmp_path / "quick" / "mnist_tracking"
    for _ in range(2):
        with pytest.raises(RecordError, match="no records in") as caught:
            records.read_all(tmp_path, "quick", "mnist_tracking")
        assert str(folder) in str(caught.value)
        folder.mkdir(parents=True, exist_ok=True)  # the second time: there and empty


def test_read_all_with_a_damaged_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        path = records.record_path(tmp_path, "smoke", "mnist_tracking", seed)
        records.write(make_record(seed=seed), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RecordError, match=r"seed-1\.json"):
        records.read_all(tmp_path, "smoke", "mnist_tracking")


@pytest.mark.parametrize(
    "place",
    [
        "smoke/mnist_tracking/seed-77.json",  # `cp`: the seed would count twice
        "smoke/mnist_tracking/seed-03.json",
        "smoke/mnist_depth/seed-3.json",
        "quick/mnist_tracking/seed-3.json",
    ],
)
def test_read_all_with_one_in_the_place_of_another(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = records.record_path(tmp_path, "smoke", "mnist_tracking", 3)
    records.write(make_record(), own)
    records.write(make_record(), tmp_path / place)
    profile, experiment, _ = place.split("/")
    with pytest.raises(RecordError) as caught:
        records.read_all(tmp_path, profile, experiment)
    assert f"{place}: is the record of smoke/mnist_tracking/seed-3.json (cop" in str(caught.value)
    monkeypatch.chdir(own.parent)
    assert records.read_in_place("seed-3.json").seed == 3


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("values.he.loss.-1", [1.5, 1.5]),
        ("values.he.loss", [[2.5, 2.0, 1.5]] * 2),
        ("seed", [3, 4]),
        ("dataset.train_size", [20, 20]),
        ("parameters.deviations.0", [1e-5, 1e-5]),
        ("commit", [None, None]),
    ],
)
def test_look_up(key: str, expected: list[Any]) -> None:
    assert records.look_up([make_record(), make_record(seed=4)], key) == expected


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("values.she.loss", "no 'she' in values; there is: he"),
        ("valuez", "no 'valuez' in the record; there is: version, experiment"),
        ("values.he.loss.3", "no '3' in values.he.loss; there is: list"),
        ("values.he.loss.last", "no 'last' in values.he.loss; there is: list"),
        ("values.he.start.0", "no '0' in values.he.start; there is: str"),
        ("seed.0", "no '0' in seed; there is: int"),
        ("", "no '' in the record"),
    ],
)
def test_look_up_of_what_is_not_there(key: str, words: str) -> None:
    with pytest.raises(RecordError) as caught:
        records.look_up([make_record()], key)
    assert words in str(caught.value)
    assert "mnist_tracking seed 3" in str(caught.value)
    assert "\n" not in str(caught.value)
