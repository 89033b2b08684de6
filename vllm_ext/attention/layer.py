"""The attention layer that models are built of; what computes it is chosen when the model is built."""

from __future__ import annotations

import inspect
from typing import ClassVar

import torch
from torch import nn

from vllm_ext.contracts.attention import AttentionImpl, AttentionType
from vllm_ext.contracts.call_check import check_positional
from vllm_ext.contracts.forward_context import ForwardContext, get_forward_context
from vllm_ext.contracts.kv_cache import EncoderOnlyAttentionSpec, FullAttentionSpec, KVCacheSpec
from vllm_ext.contracts.platform import AttentionSelectorConfig
from vllm_ext.contracts.vllm_config import VllmConfig, get_current_vllm_config
from vllm_ext.dispatch.dispatcher import get_current_dispatcher
from vllm_ext.errors import ContractError, dotted_path

_IMPL_ARGUMENTS = [
    name
    for name, parameter in inspect.signature(AttentionImpl).parameters.items()
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
]
"""What an implementation is built with, by position."""


class Attention(nn.Module):
    """Causal attention over a paged KV cache. vLLM: ``Attention``.

    Args:
        num_heads: query heads on this rank.
        head_size: numbers in a head of query, key and value.
        scale: factor on the products of query and key.
        num_kv_heads: KV heads on this rank; as many as query heads when omitted.
        prefix: name of the layer in the model; unique within it.
        logits_soft_cap: ``cap``, where the products ``x`` of query and key become ``cap * tanh(x / cap)``.
        per_layer_sliding_window: how many tokens a token sees, itself among them; all before it when omitted.
        alibi_slopes: by query head: ``slope * (position of key - position of query)`` is added to the products.
        sinks: ``[num_heads]``, a parameter of the model: a logit per head that shares the softmax and has no value.

    Raises:
        ContractError: the model has two layers of this name, the platform names no attention backend, or the backend's
            implementation cannot be built.
        ConfigError: the attention backend cannot serve such a layer.
    """

    attn_type: ClassVar[AttentionType] = AttentionType.DECODER

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        prefix: str = "",
        *,
        logits_soft_cap: float | None = None,
        per_layer_sliding_window: int | None = None,
        alibi_slopes: list[float] | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = head_size
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.sliding_window = per_layer_sliding_window
        self.logits_soft_cap = logits_soft_cap
        self.alibi_slopes = alibi_slopes
        self.has_sink = sinks is not None
        self.layer_name = prefix
        vllm_config = get_current_vllm_config()
        self.kv_cache_dtype = vllm_config.model_config.dtype
        selector = AttentionSelectorConfig(
            head_size=head_size,
            dtype=vllm_config.model_config.dtype,
            kv_cache_dtype="auto",
            block_size=vllm_config.cache_config.block_size_of_user,
            attn_type=self.attn_type,
            has_sink=self.has_sink,
            has_sliding_window=per_layer_sliding_window is not None,
            has_logits_soft_cap=logits_soft_cap is not None,
            has_alibi_slopes=alibi_slopes is not None,
        )
        self.attn_backend = get_current_dispatcher().attention_factory(selector, num_heads)
        impl_cls = self.attn_backend.get_impl_cls()
        options = {} if sinks is None else {"sinks": sinks}
        source = f"attention backend {dotted_path(self.attn_backend)}"
        check_positional(impl_cls, _IMPL_ARGUMENTS, options, slot="implementation", source=source)
        self.impl = impl_cls(
            num_heads,
            head_size,
            scale,
            self.num_kv_heads,
            alibi_slopes,
            per_layer_sliding_window,
            "auto",
            logits_soft_cap,
            self.attn_type,
            None,
            **options,
        )
        stores = self.attn_type is not AttentionType.ENCODER_ONLY
        self._stores_apart = stores and not self.attn_backend.forward_includes_kv_cache_update
        self.kv_cache = torch.empty(0)
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ContractError(f"the model builds two attention layers with the prefix {prefix!r}; each needs its own")
        layers[prefix] = self

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend for one step, as its forward context says.

        Args:
            query: ``[tokens, num_heads * head_size]``.
            key, value: ``[tokens, num_kv_heads * head_size]``.

        Returns: a tensor like ``query``; undefined in a profiling run.
        """
        context = get_forward_context()
        metadata = context.attn_metadata
        num_tokens = query.shape[0]
        output = query.new_empty((num_tokens, self.num_heads, self.head_size))
        key = key.view(num_tokens, self.num_kv_heads, self.head_size)
        value = value.view(num_tokens, self.num_kv_heads, self.head_size)
        if self._stores_apart and metadata is not None:
            self.impl.do_kv_cache_update(self, key, value, self.kv_cache, self._slot_mapping(context))
        attended: torch.Tensor | None = self.impl.forward(
            self,
            query.view(num_tokens, self.num_heads, self.head_size),
            key,
            value,
            self.kv_cache,
            None if metadata is None else metadata[self.layer_name],
            output,
        )
        # vLLM reads what was written, whatever is returned; so nothing may be.
        return (output if attended is None else attended).view(num_tokens, self.num_heads * self.head_size)

    def _slot_mapping(self, context: ForwardContext) -> torch.Tensor:
        if self.layer_name not in context.slot_mapping:
            raise ContractError(
                f"attention backend {self.attn_backend.get_name()!r} stores keys and values before forward(), and the "
                f"worker gives no slot_mapping for layer {self.layer_name!r}: set_forward_context() takes it by layer"
            )
        return context.slot_mapping[self.layer_name]

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        """What this layer stores for each token; ``None`` where it stores nothing."""
        return self.get_builder_spec(vllm_config)

    def get_builder_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        """What the builder of the layer's metadata is told about it."""
        return FullAttentionSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=self.num_kv_heads,
            head_size=self.head_size,
            dtype=self.kv_cache_dtype,
            sliding_window=self.sliding_window,
        )

    def bind_kv_cache(self, kv_cache: torch.Tensor) -> None:
        """Use ``kv_cache``, this layer's part of the cache, from the next step on."""
        self.kv_cache = kv_cache

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Called once by the loader."""
        self.impl.process_weights_after_loading(act_dtype)


class EncoderOnlyAttention(Attention):
    """Attention of an encoder: every token of a request sees all its others, in one step, and nothing is stored. vLLM:
    ``EncoderOnlyAttention``. Arguments and errors are those of :class:`Attention`.
    """

    attn_type = AttentionType.ENCODER_ONLY

    def __init__(
        self, num_heads: int, head_size: int, scale: float, num_kv_heads: int | None = None, prefix: str = ""
    ) -> None:
        super().__init__(num_heads, head_size, scale, num_kv_heads, prefix)

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> None:
        return None

    def get_builder_spec(self, vllm_config: VllmConfig) -> EncoderOnlyAttentionSpec:
        return EncoderOnlyAttentionSpec(
            vllm_config.cache_config.block_size, self.num_kv_heads, self.head_size, self.kv_cache_dtype
        )
