"""What the cells of a notebook name: its parameters, apart from whatever else is in a kernel.

papermill writes what it is given into a cell of its own, misspelled names too, and whatever is
in a kernel's namespace says too little: names of IPython's start-up files are there, and a
list may be a result. The kernel's history tells which cells were run.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

_INJECTED = "# Parameters"  # first line of the cell that papermill adds


class Named(NamedTuple):
    """Names that cells assign to.

    Attributes:
        ever: in any cell that was run.
        last: in the cells of nothing but parameters that were run last.
    """

    ever: set[str]
    last: set[str]


def named_in_cells(namespace: Mapping[str, Any]) -> Named | None:
    """Tell what the cells of the running notebook name.

    Args:
        namespace: the notebook's.

    Returns:
        The names; None where no cell of parameters is known: outside of a notebook, or where
        the kernel keeps no history.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or shell.user_ns is not namespace:
        return None
    # Not `In`, which a parameter of that name replaces.
    return read_cells(getattr(shell.history_manager, "input_hist_parsed", []))


def read_cells(cells: list[str]) -> Named | None:
    r"""Tell what cells name, see `named_in_cells`.

    Args:
        cells: the sources of all that were run, in order.

    Example:
        >>> found = read_cells(["a = 1", "import os", "b = 2", "# Parameters\n_c = 3", "d = f()"])
        >>> sorted(found.ever), sorted(found.last)
        (['_c', 'a', 'b', 'd'], ['_c', 'b'])
    """
    trees = [_tree(cell) for cell in cells]
    at = [
        number
        for number, (cell, tree) in enumerate(zip(cells, trees, strict=True))
        if tree.body and (cell.startswith(_INJECTED) or all(map(_sets_a_value, tree.body)))
    ]
    if not at:
        return None
    last = [number for k, number in enumerate(at) if at[-1] - number == len(at) - 1 - k]
    return Named(
        set().union(*map(_names, trees)), set().union(*(_names(trees[number]) for number in last))
    )


def _tree(cell: str) -> ast.Module:
    try:
        return ast.parse(cell)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it did not run, either
        return ast.Module([], [])


def _names(tree: ast.Module) -> set[str]:
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _sets_a_value(statement: ast.stmt) -> bool:
    """Tell whether a statement gives a name a value that is written out."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    try:
        ast.literal_eval(statement.value)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True
