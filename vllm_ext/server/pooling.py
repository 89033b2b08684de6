"""``POST /v1/embeddings``, ``/classify`` and ``/pooling``."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from vllm_ext.contracts.pooling_params import PoolingParams, PoolingTask
from vllm_ext.engine.inputs.prompts import DataPrompt
from vllm_ext.errors import PluginError, RefusedByServer, dotted_path, innermost_cause
from vllm_ext.server import prompts
from vllm_ext.server.answers import encode
from vllm_ext.server.decoding import Fixed, GivenPrompts, RequestBody
from vllm_ext.server.generation import outputs_of
from vllm_ext.server.protocol import PromptTokensDetails, Usage
from vllm_ext.server.service import Service, new_id, now

if TYPE_CHECKING:
    import torch

EncodingFormat = Literal["float", "base64"]
_LAYOUT = "numbers are float32, in base64 with the lowest byte first"


class _TextsRequest(RequestBody, kw_only=True):
    """What all of them have."""

    FIXED: ClassVar[dict[str, Fixed]] = {
        "embed_dtype": Fixed(_LAYOUT, ("float32",)),
        "endianness": Fixed(_LAYOUT, ("native", "little")),
        "mm_processor_kwargs": Fixed("the engine takes text and token ids alone"),
    }

    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    use_activation: bool | None = None
    embed_dtype: Any = None
    endianness: Any = None
    mm_processor_kwargs: Any = None


class EmbeddingRequest(_TextsRequest, kw_only=True):
    """``POST /v1/embeddings``."""

    input: GivenPrompts
    encoding_format: EncodingFormat | None = None
    dimensions: int | None = None


class ClassifyRequest(_TextsRequest, kw_only=True):
    """``POST /classify``."""

    input: GivenPrompts


class PoolingRequest(_TextsRequest, kw_only=True):
    """``POST /pooling``: texts for any task of the model, or data for its IO processor."""

    input: GivenPrompts | None = None
    data: Any = UNSET
    task: PoolingTask | None = None
    encoding_format: EncodingFormat | None = None
    dimensions: int | None = None


class PooledItem(msgspec.Struct):
    """Of one prompt: ``embedding`` of embeddings, ``data`` of anything else."""

    index: int
    object: str
    embedding: Any = UNSET
    data: Any = UNSET


class ClassifiedItem(msgspec.Struct):
    """Of one prompt: its likeliest class, and how likely each is."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class PoolingAnswer(msgspec.Struct):
    """One item for each prompt, in their order."""

    id: str
    object: str
    created: int
    model: str
    data: list[Any]
    usage: Usage


class DataAnswer(msgspec.Struct):
    """What an IO processor made of a request."""

    request_id: str
    created_at: int
    data: Any


async def create_embeddings(service: Service, request: EmbeddingRequest) -> Response:
    """A vector for each text."""
    service.check_task("embed")

    def item(index: int, data: torch.Tensor) -> PooledItem:
        return PooledItem(index, "embedding", embedding=_numbers(data, request.encoding_format))

    params = _params(request, "embed", dimensions=request.dimensions)
    return service.json(EmbeddingRequest, lambda: _pooled(service, request, request.input, params, "embd", item))


async def classify(service: Service, request: ClassifyRequest) -> Response:
    """How likely each class is, of each text."""
    service.check_task("classify")
    labels = service.model_config.hf_config.get("id2label") or {}

    def item(index: int, data: torch.Tensor) -> ClassifiedItem:
        probs = data.tolist()
        best = max(range(len(probs)), key=probs.__getitem__)
        return ClassifiedItem(index, str(labels.get(str(best), f"LABEL_{best}")), probs, len(probs))

    params = _params(request, "classify")
    return service.json(ClassifyRequest, lambda: _pooled(service, request, request.input, params, "classify", item))


async def pool(service: Service, request: PoolingRequest) -> Response:
    """What pooling gives for each text; or what an IO processor makes of data."""
    if request.data is not UNSET:
        if request.input is not None:
            raise RefusedByServer("input and data are both given; a request has one of them", param="data")
        return service.json(PoolingRequest, lambda: _processed(service, request))
    if request.input is None:
        raise RefusedByServer("neither input nor data is given", param="input")
    given = request.input
    service.check_generates(wanted=False)
    if request.task is not None:
        service.check_task(request.task)

    def item(index: int, data: torch.Tensor) -> PooledItem:
        return PooledItem(index, "pooling", data=_numbers(data, request.encoding_format))

    params = _params(request, request.task, dimensions=request.dimensions)
    return service.json(PoolingRequest, lambda: _pooled(service, request, given, params, "pool", item))


def _params(request: _TextsRequest, task: PoolingTask | None, **more: Any) -> PoolingParams:
    return PoolingParams(
        task=task,
        use_activation=request.use_activation,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        **more,
    )


async def _pooled(
    service: Service,
    request: _TextsRequest,
    given: GivenPrompts,
    params: PoolingParams,
    prefix: str,
    item: Callable[[int, torch.Tensor], Any],
) -> bytes:
    """The answer with what ``item`` makes of each prompt's numbers, by its index."""
    each = prompts.split("input", given)
    if request.add_special_tokens is False:
        each = await prompts.without_special_tokens(service, each)
    answer_id = new_id(prefix, request)
    runs = [
        service.engine.encode(prompt, params, f"{answer_id}-{index}", priority=request.priority)
        for index, prompt in enumerate(each)
    ]
    items: dict[int, Any] = {}
    num_tokens = num_cached = 0
    async with aclosing(outputs_of(runs)) as outputs:
        async for index, output in outputs:
            items[index] = item(index, output.outputs.data)
            num_tokens += len(output.prompt_token_ids)
            num_cached += output.num_cached_tokens
    usage = Usage(num_tokens, num_tokens, 0, PromptTokensDetails(num_cached))
    data = [items[index] for index in range(len(each))]
    return encode(PoolingAnswer(answer_id, "list", now(), service.model_name, data, usage))


async def _processed(service: Service, request: PoolingRequest) -> bytes:
    """What the IO processor makes of the request's data."""
    given = _params(request, request.task, dimensions=request.dimensions)
    if given != PoolingParams() or request.encoding_format is not None:
        raise RefusedByServer("the IO processor makes prompts and answer: with data goes nothing else", param="data")
    engine, answer_id = service.engine, new_id("pool", request)
    run = engine.generate if service.generates else engine.encode
    prompt: DataPrompt = {"data": request.data}
    async with aclosing(run(prompt, None, answer_id, priority=request.priority)) as outputs:
        async for output in outputs:
            try:
                return msgspec.json.encode(DataAnswer(answer_id, now(), output.outputs), enc_hook=_plain)
            except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
                raise PluginError(
                    f"the IO processor's answer cannot be written as JSON: {innermost_cause(error)}"
                ) from error
    raise AssertionError("a request ends with an output or an error")


def _numbers(data: torch.Tensor, encoding_format: EncodingFormat | None) -> list[Any] | str:
    if encoding_format == "base64":
        return base64.b64encode(data.contiguous().numpy().astype("<f4").tobytes()).decode()
    numbers: list[Any] = data.tolist()
    return numbers


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise NotImplementedError(f"no form for {dotted_path(type(value))}")
