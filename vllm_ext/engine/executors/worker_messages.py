"""What passes between a ``multiproc`` executor and its workers.

A call is answered by one message with the same number. A step has a form of its own, which costs a tenth of the general
one; a scheduler's or a worker's subclass of what it is made of takes the general form, and so do token ids that are no
plain integers.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from typing import Any

import msgspec

from vllm_ext.contracts.outputs import ModelRunnerOutput
from vllm_ext.contracts.scheduler_output import SchedulerOutput
from vllm_ext.engine.processes import portable
from vllm_ext.engine.processes.channel import Frame
from vllm_ext.engine.processes.failure import Failure
from vllm_ext.plan import HandOver, Receipt


class Kind(enum.IntEnum):
    """Of a message."""

    START = 1
    """To the worker, first: who it is, and the plan."""
    RECEIPT = 2
    """From the worker: it has applied the plan; the answer to its start, as to call 0."""
    CALL = 3
    """To the worker: call a method."""
    STEP = 4
    """To the worker: a step."""
    RESULT = 5
    """From the worker: what a method returned."""
    OUTPUT = 6
    """From the worker: what a step gave."""
    FAILURE = 7
    """From the worker: what a method raised, or what prevented its start."""


STEP_METHOD = "execute_model+sample_tokens"
"""Stands for both methods of the worker, the second one where the first returns ``None``."""
CREATE_WORKER = "process.create_worker"
"""Of the process, as the next one; all others are the worker's."""
UPDATE_BLOCK_SIZE = "process.update_block_size"


class Start(msgspec.Struct, frozen=True):
    """Who a worker is."""

    rank: int
    local_rank: int
    distributed_init_method: str
    is_driver_worker: bool
    hand_over: HandOver


class _Output(msgspec.Struct, array_like=True, frozen=True):
    req_ids: list[str]
    req_id_to_index: dict[str, int]
    sampled_token_ids: Any
    """Read by the scheduler, which says what is wrong with them where something is."""


_encode = msgspec.msgpack.Encoder().encode
_step_of = msgspec.msgpack.Decoder(SchedulerOutput).decode
_output_of = msgspec.msgpack.Decoder(_Output).decode


def encode_call(
    call_id: int,
    method: str | Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    reply_rank: int | None = None,
) -> Frame:
    """A call; where ``reply_rank`` is given, the result of no other rank is of interest."""
    return Frame.numbered(Kind.CALL, call_id, portable.encode([method, args, kwargs or {}, reply_rank]))


def encode_step(call_id: int, scheduler_output: SchedulerOutput) -> Frame:
    """A step, in one phase or in two; only rank 0 answers with what it gave."""
    if type(scheduler_output) is SchedulerOutput:
        return Frame.numbered(Kind.STEP, call_id, _encode(scheduler_output))
    return encode_call(call_id, STEP_METHOD, (scheduler_output,), reply_rank=0)


class Call(msgspec.Struct, frozen=True):
    """A call as a worker gets it."""

    method: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reply_rank: int | None = None


def decode_call(frame: Frame) -> Call:
    """The call, or the step, in a message to a worker.

    Raises:
        NotPortable: it refers to code that cannot be imported here.
    """
    if frame.kind == Kind.STEP:
        return Call(STEP_METHOD, (_step_of(frame.body),), {}, 0)
    return Call(*portable.decode(frame.body))


def encode_receipt(receipt: Receipt) -> Frame:
    """What the worker proved to run."""
    return Frame.numbered(Kind.RECEIPT, 0, _encode(receipt))


def encode_result(call_id: int, value: Any) -> Frame:
    """What a method returned."""
    if type(value) is ModelRunnerOutput and not (value.logprobs or value.prompt_logprobs_dict or value.pooler_output):
        output = _Output(value.req_ids, value.req_id_to_index, value.sampled_token_ids)
        # Of tensors and numpy's integers it is an error that costs nothing where there are none.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return Frame.numbered(Kind.OUTPUT, call_id, _encode(output))
    return Frame.numbered(Kind.RESULT, call_id, portable.encode(value))


def encode_failure(call_id: int, failure: Failure) -> Frame:
    """What a method raised, or with call 0 what prevented the start."""
    return Frame.numbered(Kind.FAILURE, call_id, portable.encode(failure))


def decode_answer(frame: Frame) -> Any:
    """The receipt, the result or the :class:`Failure` in a message of a worker.

    Raises:
        NotPortable: it refers to code that cannot be imported here.
    """
    if frame.kind == Kind.RECEIPT:
        return msgspec.msgpack.decode(frame.body, type=Receipt)
    if frame.kind == Kind.OUTPUT:
        output = _output_of(frame.body)
        return ModelRunnerOutput(output.req_ids, output.req_id_to_index, output.sampled_token_ids)
    return portable.decode(frame.body)
