"""What the SDPA backend works out once per step, so that its layers only compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch

from vllm_ext.contracts.attention import AttentionMetadata, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm_ext.contracts.kv_cache import FullAttentionSpec, KVCacheSpec
from vllm_ext.contracts.vllm_config import VllmConfig

# Gathered keys and values of a group of decoding requests stay below this, so that they are still in the cache of the
# processor when they are read, and the workspace is small.
_GROUP_BYTES = 4 << 20
# A prefill over a context is computed this many query tokens at a time, which bounds its mask.
_TILE = 256
# For so short a context two batched products take half the time of the fused kernel, which calls a product per head.
# In float32 only: the fused kernel keeps the scores of narrower dtypes in float32, too.
_PRODUCTS_MAX_LEN = 512


@dataclass(slots=True)
class DecodeGroup:
    """Requests with one query token each.

    ``tokens`` are their places in the batch, ``rows`` their cache rows (see :meth:`SDPAMetadataBuilder.cache_rows`),
    to be gathered into ``workspace``. ``keys`` and ``values`` are views of that: ``[reqs, kv_heads, seq_len,
    head_size]``. ``mask`` is additive ``[reqs, 1, 1, seq_len]``, or ``None`` where all see ``seq_len`` tokens.

    ``as_products`` asks for plain products instead of the fused kernel; requests and KV heads are one dimension then.
    ``distances``, float32 like the mask: how far each key stands before the query; ``None`` where no layer asks.
    """

    tokens: slice | torch.Tensor
    rows: torch.Tensor
    workspace: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None
    as_products: bool
    distances: torch.Tensor | None


@dataclass(slots=True)
class Prefill:
    """A request with several query tokens, for which the cache is read.

    ``tiles`` split the tokens: which of the batch, what they see of the keys, and the additive mask ``[tokens, seen]``.
    Rows, keys and values are as in :class:`DecodeGroup`.
    """

    rows: torch.Tensor
    workspace: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    tiles: list[tuple[slice, slice, torch.Tensor]]


@dataclass(slots=True)
class SDPAMetadata(AttentionMetadata):
    """One step: where keys and values are stored, token by token and head by head, and who attends to what.

    ``whole`` are the tokens of requests that have all theirs in this step, so that the cache is not read for them; each
    sees all before it, or of an encoder all.
    """

    slot_rows: torch.Tensor
    whole: list[slice]
    decodes: list[DecodeGroup]
    prefills: list[Prefill]


class SDPAMetadataBuilder(AttentionMetadataBuilder[SDPAMetadata]):
    """Groups decoding requests, and sets up each prefill. The workspace is shared by all layers."""

    def __init__(
        self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.spec = cast(FullAttentionSpec, kv_cache_spec)
        self._window = self.spec.sliding_window
        known = vllm_config.compilation_config.static_forward_context
        layers = [known[name] for name in layer_names if name in known]
        self._has_slopes = any(getattr(layer, "alibi_slopes", None) for layer in layers)
        # The fused kernel knows no such terms; without it there is a mask, and so tiles that bound the mask.
        self._needs_tiles = self._has_slopes or any(
            getattr(layer, "logits_soft_cap", None) or getattr(layer, "has_sink", False) for layer in layers
        )
        self._heads = torch.arange(self.spec.num_kv_heads, device=device)
        self._workspace = torch.empty(0, dtype=self.spec.dtype, device=device)
        self._causal = torch.empty((0, 0), dtype=self.spec.dtype, device=device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> SDPAMetadata:
        common = common_attn_metadata
        starts = common.query_start_loc_cpu.tolist()
        seq_lens = common.seq_lens_cpu.tolist()
        if not common.causal:
            return SDPAMetadata(common.slot_mapping, [slice(*ends) for ends in pairwise(starts)], [], [])
        whole: list[slice] = []
        decoding: list[int] = []
        prefills: list[Prefill] = []
        for req, (start, end) in enumerate(pairwise(starts)):
            if end - start == 1:
                decoding.append(req)
            elif end - start == seq_lens[req] <= (self._window or seq_lens[req]) and not self._needs_tiles:
                whole.append(slice(start, end))
            else:
                prefills.append(self._prefill(common, req, start, end - start, seq_lens[req]))
        sizes = seq_lens
        if self._window is not None:
            # In the worst case the window begins with the last token of a block.
            sizes = [min(seq_len, self._window + self.spec.block_size - 1) for seq_len in seq_lens]
        decodes = [self._decode_group(common, starts, seq_lens, reqs) for reqs in self._groups(decoding, sizes)]
        return SDPAMetadata(self._slot_rows(common.slot_mapping), whole, decodes, prefills)

    def cache_rows(self, blocks: torch.Tensor) -> torch.Tensor:
        """Rows of a layer's cache, seen as ``[blocks * kv_heads, block_size * 2 * head_size]``.

        Args:
            blocks: ``[reqs, blocks]``.

        Returns: int64, flat: by request, head and block.
        """
        return (blocks.unsqueeze(1) * self.spec.num_kv_heads + self._heads.view(1, -1, 1)).view(-1)

    def _slot_rows(self, slot_mapping: torch.Tensor) -> torch.Tensor:
        """Rows of a layer's cache, seen as ``[blocks * kv_heads * block_size, 2 * head_size]``, by token and head."""
        block_size = self.spec.block_size
        blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
        first = blocks * (self.spec.num_kv_heads * block_size) + offsets
        return (first.unsqueeze(1) + self._heads * block_size).view(-1)

    def _num_blocks(self, seq_len: int) -> int:
        return -(-seq_len // self.spec.block_size)

    def _groups(self, reqs: list[int], sizes: list[int]) -> Iterator[list[int]]:
        """Split requests so that a group's blocks, padded to its longest, fit into the workspace's limit.

        ``sizes`` are tokens to gather at most, by request.
        """
        if not reqs:
            return
        limit = max(1, _GROUP_BYTES // self.spec.page_size_bytes)
        lens = [sizes[req] for req in reqs]
        if max(lens) * len(lens) > 2 * sum(lens):
            # Most of the computation would be padding: those of similar length together.
            reqs = sorted(reqs, key=sizes.__getitem__, reverse=True)
        group: list[int] = []
        width = 0
        for req in reqs:
            wider = max(width, self._num_blocks(sizes[req]))
            if group and ((len(group) + 1) * wider > limit or wider > 2 * self._num_blocks(sizes[req])):
                yield group
                group, wider = [], self._num_blocks(sizes[req])
            group.append(req)
            width = wider
        yield group

    def _decode_group(
        self, common: CommonAttentionMetadata, starts: list[int], seq_lens: list[int], reqs: list[int]
    ) -> DecodeGroup:
        members = self._indices(reqs)
        blocks, lens, skipped = self._seen(common, members, [seq_lens[req] for req in reqs])
        longest = max(lens)
        mask = self._decode_mask(lens, skipped, longest)
        rows = self.cache_rows(blocks)
        workspace = self._room_for(rows)
        keys, values = self._views(workspace, len(reqs), longest)
        # Layers with terms of their own compute products anyway, head by head.
        as_products = longest <= _PRODUCTS_MAX_LEN and self.spec.dtype is torch.float32 and not self._needs_tiles
        if as_products:
            keys, values = keys.flatten(0, 1), values.flatten(0, 1)
            if mask is not None:
                mask = mask.view(-1, 1, longest).repeat_interleave(self.spec.num_kv_heads, dim=0)
        tokens = self._indices([starts[req] for req in reqs])
        distances = None
        if self._has_slopes:
            last = torch.tensor(lens, device=self.device).view(-1, 1, 1, 1) - 1
            distances = (torch.arange(longest, device=self.device) - last).float()
        return DecodeGroup(tokens, rows, workspace, keys, values, mask, as_products, distances)

    def _seen(
        self, common: CommonAttentionMetadata, members: slice | torch.Tensor, seq_lens: list[int]
    ) -> tuple[torch.Tensor, list[int], list[int]]:
        """What the last token of each request sees.

        Returns: blocks ``[reqs, width]``, tokens in them by request, and how many of the first of these it does not
            see.
        """
        window, block_size = self._window, self.spec.block_size
        table = common.block_table_tensor[members]
        if window is None or max(seq_lens) <= window:
            return table[:, : self._num_blocks(max(seq_lens))], seq_lens, [0] * len(seq_lens)
        skipped = [max(0, seq_len - window) for seq_len in seq_lens]
        first = [skip // block_size for skip in skipped]
        lens = [seq_len - block * block_size for seq_len, block in zip(seq_lens, first, strict=True)]
        columns = torch.tensor(first, device=self.device).unsqueeze(1) + torch.arange(
            self._num_blocks(max(lens)), device=self.device
        )
        # The padding of a shorter request: any block will do.
        blocks = table.gather(1, columns.clamp_(max=table.shape[1] - 1))
        return blocks, lens, [skip % block_size for skip in skipped]

    def _decode_mask(self, lens: list[int], skipped: list[int], longest: int) -> torch.Tensor | None:
        """Additive ``[reqs, 1, 1, longest]``: a request sees its tokens but the first ``skipped``."""
        if min(lens) == longest and not any(skipped):
            return None
        ends, begins = torch.tensor([lens, skipped], device=self.device).unsqueeze(-1)
        places = torch.arange(longest, device=self.device)
        hidden = places >= ends
        if any(skipped):
            hidden |= places < begins
        mask = torch.zeros((len(lens), longest), dtype=self.spec.dtype, device=self.device)
        return mask.masked_fill_(hidden, -torch.inf).view(-1, 1, 1, longest)

    def _prefill(self, common: CommonAttentionMetadata, req: int, start: int, num_tokens: int, seq_len: int) -> Prefill:
        window = self._window or seq_len
        first_block = max(0, seq_len - num_tokens + 1 - window) // self.spec.block_size
        gathered_len = seq_len - first_block * self.spec.block_size
        tiles = []
        for first in range(0, num_tokens, _TILE):
            count = min(_TILE, num_tokens - first)
            end = gathered_len - num_tokens + first + count
            seen = slice(max(0, end - count + 1 - window), end)
            mask = self._causal_mask(count, end - seen.start)
            tiles.append((slice(start + first, start + first + count), seen, mask))
        table = common.block_table_tensor[req : req + 1, first_block : self._num_blocks(seq_len)]
        rows = self.cache_rows(table)
        workspace = self._room_for(rows)
        return Prefill(rows, workspace, *self._views(workspace, 1, gathered_len), tiles)

    def _indices(self, numbers: list[int]) -> slice | torch.Tensor:
        """An index for ``numbers``; a slice, which copies nothing, where they are consecutive."""
        first, last = numbers[0], numbers[-1]
        if last - first == len(numbers) - 1 and numbers == list(range(first, last + 1)):
            return slice(first, last + 1)
        return torch.tensor(numbers, device=self.device)

    def _causal_mask(self, count: int, seen: int) -> torch.Tensor:
        """``[count, seen]``: the last token sees up to the last, each before it one less, none beyond the window.

        A view of one matrix for all sizes.
        """
        if seen > self._causal.shape[1]:
            width = max(seen, 2 * self._causal.shape[1])
            full = torch.full((_TILE, width), -torch.inf, dtype=self.spec.dtype, device=self.device)
            self._causal = full.triu_(width - _TILE + 1)
            if self._window is not None:
                self._causal += full.new_full(full.shape, -torch.inf).tril_(width - _TILE - self._window)
        return self._causal[_TILE - count :, self._causal.shape[1] - seen :]

    def _views(self, workspace: torch.Tensor, num_reqs: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values in a gathered workspace, ``[reqs, kv_heads, seq_len, head_size]`` each."""
        content = workspace.view(num_reqs, self.spec.num_kv_heads, -1, 2 * self.spec.head_size)[:, :, :seq_len]
        keys, values = content.split(self.spec.head_size, dim=-1)
        return keys, values

    def _room_for(self, rows: torch.Tensor) -> torch.Tensor:
        """Room to gather ``rows``; the same memory for every call, as its users come one after the other."""
        row_size = self.spec.block_size * 2 * self.spec.head_size
        needed = len(rows) * row_size
        if needed > self._workspace.numel():
            self._workspace = torch.empty(needed, dtype=self.spec.dtype, device=self.device)
        return self._workspace[:needed].view(-1, row_size)
