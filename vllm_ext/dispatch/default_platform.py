"""``current_platform`` outside of an engine: the process default, chosen by the settings of environment and files.

Importing this module registers that choice. It does not import torch.
"""

from __future__ import annotations

from vllm_ext.config import load_config
from vllm_ext.contracts.current_platform import current_platform
from vllm_ext.contracts.platform import Platform
from vllm_ext.dispatch.planning import make_plan
from vllm_ext.managers import PlatformBinding, bind_platform, set_default_bound_plan

__all__ = ["as_default", "current_platform"]


def as_default(binding: PlatformBinding) -> Platform:
    """The platform that is to become the process default.

    Effects: its plan is the process's from now on, so that general plugins run under the one it was chosen by.
    """
    set_default_bound_plan(binding.bound_plan)
    return binding.platform


def _choose() -> Platform:
    return as_default(bind_platform(make_plan(load_config())))


if not current_platform.has_resolver():
    current_platform.set_resolver(_choose)
