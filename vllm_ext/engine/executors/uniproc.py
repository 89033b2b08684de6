"""The executor that runs one worker in the engine's own process."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

from vllm_ext.contracts.executor import Executor
from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.contracts.worker_check import describe_missing, may_lack_sample_tokens, missing_methods
from vllm_ext.engine.cleanup import shut_down_on_error
from vllm_ext.errors import ConfigError, ContractError, EngineError, did_you_mean

logger = logging.getLogger(__name__)


class UniProcExecutor(Executor):
    """One worker, called directly. Every call runs inside :meth:`Dispatcher.activate`, because another engine of the
    same process may have run in between.
    """

    def _init_executor(self) -> None:
        if (num_workers := self.vllm_config.parallel_config.world_size) != 1:
            raise ConfigError(
                f"engine.tensor_parallel_size is {num_workers}, and executor 'uniproc' runs one worker; set it to 1, "
                "or engine.executor to one that runs several"
            )
        self._worker: WorkerBase | None = self.dispatcher.worker_factory(
            local_rank=0,
            rank=0,
            distributed_init_method=f"tcp://127.0.0.1:{_free_port()}",
            is_driver_worker=True,
        )
        self._check_methods(type(self._worker))
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
            if not isinstance(method, str):
                return [method(worker, *args, **(kwargs or {}))]
            return [self._method_of(worker, method)(*args, **(kwargs or {}))]

    def check_health(self) -> None:
        self.collective_rpc("check_health")

    def shutdown(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            with self.dispatcher.activate():
                worker.shutdown()

    def _method_of(self, worker: WorkerBase, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] | None = getattr(worker, name, None)
        if callable(method):
            return method
        cls = type(worker)
        known = [known for known in dir(cls) if not known.startswith("_")]
        raise ContractError(
            f"worker {cls.__module__}.{cls.__qualname__} of {self.dispatcher.platform_name} has no method "
            f"{name!r}{did_you_mean(name, known)}; worker.extension_cls can add it",
            plugin=self.dispatcher.platform_name,
        )

    def _check_methods(self, worker_cls: type[WorkerBase]) -> None:
        worker = f"worker {worker_cls.__module__}.{worker_cls.__qualname__} of {self.dispatcher.platform_name}"
        if missing := missing_methods(worker_cls):
            raise ContractError(
                f"{worker} does not implement: {describe_missing(worker_cls, missing)}. "
                "The engine calls these methods of every worker",
                plugin=self.dispatcher.platform_name,
            )
        if may_lack_sample_tokens(worker_cls):
            logger.warning(
                "%s does not implement sample_tokens(), which follows on an execute_model() that returns None; by its "
                "annotation it may",
                worker,
            )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
