"""Modules on disk, found as Python would find them and read, never imported; and whether one has a name."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from importlib.machinery import SOURCE_SUFFIXES, all_suffixes
from typing import NamedTuple

from vllm_ext.check.module_names import ModuleNames, names_in
from vllm_ext.errors import did_you_mean


class Module(NamedTuple):
    """One module, or package."""

    name: str
    path: str
    """Of its file; of a package without ``__init__`` the first of its folders."""
    folders: tuple[str, ...] = ()
    """Where the modules of a package lie."""

    @property
    def package(self) -> str:
        """What its relative imports start from."""
        return self.name if self.folders else self.name.rpartition(".")[0]


class Absence(NamedTuple):
    """A name that is not there, or of which that cannot be told."""

    text: str
    """What is not there, or why it cannot be told; without its subject."""
    is_certain: bool = True
    is_module: bool = False
    """Whether it is a module that is not there: Python says so by ModuleNotFoundError."""


class SourceTree:
    """The modules below some path entries.

    Args:
        path: the path entries; those of this process, and what editable installations add, where not given.
        closed: modules of which it is known that their ``__getattr__`` gives no other names than ``__all__`` has.
    """

    def __init__(self, path: Sequence[str] | None = None, closed: Collection[str] = ()) -> None:
        self._path = path
        self._closed = closed
        self._modules: dict[str, Module | None] = {}
        self._trees: dict[str, ast.Module | None] = {}
        self._names: dict[str, ModuleNames | None] = {}

    def find(self, name: str) -> Module | None:
        """The module of that name; ``None`` where there is none."""
        if name not in self._modules:
            self._modules[name] = self._find(name)
        return self._modules[name]

    def tree(self, module: Module) -> ast.Module | None:
        """Its syntax tree; ``None`` where it has no source that this Python reads."""
        if module.path not in self._trees:
            self._trees[module.path] = _parse(module.path)
        return self._trees[module.path]

    def absence(self, module: str, name: str = "", *, is_typed: bool = False) -> Absence | None:
        """What keeps ``from module import name`` from working, or without a name ``import module``.

        Args:
            is_typed: whether it is for type checkers, for which more is there.

        Returns: ``None`` where nothing does.
        """
        found = self.find(module)
        if found is None:
            return self._absent_module(module)
        absence = self._lacks(found, name, is_typed, set()) if name else None
        # Last, since it asks the disk.
        return None if absence is not None and self.find(f"{module}.{name}") is not None else absence

    def _absent_module(self, name: str) -> Absence:
        parent, _, last = name.rpartition(".")
        if not parent:
            return Absence(f"module {name}", is_module=True)
        if (above := self.find(parent)) is None:
            return self._absent_module(parent)
        names = self.names(above)
        if names is not None and "__path__" in names.names:
            return Absence(f"{parent} may have any module: {names.why_open}", is_certain=False)
        return Absence(f"module {name}{did_you_mean(last, self._submodules(above))}", is_module=True)

    def names(self, module: Module) -> ModuleNames | None:
        """The names of a module; ``None`` where it has no source that can be read."""
        if module.name not in self._names:
            tree = self.tree(module)
            self._names[module.name] = None if tree is None else names_in(tree, module.package)
        return self._names[module.name]

    def _lacks(self, module: Module, name: str, is_typed: bool, seen: set[str]) -> Absence | None:
        """Whether a module has a name, itself or by ``import *``."""
        seen.add(module.name)
        own = self.names(module)
        if own is None:
            if module.path in module.folders:
                return Absence(f"name {name!r} of {module.name}, a folder without __init__.py")
            return Absence(f"{module.name} has no source to be read", is_certain=False)
        if name in own.names or (name in own.typed and (is_typed or own.why_open)):
            return None
        doubt = Absence(f"{module.name} may have any name: {own.why_open}", is_certain=False) if own.why_open else None
        for star in own.stars:
            if star in seen:
                continue
            absence = self._lacks_star(star, name, is_typed, seen)
            if absence is None:
                return None
            doubt = doubt or (None if absence.is_certain else absence)
        if doubt is not None and module.name not in self._closed:
            return doubt
        known = {each for each in own.names if not each.startswith("__")} | set(self._submodules(module))
        return Absence(f"name {name!r} of {module.name}{did_you_mean(name, known)}")

    def _lacks_star(self, star: str, name: str, is_typed: bool, seen: set[str]) -> Absence | None:
        module = self.find(star)
        exported = self.names(module) if module is not None else None
        if module is None or exported is None or exported.exported is None:
            return Absence(f"what 'import *' takes from {star} cannot be told", is_certain=False)
        if exported.stars or exported.why_open or name in exported.exported:
            return self._lacks(module, name, is_typed, seen)
        return Absence(f"name {name!r} of {star}")

    def _find(self, name: str) -> Module | None:
        parent, _, last = name.rpartition(".")
        if parent:
            above = self.find(parent)
            return None if above is None else _look(name, last, above.folders)
        entries = sys.path if self._path is None else self._path
        found = _look(name, last, [entry if entry else os.getcwd() for entry in entries if isinstance(entry, str)])
        if self._path is not None or (found is not None and found.path not in found.folders):
            return found
        return _from_finders(name) or found

    def _submodules(self, module: Module) -> Iterator[str]:
        for folder in module.folders:
            for entry in os.listdir(folder):
                name, suffix = os.path.splitext(entry)
                is_module = suffix == ".py" or (not suffix and os.path.isdir(f"{folder}/{entry}"))
                if is_module and name.isidentifier() and not name.startswith("__"):
                    yield name


def _look(name: str, last: str, folders: Sequence[str]) -> Module | None:
    """As Python's own finder, except that a source comes before what was compiled from it."""
    portions = []
    for folder in folders:
        base = os.path.join(folder, last)
        for suffix in (*SOURCE_SUFFIXES, *all_suffixes()):
            if os.path.isfile(path := os.path.join(base, f"__init__{suffix}")):
                return Module(name, path, (base,))
        for suffix in (*SOURCE_SUFFIXES, *all_suffixes()):
            if os.path.isfile(path := base + suffix):
                return Module(name, path)
        if os.path.isdir(base):
            portions.append(base)
    return Module(name, portions[0], tuple(portions)) if portions else None


def _from_finders(name: str) -> Module | None:
    """A top-level module that another finder knows, such as that of an editable installation."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return None
    return Module(name, spec.origin, tuple(spec.submodule_search_locations or ()))


def _parse(path: str) -> ast.Module | None:
    if not path.endswith(tuple(SOURCE_SUFFIXES)):
        return None
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            # An invalid escape in somebody's text is not what is looked for.
            warnings.simplefilter("ignore")
            return ast.parse(file.read(), path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
