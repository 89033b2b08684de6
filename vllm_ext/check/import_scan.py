"""The static scan: what a plugin's modules import of vLLM and of vllm_ext, and whether that is there.

Nothing is imported. It sees names, and neither attributes of what they stand for nor changed signatures.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vllm_ext.check.imports_in import Absent, Import, class_paths_in, imports_in
from vllm_ext.check.source_tree import Absence, Module, SourceTree
from vllm_ext.discovery import find_providers

_IN_A_TRY = "in a try"


class Missing(NamedTuple):
    """An import of something that is not there, or of which that cannot be told."""

    host: str
    path: str
    line: int
    absence: Absence
    guard: str
    """Why it need not fail, to be shown; empty where it does."""


@dataclass
class Scan:
    """What was found."""

    modules: list[str] = field(default_factory=list)
    """Of the distribution, those that were read."""
    unread: list[str] = field(default_factory=list)
    """Of the distribution, those that have no source that can be read."""
    imported: Counter[str] = field(default_factory=Counter)
    """How many imports there are by host, whether looked up or not."""
    missing: list[Missing] = field(default_factory=list)


class _Step(NamedTuple):
    module: str
    guard: str


def scan_imports(
    plugins: SourceTree, entry: str, called: str, distribution: str, hosts: Mapping[str, SourceTree | None]
) -> Scan | None:
    """Follow the imports of a plugin through its own distribution.

    A class path in a text, by which plugins name platforms, workers and models, is followed like an import.

    Args:
        plugins: where its modules are.
        entry: the module of its entry point.
        called: the function of it that the entry point names; what that imports is certain to be imported.
        distribution: whose the modules are, by its canonical name; others are not read.
        hosts: by top-level module, where its modules are; those of ``None`` are counted and not looked up.

    Returns: ``None`` where the module of the entry point is not found.
    """
    if plugins.find(entry) is None:
        return None
    walk = _Walk(plugins, _Own(plugins, entry, distribution), hosts)
    walk.start(entry, called)
    return walk.scan


class _Own:
    """Which modules are the distribution's own."""

    def __init__(self, tree: SourceTree, entry: str, distribution: str) -> None:
        self._tree = tree
        self._distribution = distribution
        self._known = {self._unit(entry): True}

    def has(self, module: str) -> bool:
        unit = self._unit(module)
        if unit not in self._known:
            provider = find_providers([module]).get(module)
            self._known[unit] = provider is not None and provider.distribution == self._distribution
        return self._known[unit]

    def _unit(self, module: str) -> str:
        """The outermost package that distributions do not share: folders without ``__init__`` they may."""
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            found = self._tree.find(name := ".".join(parts[:depth]))
            if found is None or found.path not in found.folders:
                return name
        return module


class _Walk:
    """One scan: first what is certain to be imported, then what only a guard leads to."""

    def __init__(self, tree: SourceTree, own: _Own, hosts: Mapping[str, SourceTree | None]) -> None:
        self.scan = Scan()
        self._tree = tree
        self._own = own
        self._hosts = hosts
        self._seen: set[str] = set()
        self._certain: deque[_Step] = deque()
        self._guarded: deque[_Step] = deque()

    def start(self, entry: str, called: str) -> None:
        self._enter(entry, "")
        while self._certain or self._guarded:
            step = (self._certain or self._guarded).popleft()
            if step.module not in self._seen:
                self._seen.add(step.module)
                self._read(step, called if step.module == entry else "")

    def _enter(self, name: str, guard: str) -> None:
        """Take a module, and the packages around it, which Python imports first."""
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            (self._guarded if guard else self._certain).append(_Step(".".join(parts[:depth]), guard))

    def _read(self, step: _Step, called: str) -> None:
        module = self._tree.find(step.module)
        if module is None or module.path in module.folders:
            return
        tree = self._tree.tree(module)
        if tree is None:
            self.scan.unread.append(step.module)
            return
        self.scan.modules.append(step.module)
        broken = _BrokenTries()
        for each in imports_in(tree, module.package, called):
            self._take(module, each, step.guard, broken)
        for path in class_paths_in(tree):
            if (name := self._module_of(path)) is not None:
                self._enter(name, step.guard)

    def _module_of(self, path: str) -> str | None:
        """The own module that a class path leads to; ``None`` where it is none."""
        top = path.partition(".")[0]
        if top in self._hosts or self._tree.find(top) is None or not self._own.has(path):
            return None
        while path and self._tree.find(path) is None:
            path = path.rpartition(".")[0]
        return path or None

    def _take(self, module: Module, each: Import, guard: str, broken: _BrokenTries) -> None:
        host = each.module.partition(".")[0]
        if host not in self._hosts:
            self._follow(each, guard)
            return
        self.scan.imported[host] += 1
        tree = self._hosts[host]
        if tree is None:
            return
        name = "" if each.name == "*" else each.name
        absence = tree.absence(each.module, name, is_typed=each.is_typed)
        if absence is not None and broken.is_run(each):
            text = broken.take(each, "module" if absence.is_module else "name") if absence.is_certain else ""
            self.scan.missing.append(Missing(host, _shown_path(module.path), each.line, absence, text or guard))

    def _follow(self, each: Import, guard: str) -> None:
        """Read the module of an import, or two where the name that it takes may be a module, if it is an own one."""
        if each.is_typed or not self._own.has(each.module):
            return
        own_guard = _guard_of(each, "module")
        text = guard or (f"in a module that is imported {own_guard}" if own_guard else "")
        self._enter(each.module, text)
        if each.name not in ("", "*") and self._tree.find(f"{each.module}.{each.name}") is not None:
            self._enter(f"{each.module}.{each.name}", text)


class _BrokenTries:
    """Which ``try`` statements of a module an import has left by an exception, and what was not there."""

    def __init__(self) -> None:
        self._absent: dict[int, Absent] = {}

    def is_run(self, each: Import) -> bool:
        """Whether the ``except`` or ``else`` in which it stands, if any, is run."""
        return all(self._absent.get(branch.number) in branch.run_for for branch in each.branches)

    def take(self, each: Import, absent: Absent) -> str:
        """Take note of an import that fails; returns what it is guarded by, to be shown."""
        # Nothing after the first one that fails is run.
        was_left = any(self._absent.get(each_try.number) in each_try.caught for each_try in each.tries)
        for each_try in reversed(each.tries):
            if was_left or each_try.num_guards != len(each.guards):
                break
            self._absent.setdefault(each_try.number, absent)
            if absent in each_try.caught:
                break
        return _guard_of(each, absent) or (_IN_A_TRY if was_left else "")


def _guard_of(each: Import, absent: Absent) -> str:
    """Where an import stands that need not be there; empty where it has to."""
    if each.guards:
        return each.guards[0].text
    return _IN_A_TRY if any(absent in each_try.caught for each_try in each.tries) else ""


def _shown_path(path: str) -> str:
    """Relative to the current directory, where it lies below it."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative
