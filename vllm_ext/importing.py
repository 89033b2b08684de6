"""Imports of modules that bring torch, which are most of what a start takes."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """No search for garbage in here.

    What torch's modules make stays, so that the searches, some through all that there is, find nothing: without them
    its import takes 0.92 of the time (Zen 1).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
