"""What a module imports, where, and under which guards; and the class paths in its texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from vllm_ext.check.module_names import absolute, branches

_WORD = r"[^\W\d]\w*"
_CLASS_PATH = re.compile(rf"{_WORD}((\.{_WORD})+[.:]?|:)({_WORD})?")
"""Also what an f-string begins with, such as ``acme.models:`` of ``f"acme.models:{name}"``."""
Absent = Literal["module", "name"]
"""What is not there: Python says by ModuleNotFoundError that it is a module, and by ImportError that it is a name."""

_CATCHES_ALL = {"ImportError", "Exception", "BaseException"}
_CATCHES_MODULES = {"ModuleNotFoundError"}


class Try(NamedTuple):
    """A ``try``, or ``with suppress()``, that catches what a failing import raises."""

    number: int
    caught: frozenset[Absent]
    num_guards: int
    """Around it. An import in its body that has more need not be run when the body is."""


class Guard(NamedTuple):
    """What keeps an import from being run, or may do so."""

    text: str
    """Where the import stands, to be shown."""
    is_typed: bool = False
    """Whether only type checkers read it."""


class Branch(NamedTuple):
    """The ``except`` or the ``else`` of a ``try``: which of them is run depends on the imports in its body."""

    number: int
    """Of the ``try``."""
    run_for: frozenset[Absent | None]
    """What the first import of the body that fails has to lack; ``None`` where none fails."""


class Import(NamedTuple):
    """One name that is imported, or one module."""

    line: int
    module: str
    name: str
    """Empty where the module itself is imported, ``*`` for all of its names."""
    guards: tuple[Guard, ...]
    tries: tuple[Try, ...]
    """Those in whose body it stands and that its failure would reach, outermost first."""
    branches: tuple[Branch, ...]

    @property
    def is_typed(self) -> bool:
        """Whether it is for type checkers only."""
        return any(guard.is_typed for guard in self.guards)


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
            yield node.value.replace(":", ".").rstrip(".")


class _Imports(ast.NodeVisitor):
    def __init__(self, package: str, called: str) -> None:
        self.found: list[Import] = []
        self._package = package
        self._called = called
        self._guards: tuple[Guard, ...] = ()
        self._tries: tuple[Try, ...] = ()
        self._branches: tuple[Branch, ...] = ()
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
        if node.name == self._called and not self._guards and not self._tries and not self._branches:
            self._called = ""
            self._visit_each(node.body)
            return
        # Where it is defined says nothing of where it is called.
        with self._within(_tries=(), _branches=()):
            self._visit_each(node.body, Guard("in a function"))

    visit_AsyncFunctionDef = visit_FunctionDef

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
        caught = [_absences_caught(_caught_by(handler.type)) for handler in node.handlers]
        this = self._new_try(frozenset[Absent]().union(*caught))
        self._visit_body(node.body, this)
        with self._within(_branches=(*self._branches, Branch(this.number, frozenset([None])))):
            self._visit_each(node.orelse)
        left = this.caught
        for handler, absences in zip(node.handlers, caught, strict=True):
            if run_for := absences & left:
                with self._within(_branches=(*self._branches, Branch(this.number, run_for))):
                    self._visit_each(handler.body)
            else:
                self._visit_each(handler.body, Guard("in an except"))
            left -= absences
        self._visit_each(node.finalbody)

    visit_TryStar = visit_Try

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        self._visit_each(node.items)
        suppressed = (
            name
            for item in node.items
            if isinstance(item.context_expr, ast.Call) and _name_of(item.context_expr.func) == "suppress"
            for argument in item.context_expr.args
            for name in _caught_by(argument)
        )
        self._visit_body(node.body, self._new_try(_absences_caught(suppressed)))

    visit_AsyncWith = visit_With

    def _new_try(self, caught: frozenset[Absent]) -> Try:
        self._num_tries += 1
        return Try(self._num_tries, caught, len(self._guards))

    def _visit_body(self, body: Iterable[ast.stmt], of: Try) -> None:
        with self._within(_tries=(*self._tries, of)):
            self._visit_each(body)

    def _visit_each(self, nodes: Iterable[ast.AST], *guard: Guard) -> None:
        with self._within(_guards=(*self._guards, *guard)):
            for node in nodes:
                self.visit(node)

    @contextmanager
    def _within(self, **values: Any) -> Iterator[None]:
        """Let attributes have other values inside the block."""
        before = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        yield
        vars(self).update(before)

    def _add(self, node: ast.stmt | ast.expr, module: str, name: str) -> None:
        self.found.append(Import(node.lineno, module, name, self._guards, self._tries, self._branches))


def _absences_caught(exceptions: Iterable[str]) -> frozenset[Absent]:
    names = set(exceptions)
    if names & _CATCHES_ALL:
        return frozenset(["module", "name"])
    return frozenset(["module"] if names & _CATCHES_MODULES else [])


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
