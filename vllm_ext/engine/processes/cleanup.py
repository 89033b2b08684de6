"""Shutting down what was started already, where a later part of the start fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def shut_down_on_error(shutdown: Callable[[], None]) -> Iterator[None]:
    """Call ``shutdown`` if the block fails. That it fails as well becomes a note on the error, which stays the same."""
    try:
        yield
    except BaseException as error:
        try:
            shutdown()
        except Exception as another:  # noqa: BLE001 - kept, in the note
            error.add_note(f"Shutting down failed as well: {type(another).__name__}: {another}")
        raise
