"""Prompts as requests have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm_ext.engine.inputs.prompts import TokensPrompt
from vllm_ext.errors import RefusedByServer
from vllm_ext.server.decoding import GivenPrompts
from vllm_ext.server.service import Service


def split(name: str, given: GivenPrompts) -> list[Any]:
    """The prompts in the field ``name``; RefusedByServer where they are of several kinds, or there is none."""
    if isinstance(given, str):
        return [given]
    kinds = {type(each) for each in given}
    if len(kinds) != 1:
        what = "a list of several kinds" if given else "an empty list"
        raise RefusedByServer(
            f"{name} is {what}; it takes a text, a list of texts, a list of token ids, or a list of such lists",
            param=name,
        )
    return [given] if kinds == {int} else list(given)


async def without_special_tokens(service: Service, prompts: Iterable[Any]) -> list[Any]:
    """Prompts without the tokens that the tokenizer puts around a text; those that are token ids stay."""
    return [
        TokensPrompt(prompt=each, prompt_token_ids=await service.encode(each, add_special_tokens=False))
        if isinstance(each, str)
        else each
        for each in prompts
    ]
