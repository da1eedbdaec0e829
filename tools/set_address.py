"""Set the repository's public address, or check that all files agree on it.

The address is set in one place, `[project.urls] Repository` of pyproject.toml. Files that
must spell it out (README.md, CITATION.cff, the badges, the install cells of the notebooks)
are rewritten from there:

    python tools/set_address.py https://github.com/OWNER/NAME
    python tools/set_address.py --check

The check ends with status 1 and names each file and line that differs. It looks at links to
GitHub, to its Pages, to Colab and to Binder. Links of the last two kinds, and those that a
user installs or clones from, are always taken to mean this repository; other links are
taken to mean it if they have its owner or its name. Tests are left out: they make addresses
up, and read the real one from pyproject.toml. It needs Python 3.11 or newer.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Files that must hold the address; in others it may be absent.
REQUIRED = ("README.md", "CITATION.cff")
# Folders that are not part of the sources, for a tree that is not a git checkout.
UNTRACKED = {".git", ".venv", "_build", ".snakemake", "__pycache__", "dist", "node_modules"}

_OWNER = r"[A-Za-z0-9](?:-?[A-Za-z0-9])*"
# A name may hold dots; one at the end of a link is the sentence's.
_NAME = r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_ADDRESS = re.compile(rf"https://github\.com/({_OWNER})/({_NAME})")
_LINK = re.compile(
    r"(?P<host>(?:colab\.research\.google\.com/github|mybinder\.org/v2/gh)/"
    r"|(?:www\.|raw\.)?github(?:usercontent)?\.com[/:])"
    rf"(?P<owner>{_OWNER})/(?P<name>{_NAME})"
    rf"|(?P<pages>https?://)(?P<pages_owner>{_OWNER})\.github\.io(?:/(?P<pages_name>{_NAME}))?",
    re.IGNORECASE,
)
# What stands right before a link that a user installs or clones from.
_OURS = re.compile(r"(?:git\+|git clone |repository-code: ?\"?)(?:https://|ssh://|git@)?$")


class AddressError(Exception):
    """The address is not valid or cannot be read."""


@dataclass(frozen=True)
class Address:
    """A repository on GitHub."""

    owner: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address such as https://github.com/OWNER/NAME."""
        match = _ADDRESS.fullmatch(text.rstrip("/").removesuffix(".git"))
        if not match or len(match[1]) > 39 or len(match[2]) > 100:
            raise AddressError(f"{text!r} is not of the form https://github.com/OWNER/NAME")
        if match[2].lower().endswith(".github.io"):
            raise AddressError(
                f"{text!r}: the book needs a repository of its own, not a user's site"
            )
        return cls(match[1], match[2])

    @property
    def repository(self) -> str:
        """Address of the sources."""
        return f"https://github.com/{self.owner}/{self.name}"

    @property
    def pages(self) -> str:
        """Address of the built book on GitHub Pages."""
        return f"https://{self.owner.lower()}.github.io/{self.name}"


@dataclass(frozen=True)
class Difference:
    """A link that should be spelled otherwise, and its place in a text."""

    start: int
    end: int
    found: str
    wanted: str


def load_address(root: Path) -> tuple[Address, str]:
    """Read the repository's address and the documentation's from pyproject.toml."""
    try:
        import tomllib  # pyright: ignore[reportMissingImports]  # new in Python 3.11
    except ModuleNotFoundError:
        raise AddressError("set_address.py needs Python 3.11 or newer") from None
    path = root / "pyproject.toml"
    try:
        project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        urls = project["project"]["urls"]
        return Address.parse(urls["Repository"]), urls["Documentation"]
    except FileNotFoundError:
        raise AddressError(f"no file {path}") from None
    except KeyError as error:
        raise AddressError(f"pyproject.toml: no {error} under [project.urls]") from None
    except (tomllib.TOMLDecodeError, AddressError) as error:
        raise AddressError(f"pyproject.toml: {error}") from None


def source_files(root: Path) -> list[Path]:
    """List the files that git tracks or would track; without git, all but build outputs."""
    names = None
    if (root / ".git").exists():
        done = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=False,
        )
        if done.returncode == 0:
            names = sorted(set(done.stdout.decode().split("\0")) - {""})
    if names is not None:
        paths = [root / name for name in names]
    else:
        paths = [
            path
            for path in sorted(root.rglob("*"))
            if not UNTRACKED.intersection(path.relative_to(root).parts)
        ]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def source_texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Give the source files that are text, with their content, newlines untouched."""
    for path in source_files(root):
        data = path.read_bytes()
        if b"\0" in data:
            continue
        try:
            yield path, data.decode()
        except UnicodeDecodeError:
            continue


def address_texts(root: Path) -> Iterator[tuple[Path, str]]:
    """Give the texts in which links to this repository have to be its address."""
    for path, text in source_texts(root):
        if path.relative_to(root).parts[0] != "tests":
            yield path, text


def differences(text: str, known: Address, address: Address) -> list[Difference]:
    """Find the links that mean this repository but are not spelled as its address.

    Args:
        text: the text of a file.
        known: the address that the repository has, or had until now.
        address: the address wanted.
    """
    found = []
    for match in _LINK.finditer(text):
        pages = match["pages"] is not None
        owner = match["pages_owner"] if pages else match["owner"]
        full_name = match["pages_name"] if pages else match["name"]
        name = (full_name or "").removesuffix(".git")
        ours = owner.lower() == known.owner.lower() or name.lower() == known.name.lower()
        if not pages:
            badge = match["host"].lower().startswith(("colab.", "mybinder."))
            ours = (
                ours
                or badge
                or _OURS.search(text, max(0, match.start() - 40), match.start()) is not None
            )
        if not ours:
            continue
        if pages:
            wanted = address.pages
        else:
            git = ".git" if full_name.endswith(".git") else ""
            wanted = f"{match['host']}{address.owner}/{address.name}{git}"
        if match[0] != wanted:
            found.append(Difference(match.start(), match.end(), match[0], wanted))
    return found


def check(root: Path) -> list[str]:
    """Name each place where a file differs from the address in pyproject.toml."""
    address, documentation = load_address(root)
    faults = []
    if documentation != address.pages:
        faults.append(f"pyproject.toml: Documentation is {documentation}, not {address.pages}")
    for path, text in address_texts(root):
        name = path.relative_to(root).as_posix()
        for item in differences(text, address, address):
            line = text.count("\n", 0, item.start) + 1
            faults.append(f"{name}:{line}: {item.found}, expected {item.wanted}")
    for name in REQUIRED:
        path = root / name
        if not path.is_file() or address.repository not in path.read_text(encoding="utf-8"):
            faults.append(f"{name}: does not name {address.repository}")
    return faults


def change(root: Path, new: Address) -> list[str]:
    """Write a new address into all files; give the names of those that changed."""
    old, documentation = load_address(root)
    texts: dict[Path, str] = {}
    for path, text in address_texts(root):
        changed = text
        for item in reversed(differences(text, old, new)):
            changed = changed[: item.start] + item.wanted + changed[item.end :]
        if path == root / "pyproject.toml":
            changed = changed.replace(f'"{documentation}"', f'"{new.pages}"')
        if changed != text:
            texts[path] = changed
    for path, text in texts.items():
        path.write_bytes(text.encode())
    return [path.relative_to(root).as_posix() for path in texts]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Set the repository's public address in all files, or check it."
    )
    parser.add_argument("address", nargs="?", help="https://github.com/OWNER/NAME")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a file differs")
    arguments = parser.parse_args()
    if arguments.check == (arguments.address is not None):
        parser.error("give either a new address or --check")
    root = Path(__file__).resolve().parent.parent
    try:
        if not arguments.check:
            for name in change(root, Address.parse(arguments.address)):
                print(f"changed {name}")
        faults = check(root)
    except AddressError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
