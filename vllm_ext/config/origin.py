"""Where a value of the settings comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OriginKind = Literal["default", "file", "environment", "command line"]


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a value: ``where`` is the file, the variable or the option."""

    kind: OriginKind
    where: str = ""
    line: int | None = None

    def __str__(self) -> str:
        if self.kind == "file":
            return f"file {self.where}" + (f" line {self.line}" if self.line else "")
        return f"{self.kind} ({self.where})" if self.where else self.kind


DEFAULT = Origin("default")
