"""`python -m hessinit_lib diagnose`: a diagnosis for people without a notebook."""

from __future__ import annotations

import argparse
import importlib
import operator
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hessinit_lib.diagnosis.diagnose import CURVATURES, diagnose
from hessinit_lib.errors import UserError

SOUND, FAULTY, MISUSED = 0, 1, 2
"""Exit status."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Diagnose the network that the command line names, and print what was found.

    Args:
        arguments: in place of those of the process.

    Returns:
        0 for a sound network, 1 for one with faults, 2 where there was no diagnosis.
    """
    parser = argparse.ArgumentParser(prog="python -m hessinit_lib", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)
    command = commands.add_parser(
        "diagnose",
        help="tell whether a network is well initialized",
        description="Diagnose a network at its start. This imports the module and calls the "
        "function that you name: it runs their code.",
        epilog="Exit status: 0 sound, 1 faults found, 2 wrong use, or an error in your code.",
    )
    command.add_argument(
        "factory",
        metavar="package.module:factory",
        help="a function, found from this folder, that takes nothing and gives "
        "(model, loss_fn, inputs, targets)",
    )
    command.add_argument("--json", metavar="FILE", type=Path, help="write the numbers here too")
    command.add_argument(
        "--curvature",
        choices=CURVATURES,
        default="all",
        help="what to compute of second order (default: all, with learning rates)",
    )
    given = parser.parse_args(arguments)
    try:
        case = _call(find_factory(given.factory), given.factory)
        found = diagnose(*case, curvature=given.curvature)
    except ValueError as error:  # of which UserError is one
        print(f"error: {error}", file=sys.stderr)
        return MISUSED
    except Exception:  # of their code: shown whole, and not taken for a fault of the network
        traceback.print_exc()
        return MISUSED
    print(found)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        part = given.json.with_name(f".{given.json.name}.part")
        part.write_text(found.to_json(), encoding="utf-8")
        part.replace(given.json)  # a reader sees the old file or the new one
    return FAULTY if found.faults else SOUND


def find_factory(spec: str) -> Callable[[], Any]:
    """Import a function by its name, as Python run from the current folder would.

    Args:
        spec: "package.module:factory".

    Raises:
        UserError: there is no such module or function. Errors in the module pass through.

    Example:
        >>> find_factory("math:tau")
        Traceback (most recent call last):
        ...
        hessinit_lib.errors.UserError: 'math:tau': tau is a float, expected a function
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise UserError(f"{spec!r}: expected package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that theirs asks for in vain is another matter.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{spec!r}: no module {error.name!r} from {here}") from None
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        raise UserError(f"{spec!r}: module {module_name} has no {name!r}") from None
    if not callable(found):
        raise UserError(f"{spec!r}: {name} is a {type(found).__name__}, expected a function")
    return found


def _call(factory: Callable[[], Any], spec: str) -> tuple[Any, Any, Any, Any]:
    case = factory()
    if not isinstance(case, tuple) or len(case) != 4:
        shown = f"a tuple of {len(case)}" if isinstance(case, tuple) else type(case).__name__
        raise UserError(f"{spec!r} gave {shown}, expected (model, loss_fn, inputs, targets)")
    return case
