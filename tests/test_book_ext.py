"""The book's extensions: numbers and provenance from records, the address, vendored MathJax."""

from __future__ import annotations

import hashlib
import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from hessinit_book.records import records

ROOT = Path(__file__).resolve().parent.parent
EXT = ROOT / "book" / "_ext"
MATHJAX = ROOT / "book" / "_static" / "mathjax"
sys.path.insert(0, str(EXT))

import provenance  # noqa: E402

CONF = """
import sys

extensions = {extensions!r}
html_theme = {theme!r}
html_theme_options = {options!r}
html_show_sourcelink = False
html_copy_source = False
numfig = True
myst_enable_extensions = ["substitution"]
nb_execution_mode = "off"
exclude_patterns = ["README*"]

def setup(app):
    app.connect("build-finished", lambda *_: print("torch loaded:", "torch" in sys.modules))
"""


class Project:
    """A small Sphinx project inside a repository of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.src = root / "_build" / "src"
        self.src.mkdir(parents=True)
        (root / "pyproject.toml").write_text(
            '[project]\nurls = { Repository = "https://github.com/someone/else/" }\n'
        )
        self.configure(["myst_nb", "num", "provenance"])

    def configure(self, extensions: list[str], theme: str = "basic", options: Any = None) -> None:
        text = CONF.format(extensions=extensions, theme=theme, options=options or {})
        (self.src / "conf.py").write_text(text)

    def record(self, seed: int, **changes: Any) -> Path:
        data = {"name": "MNIST", "kind": "full", "train_size": 60000, "test_size": 10000}
        data |= {"sha256": "0123456789abcdef" * 4} | changes.pop("dataset", {})
        fields: dict[str, Any] = {
            "experiment": "trial",
            "profile": "paper",
            "seed": seed,
            "parameters": {"steps": 1000},
            "dataset": records.DatasetInfo(**data),
            "device": "cpu: test, 2 threads",
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "commit": "fedcba9876543210-dirty",
            "code": "89abcdef01234567" * 4,
            "finished": f"2026-11-2{seed}T10:00:00+00:00",
            "duration_s": 1800.0,
            "values": {"loss": seed + 0.5, "tiny": 1.25e-5},
        }
        path = records.record_path(self.root / "results", "paper", "trial", seed)
        return records.write(records.Record(**fields | changes), path)

    def write(self, name: str, text: str) -> None:
        path = self.src / name
        if path.suffix == ".ipynb":
            kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
            notebook = new_notebook(cells=[new_markdown_cell(part) for part in text.split("%%")])
            notebook.metadata["kernelspec"] = kernel
            nbformat.write(notebook, path)
        else:
            path.write_text(text, encoding="utf-8")

    def build(self, *, stated_root: bool = True) -> tuple[int, str]:
        """Build with warnings as errors; give the exit status and all that was printed."""
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(EXT)]), "NO_COLOR": "1"}
        env.pop("HESSINIT_ROOT", None)
        if stated_root:
            env["HESSINIT_ROOT"] = str(self.root)
        command = [sys.executable, "-m", "sphinx", "-nW", "--keep-going", "-b", "html"]
        command += [str(self.src), str(self.root / "out")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def raw(self, page: str) -> str:
        return (self.root / "out" / f"{page}.html").read_text(encoding="utf-8")

    def text(self, page: str) -> str:
        """Give a page's text as a reader sees it, superscripts marked by ^."""
        marked = self.raw(page).replace("<sup>", "^")
        plain = html.unescape(re.sub(r"<[^>]+>", "", marked)).replace("\N{NO-BREAK SPACE}", " ")
        return re.sub(r"\s+", " ", plain)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# The role {num}


def test_num_in_pages_and_notebooks(project: Project) -> None:
    for seed in range(3):
        project.record(seed)
    use = "{num}`paper/trial values.loss .2f`, {num}`paper/trial values.tiny .2e`"
    table = "| a | b |\n|---|---|\n| x | {num}`paper/trial values.loss range` |"
    project.write("index.md", f"# Page\n\nHere: {use}.\n\n{table}\n\n```{{toctree}}\nbook\n```\n")
    project.write("book.ipynb", f"# Notebook%%Text.%%There: {use}.")
    status, printed = project.build(stated_root=False)  # found from the sources' folder
    assert status == 0, printed
    assert "torch loaded: False" in printed
    assert "Here: 1.50, 1.25 × 10^−5." in project.text("index")
    assert "0.5 to 2.5" in project.text("index")
    assert "There: 1.50, 1.25 × 10^−5." in project.text("book")


def test_pages_follow_their_records(project: Project) -> None:
    project.record(0)
    project.record(1)
    project.write("index.md", "# Page\n\nMedian {num}`paper/trial values.loss max`.\n")

    def built() -> str:
        status, printed = project.build()
        assert status == 0, printed
        return printed

    built()
    assert "Median 1.5." in project.text("index")
    assert "0 added, 0 changed" in built()

    old = project.record(0, values={"loss": 7.5})
    os.utime(old, (0, 0))  # restored from an archive, say: its date tells nothing
    built()
    assert "Median 7.5." in project.text("index")

    added = project.record(2, values={"loss": 9.5})
    built()
    assert "Median 9.5." in project.text("index")

    added.unlink()
    built()
    assert "Median 7.5." in project.text("index")


def test_missing_key_fails_each_time_until_mended(project: Project) -> None:
    project.record(0)
    project.write("index.md", "# Page\n\nText.\n\nHere {num}`paper/trial values.accuracy .1%`.\n")
    for _ in range(2):  # the second build must not take the broken page from its cache
        status, printed = project.build()
        assert status != 0
        (line,) = [line for line in printed.splitlines() if "{num}" in line]
        assert re.search(r"index\.md:5: WARNING: {num}`paper/trial values\.accuracy \.1%`: ", line)
        assert line.count("no 'accuracy' in values; there is: loss, tiny") == 1
    project.record(0, values={"accuracy": 0.987})
    status, printed = project.build()
    assert status == 0, printed
    assert "Here 98.7%." in project.text("index")


def test_every_fault_is_named_with_its_place(project: Project) -> None:
    whole = project.record(0)
    broken = whole.parent.parent / "broken" / "seed-0.json"
    broken.parent.mkdir()
    broken.write_text(whole.read_text().replace("0.5", "0.6"))
    uses = [
        "{num}`paper/absent values.loss`",
        "{num}`paper/broken values.loss`",
        "{num}`trial values.loss`",
        "{num}`paper/trial values.loss average`",
        "{num}`paper/trial values.loss .3q`",
        "{num}`paper/trial values`",
    ]
    project.write("index.md", "# Page\n\n" + "\n\n".join(uses) + "\n\n```{toctree}\nbook\n```\n")
    project.write("book.ipynb", "# Notebook%%Two.\n\n{num}`paper/trial values.absent`")
    status, printed = project.build()
    assert status != 0
    reasons = [
        r"index\.md:3: .*no records in",
        r"index\.md:5: .*does not match its checksum",
        r"index\.md:7: .*'trial' is not <profile>/<experiment>",
        r"index\.md:9: .*unknown aggregate 'average'",
        r"index\.md:11: .*the format '\.3q' does not fit 0\.5",
        r"index\.md:13: .*a mapping \(name one of loss, tiny\)",
        r"book\.ipynb: cell 2, line 3: .*values\.absent.*no 'absent' in values",
    ]
    for reason in reasons:
        assert re.search(reason, printed), (reason, printed)
    assert project.raw("index").count('class="problematic"') == len(uses)


# The directive {provenance}


def test_provenance(project: Project) -> None:
    for seed in (0, 1, 2, 4):
        project.record(seed)
    table = "```{provenance} paper/trial\n:name: origin\n```\n\n```{provenance} paper/trial\n```"
    project.write("index.md", f"# Page\n\nSee {{numref}}`origin`.\n\n{table}\n")
    status, printed = project.build()
    assert status == 0, printed
    text = project.text("index")
    for part in (
        "See Table 1.",
        "Provenance of trial, profile paper",
        "Data MNIST, full data set",
        "Examples 60,000 for training, 10,000 for testing",
        "Data checksum 0123456789ab (SHA-256)",
        "Seeds 0 to 2, 4 (4 runs)",
        "Device cpu: test, 2 threads",
        "Software python 3.11.2, torch 2.13.0",
        "Commit fedcba987654-dirty",
        "Duration 2 h 0 min in all",
        "Finished 2026-11-20 to 2026-11-24 (UTC)",
    ):
        assert part in text, (part, text)
    assert "sample" not in text

    for seed in (0, 1, 2, 4):
        project.record(seed, dataset={"kind": "sample", "train_size": 800})
    status, printed = project.build()
    assert status == 0, printed
    text = project.text("index")
    assert "Computed on a sample of MNIST, not on the full data set." in text
    assert "Data a sample of MNIST, not the full data set" in text
    assert "MNIST, full data set" not in text


def test_provenance_faults(project: Project) -> None:
    project.record(0)
    project.record(1, dataset={"kind": "sample"})
    uses = "```{provenance} paper/trial\n```\n\n```{provenance} quick/trial\n```\n"
    project.write("index.md", f"# Page\n\n{uses}")
    status, printed = project.build()
    assert status != 0
    assert re.search(r"index\.md:3: .*{provenance} paper/trial: the seeds differ in 'dat", printed)
    assert re.search(r"index\.md:6: .*{provenance} quick/trial: no records in", printed)


def test_words() -> None:
    assert provenance.seeds_in_words([5]) == "5"
    assert provenance.seeds_in_words([4, 3, 9]) == "3, 4, 9"
    assert provenance.duration_in_words(2.345) == "2.3 s"
    assert provenance.duration_in_words(59.7) == "1 min 0 s"


# The address, and MathJax


def test_address_reaches_buttons_and_text(project: Project) -> None:
    launch = {"colab_url": "https://colab.research.google.com", "thebe": False}
    launch |= {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
    options = {"repository_branch": "main", "launch_buttons": launch}
    project.configure(["myst_nb", "address", "single_scripts"], "sphinx_book_theme", options)
    project.write("index.md", "# Page\n\nAt {{ repository }}.\n\n```{toctree}\nbook\n```\n")
    project.write("book.ipynb", "# Notebook")
    status, printed = project.build()
    assert status == 0, printed
    address = "https://github.com/someone/else"
    assert f'href="{address}"' in project.raw("index")
    assert f"{address}/edit/main/index.md" in project.raw("index")
    assert f"{address}/issues/new" in project.raw("index")
    assert "gh/someone/else/main?urlpath=lab/tree/book.ipynb" in project.raw("book")
    assert "/github/someone/else/blob/main/book.ipynb" in project.raw("book")


@pytest.mark.parametrize("address", ["", "http://github.com/a/b"])
def test_address_must_be_set(project: Project, address: str) -> None:
    line = f'[project.urls]\nRepository = "{address}"\n'
    (project.root / "pyproject.toml").write_text(line)
    project.configure(["myst_nb", "address"])
    project.write("index.md", "# Page\n")
    status, printed = project.build()
    assert status != 0
    assert "expected an https address" in printed


def test_configuration_spells_no_address() -> None:
    text = (ROOT / "_config.yml").read_text(encoding="utf-8")
    assert "github.com" not in text


def test_mathjax_is_as_published() -> None:
    stated = {}
    for line in (MATHJAX / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ./")
        stated[name] = digest
    files = {p.relative_to(MATHJAX).as_posix(): p for p in MATHJAX.rglob("*") if p.is_file()}
    assert stated.keys() == files.keys() - {"SHA256SUMS", "README.md"}
    for name, digest in stated.items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest, name
