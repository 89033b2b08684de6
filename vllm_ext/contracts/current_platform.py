"""``current_platform``: the platform that this code runs for.

Inside an engine it is that engine's platform (a context variable, so two engines in one process may differ); elsewhere
it is the process default, which the resolver registered by :mod:`vllm_ext.dispatch` chooses on first use. Inside a
platform's own entry point there is no answer yet, and asking raises with the plugin's name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_ext.contracts.platform import Platform

_running: ContextVar[Platform | None] = ContextVar("vllm_ext_platform", default=None)
_probing: ContextVar[str | None] = ContextVar("vllm_ext_probing", default=None)


class CurrentPlatform:
    """Stands for the current platform: attributes and methods are those of the platform itself. In vLLM it is an
    attribute of ``vllm.platforms``; the methods here are vllm_ext's, an extension of vLLM's contract.
    """

    _default: Platform | None
    _resolver: Callable[[], Platform] | None
    _lock: threading.RLock

    def __init__(self) -> None:
        self._default = None
        self._resolver = None
        self._lock = threading.RLock()

    def get(self) -> Platform:
        """The platform object behind the proxy.

        Raises:
            RuntimeError: asked inside a platform's entry point, where nothing is decided yet.
        """
        refuse_while_probing("for current_platform")
        if (running := _running.get()) is not None:
            return running
        return self.default_or(self._resolver or _no_resolver)

    def default_or(self, resolver: Callable[[], Platform]) -> Platform:
        """The process default; where there is none, what ``resolver`` returns becomes it.

        One thread at a time asks a resolver. After one that fails there is no default still.
        """
        with self._lock:
            if self._default is None:
                self._default = resolver()
            return self._default

    def set_resolver(self, resolver: Callable[[], Platform]) -> None:
        """Let ``resolver`` find the process default; called by :mod:`vllm_ext.dispatch`, where nobody else has."""
        self._resolver = resolver

    def has_resolver(self) -> bool:
        """Whether :meth:`set_resolver` was called."""
        return self._resolver is not None

    def set_default(self, platform: Platform | None) -> None:
        """Make ``platform`` the process default; ``None`` forgets it, so that the next use resolves again."""
        with self._lock:
            self._default = platform

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that the child does not have."""
        self._lock = threading.RLock()

    def has_default(self) -> bool:
        """Whether the process default is known; asking does not choose it."""
        return self._default is not None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.get(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Of the platform itself: what one engine's code sets must not be read on that of another.
        object.__setattr__(self if name in CurrentPlatform.__annotations__ else self.get(), name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type[Any]:
        """As in vLLM, ``isinstance(current_platform, MyPlatform)`` tells which one it is. Asking does not choose it."""
        chosen = _running.get() or self._default
        return type(self) if chosen is None else type(chosen)

    def __repr__(self) -> str:
        chosen = _running.get() or self._default
        return f"<current_platform: {chosen!r}>" if chosen else "<current_platform: not chosen yet>"


def _no_resolver() -> Platform:
    raise RuntimeError("no platform is chosen: import current_platform from vllm_ext")


current_platform = CurrentPlatform()
os.register_at_fork(after_in_child=current_platform.after_fork)


@contextmanager
def use_platform(platform: Platform) -> Iterator[None]:
    """Make ``platform`` the current one inside the block (this thread or task)."""
    token = _running.set(platform)
    try:
        yield
    finally:
        _running.reset(token)


def refuse_while_probing(what: str) -> None:
    """RuntimeError inside a platform's own entry point, which asked ``what``: nothing is decided there yet."""
    if (plugin := _probing.get()) is not None:
        raise RuntimeError(
            f"platform plugin {plugin!r} asked {what} while its own entry point runs; no platform is chosen yet. "
            "Ask in a general plugin or in the worker"
        )


@contextmanager
def probing(plugin: str) -> Iterator[None]:
    """Mark the block as running the entry point of platform plugin ``plugin``."""
    token = _probing.set(plugin)
    try:
        yield
    finally:
        _probing.reset(token)
