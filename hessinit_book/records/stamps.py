"""Checksums of what an experiment computes: has the code changed since a record was made?

A stamp sums up definitions, not files: the function that runs an experiment, and all that it
rests on, each by the checksum of its bare code (`bare.py`) with the checksums of the definitions
that its names stand for (a Merkle tree; `definitions.py` finds them in the sources). So comments,
docstrings, annotations, names of files, and where a definition stands, do not count; a changed
constant, branch or function changes the stamps of just the experiments that reach it.

What acts when a module is imported counts where any definition of that module does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from hessinit_book.records.definitions import PACKAGES, Key, Module, Sources
from hessinit_book.records.syntax import is_parameters

ROOT = Path(__file__).resolve().parents[2]
"""The folder that the project's packages stand in."""

# They keep the books of results (which hold, what they say about themselves), and compute none.
BOOKKEEPING = (
    "hessinit_book.data.download",  # a record names the checksum of its data
    "hessinit_book.parameters",
    "hessinit_book.records",
)


def module_of(experiment: str, root: Path | None = None) -> str | None:
    """Name the module whose code a record of this experiment is stamped with; None: unknown.

    Args:
        experiment: as in the record.
        root: the folder of the packages, where it is another copy than the one that runs.

    Example:
        >>> module_of("mnist_tracking"), module_of("no_such")
        ('hessinit_book.chapters.mnist_tracking.run', None)
    """
    if experiment == "zoo":
        return "hessinit_book.zoo.run"
    if experiment == "benchmark_training":
        return "hessinit_book.training.images"
    if is_benchmark(experiment):
        return "hessinit_lib.hessians"
    known = ((root or ROOT) / "hessinit_book" / "chapters" / experiment / "run.py").is_file()
    return f"hessinit_book.chapters.{experiment}.run" if known else None


def is_benchmark(experiment: str) -> bool:
    """Tell whether the records of an experiment are timings, of the library itself."""
    return experiment.startswith("benchmark_")


def is_made_apart(experiment: str) -> bool:
    """Tell whether no notebook makes the records of an experiment: a benchmark, or the zoo."""
    return is_benchmark(experiment) or experiment == "zoo"


def code_stamp(experiment: str, root: Path | None = None) -> str:
    """Compute the stamp of the code that records of an experiment are made with.

    That is its `run` and what its parameters can do; of a benchmark, all of what it times.
    The values of parameters are no part of it: a record names them.

    Args:
        experiment: as in the record.
        root: the folder of the packages, where it is another copy than the one that runs.

    Raises:
        ModuleNotFoundError: there is no such experiment.
    """
    root = root or ROOT
    module = module_of(experiment, root)
    if module is None:
        raise ModuleNotFoundError(f"no experiment {experiment!r} in {root}", name=experiment)
    if is_benchmark(experiment):
        return _module_stamp((module,), _sources(root, _state(root)))
    return _experiment_stamp(module, _sources(root, _state(root)))


def module_stamp(*modules: str) -> str:
    """Compute the stamp of all that some modules define."""
    return _module_stamp(modules, _sources(ROOT, _state(ROOT)))


def _state(root: Path) -> int:
    """Tell one state of the sources from another, so that stamps are computed once for each."""
    files = [path for name in PACKAGES for path in (root / name).rglob("*.py")]
    return hash(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))


@lru_cache(maxsize=4)
def _sources(root: Path, _: int) -> Sources:
    return Sources(root, BOOKKEEPING)


@lru_cache(maxsize=256)
def _experiment_stamp(module: str, sources: Sources) -> str:
    found = _existing(sources, module)
    entries = [key for key in sources.look_up(found, "run") if isinstance(key, Key)]
    for number, statement in enumerate(found.statements):
        if is_parameters(statement):
            entries.append(Key(module, number))
    return _digest(sources, entries)


@lru_cache(maxsize=256)
def _module_stamp(modules: tuple[str, ...], sources: Sources) -> str:
    return _digest(sources, [Key(_existing(sources, name).name, None) for name in modules])


def _existing(sources: Sources, name: str) -> Module:
    module = sources.module(name)
    if module is None:
        raise ModuleNotFoundError(f"no module {name} in {sources.root}", name=name)
    return module


def _digest(sources: Sources, entries: list[Key]) -> str:
    """Sum up definitions with all that they rest on."""
    reached: dict[Key, tuple[Key, ...]] = {}
    loose: set[Key] = set()
    waiting = list(entries)
    while waiting:
        _reach(sources, waiting, reached)
        acting = _acting(sources, {key.module for key in reached})
        waiting = [key for key in acting if key not in reached]
        loose |= acting
    digests: dict[Key, str] = {}
    for component in _components(reached):
        digests.update(_component_digests(sources, component, digests))
    total = hashlib.sha256()
    for key in entries:
        total.update(digests[key].encode())
    for digest in sorted({digests[key] for key in loose}):
        total.update(digest.encode())
    return total.hexdigest()


def _reach(sources: Sources, start: Iterable[Key], reached: dict[Key, tuple[Key, ...]]) -> None:
    waiting = list(start)
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached[key] = sources.bare(key).references
            waiting += reached[key]


def _acting(sources: Sources, names: set[str]) -> set[Key]:
    """List what acts when some modules are imported, and what registers itself then."""
    found: set[Key] = set()
    for module in sources.imports_of(names):
        found.update(Key(module.name, number) for number in module.loose)
        for number, statement in enumerate(module.statements):
            if sources.registers(module, statement):
                found.add(Key(module.name, number))
    return found


def _component_digests(
    sources: Sources, component: list[Key], digests: dict[Key, str]
) -> dict[Key, str]:
    """Sum up definitions that rest on each other, or a single one."""
    names: dict[Key, str] = dict.fromkeys(component, "one of these")
    for _ in range(2):  # once more, so that it counts which of these is meant
        found = {}
        for key in component:
            bare = sources.bare(key)
            below = iter(bare.references)
            words = [word if word is not None else next(below) for word in bare.words]
            text = [w if isinstance(w, str) else digests.get(w) or names[w] for w in words]
            found[key] = hashlib.sha256("\0".join(text).encode()).hexdigest()
        names = found
    if len(component) == 1:
        return names
    around = "".join(sorted(names.values()))
    return {key: hashlib.sha256((own + around).encode()).hexdigest() for key, own in names.items()}


def _components(graph: dict[Key, tuple[Key, ...]]) -> Iterator[list[Key]]:
    """Give the strongly connected components, each after those that it leads to (Tarjan)."""
    order: dict[Key, int] = {}
    lowest: dict[Key, int] = {}
    held: dict[Key, None] = {}
    for root in graph:
        if root in order:
            continue
        order[root] = lowest[root] = len(order)
        held[root] = None
        path = [(root, iter(graph[root]))]
        while path:
            key, below = path[-1]
            for following in below:
                if following not in order:
                    order[following] = lowest[following] = len(order)
                    held[following] = None
                    path.append((following, iter(graph[following])))
                    break
                if following in held:
                    lowest[key] = min(lowest[key], order[following])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[key])
                if lowest[key] == order[key]:
                    component = []
                    while not component or component[-1] != key:
                        component.append(held.popitem()[0])
                    yield component
