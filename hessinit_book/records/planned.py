"""`runs.yaml`: which experiments a profile runs, and with which parameters.

The file is checked whole, all profiles of it, before anything runs: a slip costs no computing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hessinit_book.chapters import parameters_of
from hessinit_book.errors import ParameterError
from hessinit_book.parameters import PROFILES
from hessinit_book.parameters.values import shown

Planned = dict[str, dict[str, dict[str, Any]]]
"""By profile and experiment: the parameters that the file gives, the seeds and the device."""

# What the rules of the Snakefile set.
_SET_ELSEWHERE = {
    "profile": "it is the profile that the entry stands under",
    "results_dir": "records go to results/, where they are looked for",
}
_OCTAL_OR_BASE_60 = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+)")


def read_planned(path: Path | str) -> Planned:
    """Read and check the file.

    Raises:
        ParameterError: there is no such file, it is no YAML, or an entry of it is not what it
            should be; one line that names the line of the file.

    Example:
        `read_planned("runs.yaml")["paper"]["mnist_tracking"]["seeds"]` gives [0, 1, ...].
    """
    path = Path(path)
    try:
        return _Reader(path.name, path.read_text(encoding="utf-8")).read()
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ParameterError(f"{path}: nested too deep") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ParameterError(f"{path.name}{where}: no YAML ({problem})") from None


class _Reader:
    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._loader = yaml.SafeLoader(text)

    def read(self) -> Planned:
        root = self._loader.get_single_node()
        if root is None:
            raise ParameterError(f"{self._name}: is empty, expected `profiles:`")
        found: Planned = {}
        for key, at, profiles in self._entries(root, "the file"):
            if key != "profiles":
                self._refuse(at, f"got {shown(key)}, expected nothing but `profiles:`")
            for profile, at_profile, experiments in self._entries(profiles, "profiles"):
                if profile not in PROFILES:
                    expected = f"one of {', '.join(PROFILES)}"
                    self._refuse(at_profile, f"got {shown(profile)}, expected {expected}")
                found[profile] = {
                    experiment: self._parameters(profile, experiment, at_experiment, entry)
                    for experiment, at_experiment, entry in self._entries(experiments, profile)
                }
        return found

    def _parameters(
        self, profile: str, experiment: str, at: yaml.Node, entry: yaml.Node
    ) -> dict[str, Any]:
        where = f"{profile}, {experiment}"
        try:
            cls = parameters_of(experiment)
        except ParameterError as error:
            self._refuse(at, f"{profile}: {error}")
        chosen, places = {}, {}
        for name, at_name, value in self._entries(entry, where):
            if name in _SET_ELSEWHERE:
                self._refuse(at_name, f"{where}: {name} is not set here: {_SET_ELSEWHERE[name]}")
            chosen[name], places[name] = self._value(value, f"{where}: {name}"), at_name
        try:
            found = cls.check(profile=profile, **chosen)
        except ParameterError as error:
            named = re.match(r"(?:unknown parameter ')?(\w+)", str(error))
            self._refuse(places.get(named[1] if named else "", at), f"{where}: {error}")
        return {**chosen, "seeds": list(found.seeds), "device": found.device}

    def _entries(self, node: yaml.Node, where: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Give the entries of a mapping, each name with its node, once."""
        if not isinstance(node, yaml.MappingNode):
            got = shown(node.value) if isinstance(node, yaml.ScalarNode) else "a list"
            got = "nothing" if node.tag.endswith(":null") else got
            self._refuse(node, f"{where}: got {got}, expected `name: ...`, or {{}} for none")
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, f"{where}: a name is text")
            if key.value in seen:
                self._refuse(key, f"{where}: {shown(key.value)} stands there twice")
            seen.add(key.value)
        self._loader.flatten_mapping(node)  # `<<: *anchor`
        merged = {key.value: (key, value) for key, value in node.value}
        for name, (key, value) in merged.items():
            yield name, key, value

    def _value(self, node: yaml.Node, where: str) -> Any:
        for scalar in _scalars(node):
            if scalar.tag.endswith(":null"):
                self._refuse(scalar, f"{where}: got nothing; leave it out for the profile's own")
            if scalar.tag.endswith(":int") and _OCTAL_OR_BASE_60.fullmatch(scalar.value):
                number = self._loader.construct_object(scalar)
                self._refuse(scalar, f"{where}: {scalar.value} means {number} in YAML; write that")
        return self._loader.construct_object(node, deep=True)

    def _refuse(self, node: yaml.Node, message: str) -> NoReturn:
        raise ParameterError(f"{self._name}, line {node.start_mark.line + 1}: {message}")


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item)
