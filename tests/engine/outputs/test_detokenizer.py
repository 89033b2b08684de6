"""Incremental detokenization: the same text as the tokenizer's own decoder gives, in whole characters."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vocabularies import (
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    metaspace_tokenizer,
    word_end_tokenizer,
)
from tokenizers import Tokenizer

from vllm_ext.engine.inputs.tokenizer import FastTokenizer
from vllm_ext.engine.outputs.detokenizer import IncrementalDetokenizer, TokenBytes

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
METASPACE = metaspace_tokenizer()
WORD_END = word_end_tokenizer()

EACH = pytest.mark.parametrize(
    "tokenizer",
    [BYTE_LEVEL, BYTE_FALLBACK, METASPACE, WORD_END],
    ids=["level", "fallback", "metaspace", "word ends"],
)
TEXTS = st.text(
    st.one_of(
        st.sampled_from("the an a, .\n\t  é你好"),
        st.sampled_from("😀👩\u200d👧🇩🇪\u0301\u0308日本語\ufffdﷺ"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)


def stream(tokenizer: Tokenizer, token_ids: list[int], prompt: Sequence[int] = ()) -> list[str]:
    """The deltas of a request, one for each token and one for the end."""
    detokenizer = IncrementalDetokenizer(TokenBytes(FastTokenizer(tokenizer)), prompt)
    return [*(detokenizer.decode([token_id]) for token_id in token_ids), detokenizer.flush()]


@settings(max_examples=150)
@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=40))
def test_byte_level_deltas_are_the_whole_text_for_any_tokens(token_ids):
    assert "".join(stream(BYTE_LEVEL, token_ids)) == BYTE_LEVEL.decode(token_ids)


@settings(max_examples=150)
@given(st.lists(st.integers(0, WORD_END.get_vocab_size() - 1), max_size=40))
def test_word_end_deltas_are_the_whole_text_for_any_tokens(token_ids):
    assert "".join(stream(WORD_END, token_ids)) == WORD_END.decode(token_ids)


@settings(max_examples=150)
@given(TEXTS)
@EACH
def test_deltas_are_the_whole_text(tokenizer, text):
    token_ids = tokenizer.encode(text).ids

    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


@settings(max_examples=150)
@given(TEXTS)
@EACH
def test_output_after_a_prompt_keeps_its_leading_space(tokenizer, text):
    prompt = tokenizer.encode("an a").ids
    token_ids = tokenizer.encode(text).ids

    whole = tokenizer.decode(prompt + token_ids)
    assert tokenizer.decode(prompt) + "".join(stream(tokenizer, token_ids, prompt)) == whole


@settings(max_examples=150)
@given(TEXTS.filter(lambda text: "\ufffd" not in text))
@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["level", "fallback"])
def test_no_delta_holds_half_a_character(tokenizer, text):
    assert not any("\ufffd" in delta for delta in stream(tokenizer, tokenizer.encode(text).ids))


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["level", "fallback"])
def test_a_character_of_several_tokens_comes_with_the_last_of_them(tokenizer):
    token_ids = tokenizer.encode("x𐍈").ids[-4:]

    deltas = stream(tokenizer, token_ids, tokenizer.encode("an a").ids)

    assert deltas == ["", "", "", "𐍈", ""]


def test_characters_before_a_byte_that_is_none_stay():
    byte = BYTE_FALLBACK.token_to_id
    broken = [byte("<0xFF>"), byte("a")]
    valid = [byte("<0xE5>"), byte("<0xA5>"), byte("<0xBD>")]

    assert "".join(stream(BYTE_FALLBACK, valid + broken)) == "好\ufffda"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["level", "fallback"])
def test_a_character_that_is_never_completed_is_replaced_at_the_end(tokenizer):
    token_ids = tokenizer.encode("x𐍈").ids[-4:-1]

    assert stream(tokenizer, token_ids, tokenizer.encode("an a").ids) == ["", "", "", "\ufffd"]


def test_special_tokens_are_no_text():
    end = BYTE_FALLBACK.token_to_id("</s>")

    assert "".join(stream(BYTE_FALLBACK, [end, *BYTE_FALLBACK.encode("the").ids, end])) == "the"


def test_a_token_is_looked_at_once():
    decoded = []

    class CountingTokenizer:
        def decode(self, token_ids, skip_special_tokens):
            decoded.append(token_ids)
            return BYTE_LEVEL.decode(token_ids, skip_special_tokens)

    token_ids = BYTE_LEVEL.encode("the dog").ids
    detokenizer = IncrementalDetokenizer(TokenBytes(CountingTokenizer()))
    detokenizer.decode(token_ids)
    num_decoded = len(decoded)

    detokenizer.decode(token_ids * 100)

    assert len(decoded) == num_decoded
