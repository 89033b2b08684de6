"""An engine core in a process of its own, from the inside."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from vllm_ext.dispatch.take_over import make_dispatcher, take_over
from vllm_ext.engine.core.engine_core import EngineCore
from vllm_ext.engine.core.loop import EngineCoreLoop
from vllm_ext.engine.core.messages import FromCore, Shutdown, ToCore, UtilityResult
from vllm_ext.engine.core.process_messages import (
    Kind,
    Ready,
    decode_start,
    decode_to_core,
    encode_message,
    encode_ready,
)
from vllm_ext.engine.processes import portable
from vllm_ext.engine.processes.channel import Channel, Frame
from vllm_ext.engine.processes.child_main import SAID_BY_THE_ENGINE, read_start, speak_as, tell
from vllm_ext.engine.processes.failure import Failure
from vllm_ext.engine.processes.portable import NotPortable

_NAME = "engine core"

logger = logging.getLogger(__name__)


def main(channel: Channel) -> None:
    """Serve the front end at the other end of the channel until it says so, or is gone."""
    start = read_start(channel)
    speak_as(_NAME, logging.WARNING, quiet=SAID_BY_THE_ENGINE)
    try:
        hand_over = decode_start(start)
        started, receipt = take_over(hand_over, _NAME)
        core = EngineCore(make_dispatcher(started, hand_over, receipt))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it is raised again, in the front end
        tell(channel, Frame(Kind.FAILURE, portable.encode(Failure.of(error, _NAME, "to start"))))
        return

    def send(message: FromCore) -> None:
        tell(channel, encode_message(message))

    inbox: SimpleQueue[ToCore] = SimpleQueue()
    config = core.vllm_config
    ready = Ready(
        (receipt, *core.executor.receipts),
        core.capabilities,
        config.model_config.max_model_len,
        config.cache_config.block_size,
        config.cache_config.num_gpu_blocks,
    )
    tell(channel, encode_ready(ready))
    threading.Thread(target=_read, args=(channel, inbox, send), name="vllm_ext-front-end", daemon=True).start()
    EngineCoreLoop(core, inbox, send).run()


def _read(channel: Channel, inbox: SimpleQueue[ToCore], send: Callable[[FromCore], None]) -> None:
    """The thread: hand on what the front end sends; its end is the core's."""
    try:
        while True:
            frame = channel.receive()
            try:
                inbox.put(decode_to_core(frame))
            except NotPortable as error:
                send(UtilityResult(frame.call_id, failure=str(error)))
    except (EOFError, OSError):
        inbox.put(Shutdown())
    except Exception:
        # The front end is told by the end of this process.
        logger.exception("the engine core stops: it cannot read what the front end sends")
        inbox.put(Shutdown())
