"""How the tokens of one request are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from enum import Enum
from typing import Any, ClassVar, Self

import msgspec

from vllm_ext.contracts.parameter_checks import (
    ParamsMeta,
    as_list,
    check_bool,
    check_extra_args,
    check_integer,
    check_logit_bias,
    check_member,
    check_num_completions,
    check_number,
    check_token_ids,
    check_unicode,
)
from vllm_ext.errors import InvalidRequest

_GREEDY_BELOW = 1e-5
_SEEDS = (-(2**63), 2**64 - 1)
_SMALLEST, _LARGEST = 1e-30, 1e30
"""What logits are divided by and multiplied with is float32, and so is what comes of it."""


class RequestOutputKind(Enum):
    """What the outputs of a request have that is read while it goes on. vLLM: ``vllm.sampling_params``."""

    CUMULATIVE = 0
    """All text and tokens so far."""
    DELTA = 1
    """What is new since the output before."""
    FINAL_ONLY = 2
    """There is one output, at the end."""


class SamplingParams(msgspec.Struct, kw_only=True, metaclass=ParamsMeta):
    """Sampling parameters with vLLM's names, defaults and ranges.

    The engine applies them to a step's logits in vLLM's order: ``allowed_token_ids``, ``bad_words``, ``min_tokens``,
    ``logit_bias``, penalties, ``temperature``, ``min_p``, ``top_k``, ``top_p``.

    Args:
        n: completions to generate for the prompt; more than one needs a temperature above 0. At most 16384, or what
            the environment variable ``VLLM_MAX_N_SEQUENCES`` says.
        temperature: up to 1e30: 0 is greedy; larger is more random. Defaults to 1.0, as in vLLM.
        top_p: in (0, 1]: only the likeliest tokens whose probabilities together reach it; 1 is off.
        top_k: only so many of the likeliest tokens; 0 (or -1) is off.
        min_p: in [0, 1]: only tokens of at least this share of the likeliest token's probability; 0 is off.
        seed: makes the request's tokens a function of prompt, parameters and seed alone; -1 is none. Completion ``i``
            of ``n`` has the seed ``seed + i``. In 16 bits a request that was preempted may get others, since a token
            that is computed again may be rounded otherwise.
        presence_penalty: in [-2, 2]: taken off the logit of each token that the output has.
        frequency_penalty: in [-2, 2]: taken off for each time that the output has the token.
        repetition_penalty: from 1e-30 to 1e30: divides positive logits of tokens in prompt or output, and multiplies
            negative ones; 1 is off.
        max_tokens: number of tokens to generate at most; ``None`` is limited only by ``max_model_len``.
        min_tokens: tokens to generate before one that ends the request, or a stop string, can come.
        stop: a string or strings that end generation; the text returned ends before them.
        stop_token_ids: token ids that end generation; the token itself is kept in ``token_ids``.
        include_stop_str_in_output: let the text end after the stop string, or the text of the stop token.
        ignore_eos: go on after the model's end-of-sequence token.
        bad_words: texts that are not generated, at the beginning and after a space (in vLLM there only if it takes as
            many tokens): the last token that would complete one is not chosen. One that begins with other white space
            is forbidden as it stands.
        logit_bias: what is added to the logit of a token id.
        allowed_token_ids: nothing else is generated.
        logprobs: log probabilities of so many of the likeliest tokens, and of the chosen one, for each token; -1 is
            the whole vocabulary. They are the model's own, before any of the parameters here is applied.
        prompt_logprobs: the same for the tokens of the prompt; the first has none.
        detokenize: make text; without it, only token ids.
        skip_special_tokens: leave special tokens out of the text.
        output_kind: what outputs of ``AsyncLLM.generate()`` and ``LLM.stream()`` have: all so far, what is new, or all,
            once, at the end. ``LLM.generate()`` always returns the last one of these.
        extra_args: by name, values for logits processors of plugins: plain data, such as numbers, texts, lists.

    Raises:
        InvalidRequest: a value is out of range; the text names parameter, value and range.
        TypeError: there is no such parameter.
        ConfigError: ``VLLM_MAX_N_SEQUENCES`` is no number, and ``n`` above 1.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    extra_args: dict[str, Any] | None = None

    flat_logprobs: ClassVar[bool] = False
    spaces_between_special_tokens: ClassVar[bool] = True
    structured_outputs: ClassVar[None] = None
    truncate_prompt_tokens: ClassVar[None] = None
    """vLLM's; no other value is taken."""
    _fixed: ClassVar[Mapping[str, str]] = {
        "flat_logprobs": "log probabilities are a dictionary for each token",
        "spaces_between_special_tokens": "the model's tokenizer says how tokens become text",
        "structured_outputs": "the engine holds no output to a grammar; a logits processor of a plugin can",
        "truncate_prompt_tokens": "a prompt is served as it is given; cut its token ids before",
    }

    _all_stop_token_ids: frozenset[int] = frozenset()
    _bad_words_token_ids: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        self._check_choice()
        self._check_length()
        self._check_logprobs()
        self._check_text()
        self._check_tokens()
        if self.seed == -1:
            self.seed = None
        if self.is_greedy:
            # The likeliest token passes all three of them.
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0

    @property
    def is_greedy(self) -> bool:
        """True where the most likely token is taken and no random number is drawn."""
        return self.temperature < _GREEDY_BELOW

    @property
    def all_stop_token_ids(self) -> frozenset[int]:
        """Every token that would end the request, also end of sequence that is ignored; set by the engine where
        ``min_tokens`` needs it.
        """
        return self._all_stop_token_ids

    @property
    def bad_words_token_ids(self) -> tuple[tuple[int, ...], ...]:
        """The token sequences of ``bad_words``; set by the engine."""
        return self._bad_words_token_ids

    @property
    def skip_reading_prefix_cache(self) -> bool:
        """Whether every token of the prompt has to be computed, even where its keys and values are cached."""
        return self.prompt_logprobs is not None

    def clone(self) -> Self:
        """A copy with nothing in common with this one, ``extra_args`` included."""
        return deepcopy(self)

    def worker_params(self) -> list[str]:
        """Those of :data:`WORKER_PARAMS` that differ from their defaults."""
        return [name for name, default in _WORKER_DEFAULTS if getattr(self, name) != default]

    def _check_choice(self) -> None:
        self.n = check_num_completions(self.n)
        self.temperature = check_number("temperature", self.temperature, low=0.0, high=_LARGEST)
        self.top_p = check_number("top_p", self.top_p, low=0.0, high=1.0, low_included=False)
        self.top_k = check_integer("top_k", self.top_k, low=-1, high=2**31 - 1)
        self.min_p = check_number("min_p", self.min_p, low=0.0, high=1.0)
        self.presence_penalty = check_number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        self.frequency_penalty = check_number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        self.repetition_penalty = check_number(
            "repetition_penalty", self.repetition_penalty, low=_SMALLEST, high=_LARGEST
        )
        if self.seed is not None:
            self.seed = check_integer("seed", self.seed, low=_SEEDS[0], high=_SEEDS[1])
        if self.n > 1 and self.is_greedy:
            raise InvalidRequest(
                f"n is {self.n}, and the temperature {self.temperature}: all completions would be the same; it takes 1 "
                "with a temperature of 0"
            )

    def _check_length(self) -> None:
        self.min_tokens = check_integer("min_tokens", self.min_tokens, low=0)
        if self.max_tokens is None:
            return
        self.max_tokens = check_integer("max_tokens", self.max_tokens, low=1)
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest(f"min_tokens is {self.min_tokens}; it takes at most max_tokens, {self.max_tokens}")

    def _check_logprobs(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, check_integer(name, value, low=-1))

    def _check_text(self) -> None:
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output"):
            setattr(self, name, check_bool(name, getattr(self, name)))
        check_member("output_kind", self.output_kind, RequestOutputKind)
        for name in ("stop", "bad_words"):
            texts = as_list(name, getattr(self, name), str, "a string or a list of strings")
            if any(not text for text in texts):
                raise InvalidRequest(f"{name} holds an empty string; every entry needs at least one character")
            if name == "stop":
                # The tokenizer says it of bad_words.
                check_unicode(name, texts)
            setattr(self, name, texts)
        if self.stop and not self.detokenize:
            raise InvalidRequest(f"stop is {self.stop!r}, and detokenize false; stop strings need the text")

    def _check_tokens(self) -> None:
        self.stop_token_ids = as_list("stop_token_ids", self.stop_token_ids, int, "a list of token ids")
        check_token_ids("stop_token_ids", self.stop_token_ids)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = as_list("allowed_token_ids", self.allowed_token_ids, int, "a list of token ids")
            if not self.allowed_token_ids:
                raise InvalidRequest("allowed_token_ids is []; it takes at least one token id, or None for all")
        if self.logit_bias is not None:
            self.logit_bias = check_logit_bias(self.logit_bias)
        if self.extra_args is not None:
            check_extra_args(self.extra_args)


WORKER_PARAMS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "min_tokens", "bad_words", "logit_bias"),
        *("allowed_token_ids", "logprobs", "prompt_logprobs", "extra_args"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    }
)
"""What the worker has to act on when it chooses tokens; the other parameters are the engine's business."""

_WORKER_DEFAULTS = [
    (name, getattr(SamplingParams(), name)) for name in SamplingParams.__struct_fields__ if name in WORKER_PARAMS
]
