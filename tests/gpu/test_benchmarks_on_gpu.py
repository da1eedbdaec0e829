"""Benchmarks on a GPU: all of a problem lies there, and times are those of the GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import device, floor, modern, ours, timing
from benchmarks.modern_networks import Network, digits
from benchmarks.rows import Row, mlp
from hessinit_book.records import records
from hessinit_book.records.records import Record


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Record]:
    make = partial(mlp, 784, 6, 10)
    monkeypatch.setattr(program, "ROWS", {"tiny": Row("784-6-10", make, "mnist", 8, flat=True)})
    monkeypatch.setattr(program, "MEMORY_ROWS", ())
    network = Network("784-6-10", make, digits, 8, smooth=False)
    monkeypatch.setattr(modern, "NETWORKS", {"tiny": network})
    monkeypatch.setattr(floor, "ON_GPU", 16)
    monkeypatch.setattr(device, "SIZES", {"cuda": 16})
    monkeypatch.setattr(device, "COPIED", {"cuda": 16})
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    rough = {name: {**options, "tolerance": 0.5} for name, options in ours.CALLS.items()}
    monkeypatch.setattr(ours, "CALLS", rough)
    monkeypatch.setattr(ours, "DRAWS", 1)
    monkeypatch.setattr(modern, "DRAWS", 1)
    monkeypatch.setattr(modern, "EFFORTS", (2,))
    monkeypatch.setattr(modern, "TOLERANCES", (0.3, 0.05))

    def record(name: str) -> Record:
        path = records.record_path(tmp_path, "quick", f"benchmark_{name}", 0, "cuda")
        return records.read_in_place(path)

    return record


WORDS = ["--quick", "--device", "cuda", "--results"]


def test_a_row_says_how_far_it_is_from_the_roofline(small, tmp_path: Path, capsys) -> None:
    program.main(["--rows", "tiny", *WORDS, str(tmp_path)])
    found = small("tiny")
    assert found.device.startswith("cuda: ")
    values = found.values
    assert values["ours"]["exact"]["error"] < 1e-3
    assert values["roofline"].keys() == {"float32", "bfloat16", "tf32"}
    took = values["ours"]["exact_frobenius"]["steps"] * values["step_ms"] / 1e3
    rates = device.rates(torch.device("cuda"))
    expected = {name: took / values["floor"]["gflop"] * rates[name] for name in values["roofline"]}
    assert values["roofline"] == pytest.approx(expected)
    assert "left out, not installed: " in capsys.readouterr().out


def test_networks_that_people_train_are_measured_there(small, tmp_path: Path) -> None:
    modern.main(["--names", "tiny", *WORDS, str(tmp_path)])
    ways = small("modern").values["tiny"]
    assert ways["ours"]["ggn"]["steps"] > 0
    assert "steps" in ways["peers"]["torch_func"]


def test_events_tell_the_time_after_a_warm_up(gpu) -> None:
    calls = []
    least = timing.interleave({"a": lambda: calls.append(1)}, budget=0.0)
    assert len(calls) == 4
    if gpu is not None:
        assert least == {"a": 1e-3}  # which pretended events say
    assert timing.cuda_peak(lambda: None) == 0.0


def test_what_tf32_does_is_seen_in_products(gpu) -> None:
    found = device.rounding(torch.device("cuda"))
    assert found["float32"]["does"] == "nothing"
    assert found["float32"]["product"] < 1e-5
    if gpu is not None:
        gpu.tf32 = True
        found = device.rounding(torch.device("cuda"))
        assert found["tf32"]["does"] == "cuts off"
        assert 1e-4 < found["tf32"]["convolution"] < 1e-2
    assert found["tf32"]["does"] in ("rounds", "cuts off", "nothing")
