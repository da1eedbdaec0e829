"""What the modules of this project define, and what each definition rests on.

Read from the sources, without running them. A definition is a statement at the top of a
module; `bare.py` writes it out, and here is found what the names in it stand for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hessinit_book.records import bare
from hessinit_book.records.bare import Bare
from hessinit_book.records.syntax import (
    DEFINITIONS,
    IMPORTS,
    Imported,
    bound_by,
    does_nothing,
    imports_of,
    mentions,
)

PACKAGES = ("hessinit_lib", "hessinit_book")

_MUTABLE = (ast.Dict, ast.List, ast.Set)


class Key(NamedTuple):
    """A definition: the statement with that number in a module; all of the module if None."""

    module: str
    statement: int | None


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
    """

    name: str
    statements: list[ast.stmt]
    bound: dict[str, list[int]] = field(default_factory=dict)
    several: set[int] = field(default_factory=set)
    imports: dict[str, Imported] = field(default_factory=dict)
    loose: list[int] = field(default_factory=list)

    @property
    def imported_modules(self) -> set[str]:
        """The modules that run when this one is imported, as far as it says so itself."""
        named = {found.module for found in self.imports.values()}
        inside = {f"{found.module}.{found.name}" for found in self.imports.values() if found.name}
        return named | inside

    def has(self, name: str) -> bool:
        """Tell whether a name is bound or imported at the top of the module."""
        return name in self.bound or name in self.imports


@lru_cache(maxsize=2048)
def _parse(name: str, source: str) -> Module:
    """Sort the statements of a module."""
    module = Module(name, ast.parse(source).body)
    for number, statement in enumerate(module.statements):
        test = statement.test if isinstance(statement, ast.If) else ast.Constant(None)
        if mentions(test, "__name__"):
            continue  # runs as a command only
        if not isinstance(statement, DEFINITIONS):
            for inner in ast.walk(statement):
                if isinstance(inner, IMPORTS):
                    module.imports.update(imports_of(name, inner))
        if isinstance(statement, IMPORTS) or mentions(test, "TYPE_CHECKING"):
            continue
        names = sorted(bound_by([statement]))
        for bound in names:
            module.bound.setdefault(bound, []).append(number)
        if len(names) > 1:
            module.several.add(number)
        if not names and not does_nothing(statement):
            module.loose.append(number)
    return module


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
                exports = module.bound.get("__all__", [])
                keys = [Key(key.module, n) for n in numbers if n not in exports]
                keys += [k for name in module.imports for k in self._exported(module, name)]
                self._bare[key] = Bare((None,) * len(keys), tuple(keys))
            else:
                self._bare[key] = bare.write(self, module, module.statements[key.statement])
        return self._bare[key]

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
        return found or [name]

    def follow(self, imported: Imported) -> list[Key | str]:
        """Find what an imported name stands for, see `look_up`."""
        target, name = imported
        module = self.module(target)
        if module is None and not self.is_leaf(target) and target.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"no module {target} in {self.root}", name=target)
        if name is None:
            return [Key(target, None) if module else "a leaf" if self.is_leaf(target) else target]
        inside = f"{target}.{name}"
        if module is None:
            return [name if self.is_leaf(target) else inside]
        if module.has(name) and module.imports.get(name) != imported:
            return self.look_up(module, name)
        if self.is_leaf(inside) or self._path(inside):
            return self.follow(Imported(inside, None))
        return [Key(target, None)]  # a name that the module makes up as it is asked for

    def module_behind(self, imported: Imported) -> str | None:
        """Give the module of this project that an imported name stands for, if it is one."""
        if imported.name is None:
            dotted = imported.module
        else:
            module = self.module(imported.module)
            if module is not None and imported.name in module.bound:
                return None
            dotted = f"{imported.module}.{imported.name}"
        return dotted if self._is_ours(dotted) else None

    def is_submodule(self, package: str, name: str) -> bool:
        """Tell whether a name in a package stands for a module, not for a definition."""
        module = self.module(package)
        return not (module and module.has(name)) and self._is_ours(f"{package}.{name}")

    def binds_several(self, key: Key) -> bool:
        """Tell whether a definition binds more than one name."""
        module = self.module(key.module)
        return module is not None and key.statement in module.several

    def _is_ours(self, name: str) -> bool:
        return self.module(name) is not None or self.is_leaf(name)

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
        if not isinstance(statement, DEFINITIONS):
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
