"""Sampling parameters as the user gave them, made ready for the engine core and its workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from vllm_ext.contracts.sampling_params import WORKER_PARAMS, SamplingParams
from vllm_ext.contracts.tokenizer import TokenizerLike
from vllm_ext.errors import InvalidRequest, listing
from vllm_ext.worker.sampling.logits_processors import ends_with


class ParamsProcessor:
    """Checks parameters against model and worker, and adds what follows from the tokenizer.

    Args:
        eos_token_ids: end-of-sequence tokens of the model.
        vocab_size: of the model, whose logits are as many.
        supported: the sampling parameters that the workers act on.
        worker_cls: class path of the worker, for messages.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        eos_token_ids: frozenset[int],
        vocab_size: int,
        supported: frozenset[str] = WORKER_PARAMS,
        worker_cls: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._supported = supported
        self._worker_cls = worker_cls

    def process_params(self, params: SamplingParams) -> SamplingParams:
        """A copy of ``params``, which may be changed meanwhile, with what the worker needs besides.

        Raises:
            InvalidRequest: a value is out of range, or model or worker cannot do it; the text names the parameter.
        """
        if not isinstance(params, SamplingParams):
            raise InvalidRequest(f"params is {params!r}; it takes SamplingParams")
        # What was assigned since it was made is checked here.
        params = msgspec.structs.replace(params)
        used = params.worker_params()
        self._check_worker(used)
        if not used:
            return params
        self._check_vocabulary(params)
        if params.extra_args is not None:
            params = msgspec.structs.replace(params, extra_args=plain_data("extra_args", params.extra_args))
        if not params.min_tokens and not params.bad_words:
            return params
        stopping = self._stop_token_ids(params) if params.min_tokens else frozenset()
        bad_words = self._bad_words(params.bad_words or ())
        _check_choice_is_left(params, stopping, bad_words)
        return msgspec.structs.replace(params, _all_stop_token_ids=stopping, _bad_words_token_ids=bad_words)

    def _check_worker(self, used: list[str]) -> None:
        if refused := [name for name in used if name not in self._supported]:
            raise InvalidRequest(
                f"worker {self._worker_cls} of the chosen platform does not act on {listing(refused)}; it acts on: "
                f"{listing(self._supported)}. Leave out what it does not, or choose a platform whose worker does"
            )

    def _check_vocabulary(self, params: SamplingParams) -> None:
        for name in ("logit_bias", "allowed_token_ids"):
            for token_id in getattr(params, name) or ():
                if not 0 <= token_id < self._vocab_size:
                    raise InvalidRequest(
                        f"{name} has token id {token_id}; ids of the model's vocabulary go from 0 to "
                        f"{self._vocab_size - 1}"
                    )
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(params, name) or 0) > self._vocab_size:
                raise InvalidRequest(
                    f"{name} is {getattr(params, name)}; it takes an integer from 0 to {self._vocab_size}, the size of "
                    "the model's vocabulary, or -1 for all of it"
                )

    def _stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        """As in vLLM, an end of sequence that is ignored is among them."""
        wanted = self._eos_token_ids.union(params.stop_token_ids or ())
        return frozenset(token_id for token_id in wanted if 0 <= token_id < self._vocab_size)

    def _bad_words(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """Token sequences of the words, as they stand at the beginning of a text and after a space.

        vLLM leaves out the second form where it has another number of tokens, and generates the word then.
        """
        sequences: dict[tuple[int, ...], None] = {}
        for word in words:
            alone, *within = map(self._encode, _forms(word))
            if not alone:
                raise InvalidRequest(f"bad_words has {word!r}, which the tokenizer turns into no token at all")
            sequences[alone] = None
            # One that begins with the same token, such as a space of its own, has the word as it stands behind that.
            sequences |= {ids: None for ids in within if ids and ids[0] != alone[0]}
        # One with a token that the model does not have is never generated.
        return tuple(sequence for sequence in sequences if max(sequence) < self._vocab_size)

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise InvalidRequest(f"bad_words has {text!r}, which cannot be tokenized: {error}") from error
        return tuple(ids)


def _forms(word: str) -> tuple[str, ...]:
    """As it begins a text and as it follows a space; only as it stands, if it brings other white space or is nothing
    else.
    """
    bare = word.lstrip(" ")
    return (bare, f" {bare}") if bare and not bare[0].isspace() else (word,)


def _check_choice_is_left(
    params: SamplingParams, stopping: frozenset[int], bad_words: tuple[tuple[int, ...], ...]
) -> None:
    """InvalidRequest where none of the allowed tokens may come, or none after some others of them."""
    allowed = params.allowed_token_ids
    if allowed is None:
        return
    if stopping.issuperset(allowed):
        raise InvalidRequest(
            f"min_tokens is {params.min_tokens}, and every token of allowed_token_ids {allowed} ends the request; "
            "it takes 0 there, or another token to be allowed"
        )
    # The first tokens of words, which may be none, and may come where all of them are allowed.
    for before in {sequence[:-1] for sequence in bad_words if set(allowed).issuperset(sequence[:-1])}:
        forbidden = {sequence[-1] for sequence in bad_words if ends_with(before, sequence[:-1])}
        if len(before) < params.min_tokens:
            forbidden |= stopping
        if forbidden.issuperset(allowed):
            after = f" after the tokens {list(before)}" if before else ""
            raise InvalidRequest(
                f"bad_words is {params.bad_words}, which leaves none of allowed_token_ids {allowed}{after}; it takes "
                "other words, or another token to be allowed"
            )


def plain_data(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """A copy, as it arrives in another process: the same for every executor; InvalidRequest where it cannot."""
    try:
        copied: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(values))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidRequest(
            f"{name} is {values!r}, which cannot pass to a worker: {error}; it takes numbers, texts, and lists "
            "and dictionaries of them"
        ) from error
    return copied
