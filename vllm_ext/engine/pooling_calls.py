"""What ``LLM`` offers of a pooling model: results of single texts, and scores of pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch
import torch.nn.functional as F

from vllm_ext.contracts.parameter_checks import without_array
from vllm_ext.contracts.pooling_outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from vllm_ext.contracts.pooling_params import PoolingParams, PoolingTask
from vllm_ext.engine.arguments import params_for_each, refuse_adapter
from vllm_ext.engine.data_requests import POOL, DataRequests
from vllm_ext.engine.inputs.pairs import is_cross_encoder, pair_prompts
from vllm_ext.engine.inputs.prompts import DataPrompt, PromptType, is_data_prompt, list_advice, shown, split_prompts
from vllm_ext.errors import InvalidRequest

if TYPE_CHECKING:
    from vllm_ext.engine.llm_engine import LLMEngine


R = TypeVar("R", bound=PoolingRequestOutput[Any])


class PoolingCalls:
    """The methods of :class:`LLM` for pooling models; a model that generates refuses them with InvalidRequest."""

    llm_engine: LLMEngine
    _data_requests: DataRequests

    def encode(
        self,
        prompts: DataPrompt | PromptType | Sequence[PromptType],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        pooling_task: PoolingTask | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
    ) -> list[PoolingRequestOutput[Any]]:
        """What pooling gives for one prompt or many.

        Args:
            prompts: as for :meth:`generate`; ``{"data": data}`` goes with ``pooling_task`` ``plugin``, or none.
            pooling_params: for all prompts, or a list with one for each.
            pooling_task: a task for those whose parameters have none; the model's own if omitted.
            truncate_prompt_tokens: cut prompts to so many tokens, -1 is ``max_model_len``; what is too long is refused
                if omitted.
            use_tqdm, lora_request: as for :meth:`generate`.

        Returns: one output for each prompt, in the order of the prompts; ``outputs.data`` is float32 in host memory, of
            the shape that :class:`PoolingOutput` tells. For data there is one, whose ``outputs`` is what the IO
            processor made of those of its prompts.

        Raises:
            InvalidRequest: a prompt cannot be served, or the model does not know the task; none is started.
            EngineError: a step failed.
            PluginError: the IO processor failed.
        """
        refuse_adapter(lora_request)
        if is_data_prompt(prompts):
            if pooling_task not in (None, "plugin"):
                raise InvalidRequest(f"pooling_task is {pooling_task!r}; a request with data takes 'plugin', or none")

            def run(made: list[Any], merged: Any) -> list[PoolingRequestOutput[PoolingOutput]]:
                return self.encode(made, merged, truncate_prompt_tokens=truncate_prompt_tokens, use_tqdm=use_tqdm)

            return [self._data_requests.serve(POOL, prompts, pooling_params, run)]
        each = split_prompts(prompts)
        given = PoolingParams() if pooling_params is None else pooling_params
        params = params_for_each("pooling_params", PoolingParams, given, len(each))
        added = {"task": pooling_task, "truncate_prompt_tokens": truncate_prompt_tokens}
        return self._pool(each, [_with_defaults(one, added) for one in params], use_tqdm)

    def embed(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for each prompt; arguments and errors as of :meth:`encode`."""
        outputs = self.encode(
            prompts,
            pooling_params,
            pooling_task="embed",
            truncate_prompt_tokens=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
        )
        return [_converted(output, EmbeddingRequestOutput, EmbeddingOutput) for output in outputs]

    def classify(
        self,
        prompts: PromptType | Sequence[PromptType],
        *,
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
    ) -> list[ClassificationRequestOutput]:
        """A probability for each class, for each prompt; arguments and errors as of :meth:`encode`."""
        outputs = self.encode(
            prompts,
            pooling_params,
            pooling_task="classify",
            truncate_prompt_tokens=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
            lora_request=lora_request,
        )
        return [_converted(output, ClassificationRequestOutput, ClassificationOutput) for output in outputs]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        pooling_params: PoolingParams | None = None,
        truncate_prompt_tokens: int | None = None,
        use_tqdm: bool | Callable[..., Any] = False,
        lora_request: None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts belong together: one with each of several, or as many with as many, pair by pair.

        A model with a single class is a cross-encoder, which reads both texts at once; of others, the score is the
        cosine of the two embeddings.

        Args:
            data_1, data_2: a text or several; one is compared with all of the other side.
            pooling_params: for all texts.
            truncate_prompt_tokens: number of tokens to cut a text to, or a pair as a whole; as for :meth:`encode`.
            use_tqdm, lora_request: as for :meth:`encode`.

        Returns: one output for each pair.

        Raises:
            InvalidRequest: the numbers of texts do not go together, or the model gives neither scores nor embeddings.
            EngineError: a step failed.
        """
        refuse_adapter(lora_request)
        pairs = _pairs(data_1, data_2)
        if pooling_params is not None and not isinstance(pooling_params, PoolingParams):
            raise InvalidRequest(f"pooling_params is {pooling_params!r}; score() takes PoolingParams, for all texts")
        model_config = self.llm_engine.vllm_config.model_config
        if is_cross_encoder(model_config, self.llm_engine.input_processor.capabilities):
            params = _with_defaults(
                PoolingParams() if pooling_params is None else pooling_params,
                {"task": "classify", "truncate_prompt_tokens": truncate_prompt_tokens},
            )
            prompts, each = pair_prompts(self.llm_engine.input_processor, model_config, pairs, params)
            return [_as_score(output) for output in self._pool(prompts, each, use_tqdm)]
        # Each text once, however many pairs it is in.
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        outputs = self.encode(
            texts,
            pooling_params,
            pooling_task="embed",
            truncate_prompt_tokens=truncate_prompt_tokens,
            use_tqdm=use_tqdm,
        )
        found = dict(zip(texts, outputs, strict=True))
        return [_cosine(found[first], found[second]) for first, second in pairs]

    def _pool(
        self, prompts: list[Any], params: list[PoolingParams], use_tqdm: bool | Callable[..., Any]
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Serve the prompts; what does so belongs to :class:`LLM`."""
        raise NotImplementedError


def _converted(output: PoolingRequestOutput[PoolingOutput], request_cls: type[R], cls: Any) -> R:
    """``output`` in the form that a task has."""
    return request_cls(
        output.request_id, cls.from_base(output.outputs), output.prompt_token_ids, output.num_cached_tokens
    )


def _as_score(output: PoolingRequestOutput[PoolingOutput]) -> ScoringRequestOutput:
    """``output`` of a cross-encoder, whose single class is the score."""
    score = ScoringOutput(float(output.outputs.data[0]))
    return ScoringRequestOutput(output.request_id, score, output.prompt_token_ids, output.num_cached_tokens)


def _with_defaults(params: PoolingParams, added: dict[str, Any]) -> PoolingParams:
    """``params`` with what they leave open; InvalidRequest where they say another task than the call."""
    task = added["task"]
    if task is not None and params.task not in (None, task):
        raise InvalidRequest(f"pooling_params have the task {params.task!r}, and this call is for {task!r}")
    open_fields = {name: value for name, value in added.items() if getattr(params, name) is None}
    return msgspec.structs.replace(params, **open_fields)


def _pairs(data_1: str | Sequence[str], data_2: str | Sequence[str]) -> list[tuple[str, str]]:
    first, second = _texts("data_1", data_1), _texts("data_2", data_2)
    if len(first) == 1:
        first *= len(second)
    elif len(second) == 1:
        second *= len(first)
    if len(first) != len(second):
        raise InvalidRequest(
            f"data_1 has {len(first)} texts, and data_2 has {len(second)}; give as many, or one on one of the sides"
        )
    return list(zip(first, second, strict=True))


def _texts(name: str, data: str | Sequence[str]) -> list[str]:
    data = without_array(data)
    if isinstance(data, str):
        return [data]
    if not isinstance(data, list | tuple) or not data or not all(isinstance(text, str) for text in data):
        raise InvalidRequest(
            f"{name} is {shown(data)}; {name} takes a text, or a list of at least one text{list_advice(name, data)}"
        )
    return list(data)


def _cosine(
    first: PoolingRequestOutput[PoolingOutput], second: PoolingRequestOutput[PoolingOutput]
) -> ScoringRequestOutput:
    cosine: torch.Tensor = F.cosine_similarity(first.outputs.data, second.outputs.data, dim=0)
    return ScoringRequestOutput(
        f"{first.request_id}_{second.request_id}",
        ScoringOutput(float(cosine)),
        first.prompt_token_ids + second.prompt_token_ids,
        first.num_cached_tokens + second.num_cached_tokens,
    )
