"""Where a value of the settings comes from."""

from __future__ import annotations

from typing import Literal

import msgspec

OriginKind = Literal["default", "file", "environment", "command line", "keyword"]
"""A keyword is one of Python's, which stands where an option of the command line does."""


class Origin(msgspec.Struct, frozen=True):
    """The source of a value: ``where`` is the file, the variable, the option or the call."""

    kind: OriginKind
    where: str = ""
    line: int | None = None
    added_to: Origin | None = None
    """The source of the list that this one added names to."""

    def __str__(self) -> str:
        return f"{self._own} added to {self.added_to}" if self.added_to else self._own

    @property
    def _own(self) -> str:
        if self.kind == "file":
            return f"file {self.where}" + (f" line {self.line}" if self.line else "")
        return f"{self.kind} ({self.where})" if self.where else self.kind


DEFAULT = Origin("default")
