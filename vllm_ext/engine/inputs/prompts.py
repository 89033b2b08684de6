"""The forms in which a prompt may be given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict

from vllm_ext.contracts.parameter_checks import as_integer, without_array
from vllm_ext.errors import InvalidRequest, did_you_mean, listing

if TYPE_CHECKING:
    from typing_extensions import TypeIs


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class _TokensPrompt(TypedDict):
    prompt_token_ids: list[int]


class TokensPrompt(_TokensPrompt, total=False):
    """A prompt as token ids; ``prompt``, its text, is only handed back."""

    prompt: str


class DataPrompt(TypedDict):
    """Data of a program's own, which the engine's IO processor turns into prompts; vLLM: ``DataPrompt``."""

    data: Any


PromptType: TypeAlias = str | list[int] | TextPrompt | TokensPrompt
"""One prompt."""

_ACCEPTED = (
    "a prompt is a text, a list of token ids, {'prompt': text} or {'prompt_token_ids': list of token ids}; "
    "several prompts are a list of these"
)
_KEYS = ("prompt", "prompt_token_ids")
_TEXT_ALONE = "the engine takes text and token ids alone"
_OF_VLLM = {
    "cache_salt": "the prefix cache is one for all requests",
    "mm_processor_kwargs": _TEXT_ALONE,
    "multi_modal_data": _TEXT_ALONE,
    "multi_modal_uuids": _TEXT_ALONE,
    "prompt_embeds": _TEXT_ALONE,
}
"""Keys that prompts of vLLM may have besides, and why they hold nothing here but ``None``."""


class ParsedPrompt(NamedTuple):
    """A prompt in one form; ``token_ids`` is ``None`` where the text has still to be tokenized."""

    text: str | None
    token_ids: list[int] | None


def is_data_prompt(prompts: Any) -> TypeIs[DataPrompt]:
    """Whether it is for an IO processor, and no prompt."""
    return isinstance(prompts, Mapping) and "data" in prompts


def split_prompts(prompts: PromptType | Sequence[PromptType]) -> list[Any]:
    """One prompt or several, as a list; a flat list of integers is one prompt. The prompts are not looked at."""
    prompts = without_array(prompts)
    if isinstance(prompts, str | Mapping) or _is_token_ids(prompts):
        return [prompts]
    if not isinstance(prompts, list | tuple):
        raise InvalidRequest(f"prompts is {shown(prompts)}; {_ACCEPTED}{list_advice('prompts', prompts)}")
    return list(prompts)


def parse_prompt(prompt: PromptType) -> ParsedPrompt:
    """Check one prompt's form.

    Raises:
        InvalidRequest: it has none of the accepted forms; the text says what was given.
    """
    if isinstance(prompt, str):
        return ParsedPrompt(prompt, None)
    if isinstance(prompt, Mapping):
        return _parse_mapping(prompt)
    return ParsedPrompt(None, _parse_token_ids(prompt, "it"))


def _parse_mapping(prompt: Mapping[str, Any]) -> ParsedPrompt:
    if is_data_prompt(prompt):
        raise InvalidRequest(
            "{'data': ...} is for an IO processor, and stands alone: it is the whole argument of generate(), or of "
            f"encode() with pooling_task 'plugin'. Here {_ACCEPTED}"
        )
    for key, value in prompt.items():
        if key in _OF_VLLM:
            if value is not None:
                raise InvalidRequest(f"{key!r} is {shown(value)}; it takes None alone: {_OF_VLLM[key]}; {_ACCEPTED}")
        elif key not in _KEYS:
            raise InvalidRequest(
                f"unknown key {key!r}{did_you_mean(str(key), _KEYS)}; keys of a prompt: {listing(_KEYS)}; {_ACCEPTED}"
            )
    text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
    if text is None and token_ids is None:
        raise InvalidRequest(f"neither 'prompt' nor 'prompt_token_ids' is given; {_ACCEPTED}")
    if text is not None and not isinstance(text, str):
        raise InvalidRequest(f"'prompt' is {shown(text)}, not a text; {_ACCEPTED}")
    if token_ids is None:
        return ParsedPrompt(text, None)
    return ParsedPrompt(text, _parse_token_ids(token_ids, "'prompt_token_ids'"))


def _parse_token_ids(value: Any, what: str) -> list[int]:
    value = without_array(value)
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"{what} is {shown(value)}; {_ACCEPTED}")
    # numpy's integers, too, but only as Python's can they pass to another process.
    token_ids = list(map(as_integer, value))
    if None in token_ids:
        position = token_ids.index(None)
        raise InvalidRequest(f"{what} has {shown(value[position])} at position {position}, not a token id; {_ACCEPTED}")
    return token_ids  # type: ignore[return-value] # there is no None


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, (int, Integral)) for item in value)


def list_advice(name: str, value: Any) -> str:
    """What to do where ``value`` of the argument ``name`` is refused for a generator, or another series that is no
    list; empty of anything else.
    """
    is_series = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | list | tuple)
    return f"; make a list of it: list({name})" if is_series else ""


def shown(value: Any) -> str:
    """A value for a message: short, and with its type."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
