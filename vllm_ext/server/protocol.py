"""What clients send and get for text: OpenAI's fields, vLLM's further ones, and what the answers are made of."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from vllm_ext.server.decoding import Fixed, GivenPrompts, RequestBody

_ONE_AT_A_TIME = "completions are sampled one by one; n gives several"
_NO_GRAMMAR = "the engine holds no output to a grammar; a logits processor of a plugin can"
_TEXT_ALONE = "the engine takes text and token ids alone"
_NO_TOOLS = "calls of tools are not read out of the text; write what tools there are into a message"


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How a stream ends: with the usage in an event of its own, or not."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """vLLM's: the usage so far is in every event."""


class GenerationRequest(RequestBody, kw_only=True):
    """What requests for completions and for chat have in common. Null, and what is left out, is the model's default.

    A field that :class:`SamplingParams` has by the same name goes into that as it is.
    """

    FIXED: ClassVar[dict[str, Fixed]] = {
        "cache_salt": Fixed("the prefix cache is one for all requests"),
        "kv_transfer_params": Fixed("keys and values go to no other engine"),
        "length_penalty": Fixed(_ONE_AT_A_TIME, (1.0,)),
        "response_format": Fixed(_NO_GRAMMAR, ({"type": "text"},)),
        "spaces_between_special_tokens": Fixed("the model's tokenizer says how tokens become text", (True,)),
        "structured_outputs": Fixed(_NO_GRAMMAR),
        "truncate_prompt_tokens": Fixed("a prompt is served as it is given; cut it before"),
        "use_beam_search": Fixed(_ONE_AT_A_TIME, (False,)),
    }

    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    skip_special_tokens: bool | None = None
    vllm_xargs: dict[str, Any] | None = None
    """``extra_args`` of :class:`SamplingParams`, by vLLM's name."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    """Tokens of log probabilities are ``token_id:N``, which also tells tokens of the same text apart."""

    cache_salt: Any = None
    kv_transfer_params: Any = None
    length_penalty: Any = None
    response_format: Any = None
    spaces_between_special_tokens: Any = None
    structured_outputs: Any = None
    truncate_prompt_tokens: Any = None
    use_beam_search: Any = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """``POST /v1/completions``."""

    FIXED: ClassVar[dict[str, Fixed]] = GenerationRequest.FIXED | {
        "best_of": Fixed(_ONE_AT_A_TIME, (1,)),
        "prompt_embeds": Fixed(_TEXT_ALONE),
        "suffix": Fixed("text is generated after a prompt, and not within", ("",)),
    }

    prompt: GivenPrompts
    logprobs: int | None = None
    add_special_tokens: bool | None = None

    best_of: Any = None
    prompt_embeds: Any = None
    suffix: Any = None


NO_TEMPLATE = Fixed("a template is code, and the server runs that of the model directory alone")


class ChatRequest(GenerationRequest, kw_only=True):
    """``POST /v1/chat/completions``."""

    FIXED: ClassVar[dict[str, Fixed]] = GenerationRequest.FIXED | {
        "chat_template": NO_TEMPLATE,
        "documents": Fixed("put them into a message, or into chat_template_kwargs where the template reads them"),
        "echo": Fixed("the prompt is what the template makes; /v1/completions can echo", (False,)),
        "function_call": Fixed(_NO_TOOLS, ("none",)),
        "functions": Fixed(_NO_TOOLS, ([],)),
        "include_reasoning": Fixed("reasoning is part of the text", (True,)),
        "mm_processor_kwargs": Fixed(_TEXT_ALONE),
        "modalities": Fixed(_TEXT_ALONE, (["text"],)),
        "parallel_tool_calls": Fixed(_NO_TOOLS, (True, False)),
        "reasoning_effort": Fixed("a template that reads it gets it in chat_template_kwargs"),
        "tool_choice": Fixed(_NO_TOOLS, ("none",)),
        "tools": Fixed(_NO_TOOLS, ([],)),
    }

    messages: list[dict[str, Any]]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None

    chat_template: Any = None
    documents: Any = None
    echo: Any = None
    function_call: Any = None
    functions: Any = None
    include_reasoning: Any = None
    mm_processor_kwargs: Any = None
    modalities: Any = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    tool_choice: Any = None
    tools: Any = None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens of a request; of several completions of a prompt, the prompt counts once."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CompletionLogprobs(msgspec.Struct):
    """Of each token of a text: where it begins in it, its text, and how likely it and others were."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_logprobs: list[dict[int, Any] | None] | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]


class Message(msgspec.Struct):
    role: Literal["assistant"]
    content: str


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: Message | UnsetType
    delta: Delta | UnsetType
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET


class TextAnswer(msgspec.Struct):
    """An answer with choices, or an event with some of what is new of them."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: Usage | UnsetType | None = UNSET
    prompt_logprobs: list[dict[int, Any] | None] | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
