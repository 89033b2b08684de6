"""What the child process that loads a plugin tells its parent: one report a line, as JSON."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

PIPE_CLOSED = 71
"""Exit code of a child that cannot report any more."""


class ChildReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the child has come; ``used`` has the outcome, and ``again`` that of a second call, if there was one."""

    stage: Literal["started", "imported", "used", "again"]
    outcome: dict[str, Any] | None = None
    effects: tuple[str, ...] = ()
    imports_torch: bool = False
    registered: tuple[str, ...] = ()
    class_paths: tuple[tuple[str, str], ...] = ()
