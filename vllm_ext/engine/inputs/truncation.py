"""Cutting a prompt to a number of tokens."""

from __future__ import annotations

from vllm_ext.contracts.tokenizer import TokenizerLike
from vllm_ext.errors import InvalidRequest


def truncate(tokenizer: TokenizerLike, text: str | None, token_ids: list[int], limit: int) -> list[int]:
    """``token_ids`` with ``limit`` tokens at most, from the beginning; what the tokenizer puts around a text stays.

    Args:
        text: what ``token_ids`` were made of; ``None`` where they were given.

    Raises:
        InvalidRequest: not even what is put around a text fits.
    """
    if len(token_ids) <= limit:
        return token_ids
    if text is None:
        return token_ids[:limit]
    bare = tokenizer.encode(text, add_special_tokens=False)
    num_around = len(token_ids) - len(bare)
    before = next((i for i in range(num_around + 1) if token_ids[i : i + len(bare)] == bare), None)
    if before is None:
        # The tokenizer does something else than to put tokens around it.
        return token_ids[:limit]
    if limit < num_around:
        raise InvalidRequest(
            f"truncate_prompt_tokens is {limit}, and the tokenizer puts {num_around} tokens around every text; give "
            "more"
        )
    return token_ids[:before] + bare[: limit - num_around] + token_ids[before + len(bare) :]
