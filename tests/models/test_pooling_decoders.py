"""Decoders whose states are pooled, against transformers' own states."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.families import ADAPTED, NATIVE, write_model

from vllm_ext import LLM
from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.errors import UnsupportedModel

PROMPTS = [[5, 9, 200, 17, 3], [7], list(range(10, 74)), [5, 9, 200, 17, 3, 8, 8, 8], list(range(10, 60))]
POOL = {"LAST": lambda s: s[-1], "MEAN": lambda s: s.mean(dim=0), "CLS": lambda s: s[0]}


def all_states(directory: Path, prompts: list[list[int]]) -> list[torch.Tensor]:
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([token_ids])).last_hidden_state[0] for token_ids in prompts]


def check(outputs: list, directory: Path, pooling_type: str) -> None:
    for states, output in zip(all_states(directory, PROMPTS), outputs, strict=True):
        expected = torch.nn.functional.normalize(POOL[pooling_type](states), dim=0)
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), expected, atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama") / "model", NATIVE["llama"])


@pytest.mark.parametrize("name", ["llama", "mistral, window", "qwen2", "qwen3"])
def test_the_last_tokens_state_is_the_embedding(tmp_path, name):
    directory = write_model(tmp_path / "model", NATIVE[name])

    with LLM(directory, platform="cpu", runner="pooling") as llm:
        outputs = llm.embed(PROMPTS)

    check(outputs, directory, "LAST")


@pytest.mark.parametrize("platform", ["cpu", "dummy"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_tokens_that_see_all_of_the_prompt_have_the_states_of_transformers(plugins, tmp_path, name, platform):
    plugins.project("vllm_ext_dummy_platform")
    directory = write_model(tmp_path / "model", NATIVE[name] | {"is_causal": False})

    with LLM(directory, platform=platform, runner="pooling", pooling_type="MEAN") as llm:
        outputs = llm.embed(PROMPTS)

    check(outputs, directory, "MEAN")


def test_none_is_generated_after_them(tmp_path):
    directory = write_model(tmp_path / "model", NATIVE["llama"] | {"is_causal": False})

    with pytest.raises(UnsupportedModel, match=r"is_causal is false.*set engine.runner to pooling for embeddings"):
        LLM(directory, platform="cpu")


def test_windows_in_both_directions_are_refused(tmp_path):
    directory = write_model(tmp_path / "model", NATIVE["mistral, window"] | {"is_causal": False})

    with pytest.raises(UnsupportedModel, match="is_causal is false, and a sliding window in both directions"):
        LLM(directory, platform="cpu", runner="pooling")


@pytest.mark.parametrize("pooling_type", ["MEAN", "CLS"])
def test_the_settings_choose_how_states_are_pooled(llama, pooling_type):
    with LLM(llama, platform="cpu", convert="embed", pooling_type=pooling_type) as llm:
        outputs = llm.embed(PROMPTS)

    check(outputs, llama, pooling_type)


def test_prompts_longer_than_the_cache_are_pooled_where_all_layers_have_a_window(tmp_path):
    directory = write_model(tmp_path / "model", NATIVE["mistral, window"])
    # Keys and values of 2 heads of 16 numbers in float32, in 3 layers: 6 blocks of 4 tokens.
    memory = 6 * 4 * 2 * 2 * 16 * 4 * 3
    settings = {"pooling_type": "MEAN", "block_size": 4, "kv_cache_memory": memory}

    with LLM(directory, platform="cpu", dtype="float32", runner="pooling", **settings) as llm:
        outputs = llm.embed(PROMPTS)
        num_blocks = llm.llm_engine.engine_core.kv_cache_config.num_blocks

    assert max(map(len, PROMPTS)) > num_blocks * 4 == 24
    check(outputs, directory, "MEAN")


@pytest.mark.parametrize("pooling_type", list(POOL))
@pytest.mark.parametrize("platform", ["cpu", "dummy"])
def test_prompts_that_come_in_chunks_give_the_same(plugins, llama, pooling_type, platform):
    plugins.project("vllm_ext_dummy_platform")
    settings = {"max_num_batched_tokens": 12, "max_num_seqs": 3, "pooling_type": pooling_type}

    with LLM(llama, platform=platform, runner="pooling", **settings) as llm:
        outputs = llm.embed(PROMPTS)

    check(outputs, llama, pooling_type)


@pytest.mark.parametrize("pooling_type", ["LAST", "MEAN"])
def test_prompts_that_are_preempted_give_the_same(llama, pooling_type):
    # 3 layers of 2 KV heads of 16 numbers for keys and for values: 768 bytes a token.
    # A prompt of 50 tokens is admitted beside one of 64 that is not computed yet only where both fit.
    settings = {"kv_cache_memory": 768 * 4 * 20, "block_size": 4, "max_num_batched_tokens": 6}

    with LLM(llama, platform="cpu", runner="pooling", pooling_type=pooling_type, **settings) as llm:
        first = llm.llm_engine
        for index, prompt in enumerate(PROMPTS):
            first.add_request(f"r{index}", prompt)
        outputs = {}
        for step in range(200):
            outputs |= {output.request_id: output for output in first.step()}
            if step == 3:
                # As an operator would: what runs is computed again.
                first.reset_prefix_cache(reset_running_requests=True)
            if not first.has_unfinished_requests():
                break
        num_preemptions = first.get_stats().num_preemptions

    assert num_preemptions > 0
    for index, states in enumerate(all_states(llama, PROMPTS)):
        expected = torch.nn.functional.normalize(POOL[pooling_type](states), dim=0)
        torch.testing.assert_close(outputs[f"r{index}"].outputs.data, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("platform", ["cpu", "dummy"])
def test_the_prefix_cache_is_read_where_only_the_last_token_counts(plugins, llama, platform):
    plugins.project("vllm_ext_dummy_platform")

    with LLM(llama, platform=platform, runner="pooling", block_size=4) as llm:
        cold = llm.embed(PROMPTS)
        warm = llm.embed(PROMPTS)

    assert warm[2].num_cached_tokens == 60
    check(cold, llama, "LAST")
    check(warm, llama, "LAST")


@pytest.mark.parametrize("platform", ["cpu", "dummy"])
def test_the_prefix_cache_is_not_read_where_all_tokens_count(plugins, llama, platform):
    plugins.project("vllm_ext_dummy_platform")

    with LLM(llama, platform=platform, runner="pooling", pooling_type="MEAN", block_size=4) as llm:
        llm.embed(PROMPTS)
        warm = llm.embed(PROMPTS)

    assert {output.num_cached_tokens for output in warm} == {0}
    check(warm, llama, "MEAN")


def test_tokens_that_come_in_chunks_have_an_embedding_each(llama):
    with LLM(llama, platform="cpu", runner="pooling", max_num_batched_tokens=10) as llm:
        outputs = llm.encode(PROMPTS, pooling_task="token_embed")

    for states, output in zip(all_states(llama, PROMPTS), outputs, strict=True):
        expected = torch.nn.functional.normalize(states, dim=-1)
        torch.testing.assert_close(output.outputs.data, expected, atol=2e-5, rtol=0)


def test_a_checkpoint_of_the_bare_model_is_one_for_embeddings(tmp_path, llama):
    model = transformers.AutoModel.from_pretrained(llama)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (llama / name).exists():
            (tmp_path / name).symlink_to(llama / name)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaModel"]
    assert not any(name.startswith("model.") for name in load_file(tmp_path / "model.safetensors"))

    with LLM(tmp_path, platform="cpu") as llm:
        outputs = llm.embed(PROMPTS)

    check(outputs, llama, "LAST")


def test_a_decoder_that_classifies_has_the_probabilities_of_transformers(tmp_path, llama):
    config = transformers.AutoConfig.from_pretrained(llama, num_labels=3)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    body = {name: tensor for name, tensor in load_file(llama / "model.safetensors").items() if name != "lm_head.weight"}
    model.load_state_dict(body, strict=False)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (llama / name).exists():
            (tmp_path / name).symlink_to(llama / name)

    with LLM(tmp_path, platform="cpu") as llm:
        outputs = llm.classify(PROMPTS)

    for states, output in zip(all_states(llama, PROMPTS), outputs, strict=True):
        with torch.inference_mode():
            expected = (states[-1] @ model.score.weight.T).softmax(dim=-1)
        torch.testing.assert_close(torch.tensor(output.outputs.probs), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "gemma2, soft caps"])
@pytest.mark.parametrize("pooling_type", ["LAST", "MEAN"])
def test_a_model_that_runs_through_transformers_can_pool(tmp_path, name, pooling_type):
    directory = write_model(tmp_path / "model", ADAPTED[name])
    settings = {"pooling_type": pooling_type, "max_num_batched_tokens": 12}

    with LLM(directory, platform="cpu", runner="pooling", **settings) as llm:
        outputs = llm.embed(PROMPTS)

    check(outputs, directory, pooling_type)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("name", ["mistral, window", "qwen2", "qwen3"])
def test_classes_have_the_probabilities_of_transformers_with_and_without_the_prefix_cache(tmp_path, name, num_labels):
    source = write_model(tmp_path / "source", NATIVE[name])
    config = transformers.AutoConfig.from_pretrained(source, num_labels=num_labels)
    config.pad_token_id = 0
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param) * 0.2) if param.ndim == 1 else param.normal_(std=0.15)
        expected = [model(torch.tensor([token_ids])).logits[0] for token_ids in PROMPTS]
    expected = [each.sigmoid() if num_labels == 1 else each.softmax(dim=-1) for each in expected]
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").symlink_to(source / "tokenizer.json")

    with LLM(tmp_path / "model", platform="cpu", block_size=4, max_num_batched_tokens=20) as llm:
        cold, warm = llm.classify(PROMPTS), llm.classify(PROMPTS)

    assert warm[2].num_cached_tokens == 60
    for outputs in (cold, warm):
        for output, probs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.tensor(output.outputs.probs), probs, atol=2e-5, rtol=0)


def test_scores_of_pairs_say_what_of_them_was_in_the_prefix_cache(tmp_path):
    directory = write_model(tmp_path / "model", NATIVE["llama"] | {"num_labels": 1})
    settings = {"runner": "pooling", "convert": "classify", "load_format": "dummy", "block_size": 4}

    with LLM(directory, platform="cpu", **settings) as llm:
        llm.score("one two", "three")
        (again,) = llm.score("one two", "three")

    assert again.num_cached_tokens == (len(again.prompt_token_ids) - 1) // 4 * 4 > 0


def test_what_a_task_of_all_tokens_computed_serves_one_of_the_last_token(llama):
    with LLM(llama, platform="cpu", runner="pooling", block_size=4) as llm:
        llm.encode(PROMPTS, pooling_task="token_embed")
        outputs = llm.embed(PROMPTS)
        (tokens,) = llm.encode([PROMPTS[2]], pooling_task="token_embed")

    assert outputs[2].num_cached_tokens == 60
    check(outputs, llama, "LAST")
    assert tokens.num_cached_tokens == 0
    assert tokens.outputs.data.shape == (64, 64)


@pytest.mark.parametrize("pooling_type", ["LAST", "MEAN"])
@pytest.mark.parametrize("seed", range(2))
def test_requests_that_come_end_and_are_preempted_at_random_give_what_transformers_gives(llama, pooling_type, seed):
    random = Random(seed)
    prompts = {f"r{i}": [random.randrange(3, 7) for _ in range(random.randint(1, 70))] for i in range(40)}
    model = transformers.AutoModel.from_pretrained(llama, dtype=torch.float32).eval()
    tasks = {request_id: random.choice(["embed", "embed", "token_embed"]) for request_id in prompts}
    settings = {"kv_cache_memory": 768 * 4 * 24, "block_size": 4, "max_num_batched_tokens": 10, "max_num_seqs": 6}

    with LLM(
        llama, platform="cpu", runner="pooling", pooling_type=pooling_type, scheduling_policy="priority", **settings
    ) as llm:
        engine, outputs, aborted = llm.llm_engine, {}, set()
        waiting = list(prompts)
        while waiting or engine.has_unfinished_requests():
            while waiting and random.random() < 0.5:
                request_id = waiting.pop()
                params = PoolingParams(task=tasks[request_id])
                engine.add_request(request_id, prompts[request_id], params, priority=random.randrange(4))
                if random.random() < 0.15:
                    aborted.add(request_id)
            outputs |= {output.request_id: output for output in engine.step()}
            if random.random() < 0.1:
                # Only one prompt at a time is halfway, so that no other takes its memory; an operator does.
                engine.reset_prefix_cache(reset_running_requests=True)
            if aborted - outputs.keys() and random.random() < 0.1:
                engine.abort_request(list(aborted))
        stats = engine.get_stats()

    assert stats.num_preemptions > 0
    assert (stats.num_running_reqs, stats.num_waiting_reqs) == (0, 0)
    assert outputs.keys() == prompts.keys()
    empty = {request_id for request_id, output in outputs.items() if not output.outputs.data.numel()}
    # One that was to be aborted may have been served before.
    assert set() < empty <= aborted
    for request_id in outputs.keys() - empty:
        with torch.inference_mode():
            states = model(torch.tensor([prompts[request_id]])).last_hidden_state[0]
        output = outputs[request_id]
        rows = states if tasks[request_id] == "token_embed" else POOL[pooling_type](states)
        expected = torch.nn.functional.normalize(rows, dim=-1)
        torch.testing.assert_close(output.outputs.data, expected, atol=2e-5, rtol=0)


def test_a_missing_classifier_is_a_missing_tensor(tmp_path, llama):
    config = json.loads((llama / "config.json").read_text()) | {"architectures": ["LlamaForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(llama / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").symlink_to(llama / "tokenizer.json")

    with pytest.raises(Exception, match=r"does not hold all tensors of the model; missing: score.weight"):
        LLM(tmp_path, platform="cpu")
