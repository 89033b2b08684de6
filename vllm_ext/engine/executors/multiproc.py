"""The executor that runs each worker in a process of its own."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import msgspec
import torch

from vllm_ext.contracts.executor import Executor
from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.dispatch.hooks import THREADS_AT_START, THREADS_VARIABLE
from vllm_ext.dispatch.take_over import make_hand_over
from vllm_ext.engine.executors.rendezvous import Rendezvous
from vllm_ext.engine.executors.replies import Replies, Waiter
from vllm_ext.engine.executors.split_check import check_model_can_be_split
from vllm_ext.engine.executors.worker_calls import name_of_method
from vllm_ext.engine.executors.worker_messages import (
    CREATE_WORKER,
    UPDATE_BLOCK_SIZE,
    Kind,
    Start,
    encode_call,
    encode_step,
)
from vllm_ext.engine.processes.channel import Frame
from vllm_ext.engine.processes.child import ChildProcess, end_all
from vllm_ext.engine.processes.cleanup import shut_down_on_error
from vllm_ext.errors import EngineError, VllmExtError, WorkerError
from vllm_ext.plan import Receipt
from vllm_ext.platforms.host_memory import num_usable_cpus

logger = logging.getLogger(__name__)

_START_S = 600.0
"""What it may take until the first worker is up; much, for a file system that is slow to import from."""
_SETTLE_S = 1.0
"""When one worker has failed: what the others get to answer, before they are taken to wait for it in vain."""
_GRACE_S = 5.0
"""What workers get to end by themselves."""
_WORKER = "vllm_ext.engine.executors.worker_main"


class MultiprocExecutor(Executor):
    """One process for each worker, all with the engine's plan, which each proves by a receipt before it does anything.

    A worker that ends, or fails where the others cannot know of it, ends all of them: :attr:`failure` says why, and
    every call raises it from then on. Calls come from one thread at a time.
    """

    def _init_executor(self) -> None:
        check_model_can_be_split(self.vllm_config)
        self._pid = os.getpid()
        self._call_ids = itertools.count(1)
        self._lock = threading.RLock()
        self._failure: VllmExtError | None = None
        self._latest: Replies | None = None
        self._on_failure: list[Callable[[VllmExtError], None]] = []
        self._is_shut_down = False
        self._workers: list[ChildProcess] = []
        engine = self.dispatcher.settings.engine
        self._step_timeout_s = engine.execute_model_timeout_s
        self._rendezvous = Rendezvous(self.num_workers, engine.master_port, engine.join_timeout_s)
        # Where a program ends without a shutdown: while the threads that watch the workers still run.
        weakref.finalize(self, _end_workers, self._pid, self._workers, self._rendezvous)
        # With the lock, the end of a worker is reported here, by who waits for its answer, and not in _on_end().
        with shut_down_on_error(self.shutdown), self._lock:
            started = time.monotonic()
            self._start_workers()
            self.receipts = self._read_receipts(engine.join_timeout_s)
            self.collective_rpc(CREATE_WORKER)
            self._init_devices(engine.join_timeout_s)
            self.collective_rpc("load_model")
            self._agree_on_block_size()
        logger.info("%s", _summary(self.receipts, time.monotonic() - started))

    @property
    def num_workers(self) -> int:
        return self.vllm_config.parallel_config.world_size

    @property
    def failure(self) -> VllmExtError | None:
        return self._failure

    def register_failure_callback(self, callback: Callable[[VllmExtError], None]) -> None:
        self._on_failure.append(callback)

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call all workers at once; results by rank.

        Args:
            method: a name, or a function that the workers can import by its name.
            args, kwargs, and what is returned: plain data, tensors, dataclasses.

        Raises:
            EngineError: a worker failed (a :class:`WorkerError`, with its rank and its traceback), is gone, or gave no
                answer within ``timeout`` seconds, in which case it goes on.
            ContractError and others of vllm_ext: what the worker raised; the text says which one.
        """
        call_id = next(self._call_ids)
        frame = encode_call(call_id, method, args, kwargs)
        return self._call(call_id, frame, name_of_method(method), timeout).values()

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        call_id = next(self._call_ids)
        replies = self._call(call_id, encode_step(call_id, scheduler_output), "execute_model", self._step_timeout_s)
        if replies.unanswered:
            self._fail(replies.timeout_error())
        output: ModelRunnerOutput | None = replies.values()[0]
        if output is None:
            raise RuntimeError("the worker returned None from execute_model() and from sample_tokens()")
        return output

    def check_health(self) -> None:
        self.collective_rpc("check_health")

    def shutdown(self) -> None:
        self._is_shut_down = True
        _end_workers(self._pid, self._workers, self._rendezvous)

    def _start_workers(self) -> None:
        environ = {THREADS_VARIABLE: self._num_threads(), "LOCAL_WORLD_SIZE": str(self.num_workers)}
        hand_over = make_hand_over(self.dispatcher)
        environ |= self._rendezvous.environ
        for rank in range(self.num_workers):
            worker = ChildProcess(f"worker {rank}", _WORKER, environ | {"LOCAL_RANK": str(rank)})
            self._workers.append(worker)
            worker.watch(self._on_end)
            start = Start(rank, rank, self._rendezvous.init_method, rank == 0, hand_over)
            self._send(worker, Frame(Kind.START, msgspec.msgpack.encode(start)))

    def _num_threads(self) -> str:
        """Of each worker: what a plugin has set for the processes to come, or else an equal share of this one's."""
        set_now = os.environ.get(THREADS_VARIABLE)
        if set_now is not None and set_now != THREADS_AT_START:
            return set_now
        return str(max(1, min(torch.get_num_threads(), num_usable_cpus()) // self.num_workers))

    def _read_receipts(self, join_timeout_s: float) -> tuple[Receipt, ...]:
        """Each worker's; the time limit for the last begins with the first."""
        replies = Replies(self._workers, "to apply the engine's plan")
        waiter = Waiter(self._workers)
        waiter.wait(replies, _START_S, until=lambda: bool(replies.answers))
        waiter.wait(replies, join_timeout_s)
        self._check(replies, waiter)
        if replies.unanswered:
            self._fail(replies.timeout_error())
        return tuple(replies.values())

    def _init_devices(self, join_timeout_s: float) -> None:
        call_id = next(self._call_ids)
        replies = self._call(call_id, encode_call(call_id, "init_device"), "init_device", join_timeout_s)
        if not replies.unanswered:
            return
        absent = [rank for rank in replies.unanswered if not self._rendezvous.has_joined(rank)]
        raise replies.timeout_error(
            absent or replies.unanswered,
            f"and so did not join the others within engine.join_timeout_s, {join_timeout_s:g} s",
        )

    def _agree_on_block_size(self) -> None:
        sizes = set(self.collective_rpc(UPDATE_BLOCK_SIZE))
        if len(sizes) > 1:
            raise EngineError(f"the platform chose KV cache blocks of different sizes on its workers: {sorted(sizes)}")
        self.vllm_config.cache_config.block_size = sizes.pop()

    def _call(self, call_id: int, frame: Frame, method: str, timeout: float | None) -> Replies:
        """Send one message to all, and wait for all answers."""
        with self._lock:
            self._check_usable(method)
            replies = Replies(self._workers, f"in {method}()", call_id)
            if not self._late_answers_came(timeout):
                return replies
            self._latest = replies
            waiter = Waiter(self._workers)
            try:
                for worker in self._workers:
                    self._send(worker, frame)
            except BaseException as error:
                # One may have a part of it, and others nothing: they would wait for the rest, and for each other.
                self._note_failure(EngineError(f"{method}() was broken off while it was sent: {error!r}"))
                raise
            waiter.wait(replies, timeout)
            self._check(replies, waiter)
            if not replies.unanswered:
                # Nothing keeps what the caller lets go.
                self._latest = None
            return replies

    def _late_answers_came(self, timeout: float | None) -> bool:
        """Wait for what is left of a call that ran out of time or was broken off; False where ``timeout`` is over.

        While a worker sends a large answer it reads nothing, and a large call would wait for it for ever.
        """
        if self._latest is None or not self._latest.unanswered:
            return True
        Waiter(self._workers).wait(self._latest, timeout, despite_faults=True)
        return not self._latest.unanswered

    def _check(self, replies: Replies, waiter: Waiter) -> None:
        """Raise what a worker raised, once it is known whether the others can go on."""
        if not replies.faults:
            return
        waiter.wait(replies, _SETTLE_S, despite_faults=True)
        error = replies.error()
        if replies.gone or replies.unanswered:
            self._fail(error)
        raise error

    def _check_usable(self, method: str) -> None:
        if os.getpid() != self._pid:
            raise EngineError(
                f"{method!r} was called in process {os.getpid()}, a copy of process {self._pid}, which the workers "
                "belong to; make an engine of its own in each process"
            )
        if self._is_shut_down:
            raise EngineError(f"{method!r} was called on an engine that is shut down")
        if self._failure is not None:
            raise EngineError(
                f"the workers of this engine are gone, so make a new one; what happened: {self._failure}"
            ) from self._failure

    def _send(self, worker: ChildProcess, frame: Frame) -> None:
        try:
            worker.channel.send(frame)
        except OSError:
            # It has ended, which who waits for its answer finds out, with the reason.
            return

    def _fail(self, error: VllmExtError) -> NoReturn:
        """The workers are of no use any more: end them, and raise ``error``, now and in every later call."""
        self._note_failure(error)
        raise error

    def _note_failure(self, error: VllmExtError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        for worker in self._workers:
            worker.kill()
        for callback in self._on_failure:
            callback(error)

    def _on_end(self, worker: ChildProcess) -> None:
        """A worker has ended; called in a thread that watches it."""
        # Who waits for an answer of it finds that out as well, and holds the lock until then.
        with self._lock:
            if worker.is_ending:
                return
            text = f"{worker.name} (PID {worker.pid}) {worker.describe_end()} between two calls"
            self._note_failure(WorkerError(text, rank=self._workers.index(worker)))


def _end_workers(pid: int, workers: list[ChildProcess], rendezvous: Rendezvous) -> None:
    """Tell all to end, and wait until they have; may be called twice."""
    # A forked child has a copy of its parent's objects, and nothing to say to the workers.
    if os.getpid() != pid:
        return
    for worker in workers:
        worker.is_ending = True
        worker.channel.hang_up()
    end_all(workers, _GRACE_S)
    rendezvous.close()


def _summary(receipts: Iterable[Receipt], seconds: float) -> str:
    """One line about all workers."""
    each = list(receipts)
    pids = ", ".join(str(receipt.pid) for receipt in each)
    return (
        f"{len(each)} workers (PID {pids}) run the plan {each[0].fingerprint[:12]} with {', '.join(each[0].active)}; "
        f"ready after {seconds:.1f} s"
    )
