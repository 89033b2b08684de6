"""Stop strings: text up to the first of them, and never a part of one before it is known to be none."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Lets text through until a stop string is complete.

    It behaves as if characters came one by one: the stop string that is complete first counts, and of two that are
    complete at the same character the longer one.

    Args:
        include: let the text end after the stop string, instead of before it.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        self._stop = tuple(stop)
        self._include = include
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        """The end of the text so far that may be the beginning of a stop string."""
        self._num_shown = 0
        """Characters of it that have been let through already."""
        self.matched: str | None = None

    def feed(self, delta: str, *, may_stop: bool = True) -> str:
        """Add ``delta``; a stop string that it completes counts only if it ``may_stop``.

        Returns: the text that may be shown now. Once a stop string is found, :attr:`matched` is set and the text
        ended right before it, or after it if it is included.
        """
        text = self._held + delta
        match = self._first_match(text, len(self._held)) if may_stop and delta else None
        if match:
            start, self.matched = match
            end = start + len(self.matched) if self._include else start
            return text[self._num_shown : end]
        num_held = self._num_to_hold(text)
        end = len(text) if self._include else len(text) - num_held
        shown = text[self._num_shown : end]
        self._held = text[len(text) - num_held :]
        self._num_shown = num_held if self._include else 0
        return shown

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held[self._num_shown :], ""
        return held

    def _first_match(self, text: str, num_old: int) -> tuple[int, str] | None:
        """Where the first stop string begins that is complete after the first ``num_old`` characters."""
        found = [
            (start + len(stop), start, stop)
            for stop in self._stop
            if (start := text.find(stop, max(0, num_old - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _num_to_hold(self, text: str) -> int:
        """Length of the longest end of ``text`` that a stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
