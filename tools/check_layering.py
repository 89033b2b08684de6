#!/usr/bin/env python3
"""Prove that the packages of vllm_ext import in one direction, and that modules and functions stay small.

    python tools/check_layering.py [PACKAGE_DIR]

Each breach is printed as ``file:line: what is wrong``. Exit code 0: none; 1: some; 2: nothing to check.
Nothing is imported: the sources are read as syntax trees. Imports inside functions count, those in the body
of ``if TYPE_CHECKING:`` do not.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROWS = (
    "_version",
    "errors",
    "importing",
    "envs",
    "registry",
    "contracts",
    "config",
    "discovery",
    "plan",
    "managers",
    "dispatch",
    "distributed",
    "huge_pages",
    "csrc",
    "_kernel_arguments",
    "_custom_ops",
    "layers",
    "attention",
    "models",
    "worker",
    "platforms",
    "stat_loggers",
    "engine",
    "hosts",
    "server",
    "check",
    "cli",
    "testing",
    "__main__",
)
"""Packages and modules directly below vllm_ext; each may import itself and those before it."""

PARTS = {
    "worker": ("loading", "sampling"),
    "engine": ("processes", "scheduling", "executors", "core", "metrics", "inputs", "outputs"),
}
"""Folders of the packages that have an order of their own; each may import itself and those before it, and the modules
beside the folders all of them.
"""

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60


class Breach(NamedTuple):
    path: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def find_breaches(package: Path) -> list[Breach]:
    """All breaches below ``package``, by file and line; SyntaxError where a file is not Python."""
    breaches: list[Breach] = []
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, filename=str(path))
        found = [*_size_breaches(path, source, tree), *_import_breaches(path, package, tree)]
        breaches += sorted(found, key=lambda breach: breach.line)
    return breaches


def _size_breaches(path: Path, source: str, tree: ast.Module) -> Iterator[Breach]:
    lines = len(source.splitlines())
    if lines > MAX_MODULE_LINES:
        yield Breach(path, MAX_MODULE_LINES + 1, f"the module has {lines} lines, limit {MAX_MODULE_LINES}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                text = f"function {node.name} has {length} lines, limit {MAX_FUNCTION_LINES}"
                yield Breach(path, node.lineno, text)


def _import_breaches(path: Path, package: Path, tree: ast.Module) -> Iterator[Breach]:
    parts = path.relative_to(package).with_suffix("").parts
    if parts == ("__init__",):
        return
    row = parts[0]
    if row not in ROWS:
        yield Breach(path, 1, f"{package.name}.{row} has no row; give it one in {Path(__file__).name}")
        return
    if row in PARTS and len(parts) > 2 and parts[1] not in PARTS[row]:
        yield Breach(path, 1, f"{row}/{parts[1]}/ has no place in PARTS; give it one in {Path(__file__).name}")
        return
    # The package that relative imports of this module start from.
    here = (package.name, *parts[:-1])
    for node in _runtime_imports(tree):
        for target in _imported_modules(node, here):
            if text := _objection(row, target, package) or _objection_within(parts, target, package):
                yield Breach(path, node.lineno, text)


def _runtime_imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that can run, at any depth."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        children = node.orelse
    for child in children:
        yield from _runtime_imports(child)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _imported_modules(node: ast.Import | ast.ImportFrom, here: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Dotted names that a statement reaches, as tuples; the last part may be an attribute of a module."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
        return
    base = here[: len(here) - node.level + 1] if node.level else ()
    base += tuple(node.module.split(".")) if node.module else ()
    yield from ((*base, alias.name) for alias in node.names)


def _objection(row: str, target: tuple[str, ...], package: Path) -> str:
    """Why a module of ``row`` must not import ``target``; empty when it may."""
    if target[0] != package.name:
        return ""
    name = target[1] if len(target) > 1 else ""
    if not _is_below(package, name):
        return f"{row} imports from {package.name} itself, whose __init__ stands above everything"
    if name in ROWS and ROWS.index(name) > ROWS.index(row):
        return f"{row} imports {'.'.join(target)}, but {name} stands after {row}"
    return ""


def _objection_within(parts: tuple[str, ...], target: tuple[str, ...], package: Path) -> str:
    """The same for a module, by its place in ``package``, and the order within the package that it is in."""
    row = parts[0]
    order = PARTS.get(row, ())
    if len(parts) < 3 or target[:2] != (package.name, row) or parts[1] not in order:
        return ""
    part = target[2] if len(target) > 2 else ""
    if part not in order:
        return f"{row}/{parts[1]}/ imports {'.'.join(target)}, which stands after the folders of {row}"
    if order.index(part) > order.index(parts[1]):
        return f"{row}/{parts[1]}/ imports {'.'.join(target)}, but {row}/{part}/ stands after it"
    return ""


def _is_below(package: Path, name: str) -> bool:
    return name in ROWS or (package / name).is_dir() or (package / f"{name}.py").is_file()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check import direction and sizes of the vllm_ext package.")
    default = Path(__file__).resolve().parent.parent / "vllm_ext"
    parser.add_argument("package", nargs="?", type=Path, default=default, help="directory of the package")
    package: Path = parser.parse_args(argv).package
    if not (package / "__init__.py").is_file():
        print(f"{package} is not a package: it has no __init__.py", file=sys.stderr)
        return 2
    breaches = find_breaches(package.resolve())
    for breach in breaches:
        print(breach)
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
