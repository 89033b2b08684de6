"""An example of a platform plugin: a device of its own worker, attention, communicator and ops.

The device is the host's memory and processor, reached through torch, so that the example runs anywhere. Nothing
heavy is imported here: the entry points are called while the platform is still being chosen.
"""

from collections import Counter

calls: Counter[str] = Counter()
"""How often each part ran: ``attention``, ``worker_steps``, ``all_reduce``, ``rms_norm`` ... ``calls.clear()``
starts anew."""

carried: Counter[str] = Counter()
"""Bytes that this rank gave to each collective of the communicator; in a group of one nothing is carried."""


def register() -> str | None:
    """Entry point of the platform: the platform's class path, or ``None`` where its device is missing."""
    return "vllm_ext_dummy_platform.my_dummy_platform.MyDummyPlatform"


def register_ops() -> None:
    """General plugin: let this platform's ops take the place of the in-tree ones."""
    from vllm_ext_dummy_platform.my_dummy_custom_ops import register_custom_ops

    register_custom_ops()


def register_methods() -> None:
    """General plugin: quantization, model loader, tokenizer and LoRA resolver under names of their own."""
    from vllm_ext import LoRAResolverRegistry, TokenizerRegistry, register_model_loader, register_quantization_config
    from vllm_ext_dummy_platform.my_dummy_lora_resolver import MyDummyLoRAResolver
    from vllm_ext_dummy_platform.my_dummy_model_loader import MyDummyModelLoader
    from vllm_ext_dummy_platform.my_dummy_quantization import MyDummyQuantizationConfig

    register_quantization_config("dummy_grid")(MyDummyQuantizationConfig)
    register_model_loader("dummy_files")(MyDummyModelLoader)
    TokenizerRegistry.register("dummy_bytes", "vllm_ext_dummy_platform.my_dummy_tokenizer", "MyDummyTokenizer")
    LoRAResolverRegistry.register_resolver("dummy_adapters", MyDummyLoRAResolver())
