"""What a plugin changes in its process besides what it is for: seen by comparing before and after."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_ext.errors import innermost_cause, one_line
from vllm_ext.managers.new_python import signal_name

_SIGNALS = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
_MAX_NAMES = 5


class SideEffects:
    """Takes note of the process's state when it is made; :meth:`found` says what has changed since."""

    def __init__(self) -> None:
        self._path = list(sys.path)
        self._handlers = _handlers()
        self._environ = dict(os.environ)
        self._folder = _current_folder()
        self._threads = set(threading.enumerate())
        self._failed_threads: list[str] = []
        self._previous_hook: Callable[[Any], Any] = threading.excepthook
        threading.excepthook = self._note_failed_thread

    def found(self) -> tuple[str, ...]:
        """One sentence per kind of change; where a comparison fails, one that says so, as the plugin has worked."""
        changes: list[str] = []
        for what, compare in (
            ("sys.path", self._path_changes),
            ("the handlers of signals", self._handler_changes),
            ("environment variables", self._environment_changes),
            ("the current directory", self._folder_changes),
            ("threads", self._thread_changes),
            ("child processes", self._process_changes),
        ):
            try:
                changes += map(one_line, compare())
            except BaseException as error:  # noqa: BLE001 - objects of the plugin are compared and printed there
                changes.append(one_line(f"leaves {what} in a state that cannot be compared: {innermost_cause(error)}"))
        return tuple(changes)

    def _path_changes(self) -> Iterator[str]:
        if sys.path != self._path:
            added = [entry for entry in sys.path if entry not in self._path]
            yield f"changes sys.path{_listed(added, ': adds ')}"

    def _handler_changes(self) -> Iterator[str]:
        before = self._handlers
        replaced = [signal_name(number) for number, handler in _handlers().items() if handler != before[number]]
        if replaced:
            yield f"replaces the handlers of signals{_listed(replaced, ': ')}"

    def _environment_changes(self) -> Iterator[str]:
        changed = {name for name, _ in set(os.environ.items()) ^ set(self._environ.items())}
        if changed:
            yield f"changes environment variables{_listed(sorted(changed), ': ')}"

    def _folder_changes(self) -> Iterator[str]:
        if (folder := _current_folder()) != self._folder:
            yield f"changes the current directory to {folder}"

    def _thread_changes(self) -> Iterator[str]:
        if threads := [thread.name for thread in threading.enumerate() if thread not in self._threads]:
            yield f"leaves threads running{_listed(threads, ': ')}"
        for failure in self._failed_threads:
            yield f"starts a thread that fails: {failure}"

    def _process_changes(self) -> Iterator[str]:
        if children := _child_processes():
            yield f"leaves processes running{_listed(children, ': ')}"

    def _note_failed_thread(self, arguments: Any) -> None:
        self._failed_threads.append(innermost_cause(arguments.exc_value))
        self._previous_hook(arguments)


def _current_folder() -> str | None:
    """``None`` where it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return None


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in _SIGNALS}


def _child_processes() -> list[int]:
    """Processes started by this one; empty on systems that do not say so in /proc."""
    children: list[int] = []
    for file in Path("/proc/self/task").glob("*/children"):
        try:
            children += map(int, file.read_text().split())
        except (OSError, ValueError):
            continue
    return sorted(children)


def _listed(names: Sequence[object], lead: str) -> str:
    """Not only strings: plugins put paths and bytes on ``sys.path``."""
    if not names:
        return ""
    shown = ", ".join(map(str, names[:_MAX_NAMES]))
    return f"{lead}{shown}" + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
