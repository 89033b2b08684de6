"""Which names a module has, by its syntax tree: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import NamedTuple

_MAKERS_OF_NAMES = ("globals", "exec")
"""With a call of one of these, a module can give itself names that its syntax does not show."""


class ModuleNames(NamedTuple):
    """The names at the top level of one module."""

    names: frozenset[str]
    """Bound when it is imported, on whatever path through its conditions; those of its literal ``__all__`` too."""
    typed: frozenset[str]
    """Bound for type checkers only."""
    stars: tuple[str, ...]
    """Absolute names of the modules of which it imports everything."""
    exported: frozenset[str] | None
    """What ``import *`` gives of it; ``None`` where that is not written out."""
    why_open: str = ""
    """Why it may have any other name, as the rest of a sentence; empty where it cannot."""


def names_in(tree: ast.Module, package: str) -> ModuleNames:
    """The names of a module.

    Args:
        tree: its syntax tree.
        package: what its relative imports start from: a package's own name, of another module its parent's.
    """
    found = _Bindings(package)
    found.visit(tree)
    listed = found.listed
    public = frozenset(name for name in found.names if not name.startswith("_"))
    exported = listed if "__all__" in found.names else public
    return ModuleNames(
        frozenset(found.names | (listed or set())),
        frozenset(found.typed - found.names),
        tuple(found.stars),
        exported,
        _why_open(tree, found.names),
    )


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is ``TYPE_CHECKING``, however that was imported."""
    return (test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")) == "TYPE_CHECKING"


def branches(node: ast.If) -> tuple[list[ast.stmt], list[ast.stmt]] | None:
    """Of an ``if TYPE_CHECKING``, or its negation, what type checkers read and what is run; ``None`` of another."""
    test = node.test
    if is_type_checking(test):
        return node.body, node.orelse
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and is_type_checking(test.operand):
        return node.orelse, node.body
    return None


def absolute(node: ast.ImportFrom, package: str) -> str | None:
    """The module that ``from … import`` is about; ``None`` where it leads above the top-level package."""
    if not node.level:
        return node.module
    parts = package.split(".") if package else []
    if node.level > len(parts):
        return None
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


class _Bindings(ast.NodeVisitor):
    """Collects what is bound at the top level; what a function declares ``global`` is bound there as well."""

    def __init__(self, package: str) -> None:
        self.names: set[str] = set()
        self.typed: set[str] = set()
        self.stars: list[str] = []
        self.listed: frozenset[str] | None = None
        """The names of ``__all__``, as far as it is written out."""
        self._package = package
        self._is_typed = False
        self._is_listed_whole = True

    def visit_If(self, node: ast.If) -> None:
        if (parts := branches(node)) is None:
            self.generic_visit(node)
            return
        self._is_typed, before = True, self._is_typed
        self._visit_each(parts[0])
        self._is_typed = before
        self._visit_each(parts[1])

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self._bind(node.name)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Global):
                self.names.update(inner.names)

    visit_AsyncFunctionDef = visit_ClassDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """It binds nothing outside."""

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._visit_each([node.iter, *node.ifs])

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bind(node.id)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._bind(alias.asname or alias.name.partition(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name != "*":
                self._bind(alias.asname or alias.name)
            elif (module := absolute(node, self._package)) is not None:
                self.stars.append(module)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self._bind(node.name)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self._bind(node.rest)
        self.generic_visit(node)

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            self.visit(statement)
            if isinstance(statement, ast.Delete):
                self.names -= {target.id for target in statement.targets if isinstance(target, ast.Name)}

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(_is_all(target) for target in node.targets):
            self._list(node.value, is_new=True)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if _is_all(node.target) and node.value is not None:
            self._list(node.value, is_new=True)
        if node.value is not None:
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if _is_all(node.target):
            self._list(node.value)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and _is_all(called.value):
            self._list(ast.List(node.args) if called.attr == "append" else node.args[0] if node.args else None)
        self.generic_visit(node)

    def _visit_each(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    def _bind(self, name: str) -> None:
        (self.typed if self._is_typed else self.names).add(name)

    def _list(self, value: ast.expr | None, *, is_new: bool = False) -> None:
        """Take note of what ``__all__`` is given; what is not written out makes all of it unknown."""
        texts = _texts_in(value)
        self._is_listed_whole &= texts is not None
        before = frozenset() if is_new or self.listed is None else self.listed
        self.listed = before | frozenset(texts or ()) if self._is_listed_whole else None


def _is_all(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "__all__"


def _texts_in(node: ast.expr | None) -> list[str] | None:
    """The texts of a list that is written out; ``None`` where any of it is not."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _texts_in(node.left), _texts_in(node.right)
        return None if left is None or right is None else left + right
    if not isinstance(node, ast.List | ast.Tuple | ast.Set):
        return None
    texts = [element.value for element in node.elts if isinstance(element, ast.Constant)]
    return [str(text) for text in texts] if len(texts) == len(node.elts) else None


def _why_open(tree: ast.Module, names: set[str]) -> str:
    if "__getattr__" in names:
        return "it has a __getattr__"
    if "__path__" in names:
        return "it changes its __path__"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _MAKERS_OF_NAMES:
            return f"it calls {node.func.id}()"
        if isinstance(node, ast.Attribute) and node.attr == "modules" and getattr(node.value, "id", "") == "sys":
            return "it uses sys.modules"
    return ""
