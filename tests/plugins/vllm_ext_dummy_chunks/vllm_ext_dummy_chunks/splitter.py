"""A text in parts that a model can take."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

_WORD = re.compile(r"\S+")


class Span(NamedTuple):
    """Characters ``start`` to ``end`` of a text."""

    start: int
    end: int


def split(text: str, fits: Callable[[str], bool]) -> Iterator[Span]:
    """Parts of ``text`` that each fit, as long as can be: cut between words, or inside one that does not fit alone.

    Every character but space is in one of them. ValueError where not even one character fits.
    """
    ends = [word.end() for word in _WORD.finditer(text)]
    start = 0
    while match := _WORD.search(text, start):
        start, end_of_word = match.span()
        end = _furthest(text, start, ends, bisect_right(ends, start), fits)
        end = end or _furthest(text, start, range(start + 1, end_of_word), 0, fits)
        if not end:
            raise ValueError(f"not even character {start}, {text[start]!r}, fits into a chunk")
        yield Span(start, end)
        start = end


def _furthest(text: str, start: int, ends: Sequence[int], first: int, fits: Callable[[str], bool]) -> int:
    """The last of ascending ``ends``, from index ``first`` on, to which ``text`` fits from ``start`` on; 0 for none.

    Found by doubling, then by halves, so that no text is tried that is much longer than what fits.
    """
    limit = len(ends) - first
    low, high = 0, 1
    while high <= limit and fits(text[start : ends[first + high - 1]]):
        low, high = high, high * 2
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(text[start : ends[first + middle - 1]]) else (low, middle)
    return ends[first + low - 1] if low else 0
