"""Arguments of a wrong kind are named, with what they take; nothing inside is reached with them."""

from __future__ import annotations

import asyncio
import re

import pytest
from support.async_engine import greedy

from vllm_ext import LLM, AsyncLLM, LoRARequest
from vllm_ext.errors import ConfigError, InvalidRequest

OF_CALLS = [
    ({"method": 5}, "method is 5; it takes the name of a method of the worker, or a function that is called with it"),
    ({"timeout": "a"}, "timeout is 'a'; it takes a number, at least 0"),
    ({"timeout": -1}, "timeout is -1; it takes a number, at least 0"),
    ({"args": 5}, "args is 5; it takes a tuple with the arguments of the method"),
    ({"args": "ab"}, "args is 'ab'; it takes a tuple with the arguments of the method"),
    ({"kwargs": [1]}, "kwargs is [1]; it takes a dictionary with the arguments of the method by name"),
    ({"kwargs": {1: 2}}, "kwargs is {1: 2}; it takes a dictionary with the arguments of the method by name"),
]
OF_IDS = [
    (5, "request_id is 5; it takes the id of a request, a text, or several ids"),
    (None, "request_id is None; it takes the id of a request, a text, or several ids"),
    (["a", 5], "request_id is ['a', 5]; it takes the id of a request, a text, or several ids"),
    ([["a"]], "request_id is [['a']]; it takes the id of a request, a text, or several ids"),
]


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


@pytest.mark.parametrize("given, complaint", OF_CALLS)
def test_collective_rpc_of_an_llm(make_llm, given, complaint):
    with pytest.raises(InvalidRequest, match=exactly(complaint)):
        make_llm().collective_rpc(**({"method": "check_health"} | given))


@pytest.mark.parametrize("given, complaint", OF_CALLS)
def test_collective_rpc_of_an_async_engine(make_async_llm, given, complaint):
    engine = make_async_llm()

    with pytest.raises(InvalidRequest, match=exactly(complaint)):
        asyncio.run(engine.collective_rpc(**({"method": "check_health"} | given)))


def test_apply_model(make_llm, make_async_llm):
    complaint = exactly("func is 'norm'; it takes a function that is called with the model of each worker")

    with pytest.raises(InvalidRequest, match=complaint):
        make_llm().apply_model("norm")
    with pytest.raises(InvalidRequest, match=complaint):
        asyncio.run(make_async_llm().apply_model("norm"))


@pytest.mark.parametrize("given, complaint", OF_IDS)
def test_aborts(make_llm, make_async_llm, given, complaint):
    with pytest.raises(InvalidRequest, match=exactly(complaint)):
        make_llm().llm_engine.abort_request(given)
    with pytest.raises(InvalidRequest, match=exactly(complaint)):
        asyncio.run(make_async_llm().abort(given))


@pytest.mark.parametrize("given", [5, ["a"]])
def test_the_id_of_a_request(make_llm, given):
    engine = make_llm().llm_engine

    with pytest.raises(InvalidRequest, match=exactly(f"request_id is {given!r}; it takes a text")):
        engine.add_request(given, [1, 2], greedy())
    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize("cls", [LLM, AsyncLLM])
@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"overrides": 5}, "{}(overrides=...) is 5; it takes a dictionary of settings by key"),
        ({"config_files": 5}, "{}(config_files=...) is 5; it takes a list of YAML files"),
        ({"config_files": "a.yaml"}, "{}(config_files=...) is 'a.yaml'; it takes a list of YAML files"),
        (
            {"stat_loggers": 5},
            "{}(stat_loggers=...) is 5; it takes a list of classes, or of functions that make a logger",
        ),
    ],
)
def test_keywords_of_the_constructor(model_dir, cls, given, complaint):
    with pytest.raises(ConfigError, match=exactly(complaint.format(cls.__name__))):
        cls(model_dir, **given)


ADAPTER = LoRARequest("words", 1, "/adapters/words")
NO_ADAPTER = exactly(
    f"lora_request is {ADAPTER!r}; it takes None alone, since the engine applies no adapters; merge one into the "
    "weights"
)


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.generate([1], greedy(), lora_request=ADAPTER),
        lambda llm: llm.chat([{"role": "user", "content": "a"}], chat_template="a", lora_request=ADAPTER),
        lambda llm: llm.encode([1], lora_request=ADAPTER),
        lambda llm: llm.embed([1], lora_request=ADAPTER),
        lambda llm: llm.classify([1], lora_request=ADAPTER),
        lambda llm: llm.score("a", "b", lora_request=ADAPTER),
    ],
)
def test_an_adapter_is_refused_by_name(make_llm, call):
    with pytest.raises(InvalidRequest, match=NO_ADAPTER):
        call(make_llm())


@pytest.mark.parametrize("method", ["generate", "encode"])
def test_an_adapter_is_refused_by_name_by_an_async_engine(make_async_llm, method):
    with pytest.raises(InvalidRequest, match=NO_ADAPTER):
        getattr(make_async_llm(), method)([1], lora_request=ADAPTER)


def test_no_adapter_at_all_may_be_passed_on(make_llm, make_async_llm):
    (output,) = make_llm().generate([1], greedy(), lora_request=None)
    assert output.finished

    assert asyncio.run(anext(make_async_llm().generate([1], greedy(), lora_request=None))).outputs
    with pytest.raises(InvalidRequest, match="pooling"):
        make_llm().embed([1], lora_request=None)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda llm, one: llm.generate([1] for _ in range(2)), "prompts"),
        (lambda llm, one: llm.generate({"a": 1}.keys()), "prompts"),
        (lambda llm, one: llm.generate([[1], [2]], (one for _ in range(2))), "sampling_params"),
        (lambda llm, one: llm.chat({"role": "user", "content": "a"} for _ in range(2)), "messages"),
        (lambda llm, one: llm.score("a", (text for text in "bc")), "data_2"),
    ],
)
def test_a_series_that_is_no_list_is_refused_with_how_to_make_one(make_llm, call, name):
    with pytest.raises(InvalidRequest, match=rf"^{name} is .*; make a list of it: list\({name}\)$"):
        call(make_llm(), greedy())


def test_what_is_no_series_at_all_gets_no_such_advice(make_llm):
    with pytest.raises(InvalidRequest) as error:
        make_llm().generate(5)

    assert "make a list of it" not in str(error.value)


@pytest.mark.parametrize("cls", [LLM, AsyncLLM])
def test_a_keyword_that_vllm_alone_has_is_told_with_what_stands_in_for_it(model_dir, cls):
    complaint = (
        f"({cls.__name__}(gpu_memory_utilization=...)): engine.gpu_memory_utilization: unknown key (in place of "
        "vLLM's: 'engine.kv_cache_memory', in bytes; by itself it takes what fits and can be used); keys of 'engine': "
    )

    with pytest.raises(ConfigError, match=re.escape(complaint)):
        cls(model_dir, gpu_memory_utilization=0.5)
