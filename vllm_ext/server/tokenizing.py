"""``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from starlette.responses import Response

from vllm_ext.errors import RefusedByServer
from vllm_ext.server.answers import encode, json_response
from vllm_ext.server.decoding import Fixed, RequestBody
from vllm_ext.server.protocol import NO_TEMPLATE
from vllm_ext.server.service import Service


class TokenizeRequest(RequestBody, kw_only=True):
    """A text, or the messages of a conversation."""

    FIXED: ClassVar[dict[str, Fixed]] = {"chat_template": NO_TEMPLATE}

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(RequestBody, kw_only=True):
    tokens: list[int]


class TokenizeAnswer(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(msgspec.Struct):
    prompt: str


async def tokenize(service: Service, request: TokenizeRequest) -> Response:
    """The token ids that a prompt becomes; of messages, those of what the chat template makes of them."""
    if (request.prompt is None) == (request.messages is None):
        raise RefusedByServer("it takes prompt or messages, one of them", param="prompt")
    if request.prompt is None:
        tokens = (await service.chat_prompt(request))["prompt_token_ids"]
    else:
        tokens = await service.encode(request.prompt, add_special_tokens=request.add_special_tokens is not False)
    written = service.engine.get_tokenizer().convert_ids_to_tokens(tokens) if request.return_token_strs else None
    answer = TokenizeAnswer(len(tokens), service.model_config.max_model_len, tokens, written)
    return json_response(200, encode(answer))


async def detokenize(service: Service, request: DetokenizeRequest) -> Response:
    """The text of tokens."""
    return json_response(200, encode(DetokenizeAnswer(await service.decode(request.tokens))))
