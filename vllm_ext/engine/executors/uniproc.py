"""The executor that runs one worker in the engine's own process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from vllm_ext.contracts.executor import Executor
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.engine.executors.worker_calls import call_worker, check_worker_cls
from vllm_ext.engine.processes.cleanup import shut_down_on_error
from vllm_ext.engine.processes.forked import compute_in_this_thread
from vllm_ext.errors import ConfigError, EngineError

_of_the_parent: list[WorkerBase | None] = []
"""In a forked copy of the process, the workers of its parent, which are kept for ever: to collect one would end its
process groups, and that waits for threads which the copy does not have.
"""


class UniProcExecutor(Executor):
    """One worker, called directly. Every call runs inside :meth:`Dispatcher.activate`, because another engine of the
    same process may have run in between.
    """

    def _init_executor(self) -> None:
        self._pid = os.getpid()
        if (num_workers := self.vllm_config.parallel_config.world_size) != 1:
            raise ConfigError(
                f"engine.tensor_parallel_size is {num_workers}, and executor 'uniproc' runs one worker; set it to 1, "
                "or engine.executor to 'multiproc', which runs several"
            )
        compute_in_this_thread()
        self._worker: WorkerBase | None = self.dispatcher.worker_factory(
            local_rank=0,
            rank=0,
            distributed_init_method=f"tcp://127.0.0.1:{_free_port()}",
            is_driver_worker=True,
        )
        check_worker_cls(self._worker, self.dispatcher.platform_name)
        with shut_down_on_error(self.shutdown):
            self.collective_rpc("init_device")
            self.collective_rpc("load_model")
            self.dispatcher.update_block_size()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        """Call the worker, in this thread, so that nothing can break it off: ``timeout`` is passed over, as in vLLM.
        What it raises comes through as it is.
        """
        worker = self._worker
        if worker is None:
            raise EngineError(f"{method!r} was called on an engine that is shut down")
        with self.dispatcher.activate():
            return [call_worker(worker, method, args, kwargs or {}, self.dispatcher.platform_name)]

    def check_health(self) -> None:
        self.collective_rpc("check_health")

    def shutdown(self) -> None:
        worker, self._worker = self._worker, None
        if os.getpid() != self._pid:
            _of_the_parent.append(worker)
        elif worker is not None:
            with self.dispatcher.activate():
                worker.shutdown()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
