"""Numbers in prose come from records: the few that are typed are listed, each with its reason."""

from __future__ import annotations

import pytest
import yaml
from typed_numbers import ALLOWED, ROOT, find, pages, prose_of

PAGES = pages()
LISTED: dict[str, dict[str, str]] = yaml.safe_load(ALLOWED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_no_number_is_typed(page: str) -> None:
    typed, stale = find(page, PAGES[page], list(LISTED.get(page, {})))
    assert [str(number) for number in typed] == []
    assert stale == []


def test_the_list_is_in_order() -> None:
    assert set(LISTED) <= set(PAGES)
    bare = [
        (page, phrase)
        for page, phrases in LISTED.items()
        for phrase, reason in phrases.items()
        if not isinstance(reason, str) or len(reason) < 5 or "  " in phrase
    ]
    assert bare == []


def numbers(text: str, *phrases: str) -> list[str]:
    return [typed.number for typed in find("page.md", text, list(phrases))[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The loss ends at 0.35 nat.", ["0.35"]),
        ("It is 12 % of -3,000, or\n½ of it.", ["12 %", "-3,000", "½"]),
        ("| a | b |\n| --- | --- |\n| 0.1 | x |", ["0.1"]),
        ("Within about ten percent; by a\nfactor of two; a tenth of it.", None),
        ("Of the 20 layers, layers 2 and 3 take 5 steps.", ["20", "5"]),
        ("```{prf:theorem} T\n:label: x-1\nAt most 7 of them.\n```", ["7"]),
        ("````{note}\n```python\nx = 1\n```\nIt is 8.\n````", ["8"]),
        ("```{figure} a1.svg\n:width: 560px\n\nAfter 9 steps.\n```", ["9"]),
        ("1. One\n2. Two, with 4.5.", ["4.5"]),
        ("[10 networks](page2.md)", ["10"]),
    ],
)
def test_typed_numbers_are_seen(text: str, expected: list[str] | None) -> None:
    found = numbers(text)
    assert len(found) == 3 if expected is None else found == expected


@pytest.mark.parametrize(
    "text",
    [
        "It is {num}`paper/trial values.loss.0 .3f`, {cite:p}`he2015delving`, `x = 1`.",
        "With $s^2 = 2/n$ and\n\n$$\nx = 3\n$$\n\nit holds.",
        "```python\nprint(1)\n```\n\n```{math}\n:label: eq-1\nx = 2\n```",
        "CIFAR-10, ResNet-20, float64, Word2Vec, GPT-2, 2D, 784-30-30-10, 784-$N$-…-$N$-10.",
        "In 2015, with Python 3.11 to 3.13 or TensorFlow 1, version 1.2.3.",
        "By statement 6, parts 1 to 3, cases 2, 3 and 4, layers 2 and 3, and claim 5.",
        "<!-- check: statement-05 -->\n\n[a page](page2.md), <https://x.org/1>, https://x.org/2",
        "---\ntitle: 3\n---\n\n1. One\n2. Two\n\n[ref]: https://x.org/3",
        "All three of them; two passes; the first tenth-largest.",
    ],
)
def test_what_is_no_number_in_prose_is_let_be(text: str) -> None:
    assert numbers(text) == []


def test_the_list_allows_what_it_names_and_no_more() -> None:
    text = "With 20 steps it ends\nat 0.5. With 20 more, at 0.4."
    typed, stale = find("page.md", text, ["With 20 steps", "ends at 0.5", "at 0.3", "more, at"])
    assert [(number.number, number.line) for number in typed] == [("20", 2), ("0.4", 2)]
    assert stale == ["at 0.3", "more, at"]


def test_places_are_kept() -> None:
    for page, text in PAGES.items():
        blanked = prose_of(text)
        assert len(blanked) == len(text), page
        assert blanked.count("\n") == text.count("\n"), page


def test_a_planted_number_is_seen_on_every_page() -> None:
    for page, text in PAGES.items():
        listed = list(LISTED.get(page, {}))
        before = find(page, text, listed)[0]
        planted = find(page, f"{text}\n\nThe loss ends at 0.1234 nat.\n", listed)[0]
        assert [number.number for number in planted[len(before) :]] == ["0.1234"], page


def test_all_notebooks_and_pages_are_read() -> None:
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(PAGES)
    assert {"README.md", "index.md", "book/paper.md", "book/theory/beyond.md"} <= set(PAGES)
