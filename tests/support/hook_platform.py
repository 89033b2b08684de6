"""A platform plugin whose ``check_and_update_config()`` is a test's."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.plugins import PluginInstaller

_MODULE = """
import os

import torch

from vllm_ext import PlatformEnum
from vllm_ext.platforms.cpu import CpuPlatform
from vllm_ext.worker.worker import Worker


def register():
    return "acme_npu.Npu"


class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT
    device_name = "npu"

    @classmethod
    def check_and_update_config(cls, vllm_config):
        super().check_and_update_config(vllm_config)
{hook}
{methods}

class NpuWorker(Worker):
    pass
"""

_METHOD = """
    @classmethod
    def {name}(cls, vllm_config):
{hook}
"""


def install_platform(plugins: PluginInstaller, hook: str = "", extra: str = "", **methods: str) -> None:
    """Install the platform ``npu`` of ``acme``, a CPU whose hook also runs the statements ``hook``.

    Args:
        hook: statements about ``vllm_config``.
        extra: what else its module ``acme_npu`` holds.
        methods: other hooks that are given ``vllm_config``: their statements by name.
    """
    written = (_METHOD.format(name=name, hook=indent(text, " " * 8)) for name, text in methods.items())
    source = _MODULE.format(hook=indent(hook, " " * 8), methods="".join(written)) + extra
    plugins.distribution("acme", {"vllm.platform_plugins": ["npu = acme_npu:register"]}, {"acme_npu.py": source})
