"""Pooling parameters as the user gave them, made ready for the engine core and its workers."""

from __future__ import annotations

import msgspec

from vllm_ext.contracts.pooling_params import POOLING_TASKS, SECOND_TEXT, PoolingParams, PoolingTask
from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig
from vllm_ext.engine.core.messages import Capabilities
from vllm_ext.engine.inputs.params_processor import plain_data
from vllm_ext.errors import InvalidRequest, listing

_PREFERRED: tuple[PoolingTask, ...] = ("embed", "classify", "token_embed", "token_classify")
_NO_TOKEN = 2**31
_EMBEDDINGS = ("embed", "token_embed")


def has_token_types(hf_config: HFConfig) -> bool:
    """Whether a model tells the tokens of a first text from those of a second one."""
    return bool(hf_config.get("type_vocab_size", 1) > 1)


class PoolingParamsProcessor:
    """Checks parameters against the model, and adds what follows from it.

    Args:
        capabilities: what the workers can be asked for.
    """

    def __init__(self, model_config: ModelConfig, capabilities: Capabilities) -> None:
        self._model_config = model_config
        self._tasks = [task for task in POOLING_TASKS if task in capabilities.tasks]
        self._whole_prompt_tasks = capabilities.whole_prompt_tasks

    def process_params(self, params: PoolingParams) -> PoolingParams:
        """A copy of ``params`` with a task.

        Raises:
            InvalidRequest: the model cannot do it; the text names the parameter.
        """
        task = params.task or next((task for task in _PREFERRED if task in self._tasks), "plugin")
        if task not in self._tasks:
            raise InvalidRequest(
                f"task is {task!r}, and model {self._model_config.model!r} can be asked for: {listing(self._tasks)}. "
                "Of a model that generates, the setting engine.convert makes one for embed or classify"
            )
        if params.dimensions is not None:
            self._check_dimensions(params.dimensions, task)
        self._check_second_text(params)
        skips, needs_all = params.skip_reading_prefix_cache, task in self._whole_prompt_tasks
        if skips is False and needs_all:
            raise InvalidRequest(
                f"skip_reading_prefix_cache is False, and task {task!r} needs the states of all tokens, which the "
                "cache does not hold; leave it out"
            )
        return msgspec.structs.replace(
            params,
            task=task,
            skip_reading_prefix_cache=needs_all if skips is None else skips,
            extra_kwargs=None if params.extra_kwargs is None else plain_data("extra_kwargs", params.extra_kwargs),
        )

    def token_limit(self, params: PoolingParams) -> int | None:
        """Tokens that a prompt is to be cut to; ``None`` where it is not.

        Raises:
            InvalidRequest: more than the model can take.
        """
        limit, longest = params.truncate_prompt_tokens, self._model_config.max_model_len
        if limit is None:
            return None
        if limit > longest:
            raise InvalidRequest(
                f"truncate_prompt_tokens is {limit}, and max_model_len is {longest}; give at most that, or -1"
            )
        return longest if limit == -1 else limit

    def _check_second_text(self, params: PoolingParams) -> None:
        """A worker would fail at a wrong one, and other requests with it."""
        begins = (params.extra_kwargs or {}).get(SECOND_TEXT)
        if begins is None:
            return
        # Beyond the prompt's end is none; how long it may be is checked later.
        if not isinstance(begins, int) or isinstance(begins, bool) or not 0 <= begins < _NO_TOKEN:
            raise InvalidRequest(
                f"extra_kwargs has {SECOND_TEXT} {begins!r}; it takes where the second text begins, in tokens, "
                "from 0 on"
            )
        if not has_token_types(self._model_config.hf_config):
            raise InvalidRequest(
                f"extra_kwargs has {SECOND_TEXT}, and model {self._model_config.model!r} does not tell the tokens of "
                "two texts apart; leave it out"
            )

    def _check_dimensions(self, dimensions: int, task: PoolingTask) -> None:
        config = self._model_config.pooler_config
        size = None if config is None else config.embedding_size
        is_embedding = "embed" in self._tasks if task == "plugin" else task in _EMBEDDINGS
        if not is_embedding:
            raise InvalidRequest(f"dimensions is {dimensions}, and task {task!r} gives no embeddings; leave it out")
        if size is not None and dimensions > size:
            raise InvalidRequest(f"dimensions is {dimensions}, and the model's embeddings have {size}")
