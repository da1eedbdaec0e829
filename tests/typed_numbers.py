"""Find numbers that are typed into prose: neither read from a record nor part of a formula.

What is looked at: the pages of the book, the README, and the Markdown of the notebooks. What does
not count: roles such as {num}, code, formulas, addresses, options of directives, the numbers of
lists, names (CIFAR-10, float64), shapes of networks (784-30-10), years, versions, and references
(statement 6, layers 2 and 3). All others must be in the list of those allowed, with a reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = ROOT / "tests" / "typed_numbers.yaml"

# Directives whose content is prose; that of others is code, formulas or options.
PROSE = r"prf:\w+|list-table|figure|note|tip|warning|admonition|glossary|epigraph|dropdown"
_FENCE = re.compile(r"(?P<ticks>`{3,}|~{3,})(?P<info>.*)")
_OPTION = re.compile(r"\s*:[\w-]+:")

_UNIT = r"(?:\d+|…|\$[^$\s]+\$|\{num\}`[^`]*`)"
_NOT_PROSE = re.compile(
    rf"""
      <!--.*?-->                             # comments
    | {_UNIT}(?:[-–]{_UNIT}){{2,}}               # shapes of networks: 784-$N$-10
    | \$\$.*?\$\$ | (?<!\\)\$[^$]+\$         # formulas
    | \{{[\w:+-]+\}}`[^`]*`                  # roles
    | (`+)(?!`).*?(?<!`)\1(?!`)              # code
    | \]\([^)]*\) | \]\[[^\]]*\]             # targets of links
    | https?://\S+ | </?\w[^>]*>             # addresses, tags
    """,
    re.VERBOSE | re.DOTALL,
)

_COUNT = r"\d+(?:(?:,|,?[ ]and|[ ]or|[ ]to|–)[ ]?\d+)*"
_VERSIONED = r"Python|PyTorch|torch|TensorFlow|CUDA|Book|Snakemake|Node|Version|version"
_NAMES = re.compile(
    rf"""
      [A-Za-z][\w./]*(?:-\d[\w.]*)+          # CIFAR-10, GPT-2
    | [A-Za-z_]\w*\d[\w.]*                   # float64, Word2Vec
    | \b\d+D\b
    | \b(?:19|20)\d\d\b                      # years
    | \b\d+(?:\.\d+){{2,}}\b                 # versions
    | \b(?:{_VERSIONED})\ (?:\d+(?:\.\d+)*(?:,|\ to|\ or|\ and)?\ ?)+
    | \b(?:[Ss]tatement|[Pp]art|[Cc]ase|[Ll]ayer|[Rr]ule|[Cc]laim|[Cc]hapter|[Ss]eed|[Ff]inding|
         [Ss]ection|[Ff]igure|[Tt]able)s?\ {_COUNT}
    """,
    re.VERBOSE,
)

_WORD = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|"
    "sixty|seventy|eighty|ninety|a hundred|a thousand|hundred|thousand"
)
_PART = "third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth"
_NUMBER = re.compile(
    rf"""
      [-−]?(?<![\w.])\d(?:[\d.,]*\d)?(?:[ ]?%)? | [½⅓¼¾]
    | \b(?:{_WORD})[ -](?:percent|per[ ]cent|times|fold|points|orders)\b
    | \bfactors?[ ]of[ ](?:about[ ])?(?:{_WORD})\b
    | \b(?:an?|one|two|three|four|nine|the)[ ](?:{_PART})s?(?=[ ]of\b|[,.;:)])
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Typed:
    """A typed number: the page, its line, the number, and some words around it."""

    page: str
    line: int
    number: str
    context: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.number!r} in '{self.context}'"


def pages(root: Path = ROOT) -> dict[str, str]:
    """Read the pages whose prose is checked: name and text of each."""
    book = [path for path in (root / "book").rglob("*.md") if "_static" not in path.parts]
    found = [*sorted(book), root / "index.md", root / "README.md"]
    texts = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in found}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        texts[path.relative_to(root).as_posix()] = "\n\n".join(prose)
    return texts


def _blank(text: str) -> str:
    """Put spaces for all but the ends of lines, so that places stay."""
    return re.sub(r"[^\n]", " ", text)


def _blank_fences(text: str) -> str:
    """Blank code and formulas, and the heads and options of directives with prose."""
    kept: list[str] = []
    opened: list[tuple[str, bool]] = []  # the fences we are in: their ticks, is it prose?
    head = False
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line.strip())
        if opened and fence and not fence["info"] and len(fence["ticks"]) >= len(opened[-1][0]):
            opened.pop()
            kept.append(_blank(line))
        elif fence and all(prose for _, prose in opened):
            prose = re.match(rf"\{{(?:{PROSE})\}}", fence["info"].strip()) is not None
            opened.append((fence["ticks"], prose))
            head = True
            start = line.index("}") + 1 if prose else len(line)
            kept.append(" " * start + line[start:])
        elif not all(prose for _, prose in opened) or (head and _OPTION.match(line)):
            kept.append(_blank(line))
        else:
            head = False
            kept.append(line)
    return "\n".join(kept)


def prose_of(text: str) -> str:
    """Blank all that is not prose; every other character stays in its place."""
    front = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    if front:
        text = _blank(front[0]) + text[front.end() :]
    text = _blank_fences(text)
    text = re.sub(r"^\[[^\]]*\]: .*$", lambda found: _blank(found[0]), text, flags=re.MULTILINE)
    for pattern in (_NOT_PROSE, re.compile(r"^\s*\d+\. ", re.MULTILINE)):
        text = pattern.sub(lambda found: re.sub(r"[^\n]", "\0", found[0]), text)
    return text.replace("\0", " ")


def find(page: str, text: str, phrases: list[str]) -> tuple[list[Typed], list[str]]:
    """Find the typed numbers of a page that are in none of the phrases.

    Args:
        page: its name.
        text: its Markdown.
        phrases: passages of it, as written but with single spaces, whose numbers are allowed.

    Returns:
        The numbers, and the phrases that allow none: they are stale.
    """
    # Lines may break anywhere: runs of blanks become one space, in the text and in its prose.
    place = [i for i, c in enumerate(text) if not (c.isspace() and i and text[i - 1].isspace())]
    flat = "".join(" " if text[i].isspace() else text[i] for i in place)
    blanked = prose_of(text)
    prose = "".join(" " if blanked[i].isspace() else blanked[i] for i in place)
    prose = _NAMES.sub(lambda found: " " * len(found[0]), prose)
    spans = {phrase: list(_spans(flat, phrase)) for phrase in phrases}
    used: set[str] = set()
    typed = []
    for number in _NUMBER.finditer(prose):
        start, end = number.span()
        allowed = [p for p in phrases if any(a <= start and end <= b for a, b in spans[p])]
        used.update(allowed)
        if not allowed:
            line = text.count("\n", 0, place[start]) + 1
            around = flat[max(0, start - 30) : end + 30].strip()
            typed.append(Typed(page, line, number[0], around))
    return typed, [phrase for phrase in phrases if phrase not in used]


def _spans(text: str, phrase: str) -> Iterator[tuple[int, int]]:
    for found in re.finditer(re.escape(phrase), text):
        yield found.span()
