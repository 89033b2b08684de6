"""From what a user gives to what the engine core takes."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vllm_ext.contracts.current_platform import use_platform
from vllm_ext.contracts.parameter_checks import as_integer
from vllm_ext.contracts.platform import Platform
from vllm_ext.contracts.platform_device import platform_name
from vllm_ext.contracts.pooling_params import POOLING_TASKS, PoolingParams
from vllm_ext.contracts.sampling_params import WORKER_PARAMS, SamplingParams
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.dispatch.logits_processors import NamedLogitsProcessor, validate_params
from vllm_ext.dispatch.naming_code import platform_code
from vllm_ext.engine.core.messages import Capabilities, EngineCoreRequest
from vllm_ext.engine.inputs.generation_config import load_default_sampling_params
from vllm_ext.engine.inputs.params_processor import ParamsProcessor
from vllm_ext.engine.inputs.pooling_params_processor import PoolingParamsProcessor
from vllm_ext.engine.inputs.prompts import ParsedPrompt, PromptType, parse_prompt
from vllm_ext.engine.inputs.tokenizer import load_eos_token_ids, load_tokenizer, tokenizing
from vllm_ext.engine.inputs.truncation import truncate
from vllm_ext.errors import InvalidRequest, VllmExtError, listing

logger = logging.getLogger(__name__)


class InputProcessor:
    """Tokenizes prompts and checks what can be checked without the engine core.

    Args:
        logits_processors: asked whether they can serve a request.

    Raises:
        TokenizerError, CheckpointError: the tokenizer, or the model's configuration for generation, cannot be read.
    """

    def __init__(
        self, vllm_config: VllmConfig, platform: Platform, logits_processors: Sequence[NamedLogitsProcessor] = ()
    ) -> None:
        self._platform = platform
        self._logits_processors = logits_processors
        model_config = vllm_config.model_config
        self.tokenizer = load_tokenizer(model_config)
        self._eos_token_ids = load_eos_token_ids(Path(model_config.model), model_config.hf_config)
        self._vocab_size: int = model_config.hf_config.get("vocab_size") or self.tokenizer.vocab_size
        self._worker_cls = vllm_config.parallel_config.worker_cls
        self.default_sampling_params = load_default_sampling_params(Path(model_config.model), model_config.hf_config)
        """What the model directory asks for; for requests without parameters."""
        self._model_config = model_config
        self.set_supported(Capabilities(WORKER_PARAMS, ("generate", *POOLING_TASKS)))

    def set_supported(self, capabilities: Capabilities) -> None:
        """Refuse from now on what the workers cannot be asked for.

        A worker that does not act on ``extra_args`` has no place for logits processors of plugins, which is a warning.
        """
        self.capabilities = capabilities
        params, is_pooling = capabilities.sampling_params, self._model_config.runner_type == "pooling"
        self._pooling = PoolingParamsProcessor(self._model_config, capabilities) if is_pooling else None
        if self._logits_processors and not is_pooling and "extra_args" not in params:
            logger.warning(
                "worker %s of the chosen platform applies no logits processors but its own; left out: %s",
                self._worker_cls,
                listing(processor.source for processor in self._logits_processors),
            )
        self._params_processor = ParamsProcessor(
            self.tokenizer, self._eos_token_ids, self._vocab_size, params, self._worker_cls
        )

    def process_inputs(
        self, request_id: str, prompt: PromptType, params: SamplingParams | PoolingParams | None, priority: int
    ) -> tuple[str | None, EngineCoreRequest]:
        """The prompt's text, where it has one, and the request. May be called from any thread.

        Raises:
            InvalidRequest: the prompt, ``params`` or ``priority`` is not acceptable, or the platform or a logits
                processor refuses the request; the text says what is.
            PluginError: the platform's hooks for requests, or a logits processor, failed.
        """
        if self._pooling is not None:
            return self._process_pooling(self._pooling, request_id, prompt, params, priority)
        params = copy.copy(self.default_sampling_params) if params is None else params
        if isinstance(params, PoolingParams):
            raise InvalidRequest(
                f"model {self._model_config.model!r} generates, and the request is for pooling; set engine.runner to "
                "'pooling' to use its states"
            )
        params = self._params_processor.process_params(params)
        priority = _check_priority(priority)
        parsed = parse_prompt(prompt)
        token_ids = self._token_ids(parsed)
        with use_platform(self._platform), platform_code(self._platform):
            params = self._limit_output(len(token_ids), params)
            self._validate(parsed.text, token_ids, params)
        with use_platform(self._platform):
            validate_params(self._logits_processors, params)
        request = EngineCoreRequest(request_id, token_ids, params, self._eos_token_ids, priority)
        _check_can_pass(request)
        return parsed.text, request

    def _process_pooling(
        self, processor: PoolingParamsProcessor, request_id: str, prompt: PromptType, params: object, priority: int
    ) -> tuple[str | None, EngineCoreRequest]:
        """The same for a model that pools."""
        params = PoolingParams() if params is None else params
        if not isinstance(params, PoolingParams):
            raise InvalidRequest(
                f"model {self._model_config.model!r} pools, and the request is for generation: use embed(), "
                "classify(), score() or encode()"
            )
        params = processor.process_params(params)
        priority = _check_priority(priority)
        parsed = parse_prompt(prompt)
        config = self._model_config.pooler_config
        if parsed.text is not None and parsed.token_ids is None and config is not None:
            whole = config.prompt + parsed.text
            parsed = parsed._replace(text=whole.lower() if config.do_lower_case else whole)
        token_ids = self._token_ids(parsed)
        if (limit := processor.token_limit(params)) is not None:
            text = parsed.text if parsed.token_ids is None else None
            token_ids = truncate(self.tokenizer, text, token_ids, limit)
        with use_platform(self._platform), platform_code(self._platform):
            self._validate(parsed.text, token_ids, params)
        request = EngineCoreRequest(request_id, token_ids, None, frozenset(), priority, params)
        _check_can_pass(request)
        return parsed.text, request

    def token_limit(self, params: PoolingParams) -> int | None:
        """Tokens that a prompt is to be cut to; ``None`` where it is not."""
        return None if self._pooling is None else self._pooling.token_limit(params)

    def _limit_output(self, num_prompt_tokens: int, params: SamplingParams) -> SamplingParams:
        """``params``, with ``max_tokens`` lowered to what the platform can generate after such a prompt."""
        limit = self._platform.get_max_output_tokens(num_prompt_tokens)
        if limit < 1:
            raise InvalidRequest(
                f"the prompt has {num_prompt_tokens} tokens, after which {platform_name(self._platform)} can "
                "generate none; give a shorter one"
            )
        if limit >= (sys.maxsize if params.max_tokens is None else params.max_tokens):
            return params
        return msgspec.structs.replace(params, max_tokens=limit)

    def _validate(self, text: str | None, token_ids: list[int], params: SamplingParams | PoolingParams) -> None:
        """Let the platform refuse the request."""
        inputs = {"type": "token", "prompt_token_ids": token_ids, "prompt": text}
        try:
            self._platform.validate_request(inputs, params)
        except VllmExtError:
            raise
        except ValueError as error:
            raise InvalidRequest(f"{platform_name(self._platform)} refuses the request: {error}") from error

    def _token_ids(self, prompt: ParsedPrompt) -> list[int]:
        """Token ids of the prompt, checked against the vocabulary."""
        token_ids = prompt.token_ids
        if token_ids is None and prompt.text is not None:
            with tokenizing():
                token_ids = self.tokenizer.encode(prompt.text, add_special_tokens=True)
        if not token_ids:
            raise InvalidRequest("the prompt is empty: the engine needs at least one token to go on from")
        for token_id in (min(token_ids), max(token_ids)):
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"token id {token_id} is outside the model's vocabulary; ids go from 0 to {self._vocab_size - 1}"
                )
        return token_ids


def _check_can_pass(request: EngineCoreRequest) -> None:
    """InvalidRequest where the request cannot pass to another process, whether or not there is one: a number of more
    than 64 bits, a text that is no Unicode, or what another library has made. In a step it would end the requests of
    others.
    """
    try:
        msgspec.msgpack.encode(msgspec.structs.replace(request, prompt_token_ids=[]))
    except (OverflowError, TypeError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"request {request.request_id!r} cannot be served: {error}") from error


def _check_priority(value: object) -> int:
    if (priority := as_integer(value)) is None:
        raise InvalidRequest(f"priority is {value!r}; it takes an integer, and lower ones come first")
    return priority
