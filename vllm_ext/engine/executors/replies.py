"""What workers answer to one call: results, failures, and the silence of those that are gone."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from typing import Any

from vllm_ext.engine.executors.worker_messages import Kind, decode_answer
from vllm_ext.engine.processes.channel import Frame
from vllm_ext.engine.processes.child import ChildProcess
from vllm_ext.engine.processes.failure import Failure
from vllm_ext.errors import EngineError, VllmExtError, WorkerError


class Replies:
    """The answers to call ``call_id``, by rank, as far as they have come; 0 is the start, answered by a receipt.

    They are decoded in :meth:`values` and :meth:`error` alone, so that who has answered is known also where an answer
    cannot be decoded, or an interrupt comes while it is.

    Args:
        where: what the workers were told to do, for messages.
    """

    def __init__(self, workers: Sequence[ChildProcess], where: str, call_id: int = 0) -> None:
        self._workers = workers
        self._where = where
        self.call_id = call_id
        self.answers: dict[int, Frame] = {}
        self.failures: dict[int, Frame] = {}
        self.gone: list[int] = []
        """Ranks of workers that hung up."""

    @property
    def unanswered(self) -> list[int]:
        """Ranks of workers that there is still something to expect of."""
        heard = {*self.answers, *self.failures, *self.gone}
        return [rank for rank in range(len(self._workers)) if rank not in heard]

    @property
    def faults(self) -> bool:
        """Whether any worker failed or is gone."""
        return bool(self.failures or self.gone)

    def take(self, rank: int, frame: Frame) -> None:
        """One message of a worker; an answer to an earlier call, which nobody waits for any more, is dropped."""
        if frame.call_id == self.call_id:
            (self.failures if frame.kind == Kind.FAILURE else self.answers)[rank] = frame

    def values(self) -> list[Any]:
        """All results, by rank; EngineError where some did not come in time, or one cannot be made here."""
        if self.unanswered:
            raise self.timeout_error()
        return [decode_answer(self.answers[rank]) for rank in range(len(self._workers))]

    def timeout_error(self, ranks: Sequence[int] = (), consequence: str = "") -> EngineError:
        """Who did not answer, or of those ``ranks``, and what that means."""
        silent = [self._workers[rank] for rank in ranks or self.unanswered]
        names = ", ".join(f"{worker.name} (PID {worker.pid})" for worker in silent)
        return EngineError(f"{names} did not answer in time {self._where}{consequence and ', '}{consequence}")

    def error(self) -> VllmExtError:
        """The fault that is likeliest the cause of the others: the first end, else the failure of the lowest rank.

        A worker that waits for one that is gone fails as well, of the broken connection. One that said why it ends has
        told its cause.
        """
        if unexplained := [rank for rank in self.gone if rank not in self.failures]:
            return self._end_of(unexplained[0])
        failure: Failure = decode_answer(self.failures[min(self.failures)])
        error = failure.as_error()
        if self.unanswered:
            names = ", ".join(self._workers[rank].name for rank in self.unanswered)
            error.add_note(f"{names} did not answer, and was waiting for it")
        return error

    def _end_of(self, rank: int) -> WorkerError:
        worker = self._workers[rank]
        return WorkerError(
            f"{worker.name} (PID {worker.pid}) of {len(self._workers)} {worker.describe_end()} {self._where}", rank=rank
        )


class Waiter:
    """Waits for messages of all workers at once."""

    def __init__(self, workers: Sequence[ChildProcess]) -> None:
        self._workers = workers
        self._poll = select.poll()
        self._rank_of: dict[int, int] = {}
        for rank, worker in enumerate(workers):
            self._rank_of[worker.channel.fileno()] = rank
            self._poll.register(worker.channel.fileno(), select.POLLIN)

    def wait(
        self,
        replies: Replies,
        timeout_s: float | None,
        *,
        until: Callable[[], bool] = lambda: False,
        despite_faults: bool = False,
    ) -> None:
        """Take answers until all have come, one worker failed, ``until`` is true, or ``timeout_s`` is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while replies.unanswered and not until() and (despite_faults or not replies.faults):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            for descriptor, _ in self._poll.poll(None if left is None else left * 1000):
                self._take(replies, self._rank_of[descriptor])

    def _take(self, replies: Replies, rank: int) -> None:
        channel = self._workers[rank].channel
        try:
            replies.take(rank, channel.receive())
            while channel.has_read_ahead:
                replies.take(rank, channel.receive())
        except EOFError:
            self._poll.unregister(channel.fileno())
            replies.gone.append(rank)
