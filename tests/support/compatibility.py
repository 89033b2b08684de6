"""The compatibility page as data: its rows, and the objects that they name."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "vllm_ext" / "COMPATIBILITY.md"


def rows_of(heading: str) -> Iterator[list[str]]:
    """The cells of the tables below a heading, without the backquotes around them."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            yield [cell.strip().strip("`") for cell in line.strip("|").split("|")]


def names() -> list[str]:
    """What the page names, in its order, but for deprecated forms."""
    return [cells[0] for heading in ("Documented functions", "Not called yet") for cells in rows_of(heading)]


def split(name: str) -> tuple[Any, str]:
    """The object that a dotted name of the package, or of one of its modules, begins with, and the attribute of it."""
    owner, _, attribute = name.removeprefix("vllm_ext.").rpartition(".")
    return pkgutil.resolve_name(f"vllm_ext.{owner}".rstrip(".")), attribute


def class_of(contract: str) -> type:
    """The class of that name, or of the object of that name."""
    found = getattr(*split(contract))
    return found if isinstance(found, type) else type(found)


def contract_classes() -> list[type]:
    """The classes that rows name, or a method, property or attribute of; errors are described in ``errors.py``."""
    found: dict[type, None] = {}
    for name in names():
        owner, attribute = split(name)
        cls = getattr(owner, attribute, None) if inspect.ismodule(owner) else owner
        cls = cls if isinstance(cls, type) or inspect.isroutine(cls) else type(cls)
        if isinstance(cls, type) and cls.__module__.startswith("vllm_ext.") and not issubclass(cls, Exception):
            found[cls] = None
    return list(found)


def contract_functions() -> list[Callable[..., Any]]:
    """The functions of modules that rows name."""
    found = [getattr(owner, attribute, None) for owner, attribute in map(split, names()) if inspect.ismodule(owner)]
    return [each for each in found if inspect.isfunction(each)]


def public_methods(cls: type) -> dict[str, Any]:
    """Methods and properties that the class has from classes of vllm_ext, as they stand in these, by name."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("vllm_ext."):
            for name, value in vars(base).items():
                is_method = callable(value) or isinstance(value, classmethod | staticmethod | property)
                if is_method and not name.startswith("_") and not isinstance(value, type):
                    found.setdefault(name, value)
    return found
