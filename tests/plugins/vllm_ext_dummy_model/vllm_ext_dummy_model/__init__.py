"""An example of a general plugin: it registers a model architecture of its own."""

from vllm_ext import ModelRegistry, current_platform

platforms_seen: list[str] = []
"""Class names of what was the current platform, one for each time :func:`register` ran."""


def register() -> None:
    """Entry point. The class is named by a string: it is imported when a model needs it, not before."""
    platforms_seen.append(type(current_platform.get()).__name__)
    if "MyDummyLlamaForCausalLM" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model("MyDummyLlamaForCausalLM", "vllm_ext_dummy_model.my_model:MyDummyLlamaForCausalLM")
