"""Texts and pairs of texts are cut as transformers cuts them, whatever the tokenizer puts around them."""

from __future__ import annotations

import functools
import threading

import hypothesis.strategies as st
import pytest
import transformers
from hypothesis import given
from support.encoders import wordpiece_tokenizer
from support.vocabularies import byte_fallback_tokenizer, byte_level_tokenizer, metaspace_tokenizer
from tokenizers import Tokenizer, processors

from vllm_ext.engine.inputs.tokenizer import FastTokenizer
from vllm_ext.engine.inputs.truncation import truncate
from vllm_ext.errors import InvalidRequest

WORDS = ["the", "fox", "Größe", "你好", ",", "jumps", "😀", "[SEP]", "[CLS]", "<s>", "</s>", "<|end|>", " ", "\n"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)


def around(tokenizer: Tokenizer, single: str, special: dict[str, int]) -> Tokenizer:
    """``tokenizer``, with special tokens around a text."""
    pair = f"{single} {single.replace('$A', '$B:1')}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=list(special.items())
    )
    return tokenizer


MADE = {
    "on both sides": wordpiece_tokenizer,
    "none": byte_level_tokenizer,
    "one after": lambda: around(byte_level_tokenizer(), "$A <|end|>", {"<|end|>": 0}),
    "one before": lambda: around(byte_fallback_tokenizer(), "<s> $A", {"<s>": 1}),
    "two before": lambda: around(byte_fallback_tokenizer(), "<s> <s> $A </s>", {"<s>": 1, "</s>": 2}),
    "none, and a space before words": metaspace_tokenizer,
}
"""Tokenizers by what they put around a text."""


@functools.cache
def written(name: str) -> str:
    return MADE[name]().to_str()


def both(name: str) -> tuple[FastTokenizer, transformers.PreTrainedTokenizerFast]:
    """The same tokenizer as ours and as that of transformers, which leaves its marks on the one it is given."""
    ours = FastTokenizer(Tokenizer.from_str(written(name)))
    return ours, transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(written(name)))


@pytest.mark.parametrize("name", MADE)
@given(TEXTS, st.integers(1, 24))
def test_a_text_is_cut_as_transformers_cuts_it(name, text, limit):
    ours, theirs = both(name)
    token_ids = ours.encode(text)
    num_around = len(ours.encode("a")) - len(ours.encode("a", add_special_tokens=False))

    if limit < num_around and len(token_ids) > limit:
        with pytest.raises(InvalidRequest, match=f"puts {num_around} tokens around every text"):
            truncate(ours, text, token_ids, limit)
    else:
        expected = theirs(text, truncation=True, max_length=limit)["input_ids"]
        assert truncate(ours, text, token_ids, limit) == expected


@given(st.lists(st.integers(0, 99), min_size=1, max_size=12), st.integers(1, 12))
def test_tokens_without_a_text_are_cut_at_their_end(token_ids, limit):
    ours, _ = both("on both sides")

    assert truncate(ours, None, token_ids, limit) == token_ids[:limit]


@pytest.mark.parametrize("name", ["on both sides", "none", "one after", "two before"])
@given(TEXTS, TEXTS, st.integers(6, 30))
def test_a_pair_is_cut_as_transformers_cuts_it(name, text, text_pair, limit):
    ours, theirs = both(name)
    # In a list, since it takes an empty second text for none otherwise.
    pairs = [(text, text_pair)]
    expected = theirs(pairs, truncation="longest_first", max_length=limit, return_token_type_ids=True)

    token_ids, kinds = ours.encode_pair(text, text_pair, limit)

    assert token_ids == expected["input_ids"][0]
    assert kinds == expected["token_type_ids"][0]
    # It is as before for those that come after it.
    assert ours.encode_pair(text, text_pair)[0] == theirs(pairs)["input_ids"][0]
    assert ours.encode(text) == theirs(text)["input_ids"]


def test_threads_with_different_limits_get_what_they_asked_for():
    class Overtaken(FastTokenizer):
        """Another thread cuts to 6 as soon as this one has made a tokenizer that cuts to 8."""

        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if isinstance(value, tuple) and value[0] == 8:
                other = threading.Thread(target=lambda: found.append(self.encode_pair("the fox " * 8, "jumps " * 8, 6)))
                other.start()
                other.join()

    found = []
    ours = Overtaken(Tokenizer.from_str(written("on both sides")))

    token_ids, _ = ours.encode_pair("the fox " * 8, "jumps " * 8, 8)

    assert (len(token_ids), len(found[0][0])) == (8, 6)
