"""What Python statements bind, import and say, read off their syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
IMPORTS = (ast.Import, ast.ImportFrom)


class Imported(NamedTuple):
    """What an imported name stands for: a module, or what is called `name` in it."""

    module: str
    name: str | None


def imports_of(importer: str, statement: ast.Import | ast.ImportFrom) -> dict[str, Imported]:
    """Tell what the names that a statement imports stand for.

    Args:
        importer: dotted name of the module that it stands in, for relative imports.
        statement: the statement.
    """
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: Imported(
                alias.name if alias.asname else alias.name.partition(".")[0], None
            )
            for alias in statement.names
        }
    base = statement.module or ""
    if statement.level:
        package = importer.split(".")
        base = ".".join([*package[: len(package) - statement.level], *([base] if base else [])])
    return {alias.asname or alias.name: Imported(base, alias.name) for alias in statement.names}


def bound_by(body: Iterable[ast.AST]) -> set[str]:
    """Name what some statements bind in the scope that they stand in, imports aside."""
    found: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, DEFINITIONS):
            found.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, COMPREHENSIONS):  # their variables are their own, `:=` is not
            inside = [inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
            found.update(inner.target.id for inner in inside)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            found.add(node.id)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
        waiting += ast.iter_child_nodes(node)
    return found


def within(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Walk through statements, but not into functions and classes defined there."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*DEFINITIONS, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def mentions(test: ast.expr, name: str) -> bool:
    """Tell whether a name, of a variable or of an attribute, occurs in an expression."""
    return any(name in (getattr(n, "id", None), getattr(n, "attr", None)) for n in ast.walk(test))


def does_nothing(statement: ast.stmt) -> bool:
    """Tell whether a statement is nothing but a constant (a docstring), or `pass`."""
    value = getattr(statement, "value", None)
    text = isinstance(statement, ast.Expr) and isinstance(value, ast.Constant)
    return text or isinstance(statement, ast.Pass)


def is_parameters(statement: ast.stmt) -> bool:
    """Tell whether a class holds the parameters of an experiment: it names that."""
    return isinstance(statement, ast.ClassDef) and any(
        isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "EXPERIMENT"
        for node in statement.body
    )
