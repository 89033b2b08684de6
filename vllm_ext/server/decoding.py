"""From the body of a request to a typed struct: what is unknown, or of a wrong kind, is refused by its name."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import msgspec
from starlette.requests import Request

from vllm_ext.errors import RefusedByServer, did_you_mean, listing
from vllm_ext.server.answers import JSON_TYPE

MAX_BODY_BYTES = 32 * 2**20
"""Of one request; a larger one is refused before it is read."""
_AT = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)


GivenPrompts: TypeAlias = str | list[str | int | list[int]]
"""A text, texts, the ids of one prompt's tokens, or several lists of these."""


class Fixed(NamedTuple):
    """A field of vLLM's that means nothing here: the values that may stand, besides null, and why no others may."""

    reason: str
    allowed: tuple[Any, ...] = ()


class RequestBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What all requests with a body have."""

    FIXED: ClassVar[dict[str, Fixed]] = {}

    model: str | None = None
    user: str | None = None
    """OpenAI's: who the client's own user is; nothing is done with it."""
    request_id: str | None = None
    priority: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] = 0


Body = TypeVar("Body", bound=RequestBody)


async def read_request(request: Request, kind: type[Body]) -> Body:
    """The request's body as a struct of ``kind``.

    Raises:
        RefusedByServer: it is no JSON, too large, or does not fit.
    """
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != JSON_TYPE:
        # Another kind may be sent by any web page, to this machine too, without a browser asking first.
        raise RefusedByServer(
            f"the body is declared as {given or 'nothing'!r}; Content-Type has to be {JSON_TYPE}", status=415
        )
    body = bytearray()
    _check_size(int(request.headers.get("content-length", "0")))
    async for part in request.stream():
        body += part
        _check_size(len(body))
    return decode(bytes(body), kind)


def decode(body: bytes, kind: type[Body]) -> Body:
    """``body``, JSON, as a struct of ``kind``; errors as of :func:`read_request`."""
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), kind) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedByServer(f"the body is no JSON: {error}") from error
    except RecursionError as error:
        raise RefusedByServer("the body is nested too deeply") from error
    for name, fixed in kind.FIXED.items():
        value = getattr(request, name)
        if value is not None and value not in fixed.allowed:
            allowed = " or ".join(msgspec.json.encode(each).decode() for each in (*fixed.allowed, None))
            shown = _cut(msgspec.json.encode(value).decode())
            raise RefusedByServer(f"{name} is {shown}; it takes {allowed}: {fixed.reason}", param=name)
    return request


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise RefusedByServer(f"the body has more than {MAX_BODY_BYTES} bytes, which is the most", status=413)


def _cut(text: str) -> str:
    """The beginning of what a client sent: to compare and to repeat all of it could take seconds."""
    return text if len(text) <= 60 else text[:57] + "..."


def _misfit(text: str, kind: type[RequestBody]) -> RefusedByServer:
    at = _AT.search(text)
    path = at["path"].lstrip(".") if at else ""
    what = text[: at.start()] if at else text
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    if unknown := _UNKNOWN.match(what):
        name = _cut(f"{path}.{unknown['name']}" if path else unknown["name"])
        hint = did_you_mean(name, known)
        fields = "" if path else f"; it takes: {listing(known)}"
        return RefusedByServer(f"unknown field {name!r}{hint}{fields}", param=name)
    if missing := _MISSING.match(what):
        name = f"{path}.{missing['name']}" if path else missing["name"]
        return RefusedByServer(f"field {name!r} is missing", param=name)
    where = f"{path} has a wrong value" if path else "the body has a wrong form"
    return RefusedByServer(
        f"{where}: {what[0].lower()}{what[1:]}", param=path.partition(".")[0].partition("[")[0] or None
    )
