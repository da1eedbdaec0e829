"""The bibliography is complete: every entry can be found, and is cited somewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_book_ext import ROOT
from typed_numbers import pages

database = pytest.importorskip("pybtex.database")

# These have neither DOI nor arXiv number; the publisher's page stands for them.
WITHOUT_NUMBER = {
    "cho2009kernel",
    "dauphin2019metainit",
    "glorot2010understanding",
    "krizhevsky2009learning",
    "levy2014neural",
    "srivastava2014dropout",
    "zhang2018local",
}
DOI = r"10\.\d{4,9}/\S+"
ARXIV = r"\d{4}\.\d{4,5}"
CITED = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


def fault(fields: dict[str, str], without_number: bool) -> str | None:
    """Say what is wrong with an entry, if something is."""
    found = {key.lower(): value for key, value in fields.items()}
    missing = [key for key in ("title", "year") if not found.get(key)]
    if missing:
        return f"no {missing[0]}"
    numbers = [key for key in ("doi", "eprint") if key in found]
    if without_number:
        return "has a number after all" if numbers else None if "url" in found else "no address"
    if not numbers:
        return "neither DOI nor arXiv number"
    if not re.fullmatch(DOI, found.get("doi", "10.1000/1")):
        return "malformed DOI"
    if "eprint" in found and (
        not re.fullmatch(ARXIV, found["eprint"]) or found.get("archiveprefix") != "arXiv"
    ):
        return "malformed arXiv number"
    return None


def entries() -> dict[str, Any]:
    """Read the bibliography."""
    return dict(database.parse_file(ROOT / "book" / "references.bib").entries)


def test_every_reference_can_be_found() -> None:
    found = {
        key: fault(dict(entry.fields), key in WITHOUT_NUMBER) for key, entry in entries().items()
    }
    assert {key: what for key, what in found.items() if what} == {}
    assert set(found) >= WITHOUT_NUMBER


@pytest.mark.parametrize(
    ("fields", "without_number", "expected"),
    [
        ({"doi": "10.1109/5.726791"}, False, None),
        ({"eprint": "1906.04267", "archivePrefix": "arXiv"}, False, None),
        ({"url": "https://x.org"}, True, None),
        ({"url": "https://x.org"}, False, "neither DOI nor arXiv number"),
        ({"doi": "https://doi.org/10.1109/5.726791"}, False, "malformed DOI"),
        ({"eprint": "1906.04267"}, False, "malformed arXiv number"),
        ({"doi": "10.1109/5.726791"}, True, "has a number after all"),
        ({}, True, "no address"),
    ],
)
def test_faults_are_seen(
    fields: dict[str, str], without_number: bool, expected: str | None
) -> None:
    assert fault({"title": "T", "year": "2020", **fields}, without_number) == expected


def test_every_reference_is_cited_and_none_is_missing() -> None:
    cited = {
        key.strip()
        for text in pages().values()
        for keys in CITED.findall(text)
        for key in keys.split(",")
    }
    assert cited == set(entries())
