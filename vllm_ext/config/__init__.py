"""Settings: their types, where they come from, which source won, and how they are shown."""

from vllm_ext.config.keys import REDACTED
from vllm_ext.config.loader import Config, load_config
from vllm_ext.config.origin import Origin
from vllm_ext.config.overrides import Override, parse_set
from vllm_ext.config.sample import render_sample
from vllm_ext.config.schema import Settings
from vllm_ext.config.shown import Shown, effective, json_schema, redacted_settings

__all__ = [
    "REDACTED",
    "Config",
    "Origin",
    "Override",
    "Settings",
    "Shown",
    "effective",
    "json_schema",
    "load_config",
    "parse_set",
    "redacted_settings",
    "render_sample",
]
