"""The files of the repository agree with each other and hold nothing that they should not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hessinit_book import word2vec
from hessinit_lib.errors import UserError

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWNER, NAME = PROJECT["urls"]["Repository"].split("/")[-2:]

# PyPI's name of what conda-forge calls otherwise.
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}

# Parts of file names of one machine and settings of one network. Letters in brackets keep
# these lines from matching themselves.
MACHINE = re.compile(
    r"(?<![\w.:/*~-])[/](?:home|root|Users|tmp|var[/]tmp|private)[/]\w"
    r"|\b[A-Za-z]:\\\\?Users\b"
    r"|(?:extra[-_]|default[-_]|\b|_)(?<!emit-)index[-_]?ur[l]\b"
    r"|https?://[^\s\"'<>)]+/(?:simple|whl)(?:[/\s\"']|$)"
    r"|pythonhoste[d]|[/]{2}registry\.",
    re.IGNORECASE | re.MULTILINE,
)
LOCK_LINE = re.compile(r"[a-z0-9][a-z0-9-]*(?:\[[a-z0-9,-]+\])?==[0-9][\w.!+]*(?: ; \S.*)?")


def texts():
    """Give the name and content of the text files that git tracks or would track."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("this is not a git checkout")
    found = []
    for name in sorted(set(done.stdout.decode().split("\0")) - {""}):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b"\0"
        if b"\0" not in content:
            found.append((name, content.decode(errors="replace")))
    return found


def load_yaml(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


# The address


def addresses(text):
    """Give the owner/name of each link that means this repository, by its use or its name."""
    place = r"([A-Za-z0-9-]+/[A-Za-z0-9_-]+)"
    uses = rf"(?:git\+|git clone |repository-code: \"?)https://github\.com/{place}"
    launchers = rf"(?:mybinder\.org/v2/gh|colab\.research\.google\.com/github)/{place}"
    named = rf"github\.com/([A-Za-z0-9-]+/{NAME}\b|{OWNER}/[A-Za-z0-9_-]+)"
    pages = rf"([A-Za-z0-9-]+)\.github\.io/({NAME})\b"
    found = {match for pattern in (uses, launchers, named) for match in re.findall(pattern, text)}
    found |= {"/".join(match) for match in re.findall(pages, text)}
    return {address.lower() for address in found}


def test_all_files_agree_on_the_address():
    """It is set in pyproject.toml; files that must spell it out have the same."""
    assert PROJECT["urls"]["Documentation"] == f"https://{OWNER.lower()}.github.io/{NAME}"
    found = {name: addresses(text) for name, text in texts() if not name.startswith("tests/")}
    assert {name: seen for name, seen in found.items() if seen - {f"{OWNER}/{NAME}".lower()}} == {}
    assert all(found[name] for name in ("README.md", "CITATION.cff", "pyproject.toml"))


@pytest.mark.parametrize(
    "link",
    [
        f"https://github.com/elsewhere/{NAME}/issues",
        f"https://github.com/{OWNER}/x",
        "https://mybinder.org/v2/gh/a/b/HEAD",
        "https://colab.research.google.com/github/a/b/blob/main/c.ipynb",
        "git+https://github.com/a/b",
        f"https://elsewhere.github.io/{NAME}/page.html",
    ],
)
def test_another_address_is_seen(link):
    assert addresses(f"See <{link}>.") - {f"{OWNER}/{NAME}".lower()}
    assert not addresses("https://github.com/pytorch/pytorch https://snakemake.github.io/x")


# Metadata


def test_the_version_is_the_same_everywhere():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - (?:\d{4}-\d\d-\d\d|Unreleased)$", changelog, re.MULTILINE
    )
    assert released[0] == PROJECT["version"]
    assert str(load_yaml("CITATION.cff")["version"]) == PROJECT["version"]


def test_the_citation_names_software_and_paper():
    citation = load_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": author["name"]} for author in PROJECT["authors"]]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Skorski",
        "Temperoni",
        "Theobald",
    ]
    assert paper["url"].endswith("2004.09506")


def conda_requirements():
    """environment.yml's requirements under PyPI's names, and its pip section."""
    found, pip = {}, []
    for entry in load_yaml("environment.yml")["dependencies"]:
        if isinstance(entry, dict):
            pip += entry["pip"]
            continue
        # conda's "name range build" and "name=version".
        name, version = re.fullmatch(r"([\w.-]+) ?([<>=!~][^ ]*)?(?: \S+)?", entry).groups()
        version = re.sub(r"^=(?!=)", "==", version or "")
        requirement = Requirement(CONDA_NAMES.get(name, name) + version)
        found[canonicalize_name(requirement.name)] = requirement.specifier
    return found, pip


def test_the_conda_environment_has_the_ranges_of_pyproject():
    conda, pip = conda_requirements()
    wanted = {}
    extras = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + extras["report"] + extras["notebooks"]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            wanted[canonicalize_name(requirement.name)] = requirement.specifier
    extra = {"python", "pip"}
    assert {name: spec for name, spec in conda.items() if name not in extra} == wanted
    assert (
        next(iter(conda["python"])).version
        in Requirement(f"python{PROJECT['requires-python']}").specifier
    )
    assert pip == ["-e .[notebooks]"]


def test_the_conda_environment_has_the_cpu_build_from_one_channel():
    environment = load_yaml("environment.yml")
    assert environment["channels"] == ["conda-forge"]
    assert any(
        re.fullmatch(r"pytorch \S+ cpu\S*", str(entry)) for entry in environment["dependencies"]
    )


def test_the_lock_holds_pinned_versions_only():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not LOCK_LINE.fullmatch(line)] == []
    assert len(set(lines)) == len(lines)


def test_the_lock_is_within_the_ranges_of_pyproject():
    locked = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        pin = Requirement(line)
        (version,) = pin.specifier
        locked.setdefault(canonicalize_name(pin.name), []).append(version.version)
    extras = PROJECT["optional-dependencies"].values()
    for text in PROJECT["dependencies"] + [text for extra in extras for text in extra]:
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        if name == canonicalize_name(PROJECT["name"]):
            continue
        assert locked.get(name), f"{name} is not locked"
        for version in locked[name]:
            assert wanted.specifier.contains(version, prereleases=True), f"{name} {version}"


@pytest.mark.parametrize(
    ("version", "said"),
    [((3, 13, 0), r'pip install "hessinit_lib\[notebooks\]"'), ((3, 14, 0), "Python 3.10 to 3.13")],
)
def test_word2vec_without_gensim_says_what_it_needs(version, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim", None)
    monkeypatch.setattr(word2vec.sys, "version_info", version)
    with pytest.raises(UserError, match=said):
        word2vec.import_gensim()


def test_the_small_library_needs_neither_the_book_nor_its_libraries():
    extras = PROJECT["optional-dependencies"]
    names = [Requirement(text).name for text in extras["report"] + extras["notebooks"]]
    absent = {"pillow": "PIL", PROJECT["name"]: "hessinit_book"}
    code = (
        "import importlib, pkgutil, sys\n"
        f"sys.modules |= dict.fromkeys({[absent.get(name, name) for name in names]})\n"
        "import hessinit_lib\n"
        "for found in pkgutil.walk_packages(hessinit_lib.__path__, 'hessinit_lib.'):\n"
        "    if not found.name.endswith(('.adapters.lightning', '.__main__')):\n"
        "        importlib.import_module(found.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# Contents


def stored_runs(notebook):
    """Give the numbers of the cells that hold an output or an execution count."""
    return [
        number
        for number, cell in enumerate(notebook["cells"])
        if cell.get("outputs") or cell.get("execution_count") is not None
    ]


def test_notebooks_carry_no_outputs():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks
    stored = {
        path.name: stored_runs(json.loads(path.read_text(encoding="utf-8"))) for path in notebooks
    }
    assert stored == {path.name: [] for path in notebooks}


def test_the_install_cells_fit_the_project():
    """On Colab the first code cell installs this project, with an extra that it has."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = next("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        assert first.startswith('import sys\n\nif "google.colab" in sys.modules:\n'), path.name
        (text,) = re.findall(r'%pip install --quiet "([^"]+)"', first)
        wanted = Requirement(text)
        assert wanted.name == PROJECT["name"]
        assert wanted.extras == {"notebooks"}
        assert wanted.url == f"git+{PROJECT['urls']['Repository']}"


def test_stored_outputs_are_seen():
    clean = {"cell_type": "code", "outputs": [], "execution_count": None}
    output = {**clean, "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]}
    counted = {**clean, "execution_count": 1}
    cells = [{"cell_type": "markdown"}, clean, output, counted]
    assert stored_runs({"cells": cells}) == [2, 3]


def test_no_file_names_a_place_of_one_machine():
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for name, text in texts()
        for match in MACHINE.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "parts",
    [
        ("see ", "/", "home", "/ann/x"),
        ('"', "/", "root", "/x"),
        ("(", "/", "tmp", "/x)"),
        ("C:", "\\", "Users", "\\ann"),
        ("--index", "-url=x"),
        ("PIP_EXTRA_INDEX", "_URL=x"),
        ("https://example.org/", "simple", "/"),
    ],
)
def test_places_of_one_machine_are_seen(parts):
    assert MACHINE.search("".join(parts))


@pytest.mark.parametrize(
    "text",
    ["https://example.org/home/page", "indexed-url", "~/tmp/x", "results/root/x", "url"],
)
def test_other_text_is_let_be(text):
    assert not MACHINE.search(text)


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "--quiet", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_in_the_readme_runs(capsys):
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert "0.weight" in capsys.readouterr().out
