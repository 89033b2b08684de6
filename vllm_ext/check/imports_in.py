"""What a module imports, where, and under which guards; and the class paths in its texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vllm_ext.check.module_names import absolute, branches

_CLASS_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+(:[^\W\d]\w*)?")
_CATCHES_ALL = {"ImportError", "Exception", "BaseException"}
_CATCHES_MODULES = {"ModuleNotFoundError"}


class Guard(NamedTuple):
    """What lets a module be imported although one of its imports fails, or keeps that from being run."""

    text: str
    """Where the import stands, to be shown."""
    is_for_modules_only: bool = False
    """Whether it helps against a module that is missing, and not against a name."""
    instead_of: int = 0
    """Of an ``except`` that is run where an import of its ``try`` fails: number of that ``try``, from 1."""
    is_typed: bool = False
    """Whether only type checkers read it."""


class Import(NamedTuple):
    """One name that is imported, or one module."""

    line: int
    module: str
    name: str
    """Empty where the module itself is imported, ``*`` for all of its names."""
    guards: tuple[Guard, ...]
    tries: tuple[int, ...]
    """Numbers of the ``try`` statements in whose body it stands."""

    def guard_against(self, *, is_module: bool) -> Guard | None:
        """The guard that helps where a module, or a name of one, is not there."""
        return next((guard for guard in self.guards if is_module or not guard.is_for_modules_only), None)


def imports_in(tree: ast.Module, package: str, called: str = "") -> list[Import]:
    """What a module imports, in its order.

    Args:
        package: what relative imports start from.
        called: name of a function of it that is certain to be called, so that what it imports is imported.
    """
    visitor = _Imports(package, called)
    visitor.visit(tree)
    return visitor.found


def class_paths_in(tree: ast.Module) -> Iterator[str]:
    """Texts that may be the path of a class or a module, as plugins hand them over; with dots only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _CLASS_PATH.fullmatch(node.value):
            yield node.value.replace(":", ".")


class _Imports(ast.NodeVisitor):
    def __init__(self, package: str, called: str) -> None:
        self.found: list[Import] = []
        self._package = package
        self._called = called
        self._guards: list[Guard] = []
        self._tries: list[int] = []
        self._num_tries = 0

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name, "")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = absolute(node, self._package)
        for alias in node.names if module else ():
            self._add(node, str(module), alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called == "import_module" and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
            self._add(node, str(node.args[0].value), "")
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_each(node.decorator_list)
        if node.name == self._called and not self._guards:
            self._called = ""
            self._visit_each(node.body)
        else:
            self._visit_each(node.body, Guard("in a function"))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_each([node.body], Guard("in a function"))

    def visit_If(self, node: ast.If) -> None:
        if (parts := branches(node)) is not None:
            self._visit_each(parts[0], Guard("under TYPE_CHECKING", is_typed=True))
            self._visit_each(parts[1])
            return
        self._visit_each([node.test])
        self._visit_each([*node.body, *node.orelse], Guard("under a condition"))

    def visit_Match(self, node: ast.Match) -> None:
        self._visit_each([node.subject])
        self._visit_each([statement for case in node.cases for statement in case.body], Guard("under a condition"))

    def visit_While(self, node: ast.While) -> None:
        self._visit_each(node.body, Guard("under a condition"))

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        self._num_tries += 1
        number = self._num_tries
        guard = _guard_of(name for handler in node.handlers for name in _caught_by(handler.type))
        if guard is None:
            self._visit_each([*node.body, *node.orelse])
        else:
            self._tries.append(number)
            self._visit_each(node.body, guard)
            self._tries.pop()
            self._visit_each(node.orelse, guard)
        for handler in node.handlers:
            is_fallback = _guard_of(_caught_by(handler.type)) is not None
            self._visit_each(handler.body, Guard("in an except", instead_of=number if is_fallback else 0))
        self._visit_each(node.finalbody)

    visit_TryStar = visit_Try

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        suppressed = (
            name
            for item in node.items
            if isinstance(item.context_expr, ast.Call) and _name_of(item.context_expr.func) == "suppress"
            for argument in item.context_expr.args
            for name in _caught_by(argument)
        )
        self._visit_each(node.body, _guard_of(suppressed))

    visit_AsyncWith = visit_With

    def _visit_each(self, nodes: Iterable[ast.AST], guard: Guard | None = None) -> None:
        with self._under(guard):
            for node in nodes:
                self.visit(node)

    @contextmanager
    def _under(self, guard: Guard | None) -> Iterator[None]:
        self._guards += [guard] if guard else []
        yield
        if guard:
            self._guards.pop()

    def _add(self, node: ast.stmt | ast.expr, module: str, name: str) -> None:
        self.found.append(Import(node.lineno, module, name, tuple(self._guards), tuple(self._tries)))


def _guard_of(caught: Iterable[str]) -> Guard | None:
    names = set(caught)
    if names & _CATCHES_ALL:
        return Guard("in a try")
    return Guard("in a try", is_for_modules_only=True) if names & _CATCHES_MODULES else None


def _caught_by(kind: ast.expr | None) -> Iterator[str]:
    """Names of the exceptions that an ``except`` catches."""
    if kind is None:
        yield "BaseException"
    elif isinstance(kind, ast.Tuple):
        for element in kind.elts:
            yield _name_of(element)
    else:
        yield _name_of(kind)


def _name_of(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
