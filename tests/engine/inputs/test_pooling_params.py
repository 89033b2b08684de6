"""Parameters of single requests that would fail a step are refused before, and what runs goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import transformers
from support.encoders import BERT, ROBERTA, write_encoder

from vllm_ext import LLM
from vllm_ext.contracts.pooling_params import SECOND_TEXT, PoolingParams
from vllm_ext.errors import InvalidRequest


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Iterator[LLM]:
    directory = tmp_path_factory.mktemp("bert")
    write_encoder(directory, transformers.AutoModel, BERT)
    with LLM(directory, platform="cpu") as made:
        yield made


@pytest.mark.parametrize("begins", ["4", -1, 2**63, 2.5, True, [1]])
def test_a_second_text_that_begins_nowhere_is_refused(bert, begins):
    params = PoolingParams(extra_kwargs={SECOND_TEXT: begins})

    with pytest.raises(InvalidRequest, match="it takes where the second text begins, in tokens, from 0 on"):
        bert.embed("the fox", pooling_params=params)

    assert len(bert.embed("the fox")) == 1


def test_a_second_text_changes_what_its_tokens_mean(bert):
    params = [PoolingParams(), PoolingParams(extra_kwargs={SECOND_TEXT: 2}), PoolingParams()]

    plain, second, again = bert.embed(["the fox"] * 3, pooling_params=params)

    assert plain.outputs.embedding == pytest.approx(again.outputs.embedding, abs=1e-6)
    assert plain.outputs.embedding != pytest.approx(second.outputs.embedding, abs=1e-2)


def test_a_second_text_is_refused_where_the_model_knows_one_kind_of_tokens(tmp_path):
    write_encoder(tmp_path, transformers.AutoModel, ROBERTA)

    with (
        LLM(tmp_path, platform="cpu") as llm,
        pytest.raises(InvalidRequest, match="does not tell the tokens of two texts apart"),
    ):
        llm.embed("the fox", pooling_params=PoolingParams(extra_kwargs={SECOND_TEXT: 2}))


def test_a_task_of_all_tokens_cannot_read_the_prefix_cache(random_llama):
    prompt = list(range(3, 60))
    with LLM(random_llama, platform="cpu", runner="pooling", block_size=4) as llm:
        llm.embed([prompt])
        with pytest.raises(InvalidRequest, match="skip_reading_prefix_cache is False, and task 'token_embed' needs"):
            llm.encode([prompt], PoolingParams(task="token_embed", skip_reading_prefix_cache=False))
        (read,) = llm.embed([prompt], pooling_params=PoolingParams(skip_reading_prefix_cache=False))
        (skipped,) = llm.embed([prompt], pooling_params=PoolingParams(skip_reading_prefix_cache=True))

    assert (read.num_cached_tokens, skipped.num_cached_tokens) == (56, 0)
    assert read.outputs.embedding == pytest.approx(skipped.outputs.embedding, abs=1e-5)


def test_classes_have_no_dimensions_to_leave_out(tmp_path):
    write_encoder(tmp_path, transformers.AutoModelForSequenceClassification, {**BERT, "num_labels": 3})

    with (
        LLM(tmp_path, platform="cpu") as llm,
        pytest.raises(InvalidRequest, match="dimensions is 2, and task 'classify' gives no embeddings; leave it out"),
    ):
        llm.classify("the fox", pooling_params=PoolingParams(dimensions=2))


def test_a_text_without_tokens_is_refused(random_llama):
    with (
        LLM(random_llama, platform="cpu", runner="pooling") as llm,
        pytest.raises(InvalidRequest, match="the prompt is empty: the engine needs at least one token"),
    ):
        llm.embed("")
