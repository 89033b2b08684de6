"""Methods added to a worker by a class of the user's, for :meth:`Executor.collective_rpc`."""

from __future__ import annotations

from vllm_ext.contracts.worker import WorkerBase
from vllm_ext.errors import ContractError, dotted_path, listing


def extend_worker(worker_cls: type[WorkerBase], extension_cls: type, source: str) -> type[WorkerBase]:
    """A new subclass of both; neither of them is changed (vLLM adds a base to the worker's own class).

    Args:
        source: who named the extension, for messages.

    Raises:
        ContractError: the extension has attributes of the worker's, or no class can derive from both.
    """
    worker, extension = dotted_path(worker_cls), dotted_path(extension_cls)
    names = {name for name in dir(extension_cls) if not name.startswith("__")}
    if conflicts := names & set(dir(worker_cls)):
        raise ContractError(
            f"worker extension {extension!r} of {source} and worker {worker!r} both have {listing(conflicts)}; an "
            "extension adds to a worker and replaces nothing: use other names there"
        )
    try:
        extended: type[WorkerBase] = type(
            f"{worker_cls.__name__}+{extension_cls.__name__}",
            (worker_cls, extension_cls),
            {"__module__": worker_cls.__module__, "__doc__": f"{worker} with the methods of {extension}."},
        )
    except TypeError as error:
        raise ContractError(
            f"worker extension {extension!r} of {source} and worker {worker!r} cannot be joined: {error}"
        ) from error
    return extended
