"""The command line, as a user calls it from a folder of their own."""

from __future__ import annotations

import json
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
def listed(): return list(network(1))
def named(): return dict(zip(("model", "loss_fn", "inputs", "targets"), network(1)))
def half_named(): return {"model": 1, "loss": 2, "x": 3, "y": 4}
def scaled(factor): return network(factor)
async def later(): return network(1)
def parsed():
    import argparse
    argparse.ArgumentParser().parse_args()
    print("as they print")
    return network(1)
def strict():
    import argparse
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.parse_args()
def ends(): raise SystemExit(0)
def wrong(): raise ValueError("of mine")
def stopped(): raise KeyboardInterrupt
def moves():
    import os
    os.chdir("/")
    return network(1)
def no_route(): return network(1)[0].eval(), nn.CrossEntropyLoss(), X.to(torch.complex64), Y
def exits_later():
    model = network(1)[0]
    model[1].register_forward_pre_hook(lambda *_: exit())
    return model, nn.CrossEntropyLoss(), X, Y
class Cases:
    sound = staticmethod(sound)
class Tuple(tuple): pass
model = network(1)[0]
number = 3
"""


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "cases.py").write_text(CASES)
    (folder / "mine" / "lame.py").write_text("import not_there")
    return subprocess.run(
        [sys.executable, "-m", "hessinit_lib", "diagnose", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables},
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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a folder with a file of cases that no module of this process is called like."""
    (tmp_path / "cases.py").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "cases", raising=False)
    return tmp_path


@pytest.mark.parametrize("where", ["cases", "cases.py", "./cases.py"])
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("unsound", "has no 'unsound'"),
        ("number", "number is a int, expected a function"),
        ("model", "model is a Sequential, expected a function"),
        ("Tuple", "Tuple is a class, expected a function"),
        ("scaled", "expected a function that takes nothing: missing a required argument: 'factor'"),
        ("later", "gave coroutine, expected (model, loss_fn, inputs, targets)"),
        ("half_named", "gave dict, expected (model, loss_fn, inputs, targets)"),
        ("too_few", "gave a tuple of 2, expected (model, loss_fn, inputs, targets)"),
        ("ends", "ended the program (SystemExit: 0), expected a function that takes nothing"),
        ("exits_later", "ended the program (SystemExit: None), expected a function that takes "),
    ],
)
def test_wrong_use_ends_in_one_line(
    where: str, factory: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [*sys.argv], [*sys.path]
    assert main(["diagnose", f"{where}:{factory}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert ([*sys.argv], [*sys.path]) == before
    sys.modules.pop("cases", None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cases", "'cases': expected package.module:factory or path/to/file.py:factory"),
        ("nothing:sound", "no module 'nothing' from "),
        (".cases:sound", "expected package.module:factory or path/to/file.py:factory"),
        ("sub/cases:sound", "expected package.module:factory or path/to/file.py:factory"),
        ("C:\\cases.py", "expected package.module:factory or path/to/file.py:factory"),
        ("C:\\cases.py:sound", "no file "),
        ("sub/cases.py:sound", "no file "),
    ],
)
def test_a_wrong_name_ends_in_one_line(
    spec: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", spec]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("factory", ["sound", "listed", "named", "parsed", "moves"])
def test_what_factories_do_and_give(
    factory: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, wanted = f"{here / 'cases.py'}:{factory}", ["--curvature", "none", "--json", "it.json"]
    assert main(["diagnose", spec, *wanted]) == 0
    assert ("as they print" in capsys.readouterr().out) == (factory == "parsed")
    assert Path.cwd() == here
    assert json.loads((here / "it.json").read_text(encoding="utf-8"))["layers"]
    assert "cases" not in sys.modules


def test_arguments_of_theirs_are_not_ours(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "cases.py:strict", "--curvature", "none"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: 'cases.py:strict' ended the program (SystemExit: 2)")


def test_their_errors_are_shown_whole_and_interrupts_pass(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", "cases.py:wrong"]) == 2
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        main(["diagnose", "cases.py:stopped"])


def test_a_file_of_any_name_with_its_own_imports(here: Path) -> None:
    """Names of other modules, dots, and parts of a package."""
    package = here / "a folder" / "parts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "beside.py").write_text(CASES)
    for name, line in {
        "json.py": "from beside import sound",
        "my.net-1.py": "from beside import sound",
        "inner.py": "from .beside import sound",
    }.items():
        (package / name).write_text(
            f"from dataclasses import dataclass\n{line}\n@dataclass\nclass A:\n    x: int = 0\n"
        )
        before = sys.modules["json"]
        spec = f"a folder/parts/{name}:sound"
        assert main(["diagnose", spec, "--curvature", "none"]) == 0
        assert sys.modules["json"] is before
    for name in ("beside", "parts", "parts.beside"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("target", ["folder", "new/", "cases.py/it.json", "pipe", "/dev/null", ""])
def test_a_place_that_cannot_be_written_is_told_before_work(
    target: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    assert main(["diagnose", "cases.py:wrong", "--json", target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --json {target}: ")
    assert sorted(path.name for path in here.iterdir()) == ["cases.py", "folder", "pipe"]


def test_json_on_the_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ["diagnose", "cases.py:parsed", "--curvature", "none"]
    assert main([*spec, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert str(Diagnosis.from_json(out)) in err
    assert "as they print" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_terminal_shows_it(encoding: str, tmp_path: Path) -> None:
    done = command(tmp_path, "mine.cases:sound", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rate (2/lambda)" in done.stdout


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    command(tmp_path, "mine.cases:unsound")
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["-m", "hessinit_lib", "diagnose", "mine.cases:sound", "--curvature", "none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


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
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line[: len(message) + 7]) == (2, f"error: {message}")


def test_an_error_of_their_own_is_shown_whole(tmp_path: Path) -> None:
    done = command(tmp_path, "mine.lame:anything")
    assert done.returncode == 2  # 1 is a fault of the network
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'not_there'"


def test_a_factory_may_be_a_method(tmp_path: Path) -> None:
    done = command(tmp_path, "mine.cases:Cases.sound", "--curvature", "none")
    assert (done.returncode, done.stderr) == (0, "")
