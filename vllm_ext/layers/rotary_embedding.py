"""Rotary position embedding."""

from __future__ import annotations

import torch

from vllm_ext import _custom_ops
from vllm_ext.contracts.custom_op import CustomOp
from vllm_ext.contracts.vllm_config import HFConfig, get_current_vllm_config
from vllm_ext.layers.cpu_kernel_op import CpuKernelOp
from vllm_ext.layers.rope_scaling import Rope


@CustomOp.register("rotary_embedding")
class RotaryEmbedding(CpuKernelOp):
    """Rotates each head of query and key by an angle that grows with the position (neox style: halves, not pairs).
    vLLM: ``RotaryEmbedding``.

    Args:
        head_size: size of a head; all of it is rotated.
        max_position: positions are below this.
        inv_freq: float32 ``[head_size / 2]``, angle per position.
        attention_factor: multiplies the result, and so, by its square, the logits of attention.
    """

    def __init__(
        self, head_size: int, max_position: int, inv_freq: torch.Tensor, attention_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.head_size = head_size
        angles = torch.outer(torch.arange(max_position, dtype=torch.float32, device=inv_freq.device), inv_freq)
        cos, sin = angles.cos() * attention_factor, angles.sin() * attention_factor
        # cos and signed sin of both halves side by side: one lookup per call, and no negation.
        cache = torch.cat((cos, cos, -sin, sin), dim=-1)
        dtype = get_current_vllm_config().model_config.dtype
        self.cos_sin_cache: torch.Tensor
        self.register_buffer("cos_sin_cache", cache.to(dtype), persistent=False)

    def forward_native(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rotate query and key.

        Args:
            positions: int64 ``[tokens]``; only read.
            query, key: ``[tokens, heads * head_size]`` each with any number of heads, in the model's dtype; only read.

        Returns: new tensors ``[tokens, heads * head_size]`` of the same dtype, ``None`` for no key.
        """
        cos, sin = self.cos_sin_cache.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
        rotated_key = None if key is None else self._rotate(key, cos, sin)
        return self._rotate(query, cos, sin), rotated_key

    def forward_cpu(
        self, positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One pass over each tensor in a compiled kernel; as :meth:`forward_native`."""
        if query.dtype is not self.cos_sin_cache.dtype:
            return self.forward_native(positions, query, key)
        rotate = _custom_ops.rotary_embedding
        rotated_key = None if key is None else rotate(positions, key, self.cos_sin_cache, self.head_size)
        return rotate(positions, query, self.cos_sin_cache, self.head_size), rotated_key

    def _rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = x.view(x.shape[0], -1, self.head_size)
        rotated = torch.addcmul(heads * cos, heads.roll(self.head_size // 2, -1), sin)
        return rotated.view(x.shape)


def get_rope(hf_config: HFConfig, head_size: int, max_position: int) -> RotaryEmbedding:
    """The rotary embedding of a model's configuration, for positions below ``max_position``.

    Raises:
        CheckpointError: a parameter is missing or no number.
        UnsupportedModel: a kind of scaling that is not known.
    """
    inv_freq, attention_factor = Rope.read(hf_config, head_size, max_position).frequencies()
    return RotaryEmbedding(head_size, max_position, inv_freq, attention_factor)
