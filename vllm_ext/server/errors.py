"""Errors as clients get them: a status, and OpenAI's shape, in which vLLM puts the status once more."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from http import HTTPStatus

import msgspec

from vllm_ext.config.redaction import scrub
from vllm_ext.errors import EngineError, InvalidRequest, RefusedByServer, VllmExtError, message_of

logger = logging.getLogger(__name__)

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}
_UNEXPECTED = "the server failed with this request; its log has the reason"


class ErrorInfo(msgspec.Struct):
    """What is wrong; ``param`` is the field of the request at fault, where it is one."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(msgspec.Struct):
    """The body of every answer that is an error."""

    error: ErrorInfo


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    """JSON for an error."""
    kind = _TYPES.get(status) or ("BadRequestError" if status < 500 else "InternalServerError")
    return msgspec.json.encode(ErrorBody(ErrorInfo(message, kind, param, status)))


class ErrorTexts:
    """From exceptions to what clients may know of them.

    Args:
        secrets: texts that no answer has, though an error may repeat them.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = secrets

    def body_of(self, error: Exception, *, is_engine_dead: bool, fields: Collection[str] = ()) -> tuple[int, bytes]:
        """Status and JSON for ``error``. One that nobody expected is logged with its traceback, and not told.

        Args:
            is_engine_dead: whether no request can be served any more.
            fields: names that the request may have; of a refusal that begins with one of them, it is the parameter.
        """
        if not isinstance(error, VllmExtError):
            logger.error("a request failed", exc_info=error)
            return 500, error_body(500, _UNEXPECTED)
        message = scrub(message_of(error), self._secrets)
        if isinstance(error, RefusedByServer):
            return error.status, error_body(error.status, message, error.param)
        if isinstance(error, InvalidRequest):
            first = message.partition(" ")[0].partition("[")[0]
            return 400, error_body(400, message, first if first in fields else None)
        status = 503 if isinstance(error, EngineError) and is_engine_dead else 500
        logger.error("a request failed: %s", message)
        return status, error_body(status, message)


def phrase_of(status: int) -> str:
    """The status in words, such as ``not found``."""
    try:
        return HTTPStatus(status).phrase.lower()
    except ValueError:
        return "an error"
