"""Wrong values for every parameter of every experiment: each is refused, or accepted for a reason.

Run as a script it prints how many of each there are, and what was accepted.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import torch

from hessinit_book.chapters import parameters_of
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import Parameters

EXPERIMENTS = sorted(
    path.parent.name
    for path in (Path(__file__).parent.parent / "hessinit_book/chapters").glob("*/run.py")
)

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

# Why a value may be right, by the kind of a parameter: "int", "float", "text", "path", or several
# of one, "ints", "floats", "texts". Anything else has to be refused.
COUNT = {"int": "a count", "float": "a number", "seeds": "a seed"}
FEW = {"ints": "distinct numbers", "floats": "distinct numbers"}
NONE = {"ints": "none of something optional", "texts": "none of something optional"}
DIVERGING = {"word_pair_saddle.learning_rate": "a rate that diverges, in double precision"}
HUGE = {
    "mnist_tracking.deviations": "all overflows",
    "word_pair_saddle.rates": "a rate that diverges, in double precision",
}
FOLDER = {"results_dir": "a folder that can be made"}

VALUES: dict[str, tuple[Any, dict[str, str]]] = {
    # Other types.
    "True": (True, {"bool": "yes or no"}),
    "False": (False, {"bool": "yes or no"}),
    "bytes": (b"3", {}),
    "complex": (3j, {}),
    "object": (object(), {}),
    "function": (len, {}),
    "class": (int, {}),
    "module": (math, {}),
    "ellipsis": (..., {}),
    "dict": ({"a": 1}, {}),
    "empty dict": ({}, {}),
    "set": ({1, 2}, {}),
    "range": (range(1, 4), {}),
    "date": (datetime.date(2026, 11, 28), {}),
    "time": (datetime.datetime(2026, 11, 28, tzinfo=datetime.timezone.utc), {}),
    "Decimal": (Decimal(3), {"float": "a number"}),
    "Fraction": (Fraction(1, 2), {"float": "a number"}),
    "numpy int": (np.int64(3), {"float": "a number"}),
    "numpy float": (np.float64(0.5), {"float": "a number"}),
    "numpy array": (np.array([1, 2]), {}),
    "tensor": (torch.tensor([1.0, 2.0]), {}),
    "path": (Path("made/later"), FOLDER),
    # Numbers.
    "nan": (math.nan, {}),
    "inf": (math.inf, {}),
    "-inf": (-math.inf, {}),
    "-1": (-1, {}),
    "0": (0, {"float": "no subsampling, or no momentum", "contest.extensions": "none"}),
    "-0.0": (-0.0, {"float": "no subsampling, or no momentum"}),
    "0.5": (0.5, {"float": "a number"}),
    "1": (1, COUNT),
    "1.5": (1.5, {"float": "a number"}),
    "2": (2, COUNT),
    "3": (3, COUNT),
    "1000": (1000, COUNT),
    "5e-324": (5e-324, {"float": "a tiny share or loss"}),
    "1e-300": (1e-300, {"float": "a tiny share or loss"}),
    "1e20": (1e20, DIVERGING),
    "1e308": (1e308, DIVERGING),
    "10**6": (10**6, {"int": "a long run", "float": "a rate that diverges"}),
    "2**31": (2**31, DIVERGING),
    "2**32": (2**32, DIVERGING),
    "2**63": (2**63, DIVERGING),
    "10**400": (10**400, {}),
    "10**5000": (10**5000, {}),
    # Texts.
    "''": ("", {}),
    "' '": (" ", FOLDER),
    "'many'": ("many", FOLDER),
    "'3'": ("3", FOLDER),
    "'1e-3'": ("1e-3", {"float": "a number of YAML 1.1", **FOLDER}),
    "'1e999'": ("1e999", FOLDER),
    "'nan'": ("nan", FOLDER),
    "'None'": ("None", FOLDER),
    "full-width digits": ("\uff11\uff12", FOLDER),
    "Arabic digit": ("\u0663", FOLDER),
    "'1_000'": ("1_000", FOLDER),
    "'0x10'": ("0x10", FOLDER),
    "zero byte": ("a\0b", {}),
    "line": ("a\nb", FOLDER),
    "surrogate": ("a\ud800", {}),
    "300 letters": ("a" * 300, {}),
    "5000 letters": ("a/" * 2500, {}),
    "nobody's home": ("~nosuchuser/x", {}),
    "below a file": (f"{__file__}/x", {}),
    "a file": (__file__, {}),
    "'..'": ("..", {"results_dir": "a folder", "data_dir": "a folder"}),
    "'../x'": ("../x", FOLDER),
    "'file:'": ("file:", FOLDER),
    "'file:x'": ("file:x", {"corpus": "a file that is looked for", **FOLDER}),
    "'file:~nosuchuser/x'": ("file:~nosuchuser/x", FOLDER),
    "'text9'": ("text9", FOLDER),
    "'cuda:999'": ("cuda:999", FOLDER),
    "cuda and digits": ("cuda:" + "9" * 200, FOLDER),
    "cuda and Arabic digit": ("cuda:\u0663", FOLDER),
    "'cpu '": ("cpu ", FOLDER),
    "'cpu', a line": ("cpu\n", FOLDER),
    "'[1, 2'": ("[1, 2", FOLDER),
    "'[NaN]'": ("[NaN]", FOLDER),
    "'[1e999]'": ("[1e999]", FOLDER),
    "'[999...]'": ("[" + "9" * 5000 + "]", {}),
    "'[[[...'": ("[" * 100_000, {}),
    "'[1, 2, 3]'": ("[1, 2, 3]", {**FEW, "seeds": "seeds", **FOLDER}),
    # Lists.
    "[]": ([], NONE),
    "()": ((), NONE),
    "[[]]": ([[]], {}),
    "[[1]]": ([[1]], {}),
    "endless": (ENDLESS, {}),
    "[None]": ([None], {}),
    "[True]": ([True], {}),
    "[0]": ([0], {"seeds": "a seed"}),
    "[-1]": ([-1], {}),
    "[1]": ([1], {**FEW, "seeds": "a seed"}),
    "[1, 1]": ([1, 1], {"ints": "two layers of one unit"}),
    "[3, 4, 5]": ([3, 4, 5], {**FEW, "seeds": "seeds"}),
    "[0.5]": ([0.5], {"floats": "a number"}),
    "[0.5, 0.5]": ([0.5, 0.5], {}),
    "[0.1, 0.1000000001]": ([0.1, 0.1000000001], {}),
    "['1e-3']": (["1e-3"], {"floats": "a number of YAML 1.1"}),
    "[nan]": ([math.nan], {}),
    "[inf]": ([math.inf], {}),
    "[1e-300]": ([1e-300], {}),
    "[1e20]": ([1e20], HUGE),
    "[10**400]": ([10**400], {}),
    "[2**32]": ([2**32], {"seeds": "a seed", **HUGE}),
    "[2**63]": ([2**63], HUGE),
    "['a']": (["a"], {}),
    "['']": ([""], {}),
    "['1']": (["1"], {}),
    "[1, 'a']": ([1, "a"], {}),
    "[b'1']": ([b"1"], {}),
    "[object]": ([object()], {}),
    "[dict]": ([{"a": 1}], {}),
}


class Outcome(NamedTuple):
    """What became of one value.

    Attributes:
        experiment: which has the parameter.
        name: of the parameter.
        label: of the value, in `VALUES`.
        kind: "refused", "accepted" or "raw".
        text: the error, or why the value is right; "" if nothing says so.
    """

    experiment: str
    name: str
    label: str
    kind: str
    text: str


def fuzz(experiments: Sequence[str] = EXPERIMENTS) -> Iterator[Outcome]:
    """Give each value to each parameter of each experiment; nothing is run.

    What all experiments share is tried with two of them.
    """
    shared = set(Parameters.model_fields)
    for experiment in experiments:
        cls = parameters_of(experiment)
        for name in cls.model_fields:
            if name in shared and experiment not in ("mnist_tracking", "word2vec"):
                continue
            for label, (value, reasons) in VALUES.items():
                yield Outcome(experiment, name, label, *_judged(cls, name, value, reasons))


def _judged(
    cls: type[Parameters], name: str, value: Any, reasons: dict[str, str]
) -> tuple[str, str]:
    given = {"profile": "smoke", name: value}
    try:
        cls.check(**given)
    except ParameterError as error:
        return "refused", str(error)
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"
    return "accepted", reasons.get(f"{cls.EXPERIMENT}.{name}") or reasons.get(_kind(cls, name), "")


def _kind(cls: type[Parameters], name: str) -> str:
    if name in ("seeds", "profile", "device", "data_dir", "results_dir", "corpus"):
        return name
    kind: Any = cls.model_fields[name].annotation
    several = get_origin(kind) is tuple
    while get_origin(kind) is not Literal and (inside := get_args(kind)):
        kind = inside[0]
    return {int: "int", float: "float", bool: "bool"}.get(kind, "text") + "s" * several


def is_one_clear_line(outcome: Outcome) -> bool:
    """Tell whether an error is one line that begins with the name and says what was expected."""
    text = outcome.text
    return text.startswith(outcome.name) and ", expected " in text and text.isprintable()


def main() -> None:
    """Print how many values are refused, accepted and raw, and what is accepted."""
    outcomes = list(fuzz())
    fields = {(outcome.experiment, outcome.name) for outcome in outcomes}
    counts = Counter(outcome.kind for outcome in outcomes)
    print(f"{len(EXPERIMENTS)} experiments, {len(fields)} parameters, {len(VALUES)} values each:")
    for kind in ("refused", "accepted", "raw"):
        print(f"{kind:>9}: {counts[kind]:,}")
    print(f"  unclear: {sum(o.kind == 'refused' and not is_one_clear_line(o) for o in outcomes)}")
    accepted = Counter((o.label, o.text) for o in outcomes if o.kind == "accepted")
    for (label, reason), number in accepted.items():
        print(f"{number:5} x {label}: {reason or 'NO REASON'}")


if __name__ == "__main__":
    main()
