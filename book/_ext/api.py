"""The library's reference, written from the docstrings of its public names.

On a page, the comment `<!-- api -->` is replaced by a section for each package of
`hessinit_lib` that says in `__all__` what is public, with an entry for each name. A package
that does not say so (`adapters`, whose modules need different libraries) has a section for
each of its modules. A package or name that is added is in the book with the next build.

Docstrings are in Google's style, with formulas and code marked as in Markdown. Sphinx wants
reStructuredText, so these marks are translated.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx

import hessinit_lib

MARK = "<!-- api -->"

_BLOCK_MATH = re.compile(r"^(?P<indent> *)\$\$(?P<formula>.+?)\$\$", re.MULTILINE | re.DOTALL)
_MATH = re.compile(r"(?<![\\$`\w])\$(?P<formula>[^$]+?)\$(?!\$)")
_CODE = re.compile(r"(?<![`:])`(?P<code>[^`]+)`(?!`)")
_LIST = re.compile(r"^(?P<before>(?P<indent> *)(?!- )\S.*\n)(?=(?P=indent)- )", re.MULTILINE)


def sections() -> str:
    """Write the sections of all public packages, in MyST."""
    parts = []
    for module in _public_modules():
        summary = (inspect.getdoc(module) or module.__name__).splitlines()[0]
        parts.append(f"## `{module.__name__}`\n\n{summary}\n")
        parts += [_entry(module, name) for name in _public_names(module)]
    return "\n".join(parts)


def translate(text: str) -> str:
    r"""Turn a docstring's Markdown marks into those of reStructuredText.

    Example:
        >>> translate("The norm $\\|H\\|$ of `model`.")
        'The norm :math:`\\|H\\|` of ``model``.'
    """
    text = _CODE.sub(r"``\g<code>``", text)
    text = _BLOCK_MATH.sub(_block, text)
    text = _MATH.sub(lambda m: f":math:`{' '.join(m['formula'].split())}`", text)
    # Markdown lets a list follow a line of text; here it needs a blank line.
    return _LIST.sub(r"\g<before>\n", text)


def _block(match: re.Match[str]) -> str:
    indent = match["indent"]
    lines = [line.strip() for line in match["formula"].strip().splitlines()]
    body = "\n".join(f"{indent}   {line}" for line in lines)
    return f"\n{indent}.. math::\n\n{body}\n"


def _public_modules() -> Iterator[ModuleType]:
    """Give the packages that state their public names, and the modules of those that do not."""
    found_modules = pkgutil.iter_modules(hessinit_lib.__path__, "hessinit_lib.")
    for found in sorted(found_modules, key=lambda found: found.name != "hessinit_lib.hessians"):
        if found.ispkg:
            package = importlib.import_module(found.name)
            if getattr(package, "__all__", None):
                yield package
            else:
                for inner in pkgutil.iter_modules(package.__path__, f"{found.name}."):
                    yield importlib.import_module(inner.name)


def _public_names(module: ModuleType) -> list[str]:
    """List what a module says is public, or else the functions and classes that it defines."""
    defined = [
        name
        for name, thing in vars(module).items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module.__name__
        and not name.startswith("_")
    ]
    return getattr(module, "__all__", defined)


def _entry(module: ModuleType, name: str) -> str:
    thing = getattr(module, name)
    # Under the shortest name that it can be imported by.
    package = "hessinit_lib" if name in hessinit_lib.__all__ else module.__name__
    if isinstance(thing, Mapping):  # a registry: what can be asked for by name
        return f"`{package}.{name}`\n: The names {', '.join(f'`{key}`' for key in thing)}.\n"
    kind = "class" if inspect.isclass(thing) else "function"
    lines = [f".. auto{kind}:: {package}.{name}"]
    if kind == "class":
        lines.append("   :members:")
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def _insert(app: Sphinx, page: str, source: list[str]) -> None:
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, sections())


def _docstring(
    app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    lines[:] = translate("\n".join(lines)).splitlines()


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx, before napoleon, which reads the sections."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("source-read", _insert)
    app.connect("autodoc-process-docstring", _docstring, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
