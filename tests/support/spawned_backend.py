"""What a spawned process does with a pickled member of AttentionBackendEnum; no torch is needed for it."""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection

from vllm_ext.attention.backends.registry import AttentionBackendEnum, register_backend

PATH = "some.module.Backend"


def register() -> None:
    """What a plugin does in every process."""
    register_backend("SPAWNED", PATH)
    register_backend(AttentionBackendEnum.CUSTOM, PATH)


def receive(with_plugin: bool, pickled: bytes, connection: Connection) -> None:
    """Unpickle and tell: name, whether it is the process's own member, and class path; or the error."""
    if with_plugin:
        register()
    try:
        member = pickle.loads(pickled)
        connection.send((member.name, member is AttentionBackendEnum[member.name], member.get_path()))
    except ValueError as error:
        connection.send(str(error))
