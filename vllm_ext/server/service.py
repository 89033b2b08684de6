"""What the routes share: the engine, the model's name for clients, and the ways to tokenize beside the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from vllm_ext.config import Settings
from vllm_ext.config.redaction import secrets_in
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.inputs.chat_prompts import ChatPrompts
from vllm_ext.engine.inputs.prompts import TokensPrompt
from vllm_ext.engine.inputs.tokenizer import tokenizing
from vllm_ext.errors import RefusedByServer, TokenizerError, listing
from vllm_ext.server.answers import EventStream, JSONAnswer
from vllm_ext.server.errors import ErrorTexts

if TYPE_CHECKING:
    from vllm_ext.engine.async_llm import AsyncLLM
    from vllm_ext.server.decoding import RequestBody
    from vllm_ext.server.protocol import ChatRequest
    from vllm_ext.server.tokenizing import TokenizeRequest

T = TypeVar("T")

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
"""Sampling parameters that a model directory may have defaults for."""


class Service:
    """One engine, as the routes see it.

    Args:
        engine: used in one event loop.
        settings: those that hold.
        has_metrics: whether the stat logger ``prometheus`` measures the engine.
    """

    def __init__(self, engine: AsyncLLM, settings: Settings, *, has_metrics: bool = False) -> None:
        self.engine = engine
        self.has_metrics = has_metrics
        self.model_config = engine.vllm_config.model_config
        default_name = settings.engine.model or Path(self.model_config.model).name
        self.model_name = settings.server.served_model_name or default_name
        self.created = now()
        defaults = engine.get_default_sampling_params()
        self._defaults = {name: getattr(defaults, name) for name in _DEFAULTS}
        self._errors = ErrorTexts(secrets_in(settings))
        self._chat_prompts = ChatPrompts(Path(self.model_config.tokenizer), engine.get_tokenizer())
        # Templates and texts may be long: one thread, so that the loop goes on and no crowd of them takes the cores.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vllm_ext-server")

    def close(self) -> None:
        """End the thread; what waits for it is not done."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def generates(self) -> bool:
        """Whether the model generates text, and does not pool."""
        return bool(self.model_config.runner_type == "generate")

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model can be asked for: ``generate``, or tasks of pooling."""
        return self.engine.input_processor.capabilities.tasks

    def check_model(self, request: RequestBody) -> None:
        """RefusedByServer where the request is for another model; none named is this one."""
        if request.model is not None and request.model != self.model_name:
            raise RefusedByServer(
                f"there is no model {request.model!r}; this server has {self.model_name!r}", status=404, param="model"
            )

    def check_generates(self, *, wanted: bool) -> None:
        """RefusedByServer where the model is not for what the route does."""
        if self.generates != wanted:
            does = "pools" if wanted else "generates"
            routes = "/v1/embeddings, /classify and /pooling" if wanted else "/v1/completions and /v1/chat/completions"
            raise RefusedByServer(f"model {self.model_name!r} {does}: it has the routes {routes}")

    def check_task(self, task: str) -> None:
        """RefusedByServer where the model cannot be asked for ``task``, of pooling."""
        self.check_generates(wanted=False)
        if task not in self.tasks:
            raise RefusedByServer(
                f"model {self.model_name!r} cannot {task}; it can be asked for: {listing(self.tasks)}", param="task"
            )

    def sampling_params(self, given: Mapping[str, Any], **defaults: Any) -> SamplingParams:
        """Parameters for a request.

        Args:
            given: by name; ``None`` is the model's default.
            defaults: in place of the model's.

        Raises:
            InvalidRequest: a value is out of range.
        """
        named = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**self._defaults | defaults | named)

    @property
    def models_max_tokens(self) -> int | None:
        """How many tokens the model directory has generated at most; ``None`` where it does not say."""
        # What it does not say is the default of SamplingParams, which is meant for completions.
        max_tokens: int | None = self._defaults["max_tokens"]
        return None if max_tokens == SamplingParams().max_tokens else max_tokens

    async def chat_prompt(self, request: ChatRequest | TokenizeRequest) -> TokensPrompt:
        """The prompt that the model's template makes of messages.

        Raises:
            InvalidRequest: the messages have another form, or the template refuses them.
        """
        if not request.messages:
            raise RefusedByServer("messages is an empty list; it takes one message at least", param="messages")
        try:
            return await self.in_thread(
                partial(
                    self._chat_prompts.make,
                    request.messages,
                    add_generation_prompt=request.add_generation_prompt is not False,
                    continue_final_message=request.continue_final_message is True,
                    add_special_tokens=request.add_special_tokens is True,
                    variables=request.chat_template_kwargs,
                )
            )
        except TokenizerError as error:
            raise RefusedByServer(
                f"model {self.model_name!r} has no chat template that can be used, so it takes no messages; "
                "/v1/completions takes text"
            ) from error

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of ``text``; InvalidRequest where it cannot be tokenized."""

        def encode() -> list[int]:
            with tokenizing():
                return self.engine.get_tokenizer().encode(text, add_special_tokens=add_special_tokens)

        return await self.in_thread(encode)

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, with special ones; RefusedByServer for ids that are none."""
        size = self.engine.get_tokenizer().vocab_size
        # Not one by one: there may be millions, and the loop stands meanwhile.
        for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
            if not 0 <= token_id < size:
                raise RefusedByServer(
                    f"token id {token_id} is outside the vocabulary; ids go from 0 to {size - 1}", param="tokens"
                )
        return await self.in_thread(partial(self.engine.get_tokenizer().decode, token_ids))

    async def in_thread(self, function: Callable[[], T]) -> T:
        """What ``function`` returns, computed beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def json(self, kind: type[RequestBody] | None, work: Callable[[], Awaitable[bytes]]) -> JSONAnswer:
        """An answer with what ``work`` gives; ``kind`` has the fields that an error may be about."""
        return JSONAnswer(work, self._body_of_error(kind))

    def events(self, kind: type[RequestBody], events: AsyncGenerator[bytes, None]) -> EventStream:
        """An answer with events."""
        return EventStream(events, self._body_of_error(kind))

    def error(self, error: Exception, kind: type[RequestBody] | None = None) -> tuple[int, bytes]:
        """Status and JSON for what was raised."""
        return self._body_of_error(kind)(error)

    def _body_of_error(self, kind: type[RequestBody] | None) -> Callable[[Exception], tuple[int, bytes]]:
        # A text about the model as a whole begins with that word, too.
        fields = {*kind.__struct_fields__} - {"model"} if kind else ()

        def body_of(error: Exception) -> tuple[int, bytes]:
            return self._errors.body_of(error, is_engine_dead=self.engine.is_stopped, fields=fields)

        return body_of


def now() -> int:
    """Seconds of the epoch, as answers have them."""
    return int(time.time())


def new_id(prefix: str, request: RequestBody) -> str:
    """The id of an answer: the client's own behind ``prefix``, or a new one."""
    return f"{prefix}-{request.request_id or uuid4().hex}"
