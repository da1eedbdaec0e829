"""Parameters of an experiment: the common ones, their defaults by profile, their checks.

Every experiment notebook starts with a cell of parameters, which papermill may override,
and hands them to the experiment's own subclass of `Parameters`. Nothing runs before all
of them are checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hessinit_book.errors import ParameterError
from hessinit_book.parameters.cells import named_in_cells
from hessinit_book.parameters.places import fault_of, fault_of_writing
from hessinit_book.parameters.values import Seed, at_home, read_value, repeated, shown
from hessinit_book.records.records import record_path

Profile = Literal["smoke", "quick", "paper"]
PROFILES: tuple[Profile, ...] = ("smoke", "quick", "paper")

P = TypeVar("P", bound="Parameters")

# What a notebook's namespace holds besides parameters.
_SHELL_NAMES = {"In", "Out", "exit", "quit", "open", "get_ipython"}

# Training images of each set: in the shipped sample, and in full.
_TRAINING = {"mnist": (2000, 60_000), "fashion_mnist": (1000, 60_000), "cifar10": (1500, 50_000)}
# Parameters that say how many of them are drawn, none twice.
_DRAWN = ("batch_size", "batch_sizes", "probe_size", "sharpness_size", "full_size")

_NUMBERS = {1: "one", 2: "two", 3: "three"}


class Parameters(BaseModel):
    """The parameters that all experiments share.

    Attributes:
        profile: "smoke" (seconds, for tests), "quick" (the shipped sample; the default)
            or "paper" (full data, all seeds).
        seeds: the seeds to run, each giving one record.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        data_dir: folder of the full data sets; None: HESSINIT_DATA or the user's cache.
        results_dir: folder of the records; None: `results` in the project's root.

    Subclasses add their own fields, and `BY_PROFILE`: the defaults of each profile. Where
    samples are drawn from images, `IMAGES` names the sets. No list has an entry twice, but for
    those named in `REPEATABLE`. `LATER` names parameters that came after records had been made,
    with what holds in these: there they are not named.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    EXPERIMENT: ClassVar[str]
    BY_PROFILE: ClassVar[Mapping[Profile, Mapping[str, Any]]]
    IMAGES: ClassVar[tuple[str, ...]] = ()
    REPEATABLE: ClassVar[tuple[str, ...]] = ()
    LATER: ClassVar[Mapping[str, Any]] = {}

    profile: Profile = "quick"
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$")] = "auto"
    data_dir: Path | None = None
    results_dir: Path | None = None

    @classmethod
    def check(cls: type[P], /, **given: Any) -> P:
        """Check parameters and fill in the defaults of the profile.

        Args:
            given: parameters by name; None stands for the default.

        Raises:
            ParameterError: an unknown name or a value that is not allowed. One line, which
                begins with the name, and says the value and what was expected.
        """
        unknown = sorted(set(given) - set(cls.model_fields))
        if unknown:
            raise ParameterError(
                f"unknown parameter {shown(unknown[0])}; known: {', '.join(cls.model_fields)}"
            )
        given = {
            name: read_value(cls.model_fields[name].annotation, value)
            for name, value in given.items()
            if value is not None
        }
        profile = given.get("profile", "quick")
        if not isinstance(profile, str) or profile not in PROFILES:
            raise _refusal("profile", profile, f"one of {', '.join(PROFILES)}")
        try:
            found = cls.model_validate({**cls.BY_PROFILE[profile], **given})
        except ValidationError as error:
            raise _first_refusal(error) from None
        found._check_lists()
        found._check_samples()
        return found

    @classmethod
    def from_notebook(cls: type[P], namespace: Mapping[str, Any]) -> P:
        """Check the parameters that stand in a notebook's namespace, and where records go.

        papermill writes whatever it is given into the namespace, misspelled names too, so
        every name in the cells of parameters must be known. Call it with `globals()` right
        below them. Names from elsewhere, of IPython's start-up files or of the notebook's later
        cells when a reader runs the cell again, are let be.

        Raises:
            ParameterError: see `check`; or the device is not on this machine, or records that
                are not there yet cannot be written.
        """
        cells = named_in_cells(namespace)
        if cells is None:  # no notebook: every plain value there counts
            names = {n for n, v in namespace.items() if n in cls.model_fields or _is_plain(n, v)}
        else:
            names = cells.last | (cells.ever & set(cls.model_fields))
        found = cls.check(**{name: namespace[name] for name in names if name in namespace})
        found._check_machine()
        return found

    @field_validator("data_dir", "results_dir", mode="before")
    @classmethod
    def _to_path(cls, value: Any) -> Any:
        return at_home(value) if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _data_dir_exists(cls, value: Path | None) -> Path | None:
        if value is not None and (fault_of(value) or not value.is_dir()):
            raise ValueError("an existing folder of data sets")
        return value

    @field_validator("results_dir")
    @classmethod
    def _results_dir_can_be(cls, value: Path | None) -> Path | None:
        fault = value and fault_of(value / "smoke" / cls.EXPERIMENT / "parts")
        if fault:
            raise ValueError(f"a folder for records ({fault})")
        return value

    def _check_lists(self) -> None:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and name not in self.REPEATABLE and repeated(value):
                raise _refusal(name, [*value], "each once")

    def _check_samples(self) -> None:
        if not self.IMAGES:
            return
        most = min(_TRAINING[name][self.profile == "paper"] for name in self.IMAGES)
        for name in _DRAWN:
            value = getattr(self, name, 0)
            size = max(value) if isinstance(value, tuple) else value
            if size > most:
                raise _refusal(name, size, f"at most {most}, the training set")

    def _check_machine(self) -> None:
        """Look whether the device is there, and whether records can be written if need be.

        Raises:
            ParameterError: not so.
        """
        from hessinit_book.records.machine import choose_device  # it imports torch

        kind = choose_device(self.device).type
        if self.data_dir is None:
            try:
                at_home(os.environ.get("HESSINIT_DATA") or ".")
            except ValueError as error:
                raise _refusal("HESSINIT_DATA", os.environ["HESSINIT_DATA"], str(error)) from None
        names = self.profile, self.EXPERIMENT
        files = [record_path(self.results, *names, seed, kind) for seed in self.seeds]
        if not all(file.is_file() for file in files):
            require_writable(files[0].parent)

    def bearing(self) -> dict[str, Any]:
        """Give the parameters that bear on a run's values, as plain JSON types.

        Left out: where things are, which other seeds are run, and the device, which the
        record names by itself; and those of `LATER` where all are as before there were any.
        """
        places = {"seeds", "device", "data_dir", "results_dir"}
        if all(getattr(self, name) == before for name, before in self.LATER.items()):
            places |= self.LATER.keys()
        return self.model_dump(mode="json", exclude=places)

    @property
    def results(self) -> Path:
        """The folder of the records: `results_dir`, or `results` in the project's root."""
        return self.results_dir or project_root() / "results"


def _first_refusal(error: ValidationError) -> ParameterError:
    first = error.errors()[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "tuple_type":
        message = "a list"
    elif first["type"] == "string_pattern_mismatch":  # device has a pattern
        message = "auto, cpu, mps, cuda or cuda:N"
    elif first["type"] == "too_short":
        message = f"at least {_NUMBERS[first.get('ctx', {})['min_length']]}"
    return _refusal(where.lstrip("."), first["input"], message)


def _refusal(where: str, value: Any, expected: str) -> ParameterError:
    return ParameterError(f"{where}: got {shown(value)}, expected {expected}")


def _is_plain(name: str, value: Any) -> bool:
    """Tell whether papermill could have written a value, as far as name and value say anything."""
    if name.startswith("_") or name in _SHELL_NAMES:
        return False
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(_is_plain(name, inner) for inner in value)
    return value is None or isinstance(value, bool | int | float | str | Path)


def require_writable(folder: Path) -> None:
    """Make sure that records can be written to a folder, without leaving anything there.

    Raises:
        ParameterError: they cannot.
    """
    fault = fault_of_writing(folder)
    if fault:
        raise _refusal("results_dir", str(folder), f"a folder to write records to ({fault})")


def project_root() -> Path:
    """Find the project's root above the current folder; else the current folder itself."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "runs.yaml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here
