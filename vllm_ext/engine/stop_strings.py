"""Stop strings: text up to the first of them, and never a part of one before it is known to be none."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Lets text through until a stop string is complete.

    It behaves as if characters came one by one: the stop string that is complete first counts, and of two that are
    complete at the same character the longer one.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        """The end of the text so far that may be the beginning of a stop string."""
        self.matched: str | None = None

    def feed(self, delta: str) -> str:
        """Add ``delta``.

        Returns: the text that may be shown now. Once a stop string is found, :attr:`matched` is set and this ended
        right before it.
        """
        text = self._held + delta
        if match := self._first_match(text):
            start, self.matched = match
            self._held = ""
            return text[:start]
        num_held = self._num_to_hold(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """The text still held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
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
