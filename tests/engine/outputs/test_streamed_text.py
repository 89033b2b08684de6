"""Streamed text is the whole decode, whatever the tokens, their number in a step, and the parameters of the text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.vocabularies import byte_fallback_tokenizer, byte_level_tokenizer, metaspace_tokenizer
from tokenizers import Tokenizer

from vllm_ext.contracts.outputs import CompletionOutput
from vllm_ext.contracts.sampling_params import SamplingParams
from vllm_ext.engine.core.messages import EngineCoreRequest
from vllm_ext.engine.inputs.tokenizer import FastTokenizer
from vllm_ext.engine.outputs.output_processor import OutputProcessor
from vllm_ext.engine.scheduling.request import EngineCoreOutput

TOKENIZERS = {
    "level": byte_level_tokenizer(),
    "fallback": byte_fallback_tokenizer(),
    "metaspace": metaspace_tokenizer(),
}
SPECIAL = {"level": "<|end|>", "fallback": "</s>"}
PROPERTY = settings(max_examples=120)
TEXTS = st.text(
    st.one_of(
        st.sampled_from("the an a, .\n\t  é你好"),
        st.sampled_from("😀👩\u200d👧🇩🇪\u0301\u0308日本語ﷺ"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"),
    ),
    max_size=30,
)
CHUNKS = st.lists(st.integers(1, 4), min_size=1, max_size=8)
WITH_SPECIAL = pytest.mark.parametrize("name", SPECIAL)
EACH = pytest.mark.parametrize("name", TOKENIZERS)


def stream(
    tokenizer: Tokenizer, token_ids: list[int], chunks: list[int], prompt: list[int], **values
) -> list[CompletionOutput]:
    """The state after each step, up to the one that ends the request; ``chunks`` are taken over and over."""
    params = SamplingParams(max_tokens=None, **values)
    processor = OutputProcessor(FastTokenizer(tokenizer))
    processor.add_completions(None, [EngineCoreRequest("r", prompt, params, frozenset())], None)
    states, start = [], 0
    for count in itertools.cycle(chunks):
        new = token_ids[start : start + count]
        start += count
        output = EngineCoreOutput("r", new, "length" if start >= len(token_ids) else None)
        (request_output,) = processor.process_outputs([output]).request_outputs
        states.append(request_output.outputs[0])
        if request_output.finished:
            break
    return states


def assert_grows(states: list[CompletionOutput]) -> None:
    """What was shown stays."""
    for before, after in itertools.pairwise(states):
        assert after.text.startswith(before.text)


@EACH
@PROPERTY
@given(TEXTS, CHUNKS)
def test_of_any_text(name, text, chunks):
    tokenizer = TOKENIZERS[name]
    token_ids = tokenizer.encode(text).ids
    prompt = tokenizer.encode("an a").ids
    assume(token_ids)

    states = stream(tokenizer, token_ids, chunks, prompt)

    assert tokenizer.decode(prompt) + states[-1].text == tokenizer.decode(prompt + token_ids)
    assert_grows(states)
    assert not any("\ufffd" in state.text for state in states[:-1])


@WITH_SPECIAL
@PROPERTY
@given(st.lists(TEXTS, min_size=1, max_size=4), CHUNKS, st.booleans())
def test_with_special_tokens_skipped_or_shown(name, texts, chunks, skip):
    tokenizer = TOKENIZERS[name]
    prompt, special = tokenizer.encode("an a").ids, tokenizer.token_to_id(SPECIAL[name])
    token_ids = [token_id for text in texts for token_id in [*tokenizer.encode(text).ids, special]]

    states = stream(tokenizer, token_ids, chunks, prompt, skip_special_tokens=skip)

    whole = tokenizer.decode(prompt + token_ids, skip_special_tokens=skip)
    assert tokenizer.decode(prompt) + states[-1].text == whole
    assert_grows(states)
    assert skip or SPECIAL[name] in states[-1].text


def cut(text: str, stop: list[str], first_end: int = 1) -> tuple[str, str | None]:
    """Read character by character: the text before the first stop string that is complete."""
    for end in range(first_end, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))], max(complete, key=len)
    return text, None


@pytest.mark.parametrize("included", [False, True])
@EACH
@PROPERTY
@given(TEXTS, CHUNKS, st.data())
def test_a_stop_string_split_over_tokens_stops_at_the_right_character(name, included, text, chunks, data):
    tokenizer = TOKENIZERS[name]
    token_ids, prompt = tokenizer.encode(text).ids, tokenizer.encode("an a").ids
    assume(token_ids)
    whole = stream(tokenizer, token_ids, chunks, prompt)[-1].text
    assume(whole)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = [whole[start : start + data.draw(st.integers(1, 5))], "zzz", data.draw(st.text("thean ", min_size=1))]
    # One token in a step: in larger steps, tokens after the stop string may have come with it.
    states = stream(tokenizer, token_ids, [1], prompt, stop=stop, include_stop_str_in_output=included)

    expected, matched = cut(whole, stop)
    assert states[-1].text == expected + (matched if included else "")
    assert (states[-1].finish_reason, states[-1].stop_reason) == ("stop", matched)
    assert_grows(states)
    num_tokens = len(states[-1].token_ids)
    before = stream(tokenizer, token_ids[: num_tokens - 1], [1], prompt)[-1].text if num_tokens > 1 else ""
    assert cut(before.rstrip("\ufffd"), stop)[1] is None, "it would have been complete a token earlier"


@PROPERTY
@given(TEXTS, CHUNKS, st.integers(1, 20), st.data())
def test_a_stop_string_counts_only_after_min_tokens(text, chunks, min_tokens, data):
    tokenizer = TOKENIZERS["level"]
    token_ids = tokenizer.encode(text).ids
    assume(len(token_ids) > 2)
    stop = [data.draw(st.sampled_from(text))]
    early = stream(tokenizer, token_ids[:min_tokens], chunks, [1])[-1].text
    if early.endswith("\ufffd"):
        early = early[:-1]

    last = stream(tokenizer, token_ids, chunks, [1], stop=stop, min_tokens=min_tokens)[-1]

    whole = tokenizer.decode(token_ids)
    if not whole.endswith("\ufffd"):
        assert (last.text, last.stop_reason) == cut(whole, stop, len(early) + 1)


def test_a_stop_string_over_three_tokens_and_two_steps():
    tokenizer = TOKENIZERS["level"]
    token_ids = [tokenizer.token_to_id(char) for char in "ab<END>cd"]

    states = stream(tokenizer, token_ids, [4, 3, 2], [1], stop=["<END>"])

    assert [state.text for state in states] == ["ab", "ab"]
    assert (states[-1].finish_reason, states[-1].stop_reason) == ("stop", "<END>")
