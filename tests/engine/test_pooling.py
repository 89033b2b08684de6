"""``LLM`` and ``AsyncLLM`` with models that pool: what may be asked, what comes back, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import transformers
from hypothesis import given
from support.encoders import BERT, TEXTS, encoded, write_encoder
from support.families import copy_with_config

from vllm_ext import LLM, AsyncLLM, SamplingParams
from vllm_ext.contracts.pooler import PoolingMetadata
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.errors import InvalidRequest
from vllm_ext.layers.pooler.methods import cls_pool, last_pool, mean_pool
from vllm_ext.models.llama import LlamaForCausalLM
from vllm_ext.registry.models import ModelRegistry


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("bert") / "model"
    directory.mkdir()
    return directory, write_encoder(directory, transformers.AutoModel, BERT)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    directory = tmp_path_factory.mktemp("classifier") / "model"
    directory.mkdir()
    auto = transformers.AutoModelForSequenceClassification
    return directory, write_encoder(directory, auto, {**BERT, "num_labels": 3})


@pytest.fixture(scope="module")
def llm(written) -> Iterator[LLM]:
    with LLM(written[0], platform="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def states(written) -> dict[str, torch.Tensor]:
    """transformers' ``[tokens, hidden]`` by text."""
    with torch.inference_mode():
        return {text: written[1](**encoded(text)).last_hidden_state[0] for text in TEXTS}


def unit(vector: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vector, dim=-1)


def close(actual, expected: torch.Tensor) -> bool:
    return torch.allclose(torch.as_tensor(actual), expected, atol=2e-5)


# What may be asked ----------------------------------------------------------------------------------------------------


def test_every_token_of_a_prompt_can_be_embedded(llm, states):
    outputs = llm.encode(TEXTS, pooling_task="token_embed")

    for text, output in zip(TEXTS, outputs, strict=True):
        assert close(output.outputs.data, unit(states[text]))


def test_classes_have_the_probabilities_of_transformers(classifier):
    directory, model = classifier

    with LLM(directory, platform="cpu") as llm:
        outputs = llm.classify(TEXTS)

    with torch.inference_mode():
        for text, output in zip(TEXTS, outputs, strict=True):
            assert output.outputs.num_classes == 3
            assert close(output.outputs.probs, model(**encoded(text)).logits[0].softmax(dim=-1))


def test_scores_come_bare_where_the_request_says_so(classifier):
    directory, model = classifier

    with LLM(directory, platform="cpu") as llm:
        (output,) = llm.classify(TEXTS[0], pooling_params=PoolingParams(use_activation=False))

    with torch.inference_mode():
        assert close(output.outputs.probs, model(**encoded(TEXTS[0])).logits[0])


def test_an_embedding_may_be_shorter_and_is_of_length_one_all_the_same(llm, states):
    (output,) = llm.embed(TEXTS[0], pooling_params=PoolingParams(dimensions=16))

    assert close(output.outputs.embedding, unit(states[TEXTS[0]][0][:16]))


def test_requests_of_one_step_may_want_different_things(llm, states):
    params = [PoolingParams(task="embed"), PoolingParams(task="token_embed"), PoolingParams(use_activation=False)]

    outputs = llm.encode(TEXTS[:3], params)

    expected = [unit(states[TEXTS[0]][0]), unit(states[TEXTS[1]]), states[TEXTS[2]][0]]
    assert all(close(output.outputs.data, each) for output, each in zip(outputs, expected, strict=True))


def test_the_task_plugin_is_what_the_model_is_for(llm, states):
    (output,) = llm.encode(TEXTS[0], pooling_task="plugin")

    assert close(output.outputs.data, unit(states[TEXTS[0]][0]))


def test_prompts_of_token_ids_are_taken(llm, states):
    (output,) = llm.embed([encoded(TEXTS[3])["input_ids"][0].tolist()])

    assert close(output.outputs.embedding, unit(states[TEXTS[3]][0]))


def test_a_prompt_as_long_as_the_model_allows_is_served(llm):
    (output,) = llm.embed([[5] * 66])

    assert len(output.prompt_token_ids) == 66


def test_more_prompts_than_fit_into_a_step_are_served(written, states):
    with LLM(written[0], platform="cpu", max_num_seqs=2, max_num_batched_tokens=20) as llm:
        outputs = llm.embed(TEXTS * 3)
        config = llm.llm_engine.vllm_config.scheduler_config
        # A prompt is computed in one step, so that a step has room for the longest one.
        assert config.max_num_batched_tokens == 66

    assert all(close(o.outputs.embedding, unit(states[t][0])) for o, t in zip(outputs, TEXTS * 3, strict=True))


def test_texts_can_be_cut_to_what_fits(llm):
    (output,) = llm.embed("the quick brown fox " * 40, truncate_prompt_tokens=-1)

    assert len(output.prompt_token_ids) == 66
    assert (output.prompt_token_ids[0], output.prompt_token_ids[-1]) == (2, 3)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate("x"), "pools, and the request is for generation: use embed()"),
        (lambda llm: llm.generate("x", SamplingParams()), "pools, and the request is for generation"),
        (lambda llm: llm.classify("x"), "task is 'classify', and model"),
        (lambda llm: llm.encode("x", pooling_task="token_classify"), "can be asked for: embed, plugin, token_embed"),
        (lambda llm: llm.encode("x", PoolingParams(task="embed"), pooling_task="token_embed"), "this call is for"),
        (lambda llm: llm.embed([[5] * 67]), "the prompt has 67 tokens, and max_model_len is 66; give a shorter one"),
        (lambda llm: llm.embed("x", truncate_prompt_tokens=67), "truncate_prompt_tokens is 67, and max_model_len is"),
        (lambda llm: llm.embed("x y z", truncate_prompt_tokens=1), "puts 2 tokens around every text; give more"),
        (lambda llm: llm.embed("x", pooling_params=PoolingParams(dimensions=65)), "embeddings have 64"),
        (lambda llm: llm.embed(["x", "y"], pooling_params=[PoolingParams()]), "1 pooling_params for 2 prompts"),
        (lambda llm: llm.embed("x", pooling_params=SamplingParams()), "it takes PoolingParams"),
        (lambda llm: llm.score("x", []), "data_2 takes a text, or a list of at least one text"),
        (lambda llm: llm.score({"prompt": "x"}, "y"), "data_1 is {'prompt': 'x'} (dict); data_1 takes a text"),
        (lambda llm: llm.score("x", ["y", 5]), "data_2 is ['y', 5] (list); data_2 takes a text, or a list"),
        (lambda llm: llm.score("x", None), "data_2 is None (NoneType); data_2 takes a text, or a list"),
        (lambda llm: llm.score("x", "y", pooling_params=SamplingParams()), "score() takes PoolingParams"),
        (lambda llm: llm.score(["x", "y"], ["x", "y", "z"]), "data_1 has 2 texts, and data_2 has 3"),
        (lambda llm: llm.embed([]), None),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(llm, call, message):
    if message is None:
        assert call(llm) == []
        return
    with pytest.raises(InvalidRequest) as caught:
        call(llm)

    assert message in str(caught.value)
    # Others are served.
    assert len(llm.embed("x")) == 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"task": "embeed"}, "task is 'embeed' (did you mean 'embed'?); it takes one of: "),
        ({"dimensions": 0}, "dimensions"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens is 0; it takes a number from 1 on, or -1"),
        ({"use_activation": 1}, "use_activation"),
        ({"extra_kwargs": []}, "extra_kwargs is []; it takes a dict"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    with pytest.raises(InvalidRequest) as caught:
        PoolingParams(**params)

    assert message in str(caught.value)


def test_a_wrong_prompt_among_others_starts_none(llm):
    with pytest.raises(InvalidRequest, match="prompt 1: the prompt has 67 tokens"):
        llm.embed([[5], [5] * 67, [6]])

    stats = llm.llm_engine.get_stats()
    assert (stats.num_running_reqs, stats.num_waiting_reqs) == (0, 0)
    assert len(llm.embed("x")) == 1


@pytest.mark.parametrize("call", [lambda llm: llm.embed("x"), lambda llm: llm.score("x", "y")], ids=["embed", "score"])
def test_a_model_that_generates_says_how_it_could_pool(random_llama, call):
    with (
        LLM(random_llama, platform="cpu") as llm,
        pytest.raises(InvalidRequest, match="set engine.runner to 'pooling'"),
    ):
        call(llm)


def test_classes_are_no_scores_of_pairs(classifier):
    with LLM(classifier[0], platform="cpu") as llm, pytest.raises(InvalidRequest, match="tells 3 classes apart"):
        llm.score("x", "y")


# Other ways to run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
def test_worker_processes_give_the_same(written, states, size):
    settings = {"executor": "multiproc", "tensor_parallel_size": size}
    with LLM(written[0], platform="cpu", **settings) as llm:
        outputs = llm.embed(TEXTS)
        (tokens,) = llm.encode(TEXTS[0], pooling_task="token_embed")

    assert all(close(o.outputs.embedding, unit(states[t][0])) for o, t in zip(outputs, TEXTS, strict=True))
    assert close(tokens.outputs.data, unit(states[TEXTS[0]]))


def test_the_weights_go_with_the_engine(classifier):
    llm = LLM(classifier[0], platform="cpu")
    weights = [weakref.ref(param) for param in llm.apply_model(lambda model: list(model.parameters()))[0]]
    gc.disable()
    try:
        llm.close()
        del llm
        assert not any(weight() is not None for weight in weights)
    finally:
        gc.enable()


class TestAsync:
    """Many tasks of one loop."""

    @pytest.fixture(
        params=[pytest.param(False, id="a thread"), pytest.param(True, id="a core process", marks=pytest.mark.slow)]
    )
    def engine(self, written, request) -> Iterator[AsyncLLM]:
        made = AsyncLLM(written[0], platform="cpu", core_process=request.param)
        yield made
        made.shutdown()

    def test_concurrent_prompts_get_their_own_results(self, engine, states):
        async def embedding(text: str) -> torch.Tensor:
            (output,) = [output async for output in engine.encode(text, PoolingParams(task="embed"))]
            assert output.finished
            return output.outputs.data

        async def main() -> list[torch.Tensor]:
            async with engine:
                return await asyncio.gather(*(embedding(text) for text in TEXTS * 5))

        results = asyncio.run(main())

        assert all(close(result, unit(states[text][0])) for result, text in zip(results, TEXTS * 5, strict=True))

    def test_what_cannot_be_served_is_refused_and_others_go_on(self, engine):
        async def main() -> None:
            async with engine:
                with pytest.raises(InvalidRequest, match="max_model_len is 66"):
                    await anext(engine.encode([5] * 67))
                with pytest.raises(InvalidRequest, match="pools, and the request is for generation"):
                    await anext(engine.generate("x"))
                output = await anext(engine.encode("x"))
                assert output.outputs.data.shape == (64,)

        asyncio.run(main())

    def test_a_request_that_is_aborted_has_no_numbers(self, engine):
        async def main() -> None:
            async with engine:
                reader = asyncio.ensure_future(anext(engine.encode("x", request_id="mine")))
                await asyncio.sleep(0)
                await engine.abort("mine")
                output = await reader
                # It may have been served before the abort came.
                assert output.request_id == "mine"
                assert output.outputs.data.shape in ((0,), (64,))
                assert (await anext(engine.encode("x"))).outputs.data.shape == (64,)

        asyncio.run(main())


class OutOfTree(LlamaForCausalLM):
    """A decoder that pools in a way of its own: the largest number of all tokens' states."""

    is_pooling_model = True

    def __init__(self, vllm_config, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = LargestOfAll()


class LargestOfAll(torch.nn.Module):
    def get_supported_tasks(self) -> frozenset:
        return frozenset({"embed"})

    def needs_all_tokens(self, task: str) -> bool:
        return True

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: PoolingMetadata) -> list[torch.Tensor]:
        starts = pooling_metadata.query_start_loc.tolist()
        return [hidden_states[i:j].amax(dim=0) for i, j in pairwise(starts)]


class TestModelOfAPlugin:
    """A registered class that brings a pooler."""

    @pytest.fixture
    def model(self, random_llama, tmp_path) -> Path:
        saved = ModelRegistry.snapshot()
        ModelRegistry.register_model("AcmeEmbeddingModel", OutOfTree)
        (tmp_path / "tokenizer.json").symlink_to(random_llama / "tokenizer.json")
        yield copy_with_config(random_llama, tmp_path, {"architectures": ["AcmeEmbeddingModel"]})
        ModelRegistry.restore(saved)

    def test_its_pooler_says_what_it_can_be_asked_for(self, model):
        with LLM(model, platform="cpu") as llm, pytest.raises(InvalidRequest, match="can be asked for: embed. "):
            llm.encode([[5, 6]], pooling_task="token_embed")

    @pytest.mark.parametrize("tokens_in_a_step", [8, 2048])
    def test_its_pooler_gets_the_states_of_all_chunks(self, model, random_llama, tokens_in_a_step):
        prompts = [list(range(3, 40)), [5], list(range(3, 30))]
        body = transformers.AutoModel.from_pretrained(random_llama, dtype=torch.float32).eval()

        with LLM(model, platform="cpu", dtype="float32", max_num_batched_tokens=tokens_in_a_step) as llm:
            outputs = llm.encode(prompts)

        for prompt, output in zip(prompts, outputs, strict=True):
            with torch.inference_mode():
                expected = body(torch.tensor([prompt])).last_hidden_state[0].amax(dim=0)
            torch.testing.assert_close(output.outputs.data, expected, atol=1e-4, rtol=1e-4)

    def test_one_that_does_not_say_that_it_pools_is_made_into_one_that_does(self, model, monkeypatch):
        monkeypatch.delattr(OutOfTree, "is_pooling_model")

        with LLM(model, platform="cpu") as llm:
            # It is a decoder then, which is made into one that pools.
            assert set(llm.llm_engine.engine_core.capabilities.tasks) == {"embed", "token_embed", "plugin"}


# Parts ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 2**32))
def test_pooling_many_prompts_at_once_is_pooling_each(lens, seed):
    rows = torch.randn(sum(lens), 8, generator=torch.Generator().manual_seed(seed))
    starts = torch.tensor([0, *lens]).cumsum(0)
    metadata = PoolingMetadata([PoolingParams(task="embed")] * len(lens), torch.tensor(lens), starts)

    parts = rows.split(lens)

    assert torch.equal(last_pool(rows, metadata), torch.stack([part[-1] for part in parts]))
    assert torch.equal(cls_pool(rows, metadata), torch.stack([part[0] for part in parts]))
    assert torch.allclose(mean_pool(rows, metadata), torch.stack([part.mean(dim=0) for part in parts]), atol=1e-6)
