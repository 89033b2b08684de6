"""What is wanted of one prompt of a pooling model."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from vllm_ext.contracts.parameter_checks import ParamsMeta, check_bool, check_integer
from vllm_ext.errors import InvalidRequest, did_you_mean, listing

PoolingTask = Literal["embed", "classify", "token_embed", "token_classify", "plugin"]
POOLING_TASKS: tuple[PoolingTask, ...] = get_args(PoolingTask)
SECOND_TEXT = "compressed_token_type_ids"
"""In ``extra_kwargs``: where in the prompt the second of two texts begins, in tokens (vLLM's name)."""
RunnerType = Literal["generate", "pooling"]
ConvertType = Literal["none", "embed", "classify"]


class PoolingParams(msgspec.Struct, kw_only=True, metaclass=ParamsMeta):
    """Pooling parameters with vLLM's names.

    Args:
        task: ``embed`` (a vector for the prompt), ``classify`` (a score for each class), ``token_embed`` and
            ``token_classify`` (the same for each token), ``plugin`` (what the model is for, for an IO processor);
            ``None`` is what the call or the model is for.
        dimensions: keep so many numbers of an embedding, the first ones; for models that were trained for it.
        use_activation: bring the result into its final form: embeddings to length 1, scores through softmax or sigmoid.
            ``None`` is as the model directory says, else true.
        truncate_prompt_tokens: cut a text to so many tokens, those that mark beginning and end among them; -1 is what
            the model can take, and ``None`` is to refuse what is too long.
        skip_reading_prefix_cache: compute every token, even where its keys and values are cached; ``None`` is what the
            pooling method needs.
        extra_kwargs: by name, further plain data for the model.

    Raises:
        InvalidRequest: a value is out of range; the text names parameter, value and range.
        TypeError: there is no such parameter.
    """

    task: PoolingTask | None = None
    dimensions: int | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None
    skip_reading_prefix_cache: bool | None = None
    extra_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.task is not None:
            if self.task not in POOLING_TASKS:
                hint = did_you_mean(str(self.task), POOLING_TASKS)
                raise InvalidRequest(f"task is {self.task!r}{hint}; it takes one of: {listing(POOLING_TASKS)}")
            # In place of another library's text, which cannot pass to another process.
            self.task = POOLING_TASKS[POOLING_TASKS.index(self.task)]
        for name, low in (("dimensions", 1), ("truncate_prompt_tokens", -1)):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, check_integer(name, value, low=low))
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("truncate_prompt_tokens is 0; it takes a number from 1 on, or -1 for all that fit")
        for name in ("use_activation", "skip_reading_prefix_cache"):
            if (value := getattr(self, name)) is not None:
                setattr(self, name, check_bool(name, value))
        if self.extra_kwargs is not None and not isinstance(self.extra_kwargs, dict):
            raise InvalidRequest(f"extra_kwargs is {self.extra_kwargs!r}; it takes a dict of names to values")
