"""What model classes have in common that read their sizes from ``config.json``."""

from __future__ import annotations

from typing import Any

from vllm_ext.contracts.vllm_config import HFConfig, VllmConfig
from vllm_ext.layers.sharding import check_tensor_parallel_size


class ConfiguredModel:
    """A model class that knows its sizes before it is built; it comes before ``nn.Module``."""

    @classmethod
    def read_config(cls, config: HFConfig) -> Any:
        """The model that ``config`` describes, with ``num_heads``, ``num_kv_heads`` and ``intermediate_size``."""
        raise NotImplementedError(f"{cls.__name__} does not say how its config.json is read")

    @classmethod
    def check_tensor_parallel_size(cls, vllm_config: VllmConfig) -> None:
        """ConfigError where the model cannot be split over so many ranks; the text says which numbers are possible."""
        hf_config = vllm_config.model_config.hf_config
        sizes = cls.read_config(hf_config)
        check_tensor_parallel_size(
            f"{cls.__name__} of {hf_config.source}",
            vllm_config.parallel_config.tensor_parallel_size,
            num_heads=sizes.num_heads,
            num_kv_heads=sizes.num_kv_heads,
            intermediate=sizes.intermediate_size,
        )
