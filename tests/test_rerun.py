"""The page Run it again: its examples run, and the profiles of Snakemake resume."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hessinit_book.chapters.contest import figures as contest_figures
from hessinit_book.chapters.contest import run as contest
from hessinit_book.chapters.contest import schemes as contest_schemes

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "rerun.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_results_are_read_with_pandas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(PYTHON[0], "rerun.md", "exec"), {})
    assert "std_1e-2" in capsys.readouterr().out


def test_a_scheme_of_ones_own_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's function and line, as if they stood in the file that it names."""
    written = dict(vars(contest_schemes))
    exec(compile(PYTHON[1], "rerun.md", "exec"), written)
    (name, function), *others = re.findall(r'line `"(\w+)": (\w+),`', PAGE)
    assert not others
    monkeypatch.setitem(contest_schemes.SCHEMES, name, written[function])
    (command,) = re.findall(r"-p schemes '(.*)'", PAGE)
    (record,) = contest.run(
        contest.ContestParameters.check(profile="smoke", schemes=command, results_dir=str(tmp_path))
    )
    assert list(record.values["resnet"]) == ["he", "orthogonal", name]
    assert name in contest_figures.standings([record], "resnet").index


def test_the_walk_through_makes_an_experiment(tmp_path: Path) -> None:
    """The files and cells of the page, as they stand there, in a copy of the library."""
    quiet = shutil.ignore_patterns("__pycache__")
    for name in ("hessinit_lib", "hessinit_book"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=quiet)
    experiment, figures, *cells = PYTHON[2:]
    chapter = tmp_path / "hessinit_book/chapters/first_loss"
    chapter.mkdir()
    (chapter / "run.py").write_text(experiment)
    (chapter / "figures.py").write_text(figures)
    program = "\n".join(cells).replace('"quick"', '"smoke"').replace("%config", "# ")
    program += '\nassert records[0].values["loss"][0] < records[0].values["loss"][2]\n'
    (tmp_path / "notebook.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/smoke/first_loss/seed-0.json").is_file()


def test_commands_of_the_page_name_what_is_there() -> None:
    named = re.findall(r"(?:hessinit_book|notebooks|profiles)/[\w./]*\w", PAGE)
    assert len(named) > 8
    missing = {name for name in named if not (ROOT / name).exists()}
    assert all("first_loss" in name for name in missing), missing  # the reader's own
    chapter = ROOT / "hessinit_book" / "chapters" / "init_targets"
    source = "\n".join(path.read_text(encoding="utf-8") for path in chapter.glob("*.py"))
    assert re.search(r"^STARTS\b", source, re.MULTILINE)
    assert re.search(r"^class Start\b", source, re.MULTILINE)


@pytest.mark.parametrize("name", ["default", "slurm"])
def test_profiles_resume_and_keep_what_is_whole(name: str) -> None:
    profile = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
    assert profile["rerun-incomplete"]
    assert profile["keep-incomplete"]
    assert profile["nolock"]  # the Snakefile's lock is the one
