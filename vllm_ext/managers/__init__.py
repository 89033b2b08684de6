"""Loads what a plan selected, and nothing else, by stevedore's managers."""

from vllm_ext.managers.current import find_bound_plan, set_default_bound_plan, use_bound_plan
from vllm_ext.managers.general import load_general
from vllm_ext.managers.load import (
    LoadedPlugin,
    build_extension,
    extension_outcomes,
    load_chosen,
    load_driver,
    load_extensions,
    load_group,
    settling,
)
from vllm_ext.managers.platforms import PlatformBinding, activate_bound, bind_platform, runtime_versions
from vllm_ext.managers.receipts import make_receipt

__all__ = [
    "LoadedPlugin",
    "PlatformBinding",
    "activate_bound",
    "bind_platform",
    "build_extension",
    "extension_outcomes",
    "find_bound_plan",
    "load_chosen",
    "load_driver",
    "load_extensions",
    "load_general",
    "load_group",
    "make_receipt",
    "runtime_versions",
    "set_default_bound_plan",
    "settling",
    "use_bound_plan",
]
