"""What goes wrong with one request, one call or one start stays with it."""

from __future__ import annotations

import gc
import shutil
import signal
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from vllm_ext import LLM, SamplingParams
from vllm_ext.errors import ContractError, EngineError, InvalidRequest
from vllm_ext.worker.sampling.logits_processors import MinTokensLogitsProcessor

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
POISON = 400


@pytest.fixture
def poisoned_model(random_llama, tmp_path):
    """A model in which one token has an embedding of NaN, and so keys and values of NaN."""
    model = shutil.copytree(random_llama, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(tensors, model / "model.safetensors")
    return model


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("block_size", [5, 16])
def test_nan_of_one_request_never_reaches_another(poisoned_model, engines, block_size):
    llm = LLM(poisoned_model, block_size=block_size)
    engines.append(llm)
    (alone,) = tokens(llm.generate([5, 6, 7], GREEDY))

    beside = tokens(llm.generate([[5, 6, 7], [POISON] * 60], GREEDY))[0]
    # The blocks of the poisoned request are free again, and in the hands of others.
    after = tokens(llm.generate([[5, 6, 7], [8] * 70], GREEDY))[0]

    assert beside == after == alone


def test_a_random_draw_from_nan_is_still_a_token(poisoned_model, engines):
    llm = LLM(poisoned_model)
    engines.append(llm)
    random = SamplingParams(temperature=1, seed=1, max_tokens=6, ignore_eos=True)

    (output,) = llm.generate([[POISON, POISON]], random)

    assert len(output.outputs[0].token_ids) == 6


def test_a_stream_whose_last_outputs_were_lost_says_so(random_llama, engines):
    llm = LLM(random_llama)
    engines.append(llm)
    stream = llm.stream([5, 6, 7], GREEDY)
    next(stream)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()  # somebody else's step, whose outputs go nowhere

    with pytest.raises(EngineError, match="the last outputs of this call were lost"):
        next(stream)


def test_an_interrupt_while_a_request_is_preempted_leaves_room_for_others(random_llama, engines, monkeypatch):
    block_bytes = 4 * 2 * 2 * 16 * 4 * 3  # tokens, KV heads, key and value, head size, float32, layers
    llm = LLM(random_llama, block_size=4, kv_cache_memory=8 * block_bytes, max_num_seqs=2)
    engines.append(llm)
    manager = llm.llm_engine.engine_core.scheduler.kv_cache_manager
    long = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)

    def interrupt(request):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manager, "free", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5] * 9, [6] * 9], long)

    assert [len(ids) for ids in tokens(llm.generate([[5] * 9, [6] * 9], GREEDY))] == [6, 6]


def test_a_start_that_fails_leaves_no_process_group(random_llama):
    LLM(random_llama).close()
    groups = len(dist.distributed_c10d._world.pg_map)

    with pytest.raises(ContractError, match="communicator class of setting communicator.cls"):
        LLM(random_llama, overrides={"communicator.cls": "no_such_module.Communicator"})

    assert len(dist.distributed_c10d._world.pg_map) == groups


def test_a_closed_engine_gives_its_weights_back_at_once(random_llama):
    llm = LLM(random_llama)
    model = llm.llm_engine.engine_core.executor.collective_rpc("get_model")[0]
    weight = weakref.ref(model.model.embed_tokens.weight)
    del model
    gc.disable()
    try:
        llm.close()
        assert weight() is None
    finally:
        gc.enable()


def test_a_text_that_the_vocabulary_cannot_express_is_the_prompts_fault(make_llm, tmp_path):
    Tokenizer(models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))

    with pytest.raises(InvalidRequest, match="prompt 0: the prompt's text cannot be tokenized: .*UNK"):
        make_llm(tmp_path).generate("b")


def test_a_cache_smaller_than_a_request_may_grow_is_said(random_llama, engines, caplog):
    engines.append(LLM(random_llama, kv_cache_memory=100_000, max_model_len=256))

    assert "a request may have 256: one that outgrows the cache ends early" in caplog.text


def test_without_a_limit_of_the_users_a_request_may_be_as_long_as_the_cache(random_llama, engines, caplog):
    engines.append(LLM(random_llama, kv_cache_memory=100_000))
    core = engines[0].llm_engine.engine_core
    capacity = core.kv_cache_config.num_blocks * 16

    assert f"the KV cache holds {capacity} tokens, so a request may have {capacity + 1}, and not the model's 256" in (
        caplog.text
    )
    assert core.vllm_config.model_config.max_model_len == capacity + 1
    (output,) = engines[0].generate([[5] * 20], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == capacity + 1 - 20


def test_a_torch_dtype_is_as_good_as_its_name(random_llama, engines):
    llm = LLM(random_llama, dtype=torch.bfloat16)
    engines.append(llm)

    assert llm.llm_engine.vllm_config.model_config.dtype is torch.bfloat16


def changed_later(**values: Any) -> SamplingParams:
    """Parameters with values that are refused where they are made with them."""
    params = SamplingParams()
    for name, value in values.items():
        setattr(params, name, value)
    return params


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"request_id": "\ud83d"}, "cannot be served: "),
        ({"params": changed_later(stop=["\ud83d"])}, "stop holds .* not valid Unicode"),
        ({"params": changed_later(stop_token_ids=[2**64])}, "stop_token_ids has token id 18446744073709551616"),
        ({"priority": 2**64}, "cannot be served: "),
    ],
    ids=["id", "stop", "stop_token_ids", "priority"],
)
def test_what_no_message_can_hold_is_refused_before_others_meet_it(random_llama, engines, change, complaint):
    llm = LLM(random_llama, scheduling_policy="priority")
    engines.append(llm)
    engine = llm.llm_engine
    engine.add_request("good", [5, 6, 7], GREEDY)

    with pytest.raises(InvalidRequest, match=complaint):
        engine.add_request(**({"request_id": "bad", "prompt": [5, 6, 7], "params": SamplingParams()} | change))
    ended = []
    while engine.has_unfinished_requests():
        ended += [output.request_id for output in engine.step() if output.finished]

    assert ended == ["good"]


def test_an_interrupt_between_two_logits_processors_is_of_that_step_alone(random_llama, engines, monkeypatch):
    llm = LLM(random_llama)
    engines.append(llm)
    params = SamplingParams(temperature=0.8, min_p=0.05, max_tokens=10, seed=1)
    expected = tokens(llm.generate([[1, 2, 3]] * 4, params))[0]

    def interrupted(self, update):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MinTokensLogitsProcessor, "update_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1, 2, 3]], params)

    assert tokens(llm.generate([[1, 2, 3]], params)) == [expected]


def exchange(model: torch.nn.Module) -> None:
    for number, parameter in enumerate(model.parameters()):
        parameter.data = parameter.data + 0.3 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(number)
        )


class Exchanging:
    """For ``worker.extension_cls``."""

    def exchange(self) -> None:
        exchange(self.model_runner.model)


@pytest.mark.parametrize(
    "change",
    [
        lambda llm: llm.apply_model(exchange),
        lambda llm: llm.collective_rpc(lambda worker: exchange(worker.model_runner.model)),
        lambda llm: llm.collective_rpc("exchange"),
    ],
    ids=["apply_model", "a function", "an extension"],
)
def test_weights_that_were_put_in_the_place_of_others_are_used_by_the_next_step(random_llama, engines, change):
    overrides = {"worker.extension_cls": f"{__name__}.{Exchanging.__name__}"}
    llm = LLM(random_llama, enable_prefix_caching=False, overrides=overrides)
    engines.append(llm)
    before = tokens(llm.generate([[5, 6, 7]], GREEDY))

    change(llm)
    (got,) = tokens(llm.generate([[5, 6, 7]], GREEDY))
    # The same weights, with every token as part of a prompt.
    prompt = [5, 6, 7]
    for _ in got:
        prompt += llm.generate([prompt], SamplingParams(temperature=0, max_tokens=1))[0].outputs[0].token_ids

    assert got == prompt[3:]
    assert [got] != before
