"""Stop strings: where the text ends, and what may be shown before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_ext.engine.outputs.stop_strings import StopStringFilter

PIECES = st.lists(st.text("ab ", max_size=4), max_size=12)
STOPS = st.lists(st.text("ab ", min_size=1, max_size=4), min_size=1, max_size=3)


def feed(stop: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """What is shown after each piece and at the end, and the stop string found."""
    stop_filter = StopStringFilter(stop)
    shown = []
    for piece in pieces:
        shown.append(stop_filter.feed(piece))
        if stop_filter.matched is not None:
            return shown, stop_filter.matched
    return [*shown, stop_filter.flush()], None


def first_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """By definition: the text before the stop string that is complete first, read character by character."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(STOPS, PIECES)
def test_text_ends_before_the_first_complete_stop_string(stop, pieces):
    shown, matched = feed(stop, pieces)

    assert ("".join(shown), matched) == first_stop("".join(pieces), stop)


@given(STOPS, PIECES)
def test_what_was_shown_is_never_the_beginning_of_a_stop_string_that_completes(stop, pieces):
    shown, _ = feed(stop, pieces)
    expected, _ = first_stop("".join(pieces), stop)

    for end in range(len(shown)):
        assert expected.startswith("".join(shown[: end + 1]))


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["x</", "s", "y"], ["x", "", "</sy", ""]),  # held back, then released
        (["x</", "s", ">y"], ["x", "", ""]),  # across three tokens; what follows is dropped
        (["x</"], ["x", "</"]),  # the end flushes
        (["<</s>"], ["<"]),  # the beginning repeats itself
    ],
)
def test_only_what_may_become_a_stop_string_is_held_back(pieces, shown):
    assert feed(["</s>"], pieces)[0] == shown


def test_of_two_that_end_together_the_longer_is_reported():
    assert feed(["end", "the end"], ["at the end"]) == (["at "], "the end")


@given(STOPS, PIECES)
def test_included_the_stop_string_ends_the_text_and_nothing_is_held_back(stop, pieces):
    stop_filter, shown = StopStringFilter(stop, include=True), ""
    expected, matched = first_stop("".join(pieces), stop)
    whole = expected + (matched or "")
    for piece in pieces:
        shown += stop_filter.feed(piece)
        assert whole.startswith(shown)
        if stop_filter.matched is not None:
            break
    assert (shown + stop_filter.flush(), stop_filter.matched) == (whole, matched)


def first_late_stop(pieces: list[str], num_early: int, stop: list[str]) -> tuple[str, str | None]:
    """By definition, as :func:`first_stop`, with the stop strings that end in the first pieces passed over."""
    text, early = "".join(pieces), len("".join(pieces[:num_early]))
    for end in range(early + 1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(STOPS, PIECES, st.integers(0, 8), st.booleans())
def test_a_stop_string_counts_from_where_it_may_on(stop, pieces, num_early, include):
    stop_filter, shown = StopStringFilter(stop, include=include), ""
    for position, piece in enumerate(pieces):
        shown += stop_filter.feed(piece, may_stop=position >= num_early)
        if stop_filter.matched is not None:
            break
    else:
        shown += stop_filter.flush()

    text, matched = first_late_stop(pieces, num_early, stop)
    assert stop_filter.matched == matched
    assert shown == (text + (matched or "") if include else text)
