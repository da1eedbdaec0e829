"""`python -m hessinit_lib diagnose`: a diagnosis for people without a notebook."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import operator
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from hessinit_lib.diagnosis.diagnose import CURVATURES, diagnose
from hessinit_lib.errors import UserError

SOUND, FAULTY, MISUSED = 0, 1, 2
"""Exit status."""

_MEMBERS = ("model", "loss_fn", "inputs", "targets")
_EXPECTED = "expected package.module:factory or path/to/file.py:factory"


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
        description="Diagnose a network at its start. This imports the module or file and calls "
        "the function that you name: it runs their code.",
        epilog="Exit status: 0 sound, 1 faults found, 2 no diagnosis: wrong use, an error in "
        "your code, or a network that is not covered.",
    )
    command.add_argument(
        "factory",
        metavar="package.module:factory",
        help="a function, found from this folder, or in a file (path/to/file.py:factory), that "
        "takes nothing and gives (model, loss_fn, inputs, targets)",
    )
    command.add_argument(
        "--json",
        metavar="FILE",
        help="write the numbers here too; - for the standard output, and the text to stderr",
    )
    command.add_argument(
        "--curvature",
        choices=CURVATURES,
        default="auto",
        help="what to compute of second order (default: auto; all: also learning rates)",
    )
    command.add_argument("--lr", type=float, help="a learning rate: is it too high?")
    command.add_argument(
        "--optimizer",
        metavar="NAME",
        help="whose rate that is (default: sgd), or its own if there is no --lr: adam, adamw, ...",
    )
    given = parser.parse_args(arguments)
    try:
        options = {name: vars(given)[name] for name in ("curvature", "lr", "optimizer")}
        return _diagnose(given.factory, given.json, options)
    except UserError as error:
        _show(f"error: {error}", sys.stderr)
    except SystemExit as end:  # of their code: its status is not one of a diagnosis
        code = " ".join(str(end.code).split())
        _show(
            f"error: {given.factory!r} ended the program (SystemExit: {code}), expected a function "
            "that takes nothing, not from sys.argv either",
            sys.stderr,
        )
    except BrokenPipeError:  # they print, and nobody reads it any more
        _discard(sys.stdout)
    except Exception:  # of their code: shown whole, and not taken for a fault of the network
        traceback.print_exc()
    return MISUSED


def _diagnose(spec: str, json: str | None, options: dict[str, Any]) -> int:
    json_file = None if json in (None, "-") else _writable(json)
    out = sys.stdout
    with _process_kept(spec), contextlib.ExitStack() as stack:
        if json == "-":  # what their code prints is no JSON
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        case = _call(find_factory(spec), spec)
        try:
            found = diagnose(*case, **options)
        except (ValueError, NotImplementedError) as error:
            raise UserError(" ".join(str(error).split())) from None
    _show(str(found), sys.stderr if json == "-" else out)
    if json == "-":
        _show(found.to_json(), out)
    if json_file is not None:
        part = json_file.with_name(f".{os.getpid()}.part")
        try:
            part.write_text(found.to_json(), encoding="utf-8")
            part.replace(json_file)  # a reader sees the old file or the new one
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UserError(f"--json {json_file}: {error.strerror}") from None
    return FAULTY if found.faults else SOUND


def find_factory(spec: str) -> Callable[[], Any]:
    """Import a function by its name, as Python run from the current folder would.

    Args:
        spec: "package.module:factory", or "path/to/file.py:factory".

    Raises:
        UserError: there is no such module, file or function, or it takes arguments. Errors in
            the module pass through.

    Example:
        >>> find_factory("math:tau")
        Traceback (most recent call last):
        ...
        hessinit_lib.errors.UserError: 'math:tau': tau is a float, expected a function
    """
    where, _, name = spec.rpartition(":")  # the last colon: one may follow the letter of a drive
    by_path = where.endswith(".py")
    if not all(part.isidentifier() for part in name.split(".")) or not (
        by_path or all(where.split("."))
    ):
        raise UserError(f"{spec!r}: {_EXPECTED}")
    module = _import_file(Path(where), spec) if by_path else _import_module(where, spec)
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        raise UserError(f"{spec!r}: module {where} has no {name!r}") from None
    if not callable(found) or isinstance(found, type | nn.Module):
        kind = "class" if isinstance(found, type) else type(found).__name__
        raise UserError(f"{spec!r}: {name} is a {kind}, expected a function")
    return found


def _import_module(name: str, spec: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that theirs asks for in vain is another matter.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        way_out = f"; {_EXPECTED}" if re.search(r"[/\\]", name) else ""
        raise UserError(f"{spec!r}: no module {error.name!r} from {here}{way_out}") from None


def _import_file(path: Path, spec: str) -> ModuleType:
    """Import a file as if it were run: what lies beside it can be imported by it."""
    path = path.expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{spec!r}: no file {path}")
    folder, name = path.parent, path.stem
    sys.path.insert(0, str(folder))
    if re.search(rb"^\s*from\s+\.", path.read_bytes(), re.MULTILINE):  # a part of a package
        while (folder / "__init__.py").is_file():
            folder, name = folder.parent, f"{folder.name}.{name}"
        sys.path.insert(0, str(folder))
    # By its own name, by which others may import it, where no other module has that.
    if name not in sys.modules and "." not in path.stem:
        known = importlib.util.find_spec(name)
        if known is not None and known.origin and Path(known.origin).absolute() == path:
            return importlib.import_module(name)
    found = importlib.util.spec_from_file_location(f"_file_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look there
    found.loader.exec_module(module)
    return module


def _call(factory: Callable[[], Any], spec: str) -> tuple[Any, ...]:
    expected = f"expected ({', '.join(_MEMBERS)})"
    try:
        check = inspect.signature(factory).bind
    except ValueError:  # of built-in functions the arguments are not known
        check = tuple
    try:
        check()
    except TypeError as error:
        raise UserError(f"{spec!r}: expected a function that takes nothing: {error}") from None
    case = factory()
    if inspect.iscoroutine(case):
        case.close()
    if isinstance(case, Mapping) and set(case) == set(_MEMBERS):
        return tuple(case[member] for member in _MEMBERS)
    if not isinstance(case, tuple | list) or len(case) != len(_MEMBERS):
        kind = type(case).__name__
        shown = f"a {kind} of {len(case)}" if isinstance(case, tuple | list) else kind
        raise UserError(f"{spec!r} gave {shown}, {expected}")
    return tuple(case)


@contextlib.contextmanager
def _process_kept(spec: str) -> Iterator[None]:
    """Put back what their code and its import change of the process."""
    arguments, folders, here, modules = sys.argv, [*sys.path], Path.cwd(), set(sys.modules)
    where = spec.rpartition(":")[0]
    file = here / Path(where).expanduser()
    sys.argv = [where]  # code that reads arguments is not to read ours
    try:
        yield
    finally:
        for name in set(sys.modules) - modules:  # another file of that name may come
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin) == file.absolute():
                del sys.modules[name]
        sys.argv, sys.path[:] = arguments, folders
        with contextlib.suppress(OSError):
            os.chdir(here)


def _writable(name: str) -> Path:
    """Make sure that a file can be written, before work starts.

    Raises:
        UserError: it cannot; the message says why.
    """
    why: str | None = None
    try:
        path = Path(name).resolve()  # what a link leads to, where that is
        if path.is_dir() or name.endswith(("/", os.sep)):
            why = "a folder"
        elif path.exists() and not path.is_file():
            why = "no plain file"
        elif path.exists() and not os.access(path, os.W_OK):
            why = "it may not be written"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{os.getpid()}.part")
            part.touch()
            part.unlink()
            return path
    except (OSError, RuntimeError) as error:  # of links in a circle the second
        why = getattr(error, "strerror", None) or str(error)
    raise UserError(f"--json {name}: {why}: expected a file to write, or - for standard output")


def _show(text: str, stream: Any) -> None:
    """Print in what characters the terminal has; that nobody reads it is no error."""
    if stream is None:
        return
    try:
        encoding = stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            for sign, word in _IN_ASCII.items():
                text = text.replace(sign, word)
            text = text.encode(encoding, "replace").decode(encoding)
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:  # no space left
        _discard(stream)
        raise UserError(f"standard output: {error.strerror}") from None


_IN_ASCII = {"λ": "lambda", "±": "+-", "–": "-"}


def _discard(stream: Any) -> None:
    """Let what is still to be written go nowhere: Python writes it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
