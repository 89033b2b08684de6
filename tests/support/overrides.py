"""Takes parts out of a plugin that a test has installed."""

from __future__ import annotations

import ast
from pathlib import Path


def remove(project: Path, module: str, target: str) -> None:
    """Take a method (``Class.method``), or else the line that holds ``target``, out of a module of the project."""
    path = project / f"{module}.py"
    lines = path.read_text().splitlines(keepends=True)
    spans = [
        (min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.end_lineno)
        for cls in ast.walk(ast.parse(path.read_text()))
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and f"{cls.name}.{node.name}" == target
    ]
    spans = spans or [(number, number) for number, line in enumerate(lines, 1) if target in line]
    ((first, last),) = spans
    path.write_text("".join([*lines[: first - 1], *lines[last:]]))
