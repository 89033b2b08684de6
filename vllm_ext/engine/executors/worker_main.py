"""A worker in a process of its own: it applies the plan, builds the worker, and calls what it is told to."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.dispatch.blame import whose_code
from vllm_ext.dispatch.dispatcher import Dispatcher
from vllm_ext.dispatch.take_over import make_dispatcher, take_over
from vllm_ext.engine.executors.worker_calls import call_worker, check_worker_cls, name_of_method
from vllm_ext.engine.executors.worker_messages import (
    CREATE_WORKER,
    STEP_METHOD,
    UPDATE_BLOCK_SIZE,
    Call,
    Start,
    decode_call,
    encode_failure,
    encode_receipt,
    encode_result,
)
from vllm_ext.engine.processes.channel import Channel, Frame
from vllm_ext.engine.processes.child_main import SAID_BY_THE_ENGINE, read_start, speak_as, tell
from vllm_ext.engine.processes.failure import Failure


def main(channel: Channel) -> None:
    """Serve the executor at the other end of the channel until it hangs up."""
    start = msgspec.msgpack.decode(read_start(channel).content, type=Start)
    name = f"worker {start.rank}"
    speak_as(name, logging.WARNING if start.rank == 0 else logging.ERROR, quiet=SAID_BY_THE_ENGINE)
    try:
        process = WorkerProcess(channel, start)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it is raised again, in the engine's process
        tell(channel, _failure(error, start.rank, "to apply the engine's plan"))
        return
    process.serve()


class WorkerProcess:
    """The worker of one rank; its receipt is sent as soon as the plan is applied."""

    def __init__(self, channel: Channel, start: Start) -> None:
        self._channel = channel
        self._start = start
        started, receipt = take_over(start.hand_over, "worker", start.rank)
        self._dispatcher: Dispatcher = make_dispatcher(started, start.hand_over, receipt)
        self._worker: WorkerBase | None = None
        tell(channel, encode_receipt(receipt))

    def serve(self) -> None:
        """Answer calls one after the other; at the end the worker is shut down."""
        # Once, and not in each call: the process has this engine only.
        with self._dispatcher.activate():
            try:
                while (frame := self._next()) is not None:
                    self._answer(frame)
            finally:
                if self._worker is not None:
                    self._worker.shutdown()

    def _create_worker(self) -> None:
        """Build the worker of the class that the plan's platform, or the settings, named."""
        start = self._start
        self._worker = self._dispatcher.worker_factory(
            local_rank=start.local_rank,
            rank=start.rank,
            distributed_init_method=start.distributed_init_method,
            is_driver_worker=start.is_driver_worker,
        )
        check_worker_cls(self._worker, self._dispatcher.platform_name)

    def _update_block_size(self) -> int:
        """The size of KV cache blocks, once the platform has had its say."""
        self._dispatcher.update_block_size()
        return self._dispatcher.vllm_config.cache_config.block_size

    def _next(self) -> Frame | None:
        try:
            return self._channel.receive()
        except EOFError:
            return None

    def _answer(self, message: Frame) -> None:
        call_id, where = message.call_id, "to read a call"
        try:
            call = decode_call(message)
            where = f"in {name_of_method(call.method)}()"
            value = self._call(call)
            is_wanted = call.reply_rank in (None, self._start.rank)
            frame = encode_result(call_id, value if is_wanted else None)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the engine's process
            whose = whose_code(error, self._dispatcher.bound_plan)
            frame = _failure(error, self._start.rank, where, call_id, whose)
        tell(self._channel, frame)

    def _call(self, call: Call) -> Any:
        if call.method == CREATE_WORKER:
            return self._create_worker()
        if call.method == UPDATE_BLOCK_SIZE:
            return self._update_block_size()
        if self._worker is None:
            raise RuntimeError("there is no worker yet: create_worker comes first")
        if call.method == STEP_METHOD:
            output = self._worker.execute_model(*call.args)
            return self._worker.sample_tokens(None) if output is None else output
        return call_worker(self._worker, call.method, call.args, call.kwargs, self._dispatcher.platform_name)


def _failure(error: BaseException, rank: int, where: str, call_id: int = 0, whose: str = "") -> Frame:
    return encode_failure(call_id, Failure.of(error, f"worker {rank}", where, rank, whose))
