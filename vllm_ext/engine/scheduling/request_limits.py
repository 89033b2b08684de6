"""How long a request may be."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_ext.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits in tokens: of the model for prompt and output together, and what the whole KV cache holds (``None`` where
    sliding windows bound what a request needs of it)."""

    max_model_len: int
    cache_capacity: int | None
    is_pooling: bool = False
    """Whether no token comes after the prompt."""

    @property
    def max_total_tokens(self) -> int:
        """Tokens that a request can have when it ends. The last one is never computed, so it needs no slot."""
        return self.max_model_len if self.cache_capacity is None else min(self.max_model_len, self.cache_capacity + 1)

    def check_prompt(self, num_prompt_tokens: int) -> None:
        """Refuse a prompt that can never be served.

        Raises:
            InvalidRequest: it is too long for the model or for the cache; the text has the lengths.
        """
        if self.is_pooling and num_prompt_tokens > self.max_model_len:
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, and max_model_len is {self.max_model_len}; give a shorter "
                "one, or let it be cut with truncate_prompt_tokens (-1 for all that fit)"
            )
        if not self.is_pooling and num_prompt_tokens >= self.max_model_len:
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, and max_model_len, the limit for prompt and output "
                f"together, is {self.max_model_len}; give at most {self.max_model_len - 1} tokens"
            )
        if self.cache_capacity is not None and num_prompt_tokens > self.cache_capacity:
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, and the whole KV cache holds {self.cache_capacity}; give "
                "a shorter prompt, or more memory with engine.kv_cache_memory"
            )
