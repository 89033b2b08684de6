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
        """The same for all registrations of one distribution, or of one top-level module outside of any."""
        return self.distribution or self.module.partition(".")[0]

    @property
    def party(self) -> str:
        """Canonical name of the distribution, whether it registers while it is loaded or later; else of the module."""
        return canonicalize_name(self.distribution or _distribution_of(self.module) or self.module.partition(".")[0])

    def __str__(self) -> str:
        distribution = self.distribution or _distribution_of(self.module)
        if self.plugin:
            return f"plugin {self.plugin!r} of {distribution}"
        return f"{distribution} (module {self.module})" if distribution else f"module {self.module}"


_loading: ContextVar[tuple[str, str] | None] = ContextVar("vllm_ext_loading", default=None)
_known: dict[str, Owner] = {}
"""Modules that registered something while a plugin was being loaded: they may do it again at any time."""


@contextmanager
def loading(plugin: str, distribution: str) -> Iterator[None]:
    """Attribute registrations made inside the block to ``plugin`` of ``distribution``."""
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


def _distribution_of(module: str) -> str | None:
    """Name of the distribution that ships ``module``; only asked for a message, since it reads all metadata."""
    names = importlib.metadata.packages_distributions().get(module.partition(".")[0])
    return names[0] if names else None
