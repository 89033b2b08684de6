"""Answers of workers as they arrive, several at once among them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from support.async_engine import HANG_S
from support.faulty_workers import NeedsMore

from vllm_ext.engine.executors.replies import Replies, Waiter
from vllm_ext.engine.executors.worker_messages import encode_failure, encode_result
from vllm_ext.engine.processes.channel import Channel
from vllm_ext.engine.processes.failure import Failure
from vllm_ext.engine.processes.portable import NotPortable


@dataclass
class Worker:
    """All that is asked of one that answers."""

    channel: Channel
    name: str = "worker 0"
    pid: int = 0


@pytest.fixture
def worker():
    """The executor's end, and the process's."""
    channel, there = Channel.pair()
    process = Channel(there)
    yield Worker(channel), process
    channel.close()
    process.close()


def test_an_answer_that_came_together_with_a_late_one_is_not_waited_for_again(worker):
    executors, process = worker
    process.send(encode_result(1, "late"))
    process.send(encode_result(2, "wanted"))
    replies = Replies([executors], "in a test", call_id=2)

    Waiter([executors]).wait(replies, HANG_S)

    assert replies.values() == ["wanted"]


def test_a_worker_that_answers_and_hangs_up_has_answered(worker):
    executors, process = worker
    process.send(encode_result(1, "late"))
    process.send(encode_result(2, "wanted"))
    process.close()
    replies = Replies([executors], "in a test", call_id=2)

    Waiter([executors]).wait(replies, HANG_S)

    assert replies.values() == ["wanted"]
    assert not replies.gone


def test_an_answer_that_cannot_be_made_here_has_come_all_the_same(worker):
    executors, process = worker
    process.send(encode_result(1, NeedsMore(1, 2)))
    replies = Replies([executors], "in a test", call_id=1)

    Waiter([executors]).wait(replies, HANG_S)

    assert not replies.unanswered
    with pytest.raises(NotPortable, match=r"got a value of another process that it cannot make"):
        replies.values()


def test_a_worker_that_said_why_it_ends_is_reported_with_its_reason(worker):
    executors, process = worker
    failure = Failure.of(ValueError("no such plugin"), "worker 0", "to apply the engine's plan")
    process.send(encode_failure(0, failure))
    process.close()
    replies = Replies([executors], "to apply the engine's plan")
    waiter = Waiter([executors])

    waiter.wait(replies, HANG_S)
    # The others are given time to settle, in which it hangs up.
    replies.gone.append(0)

    assert "no such plugin" in str(replies.error())
