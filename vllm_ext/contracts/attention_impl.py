"""What an attention backend computes with: the step's metadata, its builder, and the implementation of one layer."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.kv_cache import KVCacheSpec
    from vllm_ext.contracts.vllm_config import VllmConfig


class AttentionType(enum.StrEnum):
    """Which way a layer attends; only ``DECODER`` (causal, over a KV cache) is required of a backend.

    Layers of ``ENCODER_ONLY`` have no KV cache, and every token of a request sees all its others.
    """

    DECODER = "decoder"
    ENCODER = "encoder"
    ENCODER_ONLY = "encoder_only"
    ENCODER_DECODER = "encoder_decoder"


class AttentionCGSupport(enum.IntEnum):
    """Which steps a builder's metadata can be replayed for in a static graph: those of the member's kind, and of the
    members below it. vLLM: ``AttentionCGSupport``.
    """

    ALWAYS = 3
    UNIFORM_BATCH = 2
    """All requests have equally many query tokens."""
    UNIFORM_SINGLE_TOKEN_DECODE = 1
    """All requests have one."""
    NEVER = 0


class AttentionMetadata:
    """Base of what a builder hands to its implementation; each backend defines its own fields."""


@dataclass(slots=True)
class CommonAttentionMetadata:
    """One step, described for every backend alike. vLLM: ``CommonAttentionMetadata``.

    Requests stand one after the other in the flat batch; ``reqs`` requests have ``num_actual_tokens`` query tokens.
    """

    query_start_loc: torch.Tensor
    """int32 ``[reqs + 1]``, on the device: request ``i`` owns query tokens ``[loc[i], loc[i + 1])``."""
    query_start_loc_cpu: torch.Tensor
    """The same in host memory."""
    seq_lens: torch.Tensor
    """int32 ``[reqs]``, on the device: tokens in the cache after this step, by request."""
    seq_lens_cpu: torch.Tensor
    """The same in host memory."""
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: torch.Tensor
    """int32 ``[reqs, blocks]``: cache blocks by request in sequence order; entries beyond ``seq_lens`` are undefined
    but valid block numbers. So are those of blocks that lie wholly before the sliding window of the request's first
    query token: other requests may have them, and what they hold must not matter, be it NaN. For layers without a KV
    cache, ``[reqs, 1]`` of zeros."""
    slot_mapping: torch.Tensor
    """int64 ``[num_actual_tokens]``: where each token's key and value go, ``block * block_size + offset``; zeros for
    layers without a KV cache."""
    causal: bool = True
    """Whether no token sees those after it. False for layers of ``ENCODER_ONLY``, whose requests come whole."""
    is_prefilling: torch.Tensor | None = None
    """bool ``[reqs]``, in host memory: whether some of the request's prompt was not computed before this step. A single
    query token may be the prompt's last. ``None`` where the worker does not say."""

    logits_indices_padded: ClassVar[Any] = None
    num_logits_indices: ClassVar[int | None] = None
    max_logits_per_req: ClassVar[int | None] = None
    encoder_seq_lens: ClassVar[Any] = None
    encoder_seq_lens_cpu: ClassVar[Any] = None
    dcp_local_seq_lens: ClassVar[Any] = None
    mm_req_doc_ranges: ClassVar[Any] = None
    """vLLM's: layers do not share their cache, there is no encoder beside the model, and a context is on one rank."""

    @property
    def seq_lens_cpu_upper_bound(self) -> torch.Tensor:
        """``seq_lens_cpu``, which is exact here."""
        return self.seq_lens_cpu

    @property
    def num_computed_tokens_cpu(self) -> torch.Tensor:
        """int32 ``[reqs]``, in host memory: tokens in the cache before this step, by request."""
        return self.seq_lens_cpu - (self.query_start_loc_cpu[1:] - self.query_start_loc_cpu[:-1])

    def replace(self, **changes: Any) -> CommonAttentionMetadata:
        """The same with other values of some fields."""
        return replace(self, **changes)

    def batch_size(self) -> int:
        """Number of requests."""
        return self.num_reqs

    def naive_query_lens(self) -> torch.Tensor:
        """int32 ``[reqs]``, on the device: query tokens by request."""
        return self.query_start_loc[1:] - self.query_start_loc[:-1]

    def compute_num_computed_tokens(self) -> torch.Tensor:
        """int32 ``[reqs]``, on the device: tokens in the cache before this step, by request."""
        return self.seq_lens - self.naive_query_lens()


M = TypeVar("M", bound=AttentionMetadata)


class AttentionMetadataBuilder(ABC, Generic[M]):
    """Turns :class:`CommonAttentionMetadata` into a backend's own, once per step and KV cache group. vLLM:
    ``AttentionMetadataBuilder``.

    Args:
        kv_cache_spec: what each layer of the group stores.
        layer_names: the layers of the group.
        vllm_config: of the engine; only read.
        device: where the step's tensors are.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER

    @classmethod
    def get_cudagraph_support(cls, vllm_config: VllmConfig, kv_cache_spec: KVCacheSpec) -> AttentionCGSupport:
        """For which steps the metadata may be part of a static graph: for steps of equal size it has to consist of the
        same tensors, or parts of them, with new contents, and of equal numbers. The tensors of the common metadata are
        so themselves.

        Args:
            vllm_config: of the engine; only read.
            kv_cache_spec: what each layer of the group stores.
        """
        return cls._cudagraph_support

    def __init__(
        self,
        kv_cache_spec: KVCacheSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        self.kv_cache_spec = kv_cache_spec
        self.layer_names = layer_names
        self.vllm_config = vllm_config
        self.device = device

    @abstractmethod
    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> M:
        """Metadata of one step; valid until the next call.

        Args:
            common_prefix_len: tokens that all requests begin with, for backends that attend to these once; always 0.
            common_attn_metadata: the step; only read, and valid for the step.
            fast_build: whether building fast matters more than attending fast; always False.
        """


class AttentionImpl(ABC, Generic[M]):
    """The computation of one layer, bound when the model is built; the first ten arguments are given by position.
    vLLM: ``AttentionImpl``.

    Args:
        num_heads: query heads on this rank.
        head_size: numbers in a head.
        scale: factor on the products of query and key.
        num_kv_heads: KV heads on this rank, as many as query heads when ``None``.
        alibi_slopes: by query head: ``slope * (position of key - position of query)`` is added to the logits.
        sliding_window: how many tokens a token sees, itself among them; ``None`` for all before it.
        kv_cache_dtype: ``auto``: that of key and value.
        logits_soft_cap: ``cap``, where logits ``x`` become ``cap * tanh(x / cap)``, before slopes are added.
        attn_type: ``decoder``, or ``encoder_only`` where the backend serves that.
        kv_sharing_target_layer_name: ``None``: each layer has keys and values of its own.
        sinks: ``[num_heads]`` in the model's dtype, given by keyword and only where the layer has them: a logit per
            head that takes part in the softmax and has no value. A parameter of the model: read it in each step, since
            it is loaded later.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        *,
        sinks: torch.Tensor | None = None,
    ) -> None:
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.alibi_slopes = alibi_slopes
        self.sliding_window = sliding_window
        self.kv_cache_dtype = kv_cache_dtype
        self.logits_soft_cap = logits_soft_cap
        self.attn_type = attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sinks = sinks

    @abstractmethod
    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: M | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Store key and value in the cache, attend, write into ``output`` and return it.

        A backend whose ``forward_includes_kv_cache_update`` is false finds them stored already.

        Everything is stored before anything is attended to: a request may share blocks with another one of the step.

        Args:
            layer: the attention layer, whose cache and name these are; only read.
            query: ``[tokens, heads, head_size]`` in the model's dtype; only read.
            key, value: ``[tokens, kv_heads, head_size]``, of the same dtype; only read.
            kv_cache: this layer's cache, in the order of the layout that was agreed on, without L: with BLHNC
                ``[blocks, kv_heads, block_size, 2 * head_size]``; in the model's dtype. The step's slots are written.
            attn_metadata: ``None`` in a profiling run; ``output`` is then left as it is and nothing is stored.
            output: ``[tokens, heads, head_size]`` in the dtype of ``query``, written in place.
            output_scale, output_block_scale: ``None``; in vLLM's fused quantization of the output float32 tensors, of
                one number or of any shape that the format has, which are only read.

        Returns: ``output``; ``None`` stands for it, since vLLM reads what was written there.
        """

    def do_kv_cache_update(
        self,
        layer: torch.nn.Module,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store the step's keys and values; called before :meth:`forward` where the backend asks for it.

        Not called in a profiling run. The other arguments are those of :meth:`forward`.

        Args:
            slot_mapping: int64 ``[tokens]``: where each token's key and value go, ``block * block_size + offset``; only
                read.

        Raises:
            NotImplementedError: the backend says that ``forward`` does not store them, and neither does this.
        """
        raise NotImplementedError(
            f"{type(self).__qualname__} does not implement do_kv_cache_update(), and its backend has "
            "forward_includes_kv_cache_update = False"
        )

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Called once after the model's weights were loaded, which are computed with in ``act_dtype``."""
