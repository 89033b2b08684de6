"""Settings: their types, where they come from, and which source won."""

from vllm_ext.config.loader import Config, Override, load_config, parse_set
from vllm_ext.config.origin import Origin
from vllm_ext.config.schema import Settings

__all__ = ["Config", "Origin", "Override", "Settings", "load_config", "parse_set"]
