"""What passes between an engine's front end and a core in a process of its own: the core's messages, as bytes."""

from __future__ import annotations

import enum

import msgspec

from vllm_ext.engine.core.messages import Capabilities, FromCore, ToCore, UtilityCall, UtilityResult
from vllm_ext.engine.processes import portable
from vllm_ext.engine.processes.channel import Frame
from vllm_ext.engine.processes.portable import NotPortable
from vllm_ext.plan import HandOver, Receipt


class Kind(enum.IntEnum):
    """Of a message."""

    START = 1
    """To the core, first: the plan, as a :class:`HandOver`."""
    READY = 2
    """From the core, as :class:`Ready`."""
    FAILURE = 3
    """From the core: what prevented its start."""
    MESSAGE = 4
    """One of :mod:`vllm_ext.engine.core.messages`."""
    UTILITY = 5
    """A call of the core or its answer, with values of any portable kind."""


class Ready(msgspec.Struct, frozen=True):
    """The core stands: what the front end has to know of it."""

    receipts: tuple[Receipt, ...]
    """Of the core, then of its workers."""
    capabilities: Capabilities
    max_model_len: int
    block_size: int
    num_gpu_blocks: int | None


_encode = msgspec.msgpack.Encoder().encode
_to_core = msgspec.msgpack.Decoder(ToCore).decode
_from_core = msgspec.msgpack.Decoder(FromCore).decode


def encode_start(hand_over: HandOver) -> Frame:
    """The first message."""
    return Frame(Kind.START, _encode(hand_over))


def decode_start(frame: Frame) -> HandOver:
    """The plan in it."""
    return msgspec.msgpack.decode(frame.content, type=HandOver)


def encode_ready(ready: Ready) -> Frame:
    """The answer to the first message."""
    return Frame(Kind.READY, _encode(ready))


def decode_ready(frame: Frame) -> Ready:
    """What is in it."""
    return msgspec.msgpack.decode(frame.content, type=Ready)


def encode_message(message: ToCore | FromCore) -> Frame:
    """A message in either direction; NotPortable for a call with arguments that cannot pass."""
    if isinstance(message, UtilityCall):
        return Frame.numbered(Kind.UTILITY, message.call_id, portable.encode(message))
    if isinstance(message, UtilityResult):
        return Frame.numbered(Kind.UTILITY, message.call_id, _encode_result(message))
    return Frame(Kind.MESSAGE, _encode(message))


def decode_to_core(frame: Frame) -> ToCore:
    """A message to the core; NotPortable for a call that refers to code which cannot be imported here."""
    if frame.kind == Kind.UTILITY:
        call: UtilityCall = portable.decode(frame.body)
        return call
    return _to_core(frame.content)


def decode_from_core(frame: Frame) -> FromCore:
    """A message from the core; a result that cannot be made here becomes a failure that says so."""
    if frame.kind == Kind.UTILITY:
        try:
            result: UtilityResult = portable.decode(frame.body)
        except NotPortable as error:
            return UtilityResult(frame.call_id, failure=str(error))
        return result
    return _from_core(frame.content)


def _encode_result(result: UtilityResult) -> bytes:
    try:
        return portable.encode(result)
    except NotPortable as error:
        return portable.encode(UtilityResult(result.call_id, failure=str(error)))
