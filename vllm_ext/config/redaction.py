"""What must not be shown: values of keys that are marked secret, options whose name says so, and logins in URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

from vllm_ext.config.keys import REDACTED, all_keys
from vllm_ext.config.paths import join_path
from vllm_ext.config.schema import Settings

# Tokens by themselves are counted (max_tokens), and passes too; whose tokens they are makes them secret.
_SECRET_WORDS = re.compile(
    r"token|pass"
    r"|(?:(?:auth|access|api|hf)token|(?:access|secret|signing|encryption|priv|private)key"
    r"|\w*(?:password|passphrase|passwd|secret|apikey)|pwd|credential|auth|authorization|bearer|cookie)s?"
)
# A name falls into words at signs and before capitals: an authToken is one, the max_tokens of a tokenizer are none.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LOGIN = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
"""What stands between the signs of a URL and its host: a user's name, a password, or a token instead of both."""
_MIN_LENGTH = 4
"""A shorter secret is not looked for in texts: it would be found everywhere."""


def names_secret(name: str) -> bool:
    """Whether a name says that what it names is secret."""
    words = [word.lower() for word in _WORD.findall(name)]
    joined = (first + second for first, second in pairwise(words))
    return any(_SECRET_WORDS.fullmatch(word) for word in (*words, *joined))


def is_secret(parts: tuple[str, ...]) -> bool:
    """Whether the value of the key with these parts must not be shown.

    An option's own name decides, or that of a mapping around it; a plugin may be called what it likes.
    """
    if key := all_keys().get(join_path(parts)):
        return key.secret
    top = all_keys().get(parts[0])
    return top is not None and top.is_mapping and any(names_secret(name) for name in parts[2:])


def redact(parts: tuple[str, ...], value: Any) -> Any:
    """A copy of ``value`` without the secrets in it; an unset one, null, is none."""
    if value is None:
        return None
    if is_secret(parts):
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redact((*parts, str(name)), below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [redact(parts, element) for element in value]
    return _LOGIN.sub(REDACTED, value) if isinstance(value, str) else value


def secrets_in(settings: Settings) -> list[str]:
    """The secret texts in the options, and those of keys that are marked secret, in every form in which who was given
    them may repeat them.

    Longest first, so that none is replaced in part.
    """
    marked = [key.parts for key in all_keys().values() if key.secret]
    places = [(("options",), settings.options), *((parts, reduce(getattr, parts, settings)) for parts in marked)]
    found = {form for parts, value in places for text in _secrets_below(parts, value) for form in _forms(text)}
    return sorted((text for text in found if len(text) >= _MIN_LENGTH), key=len, reverse=True)


def scrub(text: str, secrets: Iterable[str]) -> str:
    """``text`` without any of ``secrets``."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text


def may_hold_secret(key: str, text: str) -> bool:
    """Whether ``text``, which gives a value to ``key``, has to stay out of messages.

    A misspelt key counts as if it were a plugin's: what was meant is not known.
    """
    if _LOGIN.search(text):
        return True
    known = all_keys().get(key)
    if known and not known.is_mapping:
        return known.secret
    return names_secret(text)


def _secrets_below(parts: tuple[str, ...], value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _secrets_below((*parts, str(name)), below)
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _secrets_below(parts, element)
    elif isinstance(value, str | int | float) and not isinstance(value, bool) and is_secret(parts):
        yield str(value)
    elif isinstance(value, str):
        for login in _LOGIN.findall(value):
            # Who connects may quote the password alone, and without the escapes that it needs in a URL.
            password = login.partition(":")[2]
            yield from (login, password, unquote(password))


def _forms(secret: str) -> Iterator[str]:
    """A secret itself and line by line, as where each gets an indent, both also as they stand in quotes."""
    # Here, since most processes have no secret.
    import json

    for text in {secret, *map(str.strip, secret.splitlines())}:
        # Errors often have what they are about as its repr, or in JSON, with signs before quotes and lines' ends.
        quoted = (repr(text), ascii(text), json.dumps(text), json.dumps(text, ensure_ascii=False))
        yield from (text, *(form[1:-1] for form in quoted))
