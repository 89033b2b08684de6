"""Over any number of ranks a model computes the same tokens, through the platform's own communicator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.called_in_workers import forget_traffic, kv_heads, traffic
from support.families import ADAPTED, write_model
from support.processes import marked_processes
from support.quantized import copy_with_weights, through_int8
from support.reference import Greedy, assert_equal_tokens, greedy_reference
from support.tools import load_tool

from vllm_ext import SamplingParams
from vllm_ext.dispatch.hf_config import DEMO_MODEL
from vllm_ext.engine.executors import multiproc
from vllm_ext.engine.llm import LLM
from vllm_ext.errors import ConfigError

PROMPTS = [[5, 17, 300, 4], [9], list(range(20, 60))]
NUM_TOKENS = 12
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
KV_HEADS = {"kv1": 1, "kv2": 2, "kv8": 8}
ODD_VOCABULARY = 601
"""Neither two nor four ranks can share it evenly."""

# Processes take seconds to start.
IN_SHORT = ("kv1", "cpu", 2)
GRID = [
    pytest.param(model, platform, ranks, marks=[] if (model, platform, ranks) == IN_SHORT else pytest.mark.slow)
    for model in ("demo", *KV_HEADS)
    for platform in ("cpu", "dummy")
    for ranks in (2, 4)
]


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The demo model, or a random one of 8 heads with as many KV heads as its name says."""
    folder = tmp_path_factory.mktemp("models")

    def find(name: str) -> Path:
        if name == "demo":
            return DEMO_MODEL
        if not (folder / name).exists():
            tool = load_tool("make_checkpoint")
            shape = tool.Shape(64, 2, 8, KV_HEADS[name], 16, 96, ODD_VOCABULARY, 256)
            tool.write_checkpoint(folder / name, shape, seed=3)
        return folder / name

    return find


@pytest.fixture(scope="module")
def references_of(directory_of: Callable[[str], Path]) -> Callable[[str], list[Greedy]]:
    """What transformers generates with a model."""
    found: dict[str, list[Greedy]] = {}

    def find(name: str) -> list[Greedy]:
        if name not in found:
            found[name] = greedy_reference(directory_of(name), PROMPTS, NUM_TOKENS)
        return found[name]

    return find


@pytest.fixture
def start(plugins, make_multiproc_llm) -> Iterator[Callable[..., LLM]]:
    """Makes an engine of several ranks; with the platform ``dummy`` that plugin is installed first."""

    def make(model: Path, platform: str, ranks: int, **settings: object) -> LLM:
        if platform == "dummy":
            plugins.project("vllm_ext_dummy_platform")
        return make_multiproc_llm(model, platform=platform, tensor_parallel_size=ranks, **settings)

    return make


def generate(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize("platform", ["cpu", "dummy"])
@pytest.mark.parametrize("model", ["demo", *KV_HEADS])
def test_one_rank_gives_the_tokens_of_transformers(plugins, directory_of, references_of, model, platform):
    if platform == "dummy":
        plugins.project("vllm_ext_dummy_platform")

    with LLM(directory_of(model), platform=platform, dtype="float32", kv_cache_memory=1 << 20) as llm:
        assert_equal_tokens(generate(llm), references_of(model))


@pytest.mark.parametrize(("model", "platform", "ranks"), GRID)
def test_several_ranks_give_the_tokens_of_transformers(start, directory_of, references_of, model, platform, ranks):
    llm = start(directory_of(model), platform, ranks)
    if platform == "dummy":
        llm.collective_rpc(forget_traffic)

    assert_equal_tokens(generate(llm), references_of(model))

    config = json.loads((directory_of(model) / "config.json").read_text())
    each = max(1, config["num_key_value_heads"] // ranks)
    assert llm.collective_rpc(kv_heads) == [[each] * config["num_hidden_layers"]] * ranks
    if platform == "dummy":
        assert llm.collective_rpc(traffic) == [expected_traffic(config, ranks)] * ranks


def expected_traffic(config: dict[str, int], ranks: int) -> dict[str, tuple[int, int]]:
    """Calls, and bytes in float32, of a rank: a sum over the embedding and two in each layer, then the logits."""
    steps, sums = NUM_TOKENS, 2 * config["num_hidden_layers"] + 1
    # All prompts in the first step, then one token of each.
    tokens = sum(map(len, PROMPTS)) + (steps - 1) * len(PROMPTS)
    rows_of_head = -(-config["vocab_size"] // ranks)
    return {
        "all_reduce": (steps * sums, tokens * config["hidden_size"] * 4 * sums),
        "all_gather": (steps, steps * len(PROMPTS) * rows_of_head * 4),
    }


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_int8_weights_are_the_same_on_any_number_of_ranks(start, directory_of, tmp_path, ranks):
    references = greedy_reference(
        copy_with_weights(directory_of("kv2"), tmp_path / "wide", through_int8), PROMPTS, NUM_TOKENS
    )

    assert_equal_tokens(generate(start(directory_of("kv2"), "cpu", ranks, quantization="int8")), references)


@pytest.mark.slow
def test_dummy_weights_are_the_same_on_any_number_of_ranks(start, directory_of):
    settings = {"load_format": "dummy", "dtype": "float32", "kv_cache_memory": 1 << 20}
    with LLM(directory_of("kv2"), platform="cpu", **settings) as llm:
        expected = generate(llm)

    assert generate(start(directory_of("kv2"), "cpu", 4, **settings)) == expected


@pytest.fixture
def no_worker_starts(monkeypatch: pytest.MonkeyPatch, mark: str) -> Iterator[None]:
    """Fails the test where a worker process was started, even one that has ended since."""
    started: list[str] = []

    class Noted(multiproc.ChildProcess):
        def __init__(self, name: str, *args: object, **kwargs: object) -> None:
            started.append(name)
            super().__init__(name, *args, **kwargs)

    monkeypatch.setattr(multiproc, "ChildProcess", Noted)
    yield
    assert started == []
    assert marked_processes(mark) == {}


@pytest.mark.parametrize(
    ("model", "ranks", "refusal"),
    [
        ("demo", 7, r"LlamaForCausalLM of .*config\.json .*: its intermediate_size 480 "),
        ("demo", 8, r"its 6 query heads \(num_attention_heads\) are fewer\. Possible .*: 1, 2, 3, 4, 5, 6"),
        ("kv8", 3, r"its 8 KV heads \(num_key_value_heads\) .* evenly\. Possible for this model: 1, 2, 4, 8"),
    ],
)
def test_ranks_that_cannot_share_a_model_are_refused_before_they_start(
    no_worker_starts, make_multiproc_llm, directory_of, model, ranks, refusal
):
    with pytest.raises(ConfigError, match=rf"engine\.tensor_parallel_size is {ranks}, and .*{refusal}"):
        make_multiproc_llm(directory_of(model), tensor_parallel_size=ranks)


def test_a_model_that_runs_through_transformers_is_not_split_and_named(no_worker_starts, make_multiproc_llm, tmp_path):
    model = write_model(tmp_path / "model", ADAPTED["gpt2"])

    with pytest.raises(
        ConfigError, match=r"tensor_parallel_size is 2, and .* names GPT2LMHeadModel, which runs through transformers"
    ):
        make_multiproc_llm(model)
