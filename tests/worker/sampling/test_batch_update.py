"""Batch updates lead logits processors from the rows of one step to those of the next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_ext.contracts.logits_processor import MoveDirectionality, process_dict_updates
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.worker.sampling.batch_update import make_batch_update

PARAMS = SamplingParams()
ROWS = st.lists(st.integers(0, 12), unique=True, max_size=9)


def arrival(request: int):
    """The output tells the requests apart."""
    return PARAMS, [], [request]


def follow(state: dict[int, int], update) -> bool:
    return process_dict_updates(state, update, lambda params, prompt, output: output[0])


@given(ROWS, ROWS)
def test_following_the_update_gives_the_new_rows(old, new):
    state = dict(enumerate(old))
    update = make_batch_update(old, new, arrival)

    follow(state, update)

    assert state == dict(enumerate(new))
    assert (update is None) == (old == new)


@given(ROWS, ROWS)
def test_only_requests_that_come_or_go_are_told_of_as_such(old, new):
    update = make_batch_update(old, new, arrival)
    if update is None:
        return

    assert {old[row] for row in update.removed} == set(old) - set(new)
    assert {output[0] for _, _, _, output in update.added} == set(new) - set(old)
    assert update.batch_size == len(new)


@given(ROWS, ROWS, st.sets(st.integers(0, 12)))
def test_state_of_some_requests_follows_them(old, new, interesting):
    state = {row: request for row, request in enumerate(old) if request in interesting}
    before = dict(state)
    update = make_batch_update(old, new, arrival)
    changed = process_dict_updates(
        state, update, lambda params, prompt, output: output[0] if output[0] in interesting else None
    )

    assert state == {row: request for row, request in enumerate(new) if request in interesting}
    assert changed or state == before


def test_rows_that_change_places_are_swapped():
    update = make_batch_update([1, 2, 3], [3, 2, 1], arrival)

    assert (update.removed, update.added) == ([], [])
    assert update.moved == [(2, 0, MoveDirectionality.SWAP)]


def test_a_row_goes_where_another_left():
    update = make_batch_update([1, 2, 3], [3, 2], arrival)

    assert update.removed == [0]
    assert update.moved == [(2, 0, MoveDirectionality.UNIDIRECTIONAL)]
