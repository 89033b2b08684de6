"""Loads what a plan selected, and nothing else; the only importer of stevedore."""

from vllm_ext.managers.current import find_bound_plan, set_default_bound_plan, use_bound_plan
from vllm_ext.managers.general import load_general
from vllm_ext.managers.load import LoadedPlugin, load_driver, load_extensions, load_group
from vllm_ext.managers.platforms import PlatformBinding, bind_platform

__all__ = [
    "LoadedPlugin",
    "PlatformBinding",
    "bind_platform",
    "find_bound_plan",
    "load_driver",
    "load_extensions",
    "load_general",
    "load_group",
    "set_default_bound_plan",
    "use_bound_plan",
]
