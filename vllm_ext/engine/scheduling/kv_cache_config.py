"""From what the workers report to one KV cache configuration: layout, groups, number of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheLayout, KVCacheSpec
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.errors import EngineError, did_you_mean, listing

_DEFAULT_LAYOUT = KVCacheLayout.LBNHC


def common_spec(specs: Sequence[dict[str, KVCacheSpec]], block_size: int) -> dict[str, KVCacheSpec]:
    """What each layer stores, as all workers report it alike.

    Raises:
        EngineError: workers differ, or a layer wants blocks of another size than ``block_size`` tokens.
    """
    first = specs[0]
    for rank, spec in enumerate(specs):
        if spec != first:
            raise EngineError(
                f"workers 0 and {rank} report different KV caches: {_describe(first)}; {_describe(spec)}. "
                "All workers have to hold the same layers"
            )
    for layer, layer_spec in first.items():
        if layer_spec.block_size != block_size:
            raise EngineError(
                f"layer {layer!r} reports KV cache blocks of {layer_spec.block_size} tokens, and the engine uses "
                f"blocks of {block_size}; set engine.block_size to {layer_spec.block_size}, or let the platform's "
                "check_and_update_config() set cache_config.block_size"
            )
    return first


def common_layout(named: Sequence[Sequence[KVCacheLayout | str] | None], worker_cls: str = "") -> KVCacheLayout:
    """The layout that the first particular worker likes best among those that all can read.

    Args:
        named: by rank, layouts or their names, as vLLM's backends give them; ``None`` for any layout.
        worker_cls: of the workers, for messages.

    Raises:
        EngineError: there is none, which the text says with each worker's list, or one that is named does not exist.
    """
    layouts = [_as_layouts(supported, rank, worker_cls) for rank, supported in enumerate(named)]
    particular = [supported for supported in layouts if supported is not None]
    if not particular:
        return _DEFAULT_LAYOUT
    for layout in particular[0]:
        if all(layout in supported for supported in particular):
            return layout
    lists = "; ".join(
        f"worker {rank}: {'any' if supported is None else ', '.join(layout.value for layout in supported) or 'none'}"
        for rank, supported in enumerate(layouts)
    )
    raise EngineError(f"no KV cache layout can be read by all attention layers of all workers; supported: {lists}")


def _as_layouts(
    supported: Sequence[KVCacheLayout | str] | None, rank: int, worker_cls: str
) -> list[KVCacheLayout] | None:
    if supported is None:
        return None
    known = [layout.value for layout in KVCacheLayout]
    # A text is a sequence of texts too.
    unknown = [supported] if isinstance(supported, str) else [one for one in supported if one not in known]
    if unknown:
        worker = f"worker {rank} ({worker_cls})" if worker_cls else f"worker {rank}"
        hint = "" if unknown[0] in known else did_you_mean(str(unknown[0]), known)
        raise EngineError(
            f"{worker} supports the KV cache layouts {supported!r}, and {unknown[0]!r} is not one{hint}; "
            f"a list of these is valid: {listing(known)}. They come from "
            "get_supported_kv_cache_layouts() of the worker, or supported_kv_cache_layouts() of an attention backend"
        )
    return [KVCacheLayout(layout) for layout in supported]


def common_window(kv_cache_config: KVCacheConfig) -> int | None:
    """How many of a request's newest tokens are ever read, where every layer has a sliding window: the largest of
    these, in tokens. ``None`` where a layer reads all tokens, or there is no layer.
    """
    windows: list[int] = []
    for group in kv_cache_config.kv_cache_groups:
        window = getattr(group.kv_cache_spec, "sliding_window", None)
        if window is None:
            return None
        windows.append(window)
    return max(windows, default=None)


def request_capacity(kv_cache_config: KVCacheConfig, block_size: int) -> int | None:
    """Computed tokens that one request can have, alone in the cache. ``None`` where there is no limit: the cache holds
    the windows of all layers, wherever a block begins, so that old blocks can be given back for new ones.
    """
    window, capacity = common_window(kv_cache_config), kv_cache_config.num_blocks * block_size
    return None if window is not None and capacity >= window + block_size - 1 else capacity


def num_blocks_usable(vllm_config: VllmConfig) -> int:
    """Blocks that the largest number of requests of the largest length would use.

    A sliding window does not make it less: what is behind it is of use to prompts that begin alike.
    """
    per_request = -(-vllm_config.model_config.max_model_len // vllm_config.cache_config.block_size)
    return vllm_config.scheduler_config.max_num_seqs * per_request


def make_kv_cache_config(
    vllm_config: VllmConfig, spec: dict[str, KVCacheSpec], layout: KVCacheLayout, available_bytes: int
) -> KVCacheConfig:
    """As many blocks as memory allows; no more than can be used, unless the user has set the amount of memory.

    Raises:
        EngineError: not even one block fits; the text has the sizes.
    """
    wanted_bytes = vllm_config.cache_config.kv_cache_memory_bytes
    block_bytes = sum(layer_spec.page_size_bytes for layer_spec in spec.values())
    num_blocks = num_blocks_usable(vllm_config)
    if block_bytes:
        limit = available_bytes if wanted_bytes is None else min(available_bytes, wanted_bytes)
        fitting = limit // block_bytes
        num_blocks = min(fitting, num_blocks) if wanted_bytes is None else fitting
        if num_blocks < 1:
            beside, lower = "", "engine.block_size"
            if wanted_bytes is None:
                num_tokens = vllm_config.scheduler_config.max_num_batched_tokens
                beside = f" beside a step of engine.max_num_batched_tokens ({num_tokens}) tokens"
                lower = "engine.max_num_batched_tokens or engine.block_size"
            raise EngineError(
                f"not one KV cache block fits: a block of {vllm_config.cache_config.block_size} tokens takes "
                f"{block_bytes} bytes over {len(spec)} layers, and {limit} bytes are available{beside} "
                f"(engine.kv_cache_memory: {wanted_bytes or 'not set'}). Set engine.kv_cache_memory to at least "
                f"{block_bytes}, or {lower} lower"
            )
    groups = _groups(spec, hybrid=not vllm_config.scheduler_config.disable_hybrid_kv_cache_manager)
    return KVCacheConfig(num_blocks=num_blocks, kv_cache_groups=groups, kv_cache_layout=layout)


def _groups(spec: dict[str, KVCacheSpec], *, hybrid: bool) -> tuple[KVCacheGroupSpec, ...]:
    """Layers that store the same thing, together; unless ``hybrid``, also those that differ in what they read of it."""
    layers: dict[KVCacheSpec, list[str]] = {}
    differ = len({s.sliding_window for s in spec.values() if isinstance(s, FullAttentionSpec)}) > 1
    for layer, layer_spec in spec.items():
        if differ and not hybrid and isinstance(layer_spec, FullAttentionSpec):
            layer_spec = replace(layer_spec, sliding_window=None)
        layers.setdefault(layer_spec, []).append(layer)
    return tuple(KVCacheGroupSpec(tuple(names), layer_spec) for layer_spec, names in layers.items())


def _describe(spec: dict[str, KVCacheSpec]) -> str:
    return f"{len(spec)} layers of {sum(layer_spec.page_size_bytes for layer_spec in spec.values())} bytes a block"
