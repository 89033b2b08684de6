"""Who registers: the plugin being loaded, or else the distribution of the module that calls."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from packaging.utils import canonicalize_name


@dataclass(frozen=True, slots=True)
class Owner:
    """The party behind a registration. ``plugin`` and ``distribution`` are known while a plugin is being loaded."""

    module: str
    plugin: str | None = None
    distribution: str | None = None

    @property
    def identity(self) -> str:
        """Canonical name of the distribution, whether it registers while it is loaded or later; outside of any, of the
        top-level module.
        """
        return canonicalize_name(self.distribution or distribution_of(self.module) or self.module.partition(".")[0])

    def __str__(self) -> str:
        distribution = self.distribution or distribution_of(self.module)
        if self.plugin:
            return f"plugin {self.plugin!r} of {distribution}"
        return f"{distribution} (module {self.module})" if distribution else f"module {self.module}"


_loading: ContextVar[tuple[str, str] | None] = ContextVar("vllm_ext_loading", default=None)
_known: dict[str, Owner] = {}
"""Modules that registered something while a plugin was being loaded: they may do it again at any time."""
_distributions: dict[str, str | None] = {}
"""By module, for those of plugins and those that were looked up."""
_entry_modules: dict[str, str] = {}
"""Distributions by the modules to which entry points of plugins that were loaded lead."""


@contextmanager
def loading(plugin: str, distribution: str, module: str = "") -> Iterator[None]:
    """Attribute registrations made inside the block to ``plugin`` of ``distribution``; those made later by ``module``,
    where its entry point leads, by what is below it, and where no metadata tells by what is beside it in its package,
    to ``distribution``.
    """
    if module:
        _distributions[module] = _entry_modules[module] = distribution
    token = _loading.set((plugin, distribution))
    try:
        yield
    finally:
        _loading.reset(token)


def current_owner() -> Owner:
    """The owner of a registration made now."""
    module = _calling_module()
    loaded = _loading.get()
    if loaded is None:
        return _known.get(module, Owner(module))
    _known[module] = owner = Owner(module, *loaded)
    return owner


def forget_owners() -> None:
    """Forget which modules belong to plugins; meant for tests."""
    _known.clear()
    _distributions.clear()
    _entry_modules.clear()


def _calling_module() -> str:
    """Name of the innermost module on the stack that is not a registering part of vllm_ext."""
    frame = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(("vllm_ext.registry", "vllm_ext.contracts")):
            return name
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "__main__"


def distribution_of(module: str) -> str | None:
    """Name of the distribution that ships ``module``; ``None`` where no metadata tells. The first question about a
    module that is no plugin's reads all metadata.
    """
    package = module
    while package and package not in _distributions:
        package = package.rpartition(".")[0]
    if not package:
        package = module
        _distributions[module] = _look_up(module) or _by_package(module)
    return _distributions[package]


def _look_up(module: str) -> str | None:
    """The distribution that lists the module's file, else the first one that has its top-level package or module.

    Distributions may share a top-level package. Metadata that cannot be read is nobody's.
    """
    path, top = module.replace(".", "/"), module.partition(".")[0]
    first: str | None = None
    for distribution in importlib.metadata.distributions():
        try:
            files = f"\n{distribution.read_text('RECORD') or ''}"
            if f"\n{path}.py," in files or f"\n{path}/__init__.py," in files:
                return distribution.name
            declared = (distribution.read_text("top_level.txt") or "").split()
            if first is None and (top in declared or f"\n{top}/" in files or f"\n{top}.py," in files):
                first = distribution.name
        except (ValueError, OSError, KeyError, TypeError):
            continue
    return first


def _by_package(module: str) -> str | None:
    """The one distribution of which a plugin was loaded from the same package: an editable installation may list
    neither files nor packages.
    """
    package = _whole_package(module)
    owners = {owner for entry, owner in _entry_modules.items() if _whole_package(entry) == package}
    return owners.pop() if len(owners) == 1 else None


def _whole_package(module: str) -> str:
    """The outermost package around ``module`` that one distribution has to itself: packages without a file of their own
    (namespace packages) may be shared.
    """
    parent = module.rpartition(".")[0]
    while parent and getattr(sys.modules.get(parent), "__file__", None):
        module, parent = parent, parent.rpartition(".")[0]
    return module
