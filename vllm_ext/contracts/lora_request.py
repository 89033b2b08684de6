"""What names a LoRA adapter to the engine."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_ext.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter, and where its weights are. vLLM: ``vllm.lora.request.LoRARequest``.

    Raises:
        InvalidRequest: the name is empty, the number below 1, or there is no path.
    """

    lora_name: str
    """What requests call it."""
    lora_int_id: int
    """A number from 1 on that no other adapter of the engine has."""
    lora_path: str
    """Directory with ``adapter_config.json`` and ``adapter_model.safetensors``."""
    base_model_name: str | None = None
    """The model it was trained for, where that is known."""

    @property
    def name(self) -> str:
        """vLLM's shorter name of ``lora_name``."""
        return self.lora_name

    @property
    def adapter_id(self) -> int:
        """vLLM's shorter name of ``lora_int_id``."""
        return self.lora_int_id

    @property
    def path(self) -> str:
        """vLLM's shorter name of ``lora_path``."""
        return self.lora_path

    def __post_init__(self) -> None:
        if not self.lora_name:
            raise InvalidRequest("lora_name is empty; an adapter has a name")
        if not isinstance(self.lora_int_id, int) or isinstance(self.lora_int_id, bool) or self.lora_int_id < 1:
            raise InvalidRequest(
                f"lora_int_id of {self.lora_name!r} is {self.lora_int_id!r}; it takes a whole number from 1 on"
            )
        if not self.lora_path:
            raise InvalidRequest(f"lora_path of {self.lora_name!r} is empty; it takes the adapter's directory")
