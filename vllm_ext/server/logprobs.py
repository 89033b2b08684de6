"""Log probabilities in the two shapes that clients know: lists for completions, objects for chat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vllm_ext.contracts.outputs import Logprob, LogprobsOnePosition
from vllm_ext.server.protocol import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob

_LEAST = -9999.0
"""In place of minus infinity, which JSON has not; vLLM's number."""


def of_completion(
    positions: Sequence[LogprobsOnePosition | None],
    token_ids: Sequence[int],
    *,
    as_ids: bool,
    num_top: int,
    begin: int,
    decode: Callable[[Sequence[int]], str],
) -> CompletionLogprobs:
    """Lists with an entry for each of ``token_ids``.

    Args:
        positions: of each token; ``None`` for the first of a prompt.
        as_ids: whether tokens are written ``token_id:N``.
        num_top: how many of the likeliest there are besides the token itself.
        begin: where the first token begins in the text, in characters.
        decode: the text of tokens, for the first of a prompt.
    """
    lists = CompletionLogprobs([], [], [], [])
    for token_id, position in zip(token_ids, positions, strict=True):
        own = position[token_id] if position else None
        text = _text(token_id, own, as_ids) if as_ids or own else decode([token_id])
        lists.text_offset.append(begin)
        begin += len(text)
        lists.tokens.append(text)
        lists.token_logprobs.append(None if own is None else _finite(own.logprob))
        top = None
        if position is not None:
            # The token itself is there as well where it is none of the likeliest, as it is with vLLM.
            top = {_text(each, one, as_ids): _finite(one.logprob) for each, one in _likeliest(position, num_top)}
            top.setdefault(text, _finite(position[token_id].logprob))
        lists.top_logprobs.append(top)
    return lists


def of_chat(
    positions: Iterable[LogprobsOnePosition], token_ids: Iterable[int], *, as_ids: bool, num_top: int
) -> ChatLogprobs:
    """An object for each of ``token_ids``, with ``num_top`` of the likeliest."""
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        own = position[token_id]
        text = _text(token_id, own, as_ids)
        top = [
            TopLogprob(_text(each, one, as_ids), _finite(one.logprob), list(_text(each, one, as_ids).encode()))
            for each, one in _likeliest(position, num_top)
        ]
        content.append(TokenLogprob(text, _finite(own.logprob), list(text.encode()), top))
    return ChatLogprobs(content)


def of_prompt(positions: Iterable[LogprobsOnePosition | None] | None) -> list[dict[int, Any] | None] | None:
    """vLLM's ``prompt_logprobs``: for each token of a prompt, what the engine says, by token id."""
    if positions is None:
        return None
    return [
        None
        if position is None
        else {
            token_id: {"logprob": _finite(one.logprob), "rank": one.rank, "decoded_token": one.decoded_token}
            for token_id, one in position.items()
        }
        for position in positions
    ]


def _likeliest(position: LogprobsOnePosition, number: int) -> list[tuple[int, Logprob]]:
    """The first ``number`` by rank; -1 is all."""
    ranked = sorted(position.items(), key=lambda entry: entry[1].rank or 0)
    return ranked if number == -1 else ranked[:number]


def _text(token_id: int, logprob: Logprob | None, as_ids: bool) -> str:
    if as_ids or logprob is None or logprob.decoded_token is None:
        return f"token_id:{token_id}"
    return logprob.decoded_token


def _finite(number: float) -> float:
    return max(number, _LEAST)
