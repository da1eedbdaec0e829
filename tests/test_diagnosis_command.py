"""The command line, as a user calls it from a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hessinit_lib.diagnosis import Diagnosis
from hessinit_lib.diagnosis.command import main

ROOT = Path(__file__).resolve().parent.parent
CASES = """
import torch
from torch import nn

X, Y = torch.arange(40.0).view(10, 4) / 20, torch.arange(10) % 3

def network(factor):
    torch.manual_seed(0)  # of the weights that come up, one in forty is a fault
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight.mul_(factor)
    return model, nn.CrossEntropyLoss(), X, Y

def sound(): return network(1)
def broken(): return network(100)
def too_few(): return network(1)[:2]
def no_model(): return nn.functional.relu, nn.CrossEntropyLoss(), X, Y
def no_loss(): return network(1)[0], None, X, Y
def numbers(): return network(1)[0], nn.CrossEntropyLoss(), X, Y.tolist()
def words(): return network(1)[0], nn.CrossEntropyLoss(), "text", Y
class Cases:
    sound = staticmethod(sound)
number = 3
"""


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "cases.py").write_text(CASES)
    (folder / "mine" / "lame.py").write_text("import not_there")
    return subprocess.run(
        [sys.executable, "-m", "hessinit_lib", "diagnose", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_fault_is_printed_written_and_told_by_the_status(tmp_path: Path) -> None:
    done = command(tmp_path, "mine.cases:broken", "--json", "found/it.json")
    assert done.returncode == 1, done.stderr
    assert "Fault: 2.weight: exploding: " in done.stdout
    found = Diagnosis.from_json((tmp_path / "found" / "it.json").read_text(encoding="utf-8"))
    assert str(found) == done.stdout.rstrip("\n")


def test_a_sound_network(tmp_path: Path) -> None:
    done = command(tmp_path, "mine.cases:sound", "--curvature", "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Verdict: balanced" in done.stdout
    assert "learning rate" not in done.stdout


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cases", "'cases': expected package.module:factory"),
        ("nothing:sound", "no module 'nothing' from "),
        ("cases:unsound", "module cases has no 'unsound'"),
        ("cases:number", "number is a int, expected a function"),
        ("cases:too_few", "gave a tuple of 2, expected (model, loss_fn, inputs, targets)"),
    ],
)
def test_wrong_use_ends_in_one_line(
    spec: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cases.py").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "cases", raising=False)
    assert main(["diagnose", spec]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    sys.modules.pop("cases", None)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("no_model", "model: got function, expected a torch.nn.Module"),
        ("no_loss", "loss_fn: got NoneType, expected a function"),
        ("numbers", "targets: got list, expected a tensor"),
        ("words", "inputs: got str, expected a tensor, or tensors in a tuple or dict"),
    ],
)
def test_a_case_of_wrong_types_ends_in_one_line(factory: str, message: str, tmp_path: Path) -> None:
    """In a process of its own: in this one, annotations are checked at each call."""
    done = command(tmp_path, f"mine.cases:{factory}")
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_an_error_of_their_own_is_shown_whole(tmp_path: Path) -> None:
    done = command(tmp_path, "mine.lame:anything")
    assert done.returncode == 2  # 1 is a fault of the network
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'not_there'"


def test_a_factory_may_be_a_method(tmp_path: Path) -> None:
    done = command(tmp_path, "mine.cases:Cases.sound", "--curvature", "none")
    assert (done.returncode, done.stderr) == (0, "")
