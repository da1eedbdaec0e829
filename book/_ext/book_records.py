"""Records for the book's pages: found, read, and followed for changes.

A page that shows a number is out of date once the records behind it change. Sphinx's
own check compares modification times, so it does not see a seed that was added or a
record that was restored with an old date. Hence each page also keeps a checksum of the
record files it used, and is read again when that differs.

Without effect on pages that use no record. Loaded by `num` and `provenance`.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from hessinit_book.errors import RecordError
from hessinit_book.records import confirmations, records

# The environment is pickled with this attribute: {page: {source: checksum}}.
_ATTRIBUTE = "hessinit_record_states"
_SOURCE = re.compile(
    rf"(?P<profile>[a-z]+)/(?P<experiment>[\w-]+)(?:/(?P<kind>{'|'.join(records.KINDS)}))?"
)
# MyST-NB counts the lines of a notebook as 10,000 x (cell, from 1) + line in the cell + 1.
_NOTEBOOK_CELL = 10_000

logger = logging.getLogger(__name__)


def repository_root(source_dir: Path | str) -> Path:
    """Find the repository: HESSINIT_ROOT, else the nearest folder above with pyproject.toml.

    Args:
        source_dir: the folder Sphinx builds from, which may be a copy inside the repository.

    Raises:
        ExtensionError: there is no such folder.
    """
    stated = os.environ.get("HESSINIT_ROOT")
    if stated:
        return Path(stated).resolve()
    start = Path(source_dir).resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file():
            return folder
    raise ExtensionError(
        f"no pyproject.toml in or above {start}: set HESSINIT_ROOT to the repository's root"
    )


def read_followed(env: BuildEnvironment, source: str) -> list[records.Record]:
    """Read all records of a source, and have the current page follow them.

    Args:
        env: Sphinx's environment, while it reads a page.
        source: "<profile>/<experiment>", for example "paper/mnist_tracking"; with "/cuda" behind
            it the records that a GPU made.

    Raises:
        RecordError: the source is malformed, has no records, or one of them is not valid.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise RecordError(
            f"{source!r} is not <profile>/<experiment>, for example paper/mnist_tracking"
        )
    results = repository_root(env.srcdir) / "results"
    state = _state(results, source)
    _states(env).setdefault(env.docname, {})[source] = state
    for path in _files(results, source):
        env.note_dependency(str(path))
    return _read(results, match["profile"], match["experiment"], match["kind"], state)


def number(directive: SphinxDirective, table: nodes.table, name: str) -> None:
    """Give a table its place in the source, its name, and the id without which it has no number.

    The id is no name: names are those of the whole book, and two pages may show the same table.
    """
    directive.set_source_info(table)
    directive.add_name(table)
    if not table["ids"]:
        table["ids"].append(nodes.make_id(name))


def complain(env: BuildEnvironment, location: str, subject: str, error: RecordError) -> None:
    """Give one warning that names page, line and cause: it fails a build with -W.

    The page is read again by the next build, which would else take the broken page from
    its cache and succeed.

    Args:
        env: Sphinx's environment, while it reads a page.
        location: "<file>:<line>", as Sphinx's roles and directives state it.
        subject: what was asked for, as written on the page.
        error: why it cannot be had.
    """
    env.note_reread()
    logger.warning("%s: %s", subject, error, location=_readable(location), type="records")


def _readable(location: str) -> str:
    file, _, line = location.rpartition(":")
    if file.endswith(".ipynb") and line.isdigit() and int(line) >= _NOTEBOOK_CELL:
        cell, line_in_cell = divmod(int(line) - 1, _NOTEBOOK_CELL)
        return f"{file}: cell {cell}, line {line_in_cell}"
    return location


def _files(results: Path, source: str) -> list[Path]:
    profile, experiment, *kind = source.split("/")
    folder = records.folder_of(results, profile, experiment, *kind)
    confirmed = records.home(folder) / confirmations.NAME
    return sorted(folder.glob("seed-*.json")) + ([confirmed] if confirmed.is_file() else [])


def _state(results: Path, source: str) -> str:
    """Give a checksum of the names and contents of a source's files: records, confirmation."""
    digest = hashlib.sha256()
    for path in _files(results, source):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _read(
    results: Path, profile: str, experiment: str, kind: str | None, state: str
) -> list[records.Record]:
    # `state` is part of the key: a page with fifty numbers checks its records once.
    return records.read_all(results, profile, experiment, kind)


def _states(env: BuildEnvironment) -> dict[str, dict[str, str]]:
    if not hasattr(env, _ATTRIBUTE):
        setattr(env, _ATTRIBUTE, {})
    return getattr(env, _ATTRIBUTE)


def _outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    followed = _states(env)
    if not followed:
        return []
    results = repository_root(env.srcdir) / "results"
    now = {source: _state(results, source) for used in followed.values() for source in used}
    return [
        page
        for page, used in followed.items()
        if page not in removed and any(now[source] != state for source, state in used.items())
    ]


def _purge(app: Sphinx, env: BuildEnvironment, page: str) -> None:
    _states(env).pop(page, None)


def _merge(app: Sphinx, env: BuildEnvironment, pages: list[str], other: BuildEnvironment) -> None:
    theirs = _states(other)
    _states(env).update({page: theirs[page] for page in pages if page in theirs})


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.connect("env-get-outdated", _outdated)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
