"""What the modules of this project define, and what each definition rests on.

Read from the sources, without running them: a definition is a statement at the top of a
module, written out bare (without docstrings, annotations, comments and positions), with a
reference in the place of each name that stands for another definition of this project. So
neither its own name nor the file that it stands in are part of what is written out.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("hessinit_lib", "hessinit_book")

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MUTABLE = (ast.Dict, ast.List, ast.Set)

# What Python's trees hold besides the code, and what readers and type checkers need.
_PASSED_OVER = {"ctx", "kind", "type_comment", "type_ignores", "annotation", "returns"}


class Key(NamedTuple):
    """A definition: the statement with that number in a module; all of the module if None."""

    module: str
    statement: int | None


class Imported(NamedTuple):
    """What an imported name stands for: a module, or what is called `name` in it."""

    module: str
    name: str | None


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


@dataclass
class Module:
    """The statements of a module, by what they are for.

    Attributes:
        name: dotted name.
        statements: all at its top, in order.
        bound: numbers of the statements that bind a name.
        several: numbers of the statements that bind more than one.
        imports: what imported names stand for; those imported for type checkers alone, too.
        loose: numbers of the statements that act when the module is imported, by what they
            do to something else (a call, an entry in a table) and not by a name they bind.
        star: modules that all names are imported from.
    """

    name: str
    statements: list[ast.stmt]
    bound: dict[str, list[int]] = field(default_factory=dict)
    several: set[int] = field(default_factory=set)
    imports: dict[str, Imported] = field(default_factory=dict)
    loose: list[int] = field(default_factory=list)
    star: list[str] = field(default_factory=list)

    @property
    def imported_modules(self) -> set[str]:
        """The modules that run when this one is imported, as far as it says so itself."""
        named = {found.module for found in self.imports.values()} | set(self.star)
        inside = {f"{found.module}.{found.name}" for found in self.imports.values() if found.name}
        return named | inside


@lru_cache(maxsize=2048)
def _parse(name: str, source: str) -> Module:
    """Sort the statements of a module."""
    module = Module(name, ast.parse(source).body)
    for number, statement in enumerate(module.statements):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            _note_imports(module, statement)
            continue
        if isinstance(statement, ast.If) and _mentions(statement.test, "TYPE_CHECKING"):
            for inner in statement.body:
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    _note_imports(module, inner)
            continue
        if isinstance(statement, ast.If) and _mentions(statement.test, "__name__"):
            continue  # runs as a command only
        names = sorted(_bound_by([statement]))
        for inner in ast.walk(statement):
            if isinstance(inner, ast.Import | ast.ImportFrom) and not _is_definition(statement):
                _note_imports(module, inner)
        for bound in names:
            module.bound.setdefault(bound, []).append(number)
        if len(names) > 1:
            module.several.add(number)
        if not names and not _is_text(statement):
            module.loose.append(number)
    return module


def is_parameters(statement: ast.stmt) -> bool:
    """Tell whether a class holds the parameters of an experiment: it names that."""
    return isinstance(statement, ast.ClassDef) and any(
        isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "EXPERIMENT"
        for node in statement.body
    )


def _mentions(test: ast.expr, name: str) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.Attribute) and node.attr == name)
        for node in ast.walk(test)
    )


def _is_text(statement: ast.stmt) -> bool:
    """Tell whether a statement is nothing but a string (a docstring) or says to do nothing."""
    if isinstance(statement, ast.Pass):
        return True
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Constant)


def _is_empty(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value == ""


def _is_definition(statement: ast.stmt) -> bool:
    return isinstance(statement, (*_FUNCTIONS, ast.ClassDef))


def _note_imports(module: Module, statement: ast.Import | ast.ImportFrom) -> None:
    for name, found in _imports_of(module.name, statement).items():
        if name == "*":
            module.star.append(found.module)
        else:
            module.imports[name] = found


def _imports_of(importer: str, statement: ast.Import | ast.ImportFrom) -> dict[str, Imported]:
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


def _bound_by(body: Iterable[ast.AST]) -> set[str]:
    """Name what some statements bind in the scope that they stand in."""
    found: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            found.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, _COMPREHENSIONS):  # their variables are their own, `:=` is not
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


class Sources:
    """The modules of this project in a folder.

    Args:
        root: the folder that the packages stand in.
        leaves: modules, and packages whose modules, are not looked into: what is taken from
            them counts by its name alone.
    """

    def __init__(self, root: Path, leaves: tuple[str, ...] = ()) -> None:
        self.root, self._leaves = root, leaves
        self._modules: dict[str, Module | None] = {}
        self._bare: dict[Key, Bare] = {}

    def module(self, name: str) -> Module | None:
        """Read a module of this project; None if it is none, or a leaf."""
        if name not in self._modules:
            path = None if self.is_leaf(name) else self._path(name)
            source = path.read_text(encoding="utf-8") if path else None
            self._modules[name] = None if source is None else _parse(name, source)
        return self._modules[name]

    def is_leaf(self, name: str) -> bool:
        """Tell whether a module is not looked into."""
        return any(name == leaf or name.startswith(f"{leaf}.") for leaf in self._leaves)

    def _path(self, name: str) -> Path | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        base = self.root.joinpath(*name.split("."))
        places = (base / "__init__.py", base.with_suffix(".py"))
        return next((path for path in places if path.is_file()), None)

    def bare(self, key: Key) -> Bare:
        """Write out a definition, or references to all that a module defines."""
        if key not in self._bare:
            module = self.module(key.module)
            assert module is not None
            if key.statement is None:
                numbers = sorted({n for found in module.bound.values() for n in found})
                keys = [Key(key.module, n) for n in numbers if not self._is_export_list(module, n)]
                keys += [k for name in module.imports for k in self._exported(module, name)]
                self._bare[key] = Bare((None,) * len(keys), tuple(keys))
            else:
                self._bare[key] = _Writer(self, module).write(module.statements[key.statement])
        return self._bare[key]

    def _is_export_list(self, module: Module, number: int) -> bool:
        return number in module.bound.get("__all__", [])

    def _exported(self, module: Module, name: str) -> list[Key]:
        """Follow an imported name of a package's front, which is there for others to import."""
        path = self._path(module.name)
        front = path is not None and path.name == "__init__.py"
        found = self.look_up(module, name) if front else []
        return [key for key in found if isinstance(key, Key)]

    def look_up(self, module: Module, name: str) -> list[Key | str]:
        """Find what a name at the top of a module stands for.

        Returns:
            Keys of definitions; a text for what is not of this project: the dotted name of a
            library's module or function, or a built-in name. A module of this project as such
            is all of its definitions.
        """
        found: list[Key | str] = [Key(module.name, number) for number in module.bound.get(name, [])]
        if name in module.imports:
            found += self.follow(module.imports[name])
        elif not found:
            whole = [star for star in module.star if self.module(star)]
            if not hasattr(builtins, name) and whole:
                return [Key(star, None) for star in whole]
            return [name]
        return found

    def follow(self, imported: Imported) -> list[Key | str]:
        """Find what an imported name stands for, see `look_up`."""
        target, name = imported
        module = self.module(target)
        if module is None and not self.is_leaf(target) and target.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"no module {target} in {self.root}", name=target)
        if name is None:
            return [Key(target, None) if module else self._outside(target)]
        inside = f"{target}.{name}"
        if module is None:
            return [name if self.is_leaf(target) else inside]
        known = name in module.bound or name in module.imports
        if known and module.imports.get(name) != imported:
            return self.look_up(module, name)
        if self.is_leaf(inside) or self._path(inside):
            return self.follow(Imported(inside, None))
        return [Key(target, None)]  # a name that the module makes up as it is asked for

    def _outside(self, target: str) -> str:
        return "a leaf" if self.is_leaf(target) else target

    def imports_of(self, names: Iterable[str]) -> Iterator[Module]:
        """Give modules and all that are imported with them, each once."""
        waiting, seen = list(names), set[str]()
        while waiting:
            name = waiting.pop()
            module = None if name in seen else self.module(name)
            seen.add(name)
            if module is not None:
                yield module
                waiting += module.imported_modules
                waiting += [name.rpartition(".")[0]] if "." in name else []

    def registers(self, module: Module, statement: ast.stmt) -> bool:
        """Tell whether a decorator enters what it decorates in a table of this project."""
        if not isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
            return False
        for decorator in statement.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if not isinstance(called, ast.Name):
                continue
            for key in self.look_up(module, called.id):
                if isinstance(key, Key) and key.statement is not None and self._fills(key):
                    return True
        return False

    def _fills(self, key: Key) -> bool:
        """Tell whether a definition uses a table (dict, list, set) at the top of its module."""
        module = self.module(key.module)
        assert module is not None
        tables = {
            name
            for name, numbers in module.bound.items()
            for number in numbers
            if isinstance(getattr(module.statements[number], "value", None), _MUTABLE)
        }
        assert key.statement is not None
        nodes = ast.walk(module.statements[key.statement])
        return any(isinstance(node, ast.Name) and node.id in tables for node in nodes)


class _Writer:
    """Writes out one definition."""

    def __init__(self, sources: Sources, module: Module) -> None:
        self._sources, self._module = sources, module
        self._words: list[str | None] = []
        self._references: list[Key] = []

    def write(self, statement: ast.stmt) -> Bare:
        names = _bound_by([statement])
        if isinstance(statement, ast.Assign | ast.AnnAssign) and len(names) == 1:
            self._node(statement.value, {})  # the name that it binds is not part of it
        elif isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
            self._definition(statement, {}, {}, name="")
        else:
            self._node(statement, {})
        return Bare(tuple(self._words), tuple(self._references))

    def _name(self, name: str, scope: Scope) -> None:
        if name not in scope:
            self._refer(self._sources.look_up(self._module, name), name)
            return
        imported = scope[name]
        if imported is None:
            self._words.append(f"local {name}")
        else:
            self._refer(self._sources.follow(imported), name)

    def _refer(self, found: list[Key | str], name: str) -> None:
        for key in found:
            if isinstance(key, str):
                self._words.append(f"outside {key}")
                continue
            self._words.append(None)
            self._references.append(key)
            if key.statement is not None:
                module = self._sources.module(key.module)
                assert module is not None
                if key.statement in module.several:  # which of the names that it binds
                    self._words.append(f"called {name}")

    def _attribute(self, node: ast.Attribute, scope: Scope) -> bool:
        """Write out `module.name` as what it stands for; tell whether it was that."""
        path = [node.attr]
        base = node.value
        while isinstance(base, ast.Attribute):
            path.append(base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            return False
        if base.id in scope:
            imported = scope[base.id]
        else:
            imported = None if base.id in self._module.bound else self._module.imports.get(base.id)
        if imported is None:
            return False
        dotted = self._module_behind(imported)
        if dotted is None:
            return False
        path.reverse()
        while path:
            inside = f"{dotted}.{path[0]}"
            module = self._sources.module(dotted)
            known = module is not None and (path[0] in module.bound or path[0] in module.imports)
            if known or not (self._sources.module(inside) or self._sources.is_leaf(inside)):
                break
            dotted = inside
            path.pop(0)
        rest = path[1:]
        self._words.extend(f"attribute {name}" for name in reversed(rest))
        wanted = Imported(dotted, path[0] if path else None)
        self._refer(self._sources.follow(wanted), path[0] if path else "")
        return True

    def _module_behind(self, imported: Imported) -> str | None:
        """Give the module of this project that an import stands for, if it is one."""
        dotted = imported.module if imported.name is None else ".".join(imported)
        module = self._sources.module(imported.module)
        if imported.name is not None and module is not None and imported.name in module.bound:
            return None
        known = self._sources.module(dotted) or self._sources.is_leaf(dotted)
        return dotted if known else None

    def _node(self, node: object, scope: Scope) -> None:
        if isinstance(node, list):
            self._words.append("[")
            for item in node:
                self._node(item, scope)
            self._words.append("]")
        elif isinstance(node, ast.Name):
            self._name(node.id, scope)
        elif isinstance(node, ast.Attribute) and self._attribute(node, scope):
            pass
        elif isinstance(node, ast.Constant):
            self._words.append(f"{type(node.value).__name__} {node.value!r}")
        elif isinstance(node, ast.stmt) and self._says_nothing(node):
            pass
        elif isinstance(node, ast.AnnAssign):
            self._words.append("Assign")
            self._node([node.target], scope)
            self._node(node.value, scope)
        elif isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            self._definition(node, scope, scope, name=node.name)
        elif isinstance(node, ast.Lambda):
            self._words.append("Lambda")
            self._arguments(node.args, scope)
            self._node(node.body, {**scope, **self._parameters(node.args)})
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node, scope)
        elif isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty texts
            self._words.append("JoinedStr")
            self._node([value for value in node.values if not _is_empty(value)], scope)
        elif isinstance(node, ast.AST):
            self._words.append(type(node).__name__)
            for name, value in ast.iter_fields(node):
                if name not in _PASSED_OVER and value is not None and value != []:
                    self._words.append(name)
                    self._node(value, scope)
        else:
            self._words.append(repr(node))

    @staticmethod
    def _says_nothing(node: ast.stmt) -> bool:
        if isinstance(node, ast.AnnAssign) and node.value is None:
            return True
        return _is_text(node) or isinstance(node, ast.Import | ast.ImportFrom | ast.Global)

    def _definition(self, node: ast.stmt, scope: Scope, around: Scope, name: str) -> None:
        """Write out a function or class; its decorators and defaults belong to what is around."""
        assert isinstance(node, (*_FUNCTIONS, ast.ClassDef))
        self._words += [type(node).__name__, name]
        self._node(node.decorator_list, around)
        if isinstance(node, ast.ClassDef):
            self._node([*node.bases, *node.keywords], around)
            inside: Scope = {**scope, **dict.fromkeys(_bound_by(node.body))}
            self._words.append("[")
            for statement in node.body:
                if is_parameters(node) and not isinstance(statement, _FUNCTIONS):
                    continue  # the values are in the record
                if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                    # Functions do not see the names of the class that they stand in.
                    self._definition(statement, scope, inside, statement.name)
                elif isinstance(statement, ast.AnnAssign) and statement.value is None:
                    self._words.append(f"field {ast.unparse(statement.target)}")
                else:
                    self._node(statement, inside)
            self._words.append("]")
            return
        self._arguments(node.args, around)
        inside = {**scope, **self._parameters(node.args), **self._locals(node.body)}
        for declared in self._of_the_module(node.body):
            inside.pop(declared, None)
        self._node(node.body, inside)

    def _arguments(self, arguments: ast.arguments, scope: Scope) -> None:
        self._words += ["(", str(len(arguments.posonlyargs))]
        self._words += [*self._parameters(arguments), str(len(arguments.kwonlyargs))]
        self._words += [kind for kind in ("vararg", "kwarg") if getattr(arguments, kind)]
        self._node([default or "no default" for default in arguments.kw_defaults], scope)
        self._node(arguments.defaults, scope)

    @staticmethod
    def _parameters(arguments: ast.arguments) -> Scope:
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [one for one in (arguments.vararg, arguments.kwarg) if one]
        return dict.fromkeys(one.arg for one in named)

    def _locals(self, body: list[ast.stmt]) -> Scope:
        found: Scope = dict.fromkeys(_bound_by(body))
        for node in _within(body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.update(_imports_of(self._module.name, node))
        return found

    @staticmethod
    def _of_the_module(body: list[ast.stmt]) -> list[str]:
        return [n for node in _within(body) if isinstance(node, ast.Global) for n in node.names]

    def _comprehension(self, node: ast.AST, scope: Scope) -> None:
        assert isinstance(node, _COMPREHENSIONS)
        targets = [generator.target for generator in node.generators]
        inside: Scope = {**scope, **dict.fromkeys(_bound_by(targets))}
        self._words.append(type(node).__name__)
        first = node.generators[0].iter  # is evaluated outside
        for generator in node.generators:
            self._node(generator.target, inside)
            self._node(generator.iter, scope if generator.iter is first else inside)
            self._node(generator.ifs, inside)
            self._words.append(str(generator.is_async))
        if isinstance(node, ast.DictComp):
            self._node([node.key, node.value], inside)
        else:
            self._node(node.elt, inside)


def _within(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Walk through statements, but not into functions and classes defined there."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
