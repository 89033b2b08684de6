"""Where the workers of one machine find each other."""

from __future__ import annotations

import datetime
import errno
import os
import socket

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from vllm_ext.distributed.parallel_state import joined_key
from vllm_ext.errors import ConfigError, EngineError, did_you_mean

_HOST = "127.0.0.1"


class Rendezvous:
    """A store that this process serves on the loopback interface, and that no worker has to find a free port for.

    Args:
        world_size: number of workers.
        port: for the store; ``None`` for one that the system chooses.
        timeout_s: seconds that a worker waits for the others.

    Raises:
        EngineError: the port is in use.
        ConfigError: ``GLOO_SOCKET_IFNAME`` names an interface that this machine does not have.
    """

    def __init__(self, world_size: int, port: int | None, timeout_s: float) -> None:
        _check_interfaces()
        with socket.socket() as listener:
            try:
                listener.bind((_HOST, port or 0))
            except OSError as error:
                what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
                raise EngineError(
                    f"port {port} of {_HOST}, where the workers are to find each other, {what}; set engine.master_port "
                    "to a free one, or to null for any"
                ) from error
            listener.listen()
            self._port = listener.getsockname()[1]
            # The store takes the descriptor over.
            self._store: TCPStore | None = TCPStore(
                _HOST,
                self._port,
                world_size,
                is_master=True,
                timeout=datetime.timedelta(seconds=timeout_s),
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )

    @property
    def init_method(self) -> str:
        """vLLM's ``distributed_init_method`` of the workers."""
        return f"tcp://{_HOST}:{self._port}"

    @property
    def environ(self) -> dict[str, str]:
        """What tells torch, in the workers, that the store is served already; and gloo to stay on this machine."""
        names = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        return names | ({} if "GLOO_SOCKET_IFNAME" in os.environ else {"GLOO_SOCKET_IFNAME": _loopback()})

    def has_joined(self, rank: int) -> bool:
        """Whether the worker of that rank has come, and perhaps waits for others."""
        return self._store is not None and self._store.check([joined_key(rank)])

    def close(self) -> None:
        """Serve no longer; may be called twice."""
        self._store = None


def _check_interfaces() -> None:
    """Refuse what would fail in every worker, with the source of it."""
    given = os.environ.get("GLOO_SOCKET_IFNAME")
    if not given:
        # torch takes an empty one for none.
        return
    names = [name for _, name in socket.if_nameindex()]
    for name in given.split(","):
        if name not in names:
            raise ConfigError(
                f"environment (GLOO_SOCKET_IFNAME): no network interface {name!r}{did_you_mean(name, names)}; "
                f"interfaces: {', '.join(names)}. Unset it for the workers to talk over the loopback one"
            )


def _loopback() -> str:
    """Name of the interface: ``lo`` on Linux, ``lo0`` elsewhere."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])
