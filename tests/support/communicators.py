"""Communicators that tests name in the settings."""

from __future__ import annotations

from vllm_ext.contracts.communicator import DeviceCommunicatorBase


class Silent(DeviceCommunicatorBase):
    """Sums in place, and returns nothing."""

    def all_reduce(self, input_):
        super().all_reduce(input_)


class Own(DeviceCommunicatorBase):
    def all_reduce(self, input_):
        return super().all_reduce(input_)
