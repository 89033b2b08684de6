"""What the attention layers of a model read during one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from vllm_ext.contracts.attention import AttentionMetadata
    from vllm_ext.contracts.platform import Platform
    from vllm_ext.contracts.static_graph import BatchDescriptor
    from vllm_ext.contracts.vllm_config import VllmConfig


@dataclass(slots=True)
class ForwardContext:
    """``attn_metadata`` by layer name; ``None`` in a profiling run, which has no KV cache to read."""

    attn_metadata: dict[str, AttentionMetadata] | None
    num_tokens: int
    additional: dict[str, Any]
    """What :meth:`Platform.set_additional_forward_context` returned for this step."""
    slot_mapping: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By layer name, as in :class:`CommonAttentionMetadata`; for backends that do not store keys and values in
    ``forward``."""
    cudagraph_runtime_mode: str = "NONE"
    """``FULL`` where a static graph of the whole model may be replayed for this step."""
    batch_descriptor: BatchDescriptor | None = None
    """The shapes of such a step; ``None`` for other steps."""


def additional_forward_context(
    platform: Platform,
    attn_metadata: dict[str, AttentionMetadata] | None,
    vllm_config: VllmConfig,
    num_tokens: int,
    batch_descriptor: BatchDescriptor | None = None,
) -> dict[str, Any]:
    """What the platform adds for this step; it is given all keywords of vLLM, also those that have no meaning here."""
    return platform.set_additional_forward_context(
        attn_metadata=attn_metadata,
        vllm_config=vllm_config,
        num_tokens=num_tokens,
        dp_metadata=None,
        num_tokens_across_dp=None,
        cudagraph_runtime_mode=_runtime_mode(batch_descriptor),
        batch_descriptor=batch_descriptor,
        ubatch_slices=None,
    )


_current: ContextVar[ForwardContext] = ContextVar("vllm_ext_forward_context")


@contextmanager
def set_forward_context(
    attn_metadata: dict[str, AttentionMetadata] | None,
    num_tokens: int,
    additional: dict[str, Any] | None = None,
    slot_mapping: Mapping[str, torch.Tensor] | None = None,
    batch_descriptor: BatchDescriptor | None = None,
) -> Iterator[None]:
    """Make the metadata of one step visible to the layers called inside the block. With a ``batch_descriptor`` the step
    may be replayed as a static graph.
    """
    mode = _runtime_mode(batch_descriptor)
    context = ForwardContext(attn_metadata, num_tokens, additional or {}, slot_mapping or {}, mode, batch_descriptor)
    token = _current.set(context)
    try:
        yield
    finally:
        _current.reset(token)


def _runtime_mode(batch_descriptor: BatchDescriptor | None) -> str:
    return "NONE" if batch_descriptor is None else "FULL"


def get_forward_context() -> ForwardContext:
    """The context of the forward pass that is running; RuntimeError outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise RuntimeError("a model's forward runs inside set_forward_context(...)") from None
