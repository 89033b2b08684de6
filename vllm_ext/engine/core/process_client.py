"""An engine core in a process of its own, seen from the front end."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from vllm_ext.dispatch.take_over import make_hand_over
from vllm_ext.engine.core.messages import EngineCoreDead, FromCore, Shutdown, ToCore
from vllm_ext.engine.core.process_messages import (
    Kind,
    Ready,
    decode_from_core,
    decode_ready,
    encode_message,
    encode_start,
)
from vllm_ext.engine.processes import portable
from vllm_ext.engine.processes.channel import Frame
from vllm_ext.engine.processes.child import ChildProcess
from vllm_ext.engine.processes.failure import Failure
from vllm_ext.errors import EngineError, innermost_cause

if TYPE_CHECKING:
    from vllm_ext.dispatch.dispatcher import Dispatcher

_CORE = "vllm_ext.engine.core.process_main"
_GRACE_S = 10.0
"""What the core gets to end its step, its workers, and itself."""


class ProcessCoreClient:
    """As :class:`~vllm_ext.engine.core.thread_client.ThreadCoreClient`, for a core that shares nothing with us.

    Args:
        dispatcher: its plan is handed over; limits that the core finds out are entered into its configuration.
        on_message: takes what comes from the core, in order; called in a thread, and must not wait.

    Raises:
        EngineError, PluginError, ModelError: what prevented the start; no process is left.
    """

    def __init__(self, dispatcher: Dispatcher, on_message: Callable[[FromCore], None]) -> None:
        self._on_message = on_message
        self._pid = os.getpid()
        self._process = ChildProcess("engine core", _CORE, {"OMP_NUM_THREADS": str(torch.get_num_threads())})
        self._process.watch(lambda _: None)
        try:
            self._send(encode_start(make_hand_over(dispatcher)))
            ready = self._read_ready()
        except BaseException:
            # Also an interrupt, while the core is still starting.
            self.shutdown()
            raise
        config = dispatcher.vllm_config
        config.model_config.max_model_len = ready.max_model_len
        config.cache_config.block_size = ready.block_size
        config.cache_config.num_gpu_blocks = ready.num_gpu_blocks
        self.capabilities = ready.capabilities
        """What the workers can do."""
        self.receipts = ready.receipts
        """Of the core and of its workers: what each proved to run."""
        self._reader = threading.Thread(target=self._read, name="vllm_ext-engine-core", daemon=True)
        self._reader.start()

    def send(self, message: ToCore) -> None:
        """Hand a message to the core, which takes it before its next step.

        Raises:
            NotPortable: it is a call with arguments that cannot pass to another process.
        """
        self._send(encode_message(message))

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive

    def shutdown(self) -> None:
        """Stop the core, and wait for the end of its process; may be called twice, and does nothing in a forked copy of
        this process, whose core it is not.
        """
        if os.getpid() != self._pid:
            return
        self._process.is_ending = True
        deadline = time.monotonic() + _GRACE_S
        # One that is gone need not be told, and one that reads nothing is ended all the same.
        with contextlib.suppress(OSError):
            self._process.channel.send_before(encode_message(Shutdown()), deadline)
        self._process.end(deadline)

    def _send(self, frame: Frame) -> None:
        # A core that is gone is found out by who reads what it sends.
        with contextlib.suppress(OSError):
            self._process.channel.send(frame)

    def _read_ready(self) -> Ready:
        try:
            frame = self._process.channel.receive()
        except EOFError:
            raise self._gone("while it started") from None
        if frame.kind == Kind.FAILURE:
            failure: Failure = portable.decode(frame.content)
            raise failure.as_error()
        return decode_ready(frame)

    def _read(self) -> None:
        """The thread: hand on what comes, and say so when the core is gone without having been told to."""
        try:
            while True:
                self._on_message(decode_from_core(self._process.channel.receive()))
        except (EOFError, OSError):
            if not self._process.is_ending:
                self._on_message(EngineCoreDead(str(self._gone("while it was needed"))))
        except Exception as error:  # noqa: BLE001 - everybody who waits is told
            self._on_message(EngineCoreDead(f"what it sends cannot be read: {innermost_cause(error)}"))

    def _gone(self, when: str) -> EngineError:
        return EngineError(f"the engine core (PID {self._process.pid}) {self._process.describe_end()} {when}")
