"""Takes parts out of a plugin that a test has installed, and counts the calls of what is left."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


def remove(project: Path, module: str, target: str) -> None:
    """Take a method (``Class.method``), or else the line that holds ``target``, out of a module of the project."""
    path = project / f"{module}.py"
    lines = path.read_text().splitlines(keepends=True)
    spans = [
        (min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.end_lineno)
        for cls in ast.walk(ast.parse(path.read_text()))
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and f"{cls.name}.{node.name}" == target
    ]
    spans = spans or [(number, number) for number, line in enumerate(lines, 1) if target in line]
    ((first, last),) = spans
    path.write_text("".join([*lines[: first - 1], *lines[last:]]))


def count_calls(cls: type, seen: Counter[str], count: Callable[[type, str, Any], Any] = setattr) -> None:
    """From now on ``seen`` has how often each public method and property that ``cls`` defines itself is used."""

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return function(*args, **kwargs)

        return counted

    for name, value in list(vars(cls).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod):
            count(cls, name, type(value)(counting(name, value.__func__)))
        elif isinstance(value, property):
            count(cls, name, property(counting(name, value.fget)))
        elif callable(value):
            count(cls, name, counting(name, value))
