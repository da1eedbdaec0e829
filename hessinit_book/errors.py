"""Errors of the book that a user can mend: parameters, records and data."""

from __future__ import annotations

from hessinit_lib.errors import UserError


class ParameterError(UserError):
    """A parameter of an experiment is unknown or has a value that is not allowed."""


class RecordError(UserError):
    """A result record is missing, truncated, altered or of another version."""


class DataError(UserError):
    """A data set is not where it was asked for, or is not what it should be."""
