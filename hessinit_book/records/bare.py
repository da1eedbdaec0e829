"""Write out a definition bare: its code, with references for the names of other definitions.

Without docstrings, annotations, comments and positions. Neither its own name nor the file that
it stands in are part of what is written out.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hessinit_book.records.syntax import (
    COMPREHENSIONS,
    DEFINITIONS,
    FUNCTIONS,
    IMPORTS,
    Imported,
    bound_by,
    does_nothing,
    imports_of,
    is_parameters,
    within,
)

if TYPE_CHECKING:
    from hessinit_book.records.definitions import Key, Module, Sources

# What Python's trees hold besides the code, and what readers and type checkers need.
_PASSED_OVER = {"ctx", "kind", "type_comment", "type_ignores", "annotation", "returns"}

Scope = dict[str, Imported | None]
"""Names that are bound inside of a definition, with what those stand for that are imported."""


@dataclass(frozen=True)
class Bare:
    """A definition written out.

    Attributes:
        words: its code; `None` stands for the next of the references.
        references: what these are, in order.
    """

    words: tuple[str | None, ...]
    references: tuple[Key, ...]


def write(sources: Sources, module: Module, statement: ast.stmt) -> Bare:
    """Write out a statement at the top of a module."""
    writer = _Writer(sources, module)
    if isinstance(statement, DEFINITIONS):
        writer.definition(statement, {}, {}, name="")
    elif isinstance(statement, ast.Assign | ast.AnnAssign) and len(bound_by([statement])) == 1:
        writer.node(statement.value, {})  # the name that it binds is not part of it
    else:
        writer.node(statement, {})
    return Bare(tuple(writer.words), tuple(writer.references))


class _Writer:
    def __init__(self, sources: Sources, module: Module) -> None:
        self._sources, self._module = sources, module
        self.words: list[str | None] = []
        self.references: list[Key] = []

    def node(self, node: object, scope: Scope) -> None:
        """Write out any part of a tree."""
        if isinstance(node, list):
            self.words.append("[")
            for item in node:
                self.node(item, scope)
            self.words.append("]")
        elif isinstance(node, ast.Name):
            self._name(node.id, scope)
        elif isinstance(node, ast.Attribute) and self._of_a_module(node, scope):
            pass
        elif isinstance(node, ast.Constant):
            self.words.append(f"{type(node.value).__name__} {node.value!r}")
        elif isinstance(node, ast.stmt) and _says_nothing(node):
            pass
        elif isinstance(node, ast.AnnAssign):
            self.words.append("Assign")
            self.node([node.target], scope)
            self.node(node.value, scope)
        elif isinstance(node, DEFINITIONS):
            self.definition(node, scope, scope, name=node.name)
        elif isinstance(node, ast.Lambda):
            self.words.append("Lambda")
            self._arguments(node.args, scope)
            self.node(node.body, {**scope, **_parameters(node.args)})
        elif isinstance(node, COMPREHENSIONS):
            self._comprehension(node, scope)
        elif isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty texts
            self.words.append("JoinedStr")
            empty = [isinstance(v, ast.Constant) and v.value == "" for v in node.values]
            self.node([v for v, no in zip(node.values, empty, strict=True) if not no], scope)
        elif isinstance(node, ast.AST):
            self.words.append(type(node).__name__)
            for name, value in ast.iter_fields(node):
                if name not in _PASSED_OVER and value is not None and value != []:
                    self.words.append(name)
                    self.node(value, scope)
        else:
            self.words.append(repr(node))

    def definition(
        self,
        node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef,
        scope: Scope,
        around: Scope,
        name: str,
    ) -> None:
        """Write out a function or class.

        Args:
            node: the definition.
            scope: what its body sees from outside.
            around: what its decorators and defaults see.
            name: its own, where it is part of the code.
        """
        self.words += [type(node).__name__, name]
        self.node(node.decorator_list, around)
        if isinstance(node, ast.ClassDef):
            self.node([*node.bases, *node.keywords], around)
            self._class_body(node, scope)
        else:
            self._arguments(node.args, around)
            inside = {**scope, **_parameters(node.args), **self._locals(node.body)}
            self.node(node.body, inside)

    def _class_body(self, node: ast.ClassDef, scope: Scope) -> None:
        inside: Scope = {**scope, **dict.fromkeys(bound_by(node.body))}
        self.words.append("[")
        for statement in node.body:
            if is_parameters(node) and not isinstance(statement, FUNCTIONS):
                continue  # the values are in the record
            if isinstance(statement, DEFINITIONS):
                # Functions do not see the names of the class that they stand in.
                self.definition(statement, scope, inside, statement.name)
            elif isinstance(statement, ast.AnnAssign) and statement.value is None:
                self.words.append(f"field {ast.unparse(statement.target)}")
            else:
                self.node(statement, inside)
        self.words.append("]")

    def _locals(self, body: list[ast.stmt]) -> Scope:
        found: Scope = dict.fromkeys(bound_by(body))
        for node in within(body):
            if isinstance(node, IMPORTS):
                found.update(imports_of(self._module.name, node))
        for node in within(body):
            if isinstance(node, ast.Global):
                found = {name: what for name, what in found.items() if name not in node.names}
        return found

    def _arguments(self, arguments: ast.arguments, scope: Scope) -> None:
        self.words += ["(", str(len(arguments.posonlyargs))]
        self.words += [*_parameters(arguments), str(len(arguments.kwonlyargs))]
        self.words += [kind for kind in ("vararg", "kwarg") if getattr(arguments, kind)]
        self.node([default or "no default" for default in arguments.kw_defaults], scope)
        self.node(arguments.defaults, scope)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, scope: Scope
    ) -> None:
        targets = [generator.target for generator in node.generators]
        inside: Scope = {**scope, **dict.fromkeys(bound_by(targets))}
        self.words.append(type(node).__name__)
        for number, generator in enumerate(node.generators):
            self.node(generator.target, inside)
            self.node(generator.iter, inside if number else scope)  # the first is outside
            self.node(generator.ifs, inside)
            self.words.append(str(generator.is_async))
        if isinstance(node, ast.DictComp):
            self.node([node.key, node.value], inside)
        else:
            self.node(node.elt, inside)

    def _name(self, name: str, scope: Scope) -> None:
        if name not in scope:
            self._refer(self._sources.look_up(self._module, name), name)
        elif (imported := scope[name]) is None:
            self.words.append(f"local {name}")
        else:
            self._refer(self._sources.follow(imported), name)

    def _of_a_module(self, node: ast.Attribute, scope: Scope) -> bool:
        """Write out `module.name` as what it stands for; tell whether it was that."""
        path: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            path.insert(0, base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            return False
        if base.id in scope:
            imported = scope[base.id]
        else:
            imported = None if base.id in self._module.bound else self._module.imports.get(base.id)
        dotted = imported and self._sources.module_behind(imported)
        if dotted is None:
            return False
        while path and self._sources.is_submodule(dotted, path[0]):
            dotted = f"{dotted}.{path.pop(0)}"
        self.words.extend(f"attribute {name}" for name in reversed(path[1:]))
        wanted = Imported(dotted, path[0] if path else None)
        self._refer(self._sources.follow(wanted), wanted.name or "")
        return True

    def _refer(self, found: list[Key | str], name: str) -> None:
        for key in found:
            if isinstance(key, str):
                self.words.append(f"outside {key}")
                continue
            self.words.append(None)
            self.references.append(key)
            if self._sources.binds_several(key):  # which of the names that it binds
                self.words.append(f"called {name}")


def _says_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.AnnAssign) and node.value is None:
        return True
    return does_nothing(node) or isinstance(node, (*IMPORTS, ast.Global))


def _parameters(arguments: ast.arguments) -> Scope:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [one for one in (arguments.vararg, arguments.kwarg) if one]
    return dict.fromkeys(one.arg for one in named)
