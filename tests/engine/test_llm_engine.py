"""The engine with text at both ends, on the fake worker."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from support.async_engine import fails_in_step
from support.fake_engine import VOCAB_SIZE, FakeDispatcher, continuation, make_vllm_config
from support.vocabularies import byte_fallback_tokenizer, byte_level_tokenizer, write_tokenizer
from tokenizers import processors

from vllm_ext.contracts.outputs import RequestOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.llm_engine import LLMEngine
from vllm_ext.errors import EngineError, InvalidRequest, TokenizerError

TOKENIZER = byte_level_tokenizer()
GREEDY = SamplingParams(temperature=0.0, max_tokens=6)


def says(text: str) -> Callable:
    """Makes the fake worker answer every prompt with the tokens of ``text``, then with end of sequence."""
    script = [*TOKENIZER.encode(text).ids, *[0] * 100]

    def prepare(worker):
        position_of_prompt = {}

        def next_token(token_ids):
            start = position_of_prompt.setdefault(token_ids[0], len(token_ids))
            return script[len(token_ids) - start]

        worker.next_token = next_token

    return prepare


@pytest.fixture
def make_engine(make_llm):
    """Makes an engine on the fake worker whose end-of-sequence token is 0."""
    return lambda **options: make_llm(eos_token_id=0, **options).llm_engine


def run(engine: LLMEngine) -> list[RequestOutput]:
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def test_a_text_is_tokenized_and_handed_back(make_engine):
    engine = make_engine()
    engine.add_request("a", "the quick", GREEDY)
    output = run(engine)[-1]

    prompt = TOKENIZER.encode("the quick").ids
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("a", "the quick", prompt)
    assert output.outputs[0].token_ids == continuation(prompt, 6)


def test_each_step_gives_all_that_a_request_has_so_far(make_engine):
    engine = make_engine(prepare=says("the lazy dog"))
    engine.add_request("a", "x", SamplingParams(max_tokens=50))
    outputs = run(engine)

    texts = [output.outputs[0].text for output in outputs]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == "the lazy dog"
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, len(outputs) + 1))
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_an_output_that_was_given_does_not_change_later(make_engine):
    engine = make_engine()
    engine.add_request("a", "x", GREEDY)
    (first,) = engine.step()
    before = list(first.outputs[0].token_ids)
    run(engine)

    assert first.outputs[0].token_ids == before


def test_a_request_that_only_wants_its_end_gives_one_output_with_the_same_text(make_engine):
    prepare = says("größe 你好 😀 the end")
    streaming, final = make_engine(prepare=prepare), make_engine(prepare=prepare)
    streaming.add_request("a", "x", SamplingParams(max_tokens=90))
    final.add_request("a", "x", SamplingParams(max_tokens=90), final_only=True)

    assert run(final) == run(streaming)[-1:]


def test_the_end_of_sequence_token_is_kept_in_the_tokens_and_not_in_the_text(make_engine):
    engine = make_engine(prepare=says("the fox"))
    engine.add_request("a", "x", SamplingParams(max_tokens=50))
    completion = run(engine)[-1].outputs[0]

    assert completion.text == "the fox"
    assert completion.token_ids == [*TOKENIZER.encode("the fox").ids, 0]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_a_stop_token_is_kept_in_the_tokens_and_not_in_the_text(make_engine):
    engine = make_engine(prepare=says("the fox!"))
    stop = TOKENIZER.token_to_id("!")
    engine.add_request("a", "x", SamplingParams(max_tokens=50, stop_token_ids=[stop]))
    completion = run(engine)[-1].outputs[0]

    assert (completion.text, completion.token_ids[-1]) == ("the fox", stop)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


@pytest.mark.parametrize("final_only", [False, True])
def test_a_stop_string_across_tokens_ends_the_request_and_is_never_shown(make_engine, final_only):
    engine = make_engine(prepare=says("the quick brown fox jumps"))
    engine.add_request("a", "x", SamplingParams(max_tokens=50, stop=["own f", "jumps"]), final_only=final_only)
    outputs = run(engine)

    assert all("the quick br".startswith(output.outputs[0].text) for output in outputs)
    completion = outputs[-1].outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("the quick br", "stop", "own f")
    assert TOKENIZER.decode(completion.token_ids).startswith("the quick brown f")
    assert not engine.engine_core.scheduler.has_unfinished_requests()


@pytest.mark.parametrize("final_only", [False, True])
def test_text_held_back_for_a_stop_string_comes_at_the_end(make_engine, final_only):
    engine = make_engine(prepare=says("the qui"))
    engine.add_request("a", "x", SamplingParams(max_tokens=50, stop="the quick"), final_only=final_only)
    completion = run(engine)[-1].outputs[0]

    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("the qui", "stop", None)


def test_a_stop_string_in_the_last_token_allowed_wins_over_the_length(make_engine):
    engine = make_engine(prepare=says("the"))
    num_tokens = len(TOKENIZER.encode("the").ids)
    engine.add_request("a", "x", SamplingParams(max_tokens=num_tokens, stop="e"))
    completion = run(engine)[-1].outputs[0]

    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("th", "stop", "e")


def test_an_aborted_request_gives_one_last_output_and_the_others_go_on(make_engine):
    engine = make_engine()
    engine.add_request("a", "x", SamplingParams(temperature=0.0, max_tokens=50), final_only=True)
    engine.add_request("b", "y", GREEDY, final_only=True)
    engine.step()
    engine.abort_request("a")
    outputs = {output.request_id: output.outputs[0] for output in run(engine)}

    assert (outputs["a"].finish_reason, len(outputs["a"].token_ids)) == ("abort", 1)
    assert (outputs["b"].finish_reason, len(outputs["b"].token_ids)) == ("length", 6)


def test_aborting_what_is_not_in_flight_does_nothing(make_engine):
    engine = make_engine()
    engine.abort_request(["never seen"])

    assert not engine.has_unfinished_requests()


def test_the_tokenizer_adds_its_special_tokens(tmp_path, make_llm):
    tokenizer = byte_fallback_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    engine = make_llm(write_tokenizer(tmp_path, tokenizer)).llm_engine
    engine.add_request("a", "", GREEDY)
    output = run(engine)[-1]

    assert output.prompt_token_ids == [1]


def test_after_a_prompt_without_text_the_output_begins_like_a_text(tmp_path, make_llm):
    tokenizer = byte_fallback_tokenizer()
    the = tokenizer.encode("the").ids

    def prepare(worker):
        worker.next_token = lambda token_ids: [1, *the, *the][len(token_ids)]

    engine = make_llm(write_tokenizer(tmp_path, tokenizer), prepare=prepare).llm_engine
    engine.add_request("alone", [1], SamplingParams(max_tokens=2 * len(the)))

    assert run(engine)[-1].outputs[0].text == tokenizer.decode([*the, *the]) == "the the"


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ({"prompt_token_ids": []}, "the prompt is empty"),
        ([1, VOCAB_SIZE], f"token id {VOCAB_SIZE} is outside .* 0 to {VOCAB_SIZE - 1}"),
        ([-1, 1], "token id -1 is outside"),
        ("\ud800", "cannot be tokenized"),
        (7, "a prompt is a text"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_and_changes_nothing(make_engine, prompt, complaint):
    engine = make_engine()
    with pytest.raises(InvalidRequest, match=complaint):
        engine.add_request("a", prompt, GREEDY)

    assert not engine.has_unfinished_requests()
    engine.add_request("a", "x", GREEDY)
    assert run(engine)[-1].finished


def test_the_error_of_a_step_has_the_ids_that_the_requests_were_added_by(make_engine):
    engine = make_engine(prepare=fails_in_step(2, ValueError("stop it")))
    engine.add_request("one", "x", GREEDY)
    engine.add_request("two", "y", SamplingParams(n=2, max_tokens=6))
    engine.step()

    with pytest.raises(EngineError, match="stop it") as caught:
        engine.step()

    assert caught.value.request_ids == ("one", "two")


def test_other_things_than_sampling_params_are_refused(make_engine):
    with pytest.raises(InvalidRequest, match=r"\{'temperature': 0\}; it takes SamplingParams"):
        make_engine().add_request("a", "x", {"temperature": 0})


def test_the_tokenizer_is_looked_for_before_the_worker_is_started(tmp_path):
    dispatcher = FakeDispatcher(make_vllm_config(tmp_path))
    with pytest.raises(TokenizerError):
        LLMEngine(dispatcher)

    assert dispatcher.worker is None


def test_leaving_the_context_stops_the_worker(model_dir):
    dispatcher = FakeDispatcher(make_vllm_config(model_dir))
    with LLMEngine(dispatcher):
        pass

    assert dispatcher.worker.calls[-1] == "shutdown"
