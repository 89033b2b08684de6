"""What :func:`examine` reports."""

from __future__ import annotations

from typing import Literal

import msgspec

Severity = Literal["error", "warning", "note"]

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


class Finding(msgspec.Struct, frozen=True):
    """Something that looks wrong with the installation."""

    severity: Severity
    """error: something declared cannot work; warning: what is used may not be what was meant; note: neither."""
    code: str
    """What kind of finding it is, in a few words joined by dashes; stays the same from release to release."""
    subject: str
    """The distribution, file, group or plugin that it is about."""
    text: str
    """What is wrong, and where."""
    remedy: str
    """What to do."""

    def sort_key(self) -> tuple[int, str, str, str]:
        """Errors first, then by kind and subject."""
        return _ORDER.index(self.severity), self.code, self.subject, self.text
