"""Errors that a user can mend: one clear line each, no stack of library frames in a notebook."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input: the message names the value and what was expected.

    In a Jupyter kernel it is shown as one line, so that `papermill` ends with
    that line too instead of a page of library frames.
    """

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: the lines to show in place of the traceback.
        return [f"{type(self).__name__}: {self}"]


class ParameterError(UserError):
    """A parameter of an experiment is unknown or has a value that is not allowed."""


class RecordError(UserError):
    """A result record is missing, truncated, altered or of another version."""


class DataError(UserError):
    """A data set is not where it was asked for, or is not what it should be."""
