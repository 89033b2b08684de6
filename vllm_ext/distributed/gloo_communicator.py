"""Collectives over gloo, for devices whose memory is the host's."""

from __future__ import annotations

from typing import Any

from vllm_ext.contracts.communicator import DeviceCommunicatorBase
from vllm_ext.distributed.all2all import ALL2ALL_MANAGERS
from vllm_ext.errors import ConfigError, did_you_mean, listing


class GlooCommunicator(DeviceCommunicatorBase):
    """The base's collectives, and in an expert-parallel group a manager that takes tokens to the experts.

    Raises:
        ConfigError: ``parallel_config.all2all_backend`` names no way that gloo has.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.use_all2all:
            return
        name = self.all2all_backend or next(iter(ALL2ALL_MANAGERS))
        if name not in ALL2ALL_MANAGERS:
            raise ConfigError(
                f"parallel_config.all2all_backend is {name!r}{did_you_mean(name, ALL2ALL_MANAGERS)}, which the gloo "
                f"communicator of group {self.unique_name!r} does not have; it has: {listing(ALL2ALL_MANAGERS)}"
            )
        self.all2all_manager = ALL2ALL_MANAGERS[name](self)
