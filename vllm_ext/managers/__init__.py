"""Loads what a plan selected, and nothing else; the only importer of stevedore."""

from vllm_ext.managers.general import load_general
from vllm_ext.managers.load import load_executor_cls, load_group, load_one
from vllm_ext.managers.platforms import PlatformBinding, bind_platform

__all__ = ["PlatformBinding", "bind_platform", "load_executor_cls", "load_general", "load_group", "load_one"]
