"""Errors that a user can fix: one clear line each, no library frames in a notebook."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class UserError(ValueError):
    """Wrong input: the message names the value and what was expected.

    In a Jupyter kernel it is shown as one line, so that `papermill` ends with
    that line too instead of a page of library frames.
    """

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: the lines to show in place of the traceback.
        return [f"{type(self).__name__}: {self}"]


def needed(module: str, purpose: str) -> ModuleType:
    """Import a library that only tables and figures need, or say how to get it.

    Args:
        module: its dotted name.
        purpose: what needs it, for the message.

    Raises:
        ImportError: it is not installed; one line that names the extra to install.

    Example:
        >>> needed("json", "report.to_frame()").__name__
        'json'
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ImportError(
            f'{purpose} needs {error.name}: pip install "hessinit_lib[report]"', name=error.name
        ) from None


def first_line(error: BaseException) -> str:
    r"""Give the first line of what an error says, or its kind.

    Example:
        >>> first_line(ValueError("one\ntwo")), first_line(KeyError("k"))
        ('one', "KeyError: 'k'")
    """
    kind = type(error).__name__
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    plain = isinstance(error, RuntimeError | ValueError | TypeError)
    return said if said and plain else f"{kind}: {said}".rstrip(": ")
