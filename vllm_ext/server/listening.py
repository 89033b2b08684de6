"""The socket that the server listens on."""

from __future__ import annotations

import socket

from vllm_ext.config import Config
from vllm_ext.errors import ConfigError

BACKLOG = 2048
"""Connections that may wait to be accepted."""


def bind(config: Config) -> socket.socket:
    """A socket at the host and port of the settings, which takes no connections yet.

    Raises:
        ConfigError: there is no such host here, or the port is taken or not allowed.
    """
    host, port = config.settings.server.host, config.settings.server.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{config.where('server.host')}: {host!r} is no address of this machine: {_reason(error)}; 127.0.0.1 is "
            "this machine alone, 0.0.0.0 all its networks"
        ) from error
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _taken(config, error) from error
    return sock


def listen(sock: socket.socket, config: Config) -> None:
    """Let clients connect. Before that they are refused, so that nobody waits for a model that is being loaded.

    Raises:
        ConfigError: another server listens there by now.
    """
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise _taken(config, error) from error


def url_of(sock: socket.socket) -> str:
    """Where clients find the server."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


def _taken(config: Config, error: OSError) -> ConfigError:
    server = config.settings.server
    return ConfigError(
        f"{config.where('server.port')}: cannot listen on port {server.port} of {server.host}: {_reason(error)}; give "
        "another port, or 0 for any free one"
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
