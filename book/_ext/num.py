"""The role {num}: a number in the text, taken from the result records.

Syntax, in words separated by spaces::

    {num}`<profile>/<experiment>[/cuda] <key> [<aggregate>] [<format>]`

    {num}`paper/mnist_tracking values.he.final_loss`
    {num}`paper/mnist_tracking values.he.final_loss mean .3f`
    {num}`paper/mnist_tracking values.he.accuracy .1%`
    {num}`paper/mnist_tracking parameters.steps same ,`

- With `/cuda` the records are those that a GPU made, without it those of the CPU.
- The key leads to one value in each seed's record, with dots between the fields and
  numbers for list positions (`values.he.loss.-1`).
- The aggregate makes one value of the seeds' values: `median` (the default), `mean`,
  `min`, `max`, `range` (smallest to largest), `std` (of the sample, needs two seeds),
  `count` (of seeds), `nonfinite` (count of seeds with NaN or infinity: runs that
  diverged), `first` (lowest seed), `same` (the value all seeds share, be it a number or
  a text; the build fails if they differ).
- The format is one of Python's: `.3f`, `.1%`, `,`, `.2e`. Powers of ten are set as
  "1.25 x 10^-5" with a true superscript. Without one, integers are shown as they are and
  other numbers with three significant digits.

A key, record, aggregate or format that does not fit gives one warning, which names page,
line and cause, and fails a build with -W.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from book_records import complain, read_followed
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from hessinit_book.errors import RecordError
from hessinit_book.records.records import look_up

SYNTAX = "{num}`<profile>/<experiment> <key> [<aggregate>] [<format>]`"

_POWER = re.compile(r"(?P<mantissa>.*\d)[eE](?P<exponent>[+-]\d+)")
_NO_BREAK = "\N{NO-BREAK SPACE}"
_TIMES = f"{_NO_BREAK}\N{MULTIPLICATION SIGN}{_NO_BREAK}10"
_MINUS = "\N{MINUS SIGN}"

# Each makes a list of values to show (two for a range, else one) of finite or infinite numbers.
_NUMERIC: dict[str, Callable[[list[float]], list[float]]] = {
    "median": lambda found: [statistics.median(found)],
    "mean": lambda found: [statistics.fmean(_finite(found))],
    "min": lambda found: [min(found)],
    "max": lambda found: [max(found)],
    "range": lambda found: [min(found), max(found)],
    "std": lambda found: [_deviation(found)],
}
_ANY: dict[str, Callable[[list[Any]], list[Any]]] = {
    "count": lambda found: [len(found)],
    "nonfinite": lambda found: [sum(_is_number(x) and not math.isfinite(x) for x in found)],
    "first": lambda found: found[:1],
    "same": lambda found: [_shared(found)],
}


@dataclass(frozen=True)
class Request:
    """What one use of the role asks for.

    Attributes:
        source: "<profile>/<experiment>", or "<profile>/<experiment>/cuda".
        key: fields of the record joined by dots.
        aggregate: name of the aggregate.
        spec: Python's format specification, or "".
    """

    source: str
    key: str
    aggregate: str = "median"
    spec: str = ""


def parse(text: str) -> Request:
    """Read the role's text.

    Raises:
        RecordError: it does not follow the syntax, or names an unknown aggregate.
    """
    words = text.split()
    if len(words) < 2:
        raise RecordError(f"expected {SYNTAX}")
    source, key, *rest = words
    aggregate = "median"
    # A word of letters is an aggregate: Python's formats have at most one letter in a row.
    if rest and len(rest[0]) > 1 and rest[0].isalpha():
        aggregate = rest.pop(0)
    if aggregate not in _NUMERIC and aggregate not in _ANY:
        raise RecordError(
            f"unknown aggregate {aggregate!r}; there is: {', '.join([*_NUMERIC, *_ANY])}"
        )
    if len(rest) > 1:
        raise RecordError(f"{' '.join(rest)!r} is too much; expected {SYNTAX}")
    return Request(source, key, aggregate, rest[0] if rest else "")


def combine(found: Sequence[Any], aggregate: str) -> list[Any]:
    """Make one value (two for a range) of the seeds' values.

    Raises:
        RecordError: the values do not allow this aggregate.
    """
    values = list(found)
    nested = next((x for x in values if isinstance(x, dict | list)), None)
    if nested is not None and aggregate != "count":
        what = f"a list of {len(nested)} (name a position)"
        if isinstance(nested, dict):
            what = f"a mapping (name one of {', '.join(map(str, nested))})"
        raise RecordError(f"the key leads to {what}, not to one value")
    if aggregate in _ANY:
        return _ANY[aggregate](values)
    for value in values:
        if not _is_number(value):
            raise RecordError(
                f"{aggregate} needs numbers, got {value!r}; for text take 'same' or 'first'"
            )
        if math.isnan(value):
            raise RecordError(
                f"{aggregate} of values with NaN (a run that diverged) says nothing; "
                "'nonfinite' counts such runs"
            )
    return _NUMERIC[aggregate](values)


def to_nodes(value: Any, spec: str) -> list[nodes.Node]:
    """Write a value as text, powers of ten with a superscript.

    Raises:
        RecordError: the format does not fit the value.
    """
    if not _is_number(value):
        return [nodes.Text(str(value))]
    if not math.isfinite(value):
        sign = _MINUS if value < 0 else ""
        return [nodes.Text("NaN" if math.isnan(value) else f"{sign}\N{INFINITY}")]
    if isinstance(value, float) and value.is_integer() and spec.endswith("d"):
        value = int(value)
    try:
        text = format(value, spec or ("d" if isinstance(value, int) else ".3g"))
    except ValueError as error:
        raise RecordError(f"the format {spec!r} does not fit {value!r}: {error}") from None
    power = _POWER.fullmatch(text)
    if power is None:
        return [nodes.Text(text.replace("-", _MINUS))]
    mantissa = power["mantissa"].replace("-", _MINUS)
    exponent = str(int(power["exponent"])).replace("-", _MINUS)
    return [nodes.Text(mantissa + _TIMES), nodes.superscript("", exponent)]


class NumRole(SphinxRole):
    """The role itself."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Give the number, or a visible mark and a warning."""
        try:
            request = parse(self.text)
            found = look_up(read_followed(self.env, request.source), request.key)
            values = combine(found, request.aggregate)
            children = to_nodes(values[0], request.spec)
            for value in values[1:]:
                children += [nodes.Text(" to "), *to_nodes(value, request.spec)]
        except RecordError as error:
            complain(self.env, self.get_location(), f"{{num}}`{self.text}`", error)
            return [nodes.problematic(self.rawtext, f"{{num}}`{self.text}`")], []
        return [nodes.inline("", "", *children, classes=["num"])], []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(found: list[float]) -> list[float]:
    if not all(map(math.isfinite, found)):
        raise RecordError("a value is infinite (a run that diverged): take median, min or max")
    return found


def _deviation(found: list[float]) -> float:
    if len(found) < 2:
        raise RecordError("std needs records of two seeds or more, there is one")
    return statistics.stdev(_finite(found))


def _shared(found: list[Any]) -> Any:
    # By their texts: NaN differs from itself, and 1 equals True.
    distinct = {repr(value): value for value in found}
    if len(distinct) > 1:
        raise RecordError(f"'same', but the seeds differ: {', '.join(distinct)}")
    return found[0]


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.setup_extension("book_records")
    app.add_role("num", NumRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
