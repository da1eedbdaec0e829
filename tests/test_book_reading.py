"""The book's helps for reading: terms that explain themselves, the reference, staleness notices."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from test_book_ext import EXT, ROOT, Project

sys.path.insert(0, str(EXT))

import api
import glossary

from hessinit_book.records import confirmations, freshness
from hessinit_book.records.confirmations import Confirmation, Repetition
from hessinit_book.records.stamps import code_stamp

TERMS = {
    "layer hessian": ("term-layer-Hessian", "Second derivatives."),
    "gain": ("term-gain", "G."),
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def linked(text: str) -> list[tuple[str, str]]:
    """Link the terms of a page; give text and target of each link."""
    tree = publish_doctree(text)
    glossary.link_first_mentions(tree, TERMS, "words.html")
    return [(link.astext(), link["refuri"]) for link in tree.findall(nodes.reference)]


def test_the_first_mention_of_a_term_is_linked() -> None:
    text = "Two Layer\nHessians and a gain. A layer Hessian again; the gains again.\n\nOne gain."
    assert linked(text) == [
        ("Layer\nHessians", "words.html#term-layer-Hessian"),
        ("gain", "words.html#term-gain"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "gain\n====\n\nNothing else.",
        "See ``gain`` and `the gain <https://x.org>`_ and :math:`gain`.",
        "Regains, gained, gain-free.",
        ".. note:: A gain.",
    ],
)
def test_what_is_no_running_text_is_let_be(text: str) -> None:
    assert [link for link in linked(text) if link[1].startswith("words")] == []


def test_terms_carry_their_meaning(project: Project) -> None:
    project.configure(["myst_nb", "glossary"])
    entry = "```{glossary}\nlayer Hessian\n  Second derivatives.\n```\n"
    project.write("words.md", f"---\norphan: true\n---\n# Words\n\n{entry}")
    project.write("index.md", "# Page\n\nThe layer Hessian.\n")
    status, printed = project.build()
    assert status == 0, printed
    (link,) = re.findall(r"<a [^>]*>layer Hessian</a>", project.raw("index"))
    assert 'href="words.html#term-layer-Hessian"' in link
    assert 'title="Second derivatives."' in link
    assert 'class="hint reference internal"' in link


def test_docstrings_become_restructured_text() -> None:
    text = "Of `f` at $x$:\n- one\n- two\n\n$$a\n  b$$ end, ``kept``."
    assert api.translate(text) == (
        "Of ``f`` at :math:`x`:\n\n- one\n- two\n\n\n.. math::\n\n   a\n   b\n end, ``kept``."
    )


def test_the_reference_has_all_public_names() -> None:
    written = api.sections()
    packages = re.findall(r"^## `(hessinit_lib\.\w+)`", written, re.MULTILINE)
    assert packages[0] == "hessinit_lib.hessians"
    assert "hessinit_lib.theory" in packages
    for package in packages:
        for name in importlib.import_module(package).__all__:
            entry = rf"^(\.\. auto\w+:: |`)hessinit_lib\.(\w+\.)?{name}`?$"
            assert re.search(entry, written, re.M), name
    assert "auto-function:: hessinit_lib.hessians.layer_hessians" not in written
    assert ".. autofunction:: hessinit_lib.layer_hessians\n" in written
    assert ".. autofunction:: hessinit_lib.adapters.loggers.log_to\n" in written
    assert "hessinit_book" not in written


# Staleness on the page

NAME = "word_pair_saddle"


def stamped_page(project: Project) -> Path:
    """Put an executed page with a good stamp, and its source, into the project."""
    source = project.root / "notebooks" / f"{NAME}.ipynb"
    source.parent.mkdir()
    cells = [{"cell_type": "markdown", "metadata": {}, "source": ["# Story"], "id": "a"}]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    notebook["metadata"] = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    source.write_text(json.dumps(notebook))
    page = project.src / "notebooks" / source.name
    freshness.stamp_page(source, source, page)
    return source


def test_a_stale_page_says_so(project: Project) -> None:
    project.configure(["myst_nb", "stale"])
    source = stamped_page(project)
    project.write("index.md", f"# Page\n\n```{{toctree}}\nnotebooks/{NAME}\n```\n")
    status, printed = project.build()
    assert status == 0, printed
    assert "out of date" not in project.text(f"notebooks/{NAME}")

    source.write_text(source.read_text().replace("Story", "Another story"))
    shutil.rmtree(project.root / "out")
    status, printed = project.build()
    assert status == 0, printed
    expected = "This page is out of date: the notebook's cells have changed since it ran."
    assert expected in project.text(f"notebooks/{NAME}").replace("’", "'")


def test_records_of_earlier_code_say_so(project: Project) -> None:
    use = f"# Page\n\n```{{provenance}} paper/{NAME}\n```\n"
    project.write("index.md", use)
    for code, notices in ((code_stamp(NAME), 0), ("0" * 64, 1)):
        made = project.record(0, experiment=NAME, code=code)
        place = project.root / "results" / "paper" / NAME / "seed-0.json"
        place.parent.mkdir(exist_ok=True)
        made.replace(place)
        status, printed = project.build()
        assert status == 0, printed
        text = project.text("index")
        assert text.count("These records were made by an earlier version of the code.") == notices


def test_confirmed_records_say_by_what(project: Project) -> None:
    now = code_stamp(NAME)
    folder = project.root / "results" / "paper" / NAME
    folder.mkdir(parents=True)
    for seed, code in ((0, "0" * 64), (1, now)):
        project.record(seed, experiment=NAME, code=code).replace(folder / f"seed-{seed}.json")
    project.write("index.md", f"# Page\n\n```{{provenance}} paper/{NAME}\n```\n")
    status, printed = project.build()
    assert status != 0  # half of them are stale
    assert "the seeds differ in 'code'" in printed

    again = Repetition(
        seed=0,
        record="ab",
        device="cpu: another",
        versions={"python": "3.13.0"},
        duration_s=2.0,
        compared={"exact": 1234, "rounding": 2},
        tolerance=0.01,
        largest=0.0004,
        where="values.loss",
    )
    confirmation = Confirmation(
        experiment=NAME,
        codes=["0" * 64],
        code=now,
        commit=None,
        finished="2026-12-01T00:00:00+00:00",
        repetition=again,
    )
    confirmations.write(confirmation, folder)
    status, printed = project.build()
    assert status == 0, printed
    said = project.text("index")
    assert "earlier version" not in said
    assert f"Code checksum 000000000000, {now[:12]}" in said
    assert (
        "Confirmed Made by earlier code. Seed 0 computed again by the present code on 2026-12-01 "
        "(cpu: another): the same, 1,234 values within 1%, 2 rounding errors below their bounds; "
        "the largest difference among the first: 0.04%." in said
    )

    # Once the code moves on, both are old: the page says so, and the build goes on.
    past = confirmation.model_copy(update={"code": "1" * 64, "codes": ["0" * 64, now]})
    confirmations.write(past, folder)
    project.record(1, experiment=NAME, code="1" * 64).replace(folder / "seed-1.json")
    status, printed = project.build()
    assert status == 0, printed
    assert "made by an earlier version" in project.text("index")
    assert "Confirmed" not in project.text("index")
    project.record(1, experiment=NAME, code=now).replace(folder / "seed-1.json")

    same = confirmation.model_copy(update={"repetition": None, "source": "fedcba9876543210"})
    confirmations.write(same, folder)
    status, printed = project.build()  # the page follows the confirmation
    assert status == 0, printed
    assert "Since commit fedcba987654 only comments" in project.text("index")


def test_provenance_links_to_what_made_it(project: Project) -> None:
    (project.root / "notebooks").mkdir()
    (project.root / "notebooks" / "trial.ipynb").touch()
    project.record(0)
    project.write("index.md", "# Page\n\n```{provenance} paper/trial\n```\n")
    status, printed = project.build()
    assert status == 0, printed
    assert "Parameters steps = 1000" in project.text("index")
    address = "https://github.com/someone/else"
    for link in ("blob/main/notebooks/trial.ipynb", "tree/main/results/paper/trial"):
        assert f'href="{address}/{link}"' in project.raw("index")


def test_the_figures_script_is_in_the_book() -> None:
    configured = (ROOT / "_config.yml").read_text(encoding="utf-8")
    (files,) = re.findall(r"html_js_files: \[(.*)\]", configured)
    for name in files.split(", "):
        assert (ROOT / "book" / "_static" / name).is_file()
