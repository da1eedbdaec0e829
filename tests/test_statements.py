"""The table of statements: theorem, proof, check and test of each, and what it warns of."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from test_book_ext import EXT, ROOT, Project

sys.path.insert(0, str(EXT))

import statements

THEOREM = """
```{{prf:theorem}} Title of {number}
:label: statement-{number:02d}
It holds, by {{prf:ref}}`statement-01`.

*Source.* Known, and *partly*
ours.
```

```{{prf:proof}}
Clear.
```

<!-- check: statement-{number:02d} -->
"""
TESTS = "\n".join(f"def test_statement_{n:02d}_holds(): ..." for n in statements.NUMBERS)


def check(value: float = 1e-15, what: str = "one against the other") -> dict[str, Any]:
    return {"what": what, "value": value, "allowed": 1e-12}


def checks(**changes: Any) -> dict[str, Any]:
    return {"checks": {f"statement_{n:02d}": check() for n in statements.NUMBERS} | changes}


@pytest.fixture
def complete(tmp_path: Path) -> Project:
    """A project in which no statement lacks anything."""
    project = Project(tmp_path)
    project.configure(["myst_nb", "sphinx_proof", "num", "statements"])
    project.record(0, values=checks())
    (project.root / "tests").mkdir()
    (project.root / "tests" / "test_all.py").write_text(TESTS)
    pages = "".join(THEOREM.format(number=n) for n in statements.NUMBERS)
    project.write("theory.md", f"# Theory\n{pages}")
    table = "```{statements}\n:name: table-of-all\n```"
    toctree = "```{toctree}\ntheory\nnotebooks/trial\n```"
    project.write("index.md", f"# Page\n\nSee {{numref}}`table-of-all`.\n\n{table}\n\n{toctree}\n")
    (project.src / "notebooks").mkdir()
    project.write("notebooks/trial.ipynb", "# The trial")
    return project


def failure(project: Project) -> str:
    status, printed = project.build()
    assert status != 0
    return printed


def test_complete_table(complete: Project) -> None:
    complete.record(1, values=checks(statement_05=check(3e-14), statement_05_more=check(0.0)))
    complete.record(0, values=checks(statement_05_more=check(2e-16, "more of it")))
    status, printed = complete.build()
    assert status == 0, printed
    text = complete.text("index")
    assert "See Table 1." in text
    row = "5. Title of 5 Known, and partly ours. proof one against the other: "
    assert row + "3 × 10^−14 (allowed 1 × 10^−12), trial" in text
    assert "more of it: 2 × 10^−16" in text
    assert "test_statement_11_holds" in text
    html = complete.raw("index")
    for target in ("theory.html#statement-07", "theory.html#statement-07-proof"):
        assert f'href="{target}"' in html
        assert complete.raw("theory").count(f'id="{target.split("#")[1]}"') == 1
    assert 'href="notebooks/trial.html"' in html


def test_comments_become_lines(complete: Project) -> None:
    status, printed = complete.build()
    assert status == 0, printed
    line = (
        "Checked. one against the other: 1 × 10^−15 (allowed 1 × 10^−12), trial. "
        "Tests: test_statement_03_holds."
    )
    assert line in complete.text("theory")
    assert complete.text("theory").count("Checked.") == len(statements.NUMBERS)
    assert "problematic" not in complete.raw("theory")


def test_gaps_are_named(complete: Project) -> None:
    theory = (complete.src / "theory.md").read_text()
    theory = theory.replace(":label: statement-02", ":label: other-02")
    theory = theory.replace("<!-- check: statement-02 -->", "")
    whole = THEOREM.format(number=4)
    assert whole in theory
    whose = THEOREM.format(number=10)
    unproved = theory.replace(whole, whole.replace("{prf:proof}", "{note}"))
    complete.write("theory.md", unproved.replace(whose, whose.replace("*Source.*", "")))
    too_much = checks(statement_06=check(2e-12), statement_07=check(math.nan))
    del too_much["checks"]["statement_08"]
    complete.record(0, values=too_much)
    (complete.root / "tests" / "test_all.py").write_text(TESTS.replace("09_holds", "9_holds"))
    printed = failure(complete)
    for reason in (
        r"index\.md:5: .*statement-02: no theorem with the label statement-02",
        r"index\.md:5: .*statement-04: no proof follows the theorem in theory",
        r"index\.md:5: .*statement-06: trial: one against the other: 2e-12 is above 1e-12",
        r"index\.md:5: .*statement-07: trial: one against the other: nan is above 1e-12",
        r"index\.md:5: .*statement-08: no full-scale record has the check statement_08",
        r"index\.md:5: .*statement-09: no test is named test_statement_09_",
        r"index\.md:5: .*statement-10: the theorem in theory does not end in a line \*Source",
        r"theory\.md:\d+: .*{check}`statement-06`: trial: .* 2e-12 is above 1e-12",
    ):
        assert re.search(reason, printed), (reason, printed)
    assert "statement-11" not in printed


def test_pages_follow_records_and_tests(complete: Project) -> None:
    assert complete.build()[0] == 0
    path = complete.record(0, values=checks(statement_05=check(1.0)))
    assert "statement-05: trial" in failure(complete)
    assert "statement-05: trial" in failure(complete)  # not taken from a cache
    path.unlink()
    complete.record(0, values=checks())
    assert complete.build()[0] == 0
    (complete.root / "tests" / "test_all.py").write_text("")
    assert "no test is named" in failure(complete)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"statement_5": check()}, "check 'statement_5' is"),
        ({"statement_05": {"what": "x", "value": 1.0}}, "expected statement_NN with what, value"),
    ],
)
def test_malformed_check_is_refused(
    complete: Project, entry: dict[str, Any], expected: str
) -> None:
    complete.record(0, values={"checks": entry})
    assert expected in failure(complete)


def test_role_wants_a_statement(complete: Project) -> None:
    complete.write("theory.md", "# Theory\n\n{check}`lemma-5`\n")
    assert "theory.md:3: WARNING: {check}`lemma-5`: expected statement-NN" in failure(complete)


def test_worst_seed_is_shown() -> None:
    def worst(*values: float) -> float:
        entries = [{"what": "", "value": v, "allowed": 1.0} for v in values]
        return statements.worst_of(entries)["value"]

    assert worst(0.5, 0.7, 0.6) == 0.7
    assert worst(0.5, 2.0, 0.6) == 2.0
    assert math.isnan(worst(0.5, math.nan, 0.6))


def test_theorems_of_the_book_are_found() -> None:
    found = statements.find_theorems(ROOT / "book")
    assert set(found) == set(statements.NUMBERS)
    assert all(theorem.proved and theorem.title for theorem in found.values())
    assert all(theorem.source for theorem in found.values())


def test_all_results_say_whose_they_are() -> None:
    result = re.compile(r"^(`{3,})\{prf:(?!proof|remark)\w+\}.*?\n\1$", re.MULTILINE | re.DOTALL)
    found = 0
    for path in (ROOT / "book").rglob("*.md"):
        for block in result.finditer(path.read_text(encoding="utf-8")):
            found += 1
            assert re.search(r"\n\n\*Source\.\* \S[^`]", block[0]), block[0][:80]
    assert found > len(statements.NUMBERS)
