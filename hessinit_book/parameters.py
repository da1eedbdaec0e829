"""Parameters of an experiment: the common ones, their defaults by profile, their checks.

Every experiment notebook starts with a cell of parameters, which papermill may override,
and hands them to the experiment's own subclass of `Parameters`. Nothing runs before all
of them are checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hessinit_book.errors import ParameterError

Profile = Literal["smoke", "quick", "paper"]
PROFILES: tuple[Profile, ...] = ("smoke", "quick", "paper")

P = TypeVar("P", bound="Parameters")

# What a notebook's namespace holds besides parameters.
_SHELL_NAMES = {"In", "Out", "exit", "quit", "open", "get_ipython"}


class Parameters(BaseModel):
    """The parameters that all experiments share.

    Attributes:
        profile: "smoke" (seconds, for tests), "quick" (the shipped sample; the default)
            or "paper" (full data, all seeds).
        seeds: the seeds to run, each giving one record.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        data_dir: folder of the full data sets; None: HESSINIT_DATA or the user's cache.
        results_dir: folder of the records; None: `results` in the project's root.

    Subclasses add their own fields, and `BY_PROFILE`: the defaults of each profile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    EXPERIMENT: ClassVar[str]
    BY_PROFILE: ClassVar[Mapping[Profile, Mapping[str, Any]]]

    profile: Profile = "quick"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    data_dir: Path | None = None
    results_dir: Path | None = None

    @classmethod
    def check(cls: type[P], **given: Any) -> P:
        """Check parameters and fill in the defaults of the profile.

        Args:
            given: parameters by name; None stands for the default.

        Raises:
            ParameterError: an unknown name or a value that is not allowed. One line, which
                names the value and what was expected.
        """
        unknown = sorted(set(given) - set(cls.model_fields))
        if unknown:
            raise ParameterError(
                f"unknown parameter {unknown[0]!r}; known: {', '.join(cls.model_fields)}"
            )
        given = {name: value for name, value in given.items() if value is not None}
        profile = given.get("profile", "quick")
        if profile not in PROFILES:
            raise ParameterError(f"profile: got {profile!r}, expected one of {', '.join(PROFILES)}")
        try:
            return cls.model_validate({**cls.BY_PROFILE[profile], **given})
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(
                f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
            ).lstrip(".")
            message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            message = {
                "tuple_type": "a list",
                "too_short": "at least one",
                "string_pattern_mismatch": "auto, cpu, mps, cuda or cuda:N",  # device has a pattern
            }.get(first["type"], message)
            raise ParameterError(f"{where}: got {first['input']!r}, expected {message}") from None

    @classmethod
    def from_notebook(cls: type[P], namespace: Mapping[str, Any]) -> P:
        """Check the parameters that stand in a notebook's namespace.

        papermill writes whatever it is given into the namespace, misspelled names too, so
        every plain value there must be a known parameter. Call it with `globals()` right
        below the cell of parameters. Other objects, which the notebook's later cells made
        when a reader runs the cell again, are let be.

        Raises:
            ParameterError: see `check`.
        """
        found = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_")
            and name not in _SHELL_NAMES
            and (name in cls.model_fields or _is_plain(value))
        }
        return cls.check(**found)

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds_are_a_list(cls, value: Any) -> Any:
        value = as_tuple(value)
        if isinstance(value, tuple) and len(set(map(str, value))) < len(value):
            raise ValueError("each seed once")
        return value

    @field_validator("data_dir", "results_dir", mode="before")
    @classmethod
    def _to_path(cls, value: Any) -> Any:
        return Path(value).expanduser() if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _data_dir_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("an existing folder of data sets")
        return value

    def bearing(self) -> dict[str, Any]:
        """Give the parameters that bear on a run's values, as plain JSON types.

        Left out: where things are, which other seeds are run, and the device, which the
        record names by itself.
        """
        places = {"seeds", "device", "data_dir", "results_dir"}
        return self.model_dump(mode="json", exclude=places)

    @property
    def results(self) -> Path:
        """The folder of the records: `results_dir`, or `results` in the project's root."""
        return self.results_dir or project_root() / "results"


def _is_plain(value: Any) -> bool:
    """Tell whether papermill could have written a value, as far as it says anything."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Path)


def project_root() -> Path:
    """Find the project's root above the current folder; else the current folder itself."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "runs.yaml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def as_tuple(value: Any) -> Any:
    """Turn a list into a tuple, also one that came as text; leave the rest to be judged.

    Notebooks write lists, and papermill's `-p seeds '[3]'` hands over the text.

    Example:
        >>> as_tuple([1, 2]), as_tuple("[1e-5, 1]"), as_tuple("one")
        ((1, 2), (1e-05, 1), 'one')
    """
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            return value
        return as_tuple(found) if isinstance(found, list) else value
    return tuple(value) if isinstance(value, list) else value
