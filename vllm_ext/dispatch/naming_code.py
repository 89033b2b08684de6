"""Around code that is not vllm_ext's: an error of it says whose code it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.platform_device import platform_name
from vllm_ext.dispatch.blame import whose_code
from vllm_ext.errors import (
    ConfigError,
    EngineError,
    PluginLoadError,
    VllmExtError,
    dotted_path,
    innermost_cause,
    message_of,
)

if TYPE_CHECKING:
    from vllm_ext.plan import BoundPlan


class NamingCode:
    """Around code of a worker or a plugin: what it raises becomes an EngineError that begins with whose code it was.

    A class, since a context manager that is a generator loses this error where the code raises StopIteration. There
    contextlib takes EngineError, a RuntimeError, for Python's own complaint, and raises the bare StopIteration.

    Args:
        whose: the beginning of the text, such as ``worker acme.Worker failed to start``.
        passing: errors that explain themselves.
        bound_plan: tells in which plugin's code it was; ``None`` where ``whose`` does.
    """

    __slots__ = ("_bound_plan", "_passing", "_whose")

    def __init__(
        self, whose: str, passing: tuple[type[BaseException], ...] = (), bound_plan: BoundPlan | None = None
    ) -> None:
        self._whose = whose
        self._passing = passing
        self._bound_plan = bound_plan

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if error is not None and not isinstance(error, (KeyboardInterrupt, *self._passing)):
            where = whose_code(error, self._bound_plan) if self._bound_plan is not None else ""
            raise EngineError(f"{self._whose}: {innermost_cause(error)}{where}") from error


@contextmanager
def platform_code(platform: Platform, *, may_refuse: bool = False) -> Iterator[None]:
    """Around calls of the platform's own methods: whatever they raise becomes an error that names the platform.

    Errors of vllm_ext pass; they explain themselves.

    Args:
        may_refuse: the methods look at the configuration, and refuse it by a ValueError, which is then a ConfigError
            with its text; elsewhere it is a failure like any other.
    """
    try:
        yield
    except (VllmExtError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a hook that exits or asserts fails like any other
        name, with_distribution = platform._chosen_as
        who = f"platform {with_distribution}" if with_distribution else platform_name(platform)
        who = f"{who} ({dotted_path(type(platform))})"
        if may_refuse and isinstance(error, ValueError):
            raise ConfigError(
                f"{who} refuses the configuration: {message_of(error) or innermost_cause(error)}"
            ) from error
        raise PluginLoadError(f"{who} failed: {innermost_cause(error)}", plugin=name or platform.device_name) from error
